"""Colours and line styles that tell methods apart, with colour blindness and in print too."""

from __future__ import annotations

GREY = "#8c8c8c"
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"]
"""Of Okabe & Ito (2008), Color universal design, without its yellow, which is faint on white."""
LINES = ["-", "--", "-.", ":"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
