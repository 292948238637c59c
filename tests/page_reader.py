"""Reads a page as a browser would, strictly: every tag closed, every id once, every link to something in the page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "hr", "img", "input"}
ADDRESSES = ("href", "src", "xlink:href", "action", "poster", "srcset")


class Page(HTMLParser):
    """What a page holds.

    Attributes:
        sections: title -> its text.
        bad: text of the row of every marked cell of a table of values, as ("w[0]", "1.234").
        errors: what is not well-formed, or reaches outside the page.
        tags: names of all tags.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: dict[str, str] = {}
        self.bad: list[tuple[str, str]] = []
        self.errors: list[str] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self._ids: list[str] = []
        self._links: list[str] = []
        self._section = ""
        self._row = ""
        self._marked = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self._judge()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self._ids += [str(given["id"])] if "id" in given else []
        for name, value in attrs:
            if name in ADDRESSES and not str(value).startswith(("#", "data:")):
                self.errors.append(f"{tag} {name}={value!r} reaches outside")
            if name in ADDRESSES and str(value).startswith("#"):
                self._links.append(str(value)[1:])
            if name.startswith("on"):
                self.errors.append(f"{tag} runs {value!r}")
            self._links += re.findall(r"url\(#([^)]+)\)", str(value))
        if tag == "tr":
            self._row = ""
        self._marked = tag == "td" and "bad" in str(given.get("class", ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing")
        self._marked = False

    def handle_data(self, data: str) -> None:
        within = self._open[-1] if self._open else ""
        if within == "h2":
            self._section = data
        elif within not in ("style", "text"):
            self.sections[self._section] = self.sections.get(self._section, "") + data
        if within == "th":
            self._row += data
        if self._marked:
            self.bad.append((self._row, data))

    def _judge(self) -> None:
        if self._open:
            self.errors.append(f"left open: {self._open}")
        if twice := {each for each in self._ids if self._ids.count(each) > 1}:
            self.errors.append(f"ids that are there twice: {sorted(twice)[:5]}")
        if lost := set(self._links) - set(self._ids):
            self.errors.append(f"links to nothing: {sorted(lost)[:5]}")
        if outside := re.findall(r"\w+://[^\s\"<]*|@import|url\((?!#)[^)]*\)", self.source):
            self.errors.append(f"addresses: {outside[:5]}")
