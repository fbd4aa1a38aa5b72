"""The door for JSON, and the limits on what a file may cost."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from bigtransfer import cli, limits, records
from bigtransfer.errors import ConfigError, RunError, WeightsError
from tests.conftest import REPOSITORY


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, msgspec.Meta(ge=1)]
    mode: Literal["square", "aspect"] = "square"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


def test_a_record_of_the_form_is_read() -> None:
    text = '{"inner": {"size": 3, "unknown": 1}, "names": ["a"], "scores": {"x": 1, "y": NaN}}'
    read = records.decode(text, Outer, "card", WeightsError)
    assert read.inner == Inner(3) and read.names == ("a",) and read.scores["x"] == 1.0 and math.isnan(read.scores["y"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"inner": {"size": 0}}', "f.json: inner.size: expected int >= 1"),
        ('{"inner": {"size": "3"}}', "f.json: inner.size: expected int, got str"),
        ('{"inner": {"size": 3.7}}', "f.json: inner.size: expected int, got float"),
        ('{"inner": {"size": true}}', "f.json: inner.size: expected int, got bool"),
        ('{"inner": {"size": 1, "mode": "round"}}', "f.json: inner.mode: invalid enum value 'round'"),
        ('{"inner": {"size": 1}, "names": ["a", null]}', "f.json: names[1]: expected str, got null"),
        ('{"inner": {"size": 1}, "scores": {"x": "1"}}', "f.json: scores[...]: expected float, got str"),
        ('{"inner": {"size": "\\udcff"}}', "f.json: inner.size: expected int, got str"),
        ('{"inner": {"size": 1, "mode": "\\udcff"}}', "f.json: inner.mode: invalid enum value '?'"),
        ('{"inner": {"size": 1}, "\\udcff": 1}', "f.json: '\\udcff' is not text"),
        ("{}", "f.json: object missing required field inner"),
        ("[1]", "f.json: expected object, got array"),
        ("{", "f.json is not JSON"),
        ("", "f.json is not JSON"),
        ("[" * 100_000, "f.json is nested too deeply"),
        ('{"inner": {"size": %s}}' % ("9" * 5000), "f.json has a number of 5,000 digits"),
        ('{"inner": {"size": 1, "mode": "a", "size": 2}}', "f.json has 'size' twice in one object"),
    ],
)
def test_another_form_is_refused_with_file_and_field(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(RunError) as caught:
        records.read(tmp_path / "f.json", Outer, RunError)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(said)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        records.read(tmp_path / "none.json", Outer, RunError)
    with pytest.raises(RunError, match=r"Cannot read .*: Is a directory"):
        records.read(tmp_path, Outer, RunError)
    (tmp_path / "latin.json").write_bytes('{"name": "ä"}'.encode("latin-1"))
    with pytest.raises(RunError, match=r"latin\.json is not UTF-8 text"):
        records.read(tmp_path / "latin.json", Outer, RunError)


def test_a_record_may_not_be_larger_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.json").write_text('{"inner": {"size": 1}}' + " " * 78)
    monkeypatch.setenv("BIT_LIMITS", "record_bytes=100")
    assert records.read(tmp_path / "f.json", Outer, RunError).inner.size == 1
    monkeypatch.setenv("BIT_LIMITS", "record_bytes=99")
    with pytest.raises(RunError, match=r"f\.json: it has more than 99 bytes.*--limits record_bytes=N"):
        records.read(tmp_path / "f.json", Outer, RunError)


def test_limits_are_read_by_name() -> None:
    assert limits.parse("") == limits.Limits()
    assert limits.parse(" record_bytes = 2M ,").record_bytes == 2_000_000
    assert [limits.parse(f"record_bytes={value}").record_bytes for value in ("7", "3k", "1G")] == [7, 3000, 10**9]
    for wrong, said in [
        ("bytes=1", "no limit 'bytes'; there are"),
        ("record_bytes", "record_bytes must be a whole number"),
        ("record_bytes=0", "record_bytes must be a whole number"),
        ("record_bytes=-1", "record_bytes must be a whole number"),
        ("record_bytes=1e9", "record_bytes must be a whole number"),
        ("record_bytes=9" + 20 * "9", "record_bytes must be a whole number"),
    ]:
        with pytest.raises(ConfigError, match=said):
            limits.parse(wrong)


def test_the_flag_limits_works_with_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BIT_LIMITS", "")
    assert cli.main(["info", "bit-t-r26x1", "--limits", "record_bytes=5M"]) == 0
    assert limits.limits().record_bytes == 5_000_000
    assert cli.main(["--limits=record_bytes=6M", "info", "bit-t-r26x1"]) == 0
    assert limits.limits().record_bytes == 6_000_000
    for wrong in (["--limits"], ["--limits="], ["--limits", "x=1"]):
        assert cli.main(["info", "bit-t-r26x1", *wrong]) == 2
    assert limits.limits().record_bytes == 6_000_000
    monkeypatch.setenv("BIT_LIMITS", "x=1")
    capsys.readouterr()
    assert cli.main(["info", "bit-t-r26x1"]) == 2
    assert "BIT_LIMITS: There is no limit 'x'" in capsys.readouterr().err


def test_the_document_names_every_limit_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", (REPOSITORY / "docs/limits.md").read_text(encoding="utf-8"), re.M)
    assert {name: int(value.replace(",", "")) for name, value in rows} == dataclasses.asdict(limits.Limits())
