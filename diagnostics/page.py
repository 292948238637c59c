"""The page around the sections of a report: one file that asks for nothing outside itself."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from .look import CSS


def document(title: str, verdict: str, sections: Sequence[tuple[str, str]], missing: Sequence[tuple[str, str]]) -> str:
    """An HTML document.

    Args:
        title: in words.
        verdict: HTML of what comes first.
        sections: titles with HTML.
        missing: titles of sections that could not be made, with the reason.
    """
    links = "".join(f'<a href="#{anchor(name)}">{html.escape(name)}</a>' for name, _ in sections)
    bodies = "".join(_section(name, body) for name, body in sections)
    if missing:
        rows = "".join(f"<li><strong>{html.escape(name)}</strong>: {html.escape(why)}</li>" for name, why in missing)
        bodies += _section("Not shown", f'<ul class="left-out">{rows}</ul>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # not even an icon is asked for, and nothing in the file can run
        '<meta http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;; '
        'style-src &#39;unsafe-inline&#39;; img-src data:">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header><p class="brand">pyro_scale report</p><h1>{html.escape(title)}</h1></header>\n'
        f'<main>\n<section id="verdict" aria-label="Verdict">{verdict}</section>\n'
        f'<nav aria-label="Sections">{links}</nav>\n{bodies}</main>\n</body>\n</html>\n'
    )


def anchor(title: str) -> str:
    """What a link to a section names."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _section(title: str, body: str) -> str:
    return f'<section id="{anchor(title)}"><h2>{html.escape(title)}</h2>{body}</section>\n'
