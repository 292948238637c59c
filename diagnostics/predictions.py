"""What the posterior predicts for the rows of the fit, beside what was observed there."""

from __future__ import annotations

import html
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_scale.errors import PyroScaleError
from pyro_scale.values import evenly_spaced

from .evidence import PREDICTIVE_NUMBERS, Evidence
from .figures import BAND, CHAINS, INK, axes_of, figure, panel, picture
from .tables import table_html

DRAWN = 30
FEW = 20
"""So many different values are counted one by one."""
BINS = 10
MOST_SITES = 6
OF_CLASSES = (
    "Classes: how often what was given a probability happened (upwards) among a tenth of the rows, of which about the "
    "same was predicted (to the right), with two standard errors. On the diagonal probabilities are frequencies; a "
    "flatter line says that predictions are too sure, a steeper one that they are not sure enough."
)
OF_NUMBERS = (
    "Numbers: where among its predictions each observation lies, 0 to 1, relative to a uniform histogram, with a band "
    "for 95 % of the bars of perfect ones. A U says that predictions are too sure, a hump that they are not sure "
    "enough, a slope that they are too high or too low."
)
SCORES = (
    "Means over rows, with the standard error that their number leaves. Log predictive density: higher is better. "
    "Brier score, rmse and crps: lower is better. Coverage: the share of observations in central intervals of so many "
    "percent, to be about that. The rows are those of the fit, and are predicted better than new ones."
)

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


class Predicted(NamedTuple):
    """One observed site, at all values that are finite.

    Attributes:
        seen: what was observed, `(n,)`.
        drawn: draws of it, `(draws, n)`.
        confidence: probability of 1, or of the most probable of several classes, `(n,)`; None of other sites.
        happened: whether it was that, 0 or 1, `(n,)`; None of other sites.
    """

    seen: Array
    drawn: Array
    confidence: Array | None
    happened: Array | None


def predicted(evidence: Evidence) -> dict[str, Predicted]:
    """Of at most `MOST_SITES` sites."""
    from pyro_scale.groups import arrays, data_groups

    from .site_metrics import probabilities_of  # who has a model has torch

    assert evidence.posterior is not None and evidence.posterior.compiled is not None
    observed = data_groups(evidence.posterior.compiled)["observed_data"]
    found: dict[str, Predicted] = {}
    for site, draws in arrays(evidence.prediction.draws).items():
        seen = observed.get(site)
        if seen is None or draws.shape[2:] != seen.shape:
            continue
        shape, seen, flat = seen.shape, seen.astype(float).ravel(), draws.astype(float).reshape(-1, seen.size)
        known = np.isfinite(seen) & np.isfinite(flat).all(0)
        if not known.any():
            continue
        probabilities = probabilities_of(evidence.prediction, site)
        confidence, happened = None, None
        if probabilities is not None and tuple(probabilities.shape) == shape:
            confidence, happened = probabilities.double().cpu().numpy().ravel()[known], seen[known]
        elif probabilities is not None:
            by_class = probabilities.double().cpu().numpy().reshape(seen.size, -1)[known]
            confidence, happened = by_class.max(1), (by_class.argmax(1) == seen[known]).astype(float)
        found[site] = Predicted(seen[known], flat[:, known], confidence, happened)
    return dict(list(found.items())[:MOST_SITES])


def checks(evidence: Evidence) -> str:
    """Distribution of the observations, and of those that the posterior predicts."""
    panels, counted, dense = [], False, False
    for site, (seen, drawn, _, _) in predicted(evidence).items():
        few = _is_counted(seen)
        counted, dense = counted or few, dense or not few

        def draw(on: Any, seen: Array = seen, drawn: Array = drawn, few: bool = few) -> None:
            axes = axes_of(on, xlabel="value", ylabel="share" if few else "")
            (_counted if few else _dense)(axes, seen, drawn)

        panels.append(panel(site, picture(draw, f"Observations of {site} and predictions")))
    caption = (
        "Dots: shares of the values observed. Blue: those that the posterior predicts for the same rows, with 90 % "
        "intervals. " if counted else ""
    ) + (
        "Strong line: distribution of the observations. Blue: those of single draws that the posterior predicts for "
        "the same rows. " if dense else ""
    )  # fmt: skip
    return figure(
        panels,
        caption + "Where the observations leave what blue covers, the model does not describe the data. The rows are "
        "those of the fit, so that this is a lenient check.",
    )


