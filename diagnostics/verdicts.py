"""The verdict in words, and the tables of numbers that it rests on."""

from __future__ import annotations

import html

from pyro_scale.health import RHAT_LIMIT, Check, least_ess, so_many

from .evidence import Evidence
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
COMPARED = {
    "mean": "mean",
    "sd": "sd",
    "mean_error": "mean error",
    "mcse": "its MCSE",
    "z": "z",
    "sd_ratio": "sd ratio",
    "ess_bulk": "ESS bulk",
    "r_hat": "R-hat",
    "seconds": "seconds",
    "ess_per_s": "ESS/s",
    "energy_p": "energy p",
    "mmd_p": "MMD p",
}
SURE, TENTH = 3.0, 0.1
MOST_COMPARED = 2000


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
        text = "<p>As far as the run itself can tell, the draws can be relied on.</p>"
    else:
        state, headline = "unknown", "No checks could be made"
        text = "<p>There are too few draws to tell whether they can be relied on.</p>"
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

    content = table_html(table, HEADINGS, bad)
    legend = (
        f"Marked: R-hat above {RHAT_LIMIT}, effective sample sizes (ESS) below {least}, and values with draws that are "
        "not finite. MCSE is the Monte Carlo standard error; 5 % and 95 % are quantiles of the draws. A dash: not "
        "known from these draws."
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


def comparison(evidence: Evidence) -> str:
    """The table of `compare`."""
    from .comparison import compare

    assert evidence.posterior is not None
    if evidence.num_values > MOST_COMPARED:
        return f"<p>{evidence.num_values:,} values are too many for a table; `compare` makes it.</p>"
    table = compare(evidence.posterior, reference=evidence.reference)
    table = table.loc[table.index.get_level_values(0)[-1]].iloc[::-1]  # "all" first
    rest = table.index[:0:-1]
    table = table.loc[["all", *list(rest)[:MOST_ROWS]]]

    def bad(name: str, column: str) -> bool:
        row = table.loc[name]
        if column == "mean_error":
            return bool(abs(row["z"]) > SURE and abs(row["mean_error"]) > TENTH)
        return column == "sd_ratio" and bool(abs(row["sd_ratio"] - 1) > TENTH)

    legend = (
        "Mean error: mean minus the reference's, in its standard deviations; z, that over its Monte Carlo standard "
        "error. Sd ratio: 1 is right. Row all: the worst of every column. Energy p and MMD p: how often chance alone "
        "sets draws of all values together as far apart, by energy distance and by maximum mean discrepancy. Marked: a "
        "mean off by more than 0.1 and beyond chance, a standard deviation off by more than 10 %."
    )
    return table_html(table, COMPARED, bad) + f'<p class="legend">{html.escape(legend)}</p>'


def _in_words(check: Check) -> str:
    name = f"{check.name} of {check.where}" if check.where else check.name
    numbers = f"{measured(check.value)}, limit {measured(check.limit)}"
    return f"<strong>{html.escape(name)}</strong> is {html.escape(numbers)}: {html.escape(check.remedy)}"


def _checks(checks: tuple[Check, ...]) -> str:
    rows = []
    for check in checks:
        mark = "<td>passed</td>" if check.passed else '<td class="bad">failed</td>'
        name, where = html.escape(check.name), html.escape(check.where)
        cells = f'{mark}<td>{measured(check.value)}</td><td>{measured(check.limit)}</td><td class="name">{where}</td>'
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{each}</th>' for each in ("verdict", "value", "limit"))
    head += '<th scope="col" class="name">where</th>'
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
