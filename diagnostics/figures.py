"""Small vector pictures for a page: in its colours, light or dark, and without an address outside it.

Matplotlib draws them, on figures of their own, so that no backend or global figure of the user's is touched. ArviZ's
plots are of whole posteriors, differ between its generations, and are too wide for a phone; these are single panels,
which a page lays side by side as far as there is room.
"""

from __future__ import annotations

import html
import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterable
from typing import Any

INK, BAND = "#0a0b0c", "#0d0e0f"
CHAINS = tuple(f"#0f0f{number:02x}" for number in range(8))
"""Stand for colours that the page knows: matplotlib writes them, and `_for_page` replaces them."""
COLOURS = {INK: "currentColor", BAND: "var(--band)"} | {each: f"var(--c{i})" for i, each in enumerate(CHAINS)}
WIDTH, HEIGHT = 3.6, 2.0
LEFT, BOTTOM, RIGHT, TOP = 0.44, 0.38, 0.06, 0.08
WIDE = 5.0
"""Inches, of a panel and of the room for numbers and names of axes in it."""
ROUND = [1, 2, 2.5, 5, 10]
"""Distances of numbers along an axis, up to a power of 10."""
STYLE: Any = {
    "svg.fonttype": "none",  # the page's font, and text that can be searched and read aloud
    "svg.hashsalt": "pyro_scale",
    "text.parse_math": False,  # names are the user's, and may hold a dollar
    "font.size": 8.5,
    "lines.linewidth": 1.0,
    "lines.solid_joinstyle": "round",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.unicode_minus": True,
    "axes.xmargin": 0.01,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.formatter.limits": (-3, 4),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def picture(draw: Callable[[Any], object], label: str, *, width: float = WIDTH, height: float = HEIGHT) -> str:
    """An inline SVG of what `draw` puts on a `matplotlib.figure.Figure` of so many inches.

    Args:
        draw: adds axes and what they show, in the colours of this file.
        label: what it is, for who cannot see it.
        width, height: in inches, of 96 px at full size.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the page's fonts have more
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(LEFT / width, BOTTOM / height, 1 - RIGHT / width, 1 - TOP / height)
        draw(figure)
        # as savefig, which draws everything once more beforehand; a layout engine would draw it a third time
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(out, metadata={"Date": None})
    return _for_page(out.getvalue(), label)


def axes_of(figure: Any, **named: Any) -> Any:
    """The only axes of a figure, with few ticks."""
    axes = figure.add_subplot()
    few_ticks(axes)
    axes.set(**named)
    return axes


def few_ticks(axes: Any, x: int = 5, y: int = 4) -> None:
    """At most so many numbers along an axis: a panel is small."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(x, steps=ROUND))
    axes.yaxis.set_major_locator(MaxNLocator(y, steps=ROUND))


def panel(title: str, content: str, *, wide: bool = False) -> str:
    """A picture under its title, which is the user's name for what it shows."""
    heading = f"<h4>{html.escape(title)}</h4>" if title else ""
    return f'<div class="panel{" wide" if wide else ""}">{heading}{content}</div>'


def figure(panels: Iterable[str], caption: str) -> str:
    """Panels side by side, as far as there is room, over a caption that says how to read them."""
    return (
        f'<figure><div class="panels">{"".join(panels)}</div><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _for_page(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None
    mark = f"p{zlib.crc32((label + svg).encode()):x}"  # ids are the page's, and pictures have the same ones
    opening = f'<svg role="img" aria-label="{html.escape(label)}" viewBox="{size.group()[9:-1]}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r"\s+", " ", svg.replace("xlink:href", "href").replace("base64,\n", "base64,"))
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{mark}-", svg)
    svg = re.sub(r"font(-family)?: ([\d.]+px )?[^;\"]*(?=[;\"])", _font, svg)
    for stand_in, colour in COLOURS.items():
        svg = svg.replace(stand_in, colour)
    # points of 1/72 inch: a tenth of one is less than anyone sees
    return re.sub(r"(?<=[\s\"(-])(\d+\.\d{2})\d+", _shorter, svg)


def _font(found: re.Match[str]) -> str:
    return f"font-size: {found.group(2).strip()}" if found.group(2) else "font-family: inherit"


def _shorter(found: re.Match[str]) -> str:
    return f"{float(found.group(1)):g}"
