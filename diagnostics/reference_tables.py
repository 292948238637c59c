"""A posterior beside its reference: whether chance explains the differences, errors by value, and what both cost."""

from __future__ import annotations

import html
import math

import pandas as pd

from .evidence import Evidence
from .tables import number, table_html

MOST_COMPARED = 2000
MOST_ROWS = 100
ERRORS = {
    "mean_error": "mean error",
    "mcse": "its MCSE",
    "z": "z",
    "sd_ratio": "sd ratio",
    "q5_error": "5 % error",
    "q95_error": "95 % error",
    "wasserstein": "Wasserstein",
}
EFFORT = {
    "seconds": "seconds",
    "ess_bulk": "smallest ESS",
    "ess_per_s": "ESS/s",
    "r_hat": "largest R-hat",
    "gradients": "gradients",
    "passes": "passes",
}
MANY = (
    "Mean error: mean minus the reference's, in the reference's standard deviations; z, that over its Monte Carlo "
    "standard error. Sd ratio: 1 is right. 5 % and 95 % error: of these quantiles, and Wasserstein: the distance of "
    "the distributions, in the same unit; by chance alone they are not 0 either. Row all: the worst of every column. "
    "Marked: a mean off by more than 0.1 and, where that is known, beyond chance; a sd off by more than 10 %."
)
POINT = (
    "Error: the point minus the reference's mean, in the reference's standard deviations. Row all: the largest. "
    "Marked: above 0.1."
)
SURE, TENTH, CHANCE = 3.0, 0.1, 0.001


def comparison(evidence: Evidence) -> str:
    """The table of `compare`, in three parts."""
    from .comparison import compare

    assert evidence.posterior is not None
    if evidence.num_values > MOST_COMPARED:
        return f"<p>{evidence.num_values:,} values are too many for a table; `compare` makes it.</p>"
    table = compare(evidence.posterior, reference=evidence.reference)
    theirs, ours = table.index.get_level_values(0).unique()
    errors = table.loc[ours]
    whole, names = errors.loc["all"], [name for name in errors.index if name != "all"]
    errors = errors.loc[["all", *names[:MOST_ROWS]]]
    effort = pd.DataFrame({"this posterior": whole, "the reference": table.loc[(theirs, "all")]}).T
    missing = _missing(evidence, len(names))
    point = evidence.values.shape[:2] == (1, 1)
    together = "" if point else _together(whole, finite=bool(whole["mean_error"] == whole["mean_error"]))
    return missing + together + _by_value(errors, point) + _effort(effort)


def _missing(evidence: Evidence, compared: int) -> str:
    """How many values one of both has alone: a reference of another model, or of other data, may have the names."""
    assert evidence.reference is not None
    alone = {
        "this posterior": evidence.num_values - compared,
        "the reference": sum(value[0, 0].numel() for value in evidence.reference.draws.values()) - compared,
    }
    told = " and ".join(f"{number:,} of {whose}" for whose, number in alone.items() if number)
    return f"<p>Not compared, since the other does not have them: values, {told}.</p>" if told else ""


def _together(whole: pd.Series, finite: bool) -> str:
    """Distances of all values at once, in a sentence."""
    p_values = {"energy distance": float(whole["energy_p"]), "maximum mean discrepancy": float(whole["mmd_p"])}
    if not finite:
        return "<p>Draws that do not vary, or are not finite, leave no distance of all values together.</p>"
    if not all(map(math.isfinite, p_values.values())):
        return "<p>There are too few independent draws to compare the distributions of all values together.</p>"
    told = " and ".join(f"p = {number(value, 'energy_p')} by {name}" for name, value in p_values.items())
    beyond = min(p_values.values()) <= CHANCE
    verdict = "differ by more than chance" if beyond else "differ by no more than chance may make them"
    mark = ' class="bad"' if beyond else ""
    return (
        f"<p>Draws of all values together <strong{mark}>{verdict}</strong>: {told}, the share of random exchanges of "
        "draws between the two that set them as far apart.</p>"
    )


def _by_value(table: pd.DataFrame, point: bool) -> str:
    def bad(name: str, column: str) -> bool:
        row = table.loc[name]
        if column == "mean_error":
            return bool(abs(row["mean_error"]) > TENTH and not abs(row["z"]) <= SURE)
        return column == "sd_ratio" and bool(abs(row["sd_ratio"] - 1) > TENTH)

    columns = {"mean_error": "error"} if point else _known(table, ERRORS)
    if not columns:
        return "<p>No value varies in the reference with draws that are all finite, and is known here.</p>"
    legend = POINT if point else MANY
    return table_html(table, columns, bad) + f'<p class="legend">{html.escape(legend)}</p>'


def _effort(table: pd.DataFrame) -> str:
    legend = "What both took: gradients are steps of all chains, passes these in rows of the data."
    shown = table_html(table, _known(table, EFFORT), lambda name, column: False)
    return f'{shown}<p class="legend">{html.escape(legend)}</p>'


def _known(table: pd.DataFrame, columns: dict[str, str]) -> dict[str, str]:
    """Without those of which nothing is known."""
    return {column: heading for column, heading in columns.items() if table[column].notna().any()}
