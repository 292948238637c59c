"""What chains look like, value by value: traces, ranks, autocorrelation, growth of the effective sample size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_scale.health import least_ess
from pyro_scale.values import evenly_spaced

from .evidence import Evidence
from .figures import BAND, CHAINS, INK, axes_of, few_ticks, figure, panel, picture
from .summaries import QUANTILES

SHOWN, FEWER = 12, 6
MOST_CHAINS = len(CHAINS)
MOST_POINTS = 400
"""Of a line, in a panel of as many pixels; of more draws the least and the largest of each stretch are drawn."""
BINS = 20
GROWTH = 8

Draws = NDArray[np.float64]


def each_value(evidence: Evidence, draw: Callable[..., object], what: str, most: int = SHOWN) -> list[str]:
    """A panel for each of the worst values, of `draw(figure, draws=...)`; values that are not finite are left out."""
    shown = []
    for name in evidence.worst_first(most):
        draws = evidence.draws(name)
        if np.isfinite(draws).all():
            shown.append(panel(name, picture(partial(draw, draws=draws), f"{what} of {name}")))
        else:
            shown.append(panel(name, '<p class="missing">Some draws are not finite.</p>'))
    return shown


def how_many(evidence: Evidence, most: int = SHOWN) -> str:
    """Which values have a panel, where not all do, as the beginning of a caption."""
    number = len(evidence.names)
    return f"The {most} of {number} values that are least to be trusted, the worst first. " if number > most else ""


def shown_chains(draws: NDArray[Any]) -> NDArray[Any]:
    """At most as many chains as there are colours, evenly spaced."""
    found: NDArray[Any] = draws[evenly_spaced(len(draws), MOST_CHAINS)]
    return found


def line(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points of a series, `(x, y)`; of a long one the least and the largest value of each stretch."""
    if len(values) <= 2 * MOST_POINTS:
        return np.arange(len(values)), values
    edges = np.linspace(0, len(values), MOST_POINTS + 1).astype(int)
    pairs = [(start + part.argmin(), start + part.argmax()) for start, part in _stretches(values, edges)]
    places = np.sort(np.array(pairs), 1).ravel()
    return places, values[places]


def _stretches(values: NDArray[Any], edges: NDArray[Any]) -> list[tuple[int, NDArray[Any]]]:
    return [(int(a), values[a:b]) for a, b in pairwise(edges)]


def traces(evidence: Evidence) -> str:
    """Draws in their order, chain by chain, beside their histogram."""

    def draw(on: Any, draws: Draws) -> None:
        left, right = on.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [4, 1], "wspace": 0.02})
        few_ticks(left)
        low, high = draws.min(), draws.max()
        edges = np.linspace(low, high, 31) if high > low else np.array([low - 0.5, low + 0.5])
        for colour, chain in zip(CHAINS, shown_chains(draws), strict=False):
            left.plot(*line(chain), color=colour, linewidth=0.6 if len(chain) > 200 else 1.0, alpha=0.75)
            heights = np.histogram(chain, edges)[0]
            right.stairs(heights, edges, orientation="horizontal", color=colour, linewidth=0.9)
        left.set_xlabel("draw")
        right.set_xticks([])
        right.spines["bottom"].set_visible(False)
        right.tick_params(left=False)

    more = len(evidence.values) > MOST_CHAINS
    return figure(
        each_value(evidence, draw, "Trace and histogram"),
        how_many(evidence)
        + "Left the draws in their order, right their histogram, a colour a chain"
        + (f" ({MOST_CHAINS} of {len(evidence.values)} chains are drawn). " if more else ". ")
        + "Chains that have converged look like the same noise around one level, and their histograms lie upon each "
        "other. Steps, drifts, or a chain that keeps to itself mean that draws do not represent the posterior yet.",
    )


