"""What environment variables decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtransfer import settings
from bigtransfer.errors import ConfigError


@pytest.mark.parametrize(
    ("said", "offline"),
    [
        (None, False),
        ("", False),
        ("0", False),
        ("no", False),
        ("False", False),
        ("1", True),
        ("yes", True),
        ("true", True),
    ],
)
def test_offline(monkeypatch: pytest.MonkeyPatch, said: str | None, offline: bool) -> None:
    monkeypatch.delenv("BIT_OFFLINE", raising=False)
    if said is not None:
        monkeypatch.setenv("BIT_OFFLINE", said)
    assert settings.offline() is offline


@pytest.mark.parametrize(("said", "size"), [("", None), ("200", 200_000_000_000), ("0.5", 500_000_000)])
def test_shard_cache(monkeypatch: pytest.MonkeyPatch, said: str, size: int | None) -> None:
    monkeypatch.setenv("BIT_SHARD_CACHE", said)
    assert settings.shard_cache() == size


@pytest.mark.parametrize("said", ["0", "-1", "inf", "nan", "200 GB", "\xb2"])
def test_what_is_no_size(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("BIT_SHARD_CACHE", said)
    with pytest.raises(ConfigError, match="BIT_SHARD_CACHE is a number of GB"):
        settings.shard_cache()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for said in (None, ""):
        monkeypatch.delenv("BIT_CACHE", raising=False)
        if said is not None:
            monkeypatch.setenv("BIT_CACHE", said)
        assert settings.cache_folder() == tmp_path / ".cache" / "bigtransfer"
    monkeypatch.setenv("BIT_CACHE", "~/elsewhere")
    assert settings.cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("BIT_CACHE", "~no-such-user-here/x")
    with pytest.raises(ConfigError, match=r"~no-such-user-here/x cannot be found.*Set BIT_CACHE"):
        settings.cache_folder()
