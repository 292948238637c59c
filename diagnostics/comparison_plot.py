"""A picture of posteriors beside a reference: marginal distributions, and means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_scale.checks import check_count
from pyro_scale.data import names_of
from pyro_scale.errors import ArgumentError
from pyro_scale.posterior import Posterior

from .palette import COLORS, GREY, LINES, MARKERS
from .parameters import Parameters, everyone, shared_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PARAMETERS = 12
COLUMNS = 3
NUM_BINS = 40
LEAST_DRAWS = 20
"""Fewer are drawn one by one instead of as a histogram."""
INTERVALS = {0.9: 1.5, 0.5: 4.5}
"""Share -> width of its line."""
LEGEND_INCHES, LETTER_INCHES = 0.6, 0.09
"""What an entry of the legend takes beside its letters, and a letter."""


class _Drawn(NamedTuple):
    """One posterior as it is drawn."""

    label: str
    values: np.ndarray  # (draws, parameters)
    color: str
    line: Any
    marker: str


def plot_compare(
    *posteriors: Posterior,
    reference: Posterior | None = None,
    parameters: Sequence[str] | None = None,
    num_parameters: int = MOST_PARAMETERS,
) -> Figure:
    """Marginals of up to 12 parameters, and a forest of means with their 50 and 90 % intervals.

    The reference is the grey area. The forest is in its units: 0 is its mean, 1 its standard deviation, so that a
    method is right where its bars lie as the grey ones do. Fewer than 20 draws, as of a mode or an ensemble, are marked
    one by one.

    Args:
        posteriors, reference: as of `compare`; up to 7 beside the reference.
        parameters: names as in the table of `compare`, at most 12; None takes those whose marginals are farthest from
            the reference's, by the Wasserstein distance in its sds, in the order of the model.
        num_parameters: how many of these; 1 to 12.

    Returns:
        A matplotlib figure, which `savefig` writes; it is not among those that are shown by `show`.

    Raises:
        ArgumentError: nothing to compare, no parameter in common, an unknown one, or too many.

    Example:
        >>> import torch
        >>> def made(shift):
        ...     draws = {"mu": shift + torch.randn(4, 500, generator=torch.Generator().manual_seed(0))}
        ...     about = {"num_steps": 500, "step_size": None, "timing": {"sample": 1.0}, "settings": {}}
        ...     return Posterior(draws, sample_stats={}, **about)
        >>> figure = plot_compare(made(0.5), reference=made(0.0))
        >>> figure.axes[0].get_title()
        'mu'
    """
    from matplotlib.figure import Figure

    labelled = everyone("plot_compare", posteriors, reference)
    if len(labelled) > 1 + len(COLORS):
        raise ArgumentError(
            f"plot_compare got {len(labelled) - 1} posteriors beside the reference; more than {len(COLORS)} cannot be "
            "told apart. Draw several pictures."
        )
    num_parameters = check_count("num_parameters", num_parameters, 1, MOST_PARAMETERS)
    shared = shared_parameters(list(labelled.values()))
    names = _chosen(shared, parameters, num_parameters)
    drawn = _drawn(list(labelled), [each.among(names) for each in shared])
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    forest_height = 0.8 + len(names) * (0.12 + 0.075 * len(drawn))
    figure = Figure(figsize=(max(5.4, 2.7 * columns), 0.7 + 1.6 * rows + forest_height), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.6 * rows, forest_height])
    grid = parts[0].subplots(rows, columns, squeeze=False)
    for place, axis in enumerate(grid.flat):
        if place < len(names):
            _marginal(axis, names[place], drawn, place)
        else:
            axis.set_visible(False)
    _forest(parts[1].subplots(), names, drawn)
    handles, titles = grid.flat[0].get_legend_handles_labels()
    across = max(1, int(figure.get_figwidth() / (LEGEND_INCHES + LETTER_INCHES * max(map(len, titles)))))
    figure.legend(handles, titles, loc="outside upper center", ncols=min(across, len(drawn)), frameon=False)
    return figure


def _chosen(shared: list[Parameters], wanted: Sequence[str] | None, number: int) -> list[str]:
    from scipy.stats import wasserstein_distance

    names = shared[0].names
    if wanted is not None:
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        if unknown := [name for name in wanted if name not in names]:
            raise ArgumentError(f"The posteriors share no parameter '{unknown[0]}'; they share {names_of(names)}.")
        if not 1 <= len(wanted) <= MOST_PARAMETERS:
            raise ArgumentError(f"parameters are {len(wanted)} names; 1 to {MOST_PARAMETERS} can be drawn.")
        return wanted
    if len(names) <= number:
        return names
    base, others = shared[0].flat.numpy(), [each.flat.numpy() for each in shared[1:]]
    distances = np.zeros(len(names))
    for place, column in enumerate(base.T):
        sd = column.std()
        if sd > 0 and np.isfinite(sd):
            found = [_finite(each[:, place]) for each in others]
            distances[place] = max(
                (wasserstein_distance(each, column) / sd for each in found if len(each)), default=0.0
            )
    return [names[place] for place in sorted(np.argsort(-distances, kind="stable")[:number])]


def _drawn(labels: list[str], parameters: list[Parameters]) -> list[_Drawn]:
    reference = _Drawn(labels[0], parameters[0].flat.numpy(), GREY, "-", "o")
    others = [
        _Drawn(label, each.flat.numpy(), COLORS[k], LINES[k % len(LINES)], MARKERS[k])
        for k, (label, each) in enumerate(zip(labels[1:], parameters[1:], strict=True))
    ]
    return [reference, *others]


def _finite(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = values[np.isfinite(values)]
    return found


def _marginal(axis: Any, name: str, drawn: Sequence[_Drawn], place: int) -> None:
    columns = [_finite(each.values[:, place]) for each in drawn]
    many = [column for column in columns if len(column) >= LEAST_DRAWS]
    # the ends of long tails would leave few bins to the rest
    ends = [np.quantile(column, [0.002, 0.998]) for column in many] or [[c.min(), c.max()] for c in columns if len(c)]
    low, high = (min(e[0] for e in ends), max(e[1] for e in ends)) if ends else (0.0, 1.0)
    margin = 0.03 * (high - low) if high > low else 0.5
    edges = np.linspace(low - margin, high + margin, NUM_BINS + 1)
    for k, (each, column) in enumerate(zip(drawn, columns, strict=True)):
        style = {"color": each.color, "label": each.label}
        if len(column) < LEAST_DRAWS:
            height = np.full(len(column), 0.08 + 0.1 * k)  # each method's own, in the lower part of the picture
            axis.plot(column, height, marker=each.marker, linestyle="none", markersize=6, markeredgecolor="white",
                      markeredgewidth=0.6, transform=axis.get_xaxis_transform(), zorder=5, **style)  # fmt: skip
        elif k == 0:
            axis.hist(column, edges, density=True, histtype="stepfilled", alpha=0.4, **style)
        else:
            axis.hist(column, edges, density=True, histtype="step", linewidth=1.4, linestyle=each.line, **style)
    axis.set_title(name, fontsize="medium")
    axis.set_yticks([])
    axis.tick_params(axis="x", labelsize="small")
    axis.spines[["top", "right", "left"]].set_visible(False)


def _forest(axis: Any, names: Sequence[str], drawn: Sequence[_Drawn]) -> None:
    """One line a posterior and parameter, in sds of the reference from its mean."""
    centers, sds = drawn[0].values.mean(0), drawn[0].values.std(0)
    step = 0.75 / len(drawn)
    for place in range(len(names)):
        if place % 2 == 0:
            axis.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
        for k, each in enumerate(drawn):
            column = _finite(each.values[:, place])
            if not len(column) or not sds[place] > 0:
                continue
            scaled = (column - centers[place]) / sds[place]
            height = place + step * (k - (len(drawn) - 1) / 2)
            for share, width in INTERVALS.items():
                if len(column) >= LEAST_DRAWS:
                    low, high = np.quantile(scaled, [(1 - share) / 2, (1 + share) / 2])
                    axis.plot([low, high], [height] * 2, color=each.color, linewidth=width, solid_capstyle="butt")
            if 1 < len(column) < LEAST_DRAWS:
                axis.plot(scaled, np.full(len(scaled), height), "|", color=each.color, markersize=6)
            axis.plot(scaled.mean(), height, each.marker, color=each.color, markersize=6, markeredgecolor="white",
                      markeredgewidth=0.9)  # fmt: skip
    axis.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("mean, 50 % and 90 % intervals, in the reference's sds from its mean")
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
