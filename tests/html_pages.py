"""HTML as a browser reads it, for the tests of pages that we write."""

from __future__ import annotations

import html.parser
from collections.abc import Iterator


def parse(text: str) -> Element:
    """The page; AssertionError if its tags are not balanced."""
    return _Parser(text).page


class Element:
    """An element of a page: its tag, attributes, children and all text below it."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes, self.children = tag, attributes, list[Element | str]()

    def __iter__(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, kind: str | None = None) -> list[Element]:
        """Those below with this tag and, of its classes, this one."""
        return [
            one
            for one in self
            if one.tag == tag and (kind is None or kind in (one.attributes.get("class") or "").split())
        ]

    def rows(self) -> list[list[str]]:
        """The cells of all tables below it."""
        return [[" ".join(cell.text.split()) for cell in row if cell.tag in ("td", "th")] for row in self.all("tr")]

    def pairs(self) -> dict[str, str]:
        names, values = self.all("dt"), self.all("dd")
        return {name.text: value.text for name, value in zip(names, values, strict=True)}

    def numbers(self, *names: str) -> tuple[float, ...]:
        return tuple(float(self.attributes[name] or "nan") for name in names)


class _Parser(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.page = Element("", {})
        self.open = [self.page]
        self.feed(text)
        self.close()
        assert self.open == [self.page], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in Element.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in Element.VOID:
            assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)
