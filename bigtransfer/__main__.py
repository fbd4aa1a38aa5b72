"""`python -m bigtransfer` is the command `bit`."""

from bigtransfer.cli import console

console()