def calibration(evidence: Evidence) -> str:
    """Whether predicted probabilities are frequencies, and predicted intervals hold what they say."""
    import torch

    panels, captions, generator = [], [], torch.Generator().manual_seed(0)
    for site, (seen, drawn, confidence, happened) in predicted(evidence).items():
        if confidence is not None and happened is not None:
            several = not set(np.unique(seen)) <= {0.0, 1.0}
            name = "probability of the likeliest class" if several else "predicted probability"
            drawing = partial(_reliability, confidence=confidence, happened=happened, name=name)
            captions.append(OF_CLASSES)
        else:
            from .coverage import pit

            drawing = partial(_uniform, place=pit(drawn, seen, generator).numpy())
            captions.append(OF_NUMBERS)
        panels.append(panel(site, picture(drawing, f"Calibration of {site}")))
    return figure(panels, " ".join(dict.fromkeys(captions))) + _scores(evidence)


def _scores(evidence: Evidence) -> str:
    """The numbers of `calibration`."""
    import torch

    from pyro_scale.groups import data_groups

    from .calibrated import calibration as calibrated

    assert evidence.posterior is not None and evidence.posterior.compiled is not None
    observed = data_groups(evidence.posterior.compiled)["observed_data"]
    try:
        table = calibrated(evidence.prediction, {site: torch.from_numpy(each) for site, each in observed.items()}).table
    except PyroScaleError as error:
        return f'<p class="legend">Scores: {html.escape(str(error))}</p>'
    several = len(table.index.unique("site")) > 1
    table.index = [(f"{site}: " if several else "") + metric.replace("_", " ") for site, metric in table.index]
    table["sd"] = (10 * table["standard_error"]).fillna(0.1)  # two digits of its error, or three decimals
    shown = table_html(table, {"value": "value", "standard_error": "standard error"}, lambda name, column: False)
    return shown + f'<p class="legend">{html.escape(SCORES)}</p>'


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

    for index in evenly_spaced(len(drawn), DRAWN):
        outline(drawn[index], color=CHAINS[0], linewidth=0.5, alpha=0.35)
    outline(seen, color=INK, linewidth=1.2)
    axes.set(yticks=[], ylim=(0, None))
    axes.spines["left"].set_visible(False)


def _reliability(on: Any, confidence: Array, happened: Array, name: str) -> None:
    halves = [0, 0.25, 0.5, 0.75, 1]
    axes = axes_of(on, xlabel=name, ylabel="observed", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xticks=halves, yticks=[0, 0.5, 1])
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle="--")
    bins = [part for part in np.array_split(np.argsort(confidence, kind="stable"), BINS) if len(part)]
    for part in bins:
        frequency = happened[part].mean()
        error = 2 * np.sqrt(max(frequency * (1 - frequency), 1 / (4 * len(part))) / len(part))
        ends = np.clip([frequency - error, frequency + error], 0, 1)
        axes.plot([confidence[part].mean()] * 2, ends, color=CHAINS[0], linewidth=0.8)
        axes.plot(confidence[part].mean(), frequency, "o", color=CHAINS[0], markersize=3.5)


def _uniform(on: Any, place: Array) -> None:
    axes = axes_of(on, xlabel="place among predictions", ylabel="relative to uniform")
    expected = len(place) / BINS
    spread = 2 * np.sqrt((1 - 1 / BINS) / expected)
    axes.axhspan(max(0, 1 - spread), 1 + spread, color=BAND, linewidth=0)
    heights, edges = np.histogram(place, BINS, (0, 1))
    axes.stairs(heights / expected, edges, color=CHAINS[0], baseline=None)
    axes.set_ylim(0, 1.05 * max(1 + spread, float(heights.max()) / expected))
