"""A plugin of pytest for `mutants map`: coverage is kept apart by test, and by fixture where tests share one.

Lines that a shared fixture runs belong to every test that uses it, not only to the first, which happens to set it up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from coverage import Coverage

_users: dict[str, list[str]] = {}
"""Context of a shared fixture -> the tests that use it."""


def _enter(context: str) -> None:
    current = Coverage.current()
    assert current is not None
    current.switch_context(context)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    for name in getattr(item, "fixturenames", ()):
        _users.setdefault(_context(item, name), []).append(item.nodeid)
    _enter(item.nodeid)
    result = yield
    _enter("")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> Iterator[None]:
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0]
    if fixturedef.scope == "function":
        return (yield)
    _enter(f"fixture {test.partition('::')[0]}::{fixturedef.argname}")
    result = yield
    _enter(test)
    return result


def _context(item: pytest.Item, fixture: str) -> str:
    return f"fixture {item.nodeid.partition('::')[0]}::{fixture}"


def pytest_sessionfinish() -> None:
    Path(os.environ["MUTANTS_FOLDER"], f"fixtures-{os.getpid()}.json").write_text(json.dumps(_users))
