"""The verdict in words, and the tables of numbers that it rests on."""

from __future__ import annotations

import html

import numpy as np

from pyro_scale.health import RHAT_LIMIT, Check, least_ess, so_many

from .evidence import Evidence
from .summaries import DrawnAs
from .tables import measured, table_html

MOST_ROWS = 100
HEADINGS = {
    "mean": "mean",
    "sd": "sd",
    "r_hat": "R-hat",  # what is marked stands where a phone shows it
    "ess_bulk": "ESS bulk",
    "ess_tail": "ESS tail",
    "q5": "5 %",
    "median": "median",
    "q95": "95 %",
    "mcse_mean": "MCSE mean",
    "mcse_sd": "MCSE sd",
}
NOT_OF: dict[DrawnAs, tuple[str, ...]] = {
    "chains": (),
    "independent": ("r_hat", "ess_bulk", "ess_tail"),
    "fits": ("r_hat", "ess_bulk", "ess_tail", "mcse_mean", "mcse_sd"),
}
"""Columns of which nothing is known, by how draws came about."""
RELIED_ON = {
    "chains": "As far as the run itself can tell, the draws can be relied on.",
    "independent": (
        "As far as the fit itself can tell, it has converged. Whether the posterior is close to the normal that was "
        "fitted is another question: ps.diagnostics.khat(posterior) answers it."
    ),
    "fits": (
        "As far as the fit itself can tell, it has converged. A point says nothing of how uncertain the values are, "
        "and several need not be spread as the posterior is."
    ),
}
"""What it means that all checks passed, by how draws came about."""


def verdict(evidence: Evidence) -> str:
    """What failed and what to do, or that nothing did; then all checks."""
    health = evidence.health
    failed, count = health.failed, len(health.checks)
    if failed:
        state, headline = "failed", f"{len(failed)} of {so_many(count)} failed"
        said = "".join(f"<li>{_in_words(check)}</li>" for check in failed)
        text = f'<ul class="reasons">{said}</ul>'
    elif count:
        state, headline = "passed", f"All {so_many(count)} passed" if count > 1 else "1 check passed"
        text = f"<p>{RELIED_ON[evidence.drawn_as]}</p>"
    else:
        state, headline = "unknown", "No checks could be made"
        few = "There are too few draws to tell whether they can be relied on."
        text = f"<p>{few if evidence.trace is None else 'Whether the fit has converged is not known.'}</p>"
    left_out = "".join(f"<li>{html.escape(each)}</li>" for each in health.left_out)
    left_out = f'<ul class="left-out">{left_out}</ul>' if left_out else ""
    banner = f'<div class="verdict {state}"><p class="headline">{headline}</p>{text}</div>'
    return banner + left_out + (_checks(health.checks) if count else "")


def summary_table(evidence: Evidence) -> str:
    """The table of values; of many those that are least to be trusted."""
    names = evidence.names
    if len(names) > MOST_ROWS:
        worst = set(evidence.worst_first(MOST_ROWS))
        names = [name for name in names if name in worst]
    least = least_ess(len(evidence.values))
    table = evidence.table.loc[names]

    def bad(name: str, column: str) -> bool:
        value = float(table.loc[name, column])
        if column == "r_hat":
            return value > RHAT_LIMIT
        if column in ("ess_bulk", "ess_tail"):
            return value < least
        return column == "mean" and value != value

    chains, number = evidence.drawn_as == "chains", int(np.prod(evidence.values.shape[:2]))
    left_out = NOT_OF[evidence.drawn_as]
    shown = {column: heading for column, heading in HEADINGS.items() if column not in left_out}
    if number == 1:
        shown = {"mean": "value"}
    content = table_html(table, shown, bad)
    marked = f"R-hat above {RHAT_LIMIT}, effective sample sizes (ESS) below {least}, and " if chains else ""
    legend = f"Marked: {marked}values with draws that are not finite. " if chains or table["mean"].isna().any() else ""
    if number > 1:
        legend += f"5 % and 95 % are quantiles of the {'points' if evidence.drawn_as == 'fits' else 'draws'}."
    if "mcse_mean" in shown:
        legend += " MCSE is the Monte Carlo standard error" + (
            ". A dash: not known from these draws." if chains else ", of independent draws."
        )
    return f'<p>{html.escape(counted(evidence, len(names)))}</p>{content}<p class="legend">{html.escape(legend)}</p>'


def counted(evidence: Evidence, shown: int) -> str:
    """How many values there are, and which are shown."""
    total, looked = evidence.num_values, len(evidence.names)
    if looked < total:
        text = f"{looked:,} of {total:,} values were looked at, evenly spaced, at least one of every site"
        return text + (f"; the {shown} least to be trusted are shown." if shown < looked else ".")
    if shown < total:
        return f"The {shown} of {total:,} values that are least to be trusted."
    return "The only value." if total == 1 else f"All {total:,} values."


def _in_words(check: Check) -> str:
    name = f"{check.name} of {check.where}" if check.where else check.name
    numbers = f"{measured(check.value)}, limit {measured(check.limit)}"
    return f"<strong>{html.escape(name)}</strong> is {html.escape(numbers)}: {html.escape(check.remedy)}"


def _checks(checks: tuple[Check, ...]) -> str:
    rows = []
    for check in checks:
        mark = "<td>passed</td>" if check.passed else '<td class="bad">failed</td>'
        name, where = html.escape(check.name), html.escape(check.where)
        sign = "≥" if check.passed == (check.value > check.limit) else "≤"
        limit = f"{sign} {measured(check.limit)}"
        cells = f'{mark}<td>{measured(check.value)}</td><td>{limit}</td><td class="name">{where}</td>'
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{each}</th>' for each in ("verdict", "value", "limit"))
    head += '<th scope="col" class="name">where</th>'
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
