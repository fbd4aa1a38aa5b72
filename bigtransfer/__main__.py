"""`python -m bigtransfer` is the command `bit`."""

import sys

from bigtransfer.cli import main

sys.exit(main())
