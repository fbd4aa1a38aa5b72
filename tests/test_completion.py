"""What shells complete, and the flags that every command takes."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bigtransfer import cli, completion, config
from bigtransfer.errors import ConfigError


def completed(*words: str) -> list[str]:
    """What bash offers for the last word."""
    script = (
        cli._completion(["bash"]) + 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _bit; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_and_values() -> None:
    assert completed("bit", "f") == ["finetune"]
    assert set(completed("bit", "")) >= {*(command.split()[0] for command in cli.commands()), "--help", "--version"}
    assert set(completed("bit", "detect", "")) == {"finetune", "evaluate", "predict"}
    assert completed("bit", "detect", "finetune", "--anch") == ["--anchor-scale"]
    assert completed("bit", "detect", "predict", "--format", "j") == ["jsonl"]
    assert completed("bit", "finetune", "--lin") == ["--linear"]
    assert completed("bit", "finetune", "photos", "--no-pre") == ["--no-pretrained"]
    assert completed("bit", "finetune", "--linear", "") == list(map(str, choices("finetune", "linear")))
    assert completed("bit", "predict", "m", "--format", "j") == ["jsonl"]
    assert completed("bit", "predict", "--qui") == ["--quiet"]
    assert completed("bit", "predict", "ph") == []  # bash goes on with files
    assert completed("bit", "--completion", "z") == ["zsh"]


def choices(command: str, name: str) -> tuple[object, ...]:
    return next(one.choices or () for one in config.fields_of(config.of_command(command)) if one.name == name)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_flag_of_every_command_is_known_to_every_shell(shell: str) -> None:
    script = cli._completion([shell])
    for command in cli.commands():
        assert all(word in script for word in command.split())
        for field in config.fields_of(config.of_command(command)):
            if not field.positional:
                flag = f"-l {field.flag[2:]} " if shell == "fish" else field.flag
                assert flag in script, (command, flag)
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n", "/dev/stdin"], input=script, text=True, check=True)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for asked in (["tcsh"], [], ["bash", "zsh"]):
        with pytest.raises(ConfigError, match="bash, zsh, fish"):
            cli._completion(asked)
    assert cli.main(["--completion", "zsh"]) == 0
    assert "compdef _bit bit" in capsys.readouterr().out


def test_completion_does_not_load_torch() -> None:
    code = (
        "import sys; from bigtransfer import cli; cli.main(['--completion', 'fish']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_quiet_shows_no_bars_and_tells_no_story(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> int:
        print("a story")
        sys.stderr.write("\r 10%|#  |")
        sys.stderr.write("\r100%|###|")
        sys.stderr.write("\n")
        print("note: listen", file=sys.stderr)
        sys.stderr.write("\n")
        return 3

    monkeypatch.setattr(cli, "_job", lambda _: type("Job", (), {"run": staticmethod(run)}))
    assert cli.main(["finetune", "photos", "--quiet"]) == 3
    assert capsys.readouterr() == ("", "note: listen\n\n")
    assert cli.main(["predict", "model", "photo", "--quiet"]) == 3
    assert capsys.readouterr() == ("a story\n", "note: listen\n\n")  # what was asked for
    assert cli.main(["finetune", "photos"]) == 3
    out, err = capsys.readouterr()
    assert out == "a story\n" and "100%" in err
    assert cli.main(["finetune", "--help", "--quiet"]) == 0 and "--quiet" in capsys.readouterr().out
    assert cli.main(["finetune", "photos", "--quiet", "--verbose"]) == 2
    assert "--quiet and --verbose contradict each other" in capsys.readouterr().err


def test_verbose_tells_what_it_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> int:
        logging.getLogger("bigtransfer.fetch").debug("looked in %s", tmp_path)
        return 0

    monkeypatch.setattr(cli, "_job", lambda _: type("Job", (), {"run": staticmethod(run)}))
    assert cli.main(["models", "--verbose"]) == 0
    told = capsys.readouterr().err
    assert f"bigtransfer.fetch: looked in {tmp_path}" in told and "bit models ModelsConfig(" in told
    assert "s, the processor" in told and "MB of memory" in told
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().err == ""