def ranks(evidence: Evidence) -> str:
    """Histograms of ranks among all draws, chain by chain: Vehtari et al. (2021), section 4.3."""
    from scipy.stats import rankdata

    def draw(on: Any, draws: Draws) -> None:
        num_chains, num_samples = draws.shape
        bins = max(2, min(BINS, num_samples // 5))
        expected = num_samples / bins
        spread = 2 * np.sqrt((1 - 1 / bins) * (1 - 1 / num_chains) / expected)
        ranked = rankdata(draws, axis=None).reshape(draws.shape) / draws.size
        edges = np.linspace(0, 1, bins + 1)
        axes = axes_of(on, xlabel="rank among all draws, 0 to 1")
        axes.axhspan(max(0, 1 - spread), 1 + spread, color=BAND, linewidth=0)
        for colour, chain in zip(CHAINS, shown_chains(ranked), strict=False):
            axes.stairs(np.histogram(chain, edges)[0] / expected, edges, color=colour, baseline=None)
        axes.set(ylim=(0, None), xticks=[0, 0.5, 1])

    return figure(
        each_value(evidence, draw, "Rank histogram"),
        how_many(evidence)
        + "How often each chain has low, middle and high draws, relative to all chains together; a colour a chain. "
        "Around 1 everywhere is right; the band holds 95 % of independent draws, and correlated ones leave it "
        "somewhat more often. A slope means that a chain lies lower or higher than the others, a U or a hump that it "
        "is wider or narrower.",
    )


def autocorrelation(evidence: Evidence) -> str:
    """Autocorrelation functions, chain by chain."""

    def draw(on: Any, draws: Draws) -> None:
        num_samples = draws.shape[1]
        lags = min(num_samples - 1, 50)
        axes = axes_of(on, xlabel="lag, draws")
        band = 2 / num_samples**0.5
        axes.axhspan(-band, band, color=BAND, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.5)
        for colour, chain in zip(CHAINS, shown_chains(draws), strict=False):
            axes.plot(correlation(chain)[: lags + 1], color=colour, marker="." if lags < 10 else "", markersize=3)
        axes.set(ylim=(min(-0.25, axes.get_ylim()[0]), 1.05), yticks=[0, 0.5, 1])

    return figure(
        each_value(evidence, draw, "Autocorrelation"),
        how_many(evidence)
        + "Correlation of draws with those so many later, a colour a chain. The sooner it falls into the band, which "
        "holds 95 % of the values of independent draws, the more a draw is worth. Where it stays high, raise "
        "thinning or take more draws.",
    )


def correlation(chain: Draws) -> Draws:
    """Autocorrelation of a series at all lags."""
    centered = chain - chain.mean()
    spectrum = np.fft.rfft(centered, 2 * len(chain))
    covariance: Draws = np.fft.irfft(np.abs(spectrum) ** 2, 2 * len(chain))[: len(chain)]
    if covariance[0] <= 0:
        covariance = np.eye(1, len(chain))[0]  # of a series that does not vary
    found: Draws = covariance / covariance[0]
    return found


def growth(evidence: Evidence) -> str:
    """Effective sample size of the first draws of all chains, over their number."""
    import arviz as az

    num_chains, num_samples, _ = evidence.values.shape
    lengths = np.unique(np.linspace(max(4, num_samples // GROWTH), num_samples, GROWTH).astype(int))

    def draw(on: Any, draws: Draws) -> None:
        axes = axes_of(on, xlabel="draws of all chains")
        tails = {"method": "tail", "prob": (QUANTILES[0], QUANTILES[-1])}
        with np.errstate(all="ignore"):
            bulk = [float(az.ess(draws[:, :length], method="bulk")) for length in lengths]
            tail = [float(az.ess(draws[:, :length], **tails)) for length in lengths]
        axes.plot(lengths * num_chains, bulk, color=CHAINS[0], marker="o", markersize=2.5)
        axes.plot(lengths * num_chains, tail, color=CHAINS[1], marker="s", markersize=2.5)
        axes.axhline(least_ess(num_chains), color=INK, linestyle="--", linewidth=0.7)
        axes.set_ylim(bottom=0)

    return figure(
        each_value(evidence, draw, "Growth of the effective sample size", FEWER),
        how_many(evidence, FEWER)
        + "Effective sample size against the number of draws: blue circles for the mean, orange squares for the tails, "
        f"dashed the {least_ess(num_chains)} that are asked for. It should grow in a straight line. If it levels off, "
        "later draws have found what earlier ones had not, and more draws alone may not help.",
    )


def superchains(evidence: Evidence) -> str:
    """Means of chains, grouped by where they started."""
    number = int(evidence.settings["num_superchains"])
    within = len(evidence.values) // number

    def draw(on: Any, draws: Draws) -> None:
        axes = axes_of(on, xlabel="superchain")
        means = draws.mean(1).reshape(number, within)
        at = np.repeat(np.arange(1, number + 1), within)
        axes.axhline(means.mean(), color=INK, linewidth=0.5)
        axes.plot(
            at, means.ravel(), linestyle="", marker="o", markersize=3, color=CHAINS[0], alpha=0.6, markeredgewidth=0
        )
        axes.plot(np.arange(1, number + 1), means.mean(1), linestyle="", marker="_", markersize=12, color=CHAINS[1])

    return figure(
        each_value(evidence, draw, "Means of superchains", FEWER),
        how_many(evidence, FEWER)
        + f"Means of chains (blue dots), in the {number} groups that started at the same place, and means of the "
        "groups (orange bars). Groups that have forgotten their start differ no more than their chains make them: the "
        "bars scatter around the line by much less than the dots.",
    )
