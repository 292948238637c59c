"""Pairs of values, and marginals beside those of a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_scale.values import evenly_spaced

from .evidence import Evidence, draws_by_name
from .figures import CHAINS, INK, axes_of, few_ticks, figure, panel, picture

PAIRED = 5
MOST_POINTS = 2000
OVERLAID = 12
LONGEST = 16


def pairs(evidence: Evidence) -> str:
    """Scatter plots of every two of the worst values, and histograms of each."""
    names = [name for name in evidence.worst_first(len(evidence.names)) if evidence.table.loc[name, "sd"] > 0][:PAIRED]
    flat = np.stack([evidence.draws(name).ravel() for name in names])
    chosen = evenly_spaced(flat.shape[1], MOST_POINTS)
    number = len(names)

    def draw(on: Any) -> None:
        grid = on.subplots(number, number, sharex="col", squeeze=False)
        for row in range(number):
            for column in range(number):
                axes = grid[row, column]
                if column > row:
                    axes.set_axis_off()
                    continue
                if row == column:
                    axes.hist(flat[row], 30, histtype="step", color=CHAINS[0])
                    axes.set_yticks([])
                else:
                    points = (flat[column, chosen], flat[row, chosen])
                    axes.plot(
                        *points, ".", markersize=1.6, alpha=0.5, color="#4c8dbf", markeredgewidth=0, rasterized=True
                    )
                    few_ticks(axes, 2, 2)
                    if column:
                        axes.tick_params(labelleft=False)
                axes.set(
                    xlabel=_short(names[column]) if row == number - 1 else "",
                    ylabel=_short(names[row]) if column == 0 < row else "",
                )
        side, base = 0.7 / size, 0.6 / (0.85 * size)  # inches of numbers and names
        on.subplots_adjust(side, base, 0.99, 0.99, 0.12, 0.12)
        on.align_labels()

    size = 1.5 * number
    content = picture(draw, "Pairs of " + ", ".join(names), width=size, height=0.85 * size)
    caption = (
        "Draws of every two values"
        + (f" of the {number} least to be trusted" if number < len(evidence.names) else "")
        + ", and the histogram of each. A round or tilted cloud is easily sampled. A narrow "
        "ridge says that only a combination of both is known, a funnel or a bend that a reparametrised model would be "
        "sampled better, separate clouds that there are several modes."
    )
    # one size of letters, however many values there are
    style = f"max-width:{9 * number}rem;min-width:{6.8 * number:g}rem"
    return figure([f'<div class="scroll pairs"><div style="{style}">{content}</div></div>'], caption)


def _short(name: str) -> str:
    """A name beside axes that are as long as `LONGEST` letters: its end tells values of a site apart."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 3]}…{name[-(LONGEST - LONGEST // 3 - 1) :]}"


def overlays(evidence: Evidence) -> str:
    """Marginals of the posterior, and of the reference."""
    assert evidence.reference is not None
    theirs = draws_by_name(evidence.reference)
    panels: list[str] = []
    for name in evidence.worst_first(len(evidence.names)):
        if name not in theirs or len(panels) == OVERLAID:
            continue
        both = [evidence.draws(name).ravel(), theirs[name].ravel()]
        if not all(np.isfinite(values).all() for values in both):
            continue

        def draw(on: Any, both: list[NDArray[Any]] = both) -> None:
            ours, other = both
            if ours.size == 1:
                both = [other]
            low, high = np.quantile(np.concatenate([ours, other]), (0.0005, 0.9995))
            edges = np.linspace(low, high, 41) if high > low else np.array([low - 0.5, low + 0.5])
            axes = axes_of(on, yticks=[])
            axes.spines["left"].set_visible(False)
            styles = ({"color": CHAINS[0]}, {"color": INK, "linestyle": "--"})
            if ours.size == 1:  # a point has no histogram
                axes.axvline(float(ours[0]), color=CHAINS[0], linewidth=1.4)
            for values, style in zip(both, styles[-len(both) :], strict=True):
                heights = np.histogram(values, edges)[0] / (values.size * np.diff(edges))
                axes.stairs(heights, edges, linewidth=1.1, **style)
            axes.set_ylim(bottom=0)

        panels.append(panel(name, picture(draw, f"Marginals of {name}", height=1.6)))
    return figure(
        panels,
        "Marginal posteriors: dashed the reference, solid blue "
        + (
            "the point of this report, which should stand near the highest place of a marginal that is not skewed."
            if evidence.values.shape[:2] == (1, 1)
            else "the posterior of this report. They should lie upon each other but for the noise of histograms. A "
            "shift is an error of the mean, another width one of the sd."
        ),
    )
