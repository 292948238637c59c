"""What the posterior predicts for the rows of the fit, beside what was observed there."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evidence import PREDICTIVE_NUMBERS, Evidence
from .figures import BAND, CHAINS, INK, axes_of, figure, panel, picture

DRAWN = 30
FEW = 20
"""So many different values are counted one by one."""
BINS = 10
MOST_SITES = 6

Array = NDArray[Any]


def why_not(evidence: Evidence) -> str:
    """What keeps rows from being predicted; "" if nothing does."""
    compiled = getattr(evidence.posterior, "compiled", None)
    if compiled is None:
        return "the model is not at hand. Report on ps.load(path, model=model, data=data)."
    if not hasattr(compiled.data, "columns") or type(compiled.data).__name__ == "Streamed":
        return "the rows come from a DataLoader. Use posterior.predict on rows of your own."
    if len(evidence.values) * compiled.num_data > PREDICTIVE_NUMBERS:
        return f"{len(evidence.values)} chains of {compiled.num_data} rows are too many. Use posterior.predict on some."
    return ""


def observed_and_drawn(evidence: Evidence) -> dict[str, tuple[Array, Array]]:
    """Site -> what was observed, `(n,)`, and draws of it, `(draws, n)`, of all values that are finite."""
    from pyro_scale.groups import arrays, data_groups

    assert evidence.posterior is not None and evidence.posterior.compiled is not None
    observed = data_groups(evidence.posterior.compiled)["observed_data"]
    found = {}
    for site, draws in arrays(evidence.prediction.draws).items():
        seen = observed.get(site)
        if seen is None or draws.shape[2:] != seen.shape:
            continue
        seen, flat = seen.astype(float).ravel(), draws.astype(float).reshape(-1, seen.size)
        known = np.isfinite(seen) & np.isfinite(flat).all(0)
        if known.any():
            found[site] = (seen[known], flat[:, known])
    return dict(list(found.items())[:MOST_SITES])


def checks(evidence: Evidence) -> str:
    """Distribution of the observations, and of those that the posterior predicts."""
    panels = []
    for site, (seen, drawn) in observed_and_drawn(evidence).items():

        def draw(on: Any, seen: Array = seen, drawn: Array = drawn) -> None:
            axes = axes_of(on, xlabel="value")
            (_counted if _is_counted(seen) else _dense)(axes, seen, drawn)

        panels.append(panel(site, picture(draw, f"Observations of {site} and predictions"), wide=False))
    return figure(
        panels,
        "Dots and the one strong line are the observations, blue what the posterior predicts for the same rows: for a "
        "few values their shares with 90 % intervals, otherwise the distributions of single draws. Where the "
        "observations leave what blue covers, the model does not describe the data. The rows are those of the fit, so "
        "that this is a lenient check.",
    )


def calibration(evidence: Evidence) -> str:
    """Whether predicted probabilities are frequencies, and predicted intervals hold what they say."""
    panels = []
    for site, (seen, drawn) in observed_and_drawn(evidence).items():
        if set(np.unique(seen)) <= {0.0, 1.0}:
            drawing, title = partial(_reliability, predicted=drawn.mean(0), seen=seen), site
        else:
            place = _pit(seen, drawn)
            half, most = (float((abs(place - 0.5) <= share / 2).mean()) for share in (0.5, 0.9))
            title = f"{site}: {half:.0%} in 50 % intervals, {most:.0%} in 90 %"
            drawing = partial(_uniform, place=place)
        panels.append(panel(title, picture(drawing, f"Calibration of {site}")))
    return figure(
        panels,
        "Of yes or no: how often yes was observed (upwards) among rows of which the same was predicted (to the right), "
        "with two standard errors; on the diagonal probabilities are frequencies. Of other values: where among its "
        "predictions each observation lies, 0 to 1, relative to a uniform histogram, with a band for 95 % of perfect "
        "ones; a U says that predictions are too sure, a hump that they are not sure enough, a slope that they are too "
        "high or too low.",
    )


def _is_counted(seen: Array) -> bool:
    return bool((seen == np.round(seen)).all()) and len(np.unique(seen)) <= FEW


def _counted(axes: Any, seen: Array, drawn: Array) -> None:
    levels = np.unique(seen)
    shares = np.stack([(drawn == level).mean(1) for level in levels], 1)  # (draws, levels)
    low, middle, high = np.quantile(shares, (0.05, 0.5, 0.95), 0)
    axes.bar(levels, middle, width=0.6, color=CHAINS[0], alpha=0.45)
    axes.vlines(levels, low, high, color=CHAINS[0], linewidth=2)
    axes.plot(levels, [(seen == level).mean() for level in levels], "o", color=INK, markersize=4)
    axes.set_ylim(0, None)
    if len(levels) <= 6:
        axes.set_xticks(levels)


def _dense(axes: Any, seen: Array, drawn: Array) -> None:
    low, high = np.quantile(seen, (0.002, 0.998))
    room = 0.15 * (high - low) or 0.5
    edges = np.linspace(low - room, high + room, int(np.clip(2 * len(seen) ** 0.5, 8, 40)) + 1)

    def outline(values: Array, **style: Any) -> None:
        axes.stairs(np.histogram(values, edges)[0] / (len(values) * np.diff(edges)), edges, **style)

    for index in np.linspace(0, len(drawn) - 1, min(DRAWN, len(drawn))).astype(int):
        outline(drawn[index], color=CHAINS[0], linewidth=0.5, alpha=0.35)
    outline(seen, color=INK, linewidth=1.2)
    axes.set(yticks=[], ylim=(0, None))
    axes.spines["left"].set_visible(False)


def _reliability(on: Any, predicted: Array, seen: Array) -> None:
    axes = axes_of(on, xlabel="predicted probability", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle="--")
    bins = [part for part in np.array_split(np.argsort(predicted, kind="stable"), BINS) if len(part)]
    for part in bins:
        frequency = seen[part].mean()
        error = 2 * np.sqrt(max(frequency * (1 - frequency), 1 / (4 * len(part))) / len(part))
        axes.plot([predicted[part].mean()] * 2, [frequency - error, frequency + error], color=CHAINS[0], linewidth=0.8)
        axes.plot(predicted[part].mean(), frequency, "o", color=CHAINS[0], markersize=3.5)


def _pit(seen: Array, drawn: Array) -> Array:
    """Share of the predictions below each observation; of ties a random part, so that it is uniform for counts too."""
    below, equal = (drawn < seen).mean(0), (drawn == seen).mean(0)
    found: Array = below + np.random.default_rng(0).uniform(size=seen.shape) * equal
    return found


def _uniform(on: Any, place: Array) -> None:
    axes = axes_of(on, xlabel="place among predictions")
    expected = len(place) / BINS
    spread = 2 * np.sqrt((1 - 1 / BINS) / expected)
    axes.axhspan(max(0, 1 - spread), 1 + spread, color=BAND, linewidth=0)
    heights, edges = np.histogram(place, BINS, (0, 1))
    axes.stairs(heights / expected, edges, color=CHAINS[0], baseline=None)
    axes.set_ylim(bottom=0)
