"""Tables of a page: numbers in as many digits as mean something, cells that are marked, and pairs of words."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

Marked = Callable[[str, str], bool]
"""(row, column) -> whether the cell is bad."""

DECIMALS = {
    "ess_bulk": 0, "ess_tail": 0, "r_hat": 3, "sd_ratio": 3, "mean_error": 3, "mcse": 3, "z": 1, "seconds": 1,
    "ess_per_s": 1, "energy_p": 3, "mmd_p": 3, "q5_error": 3, "q95_error": 3, "wasserstein": 3,
    "gradients": 0, "passes": 0,
}  # fmt: skip
"""Of columns whose numbers are of one size; others have those of their row."""


def table_html(table: pd.DataFrame, columns: Mapping[str, str], marked: Marked) -> str:
    """A table that scrolls within the page.

    Args:
        table: a row a value; a column `sd`, if there is one, says how many decimals its row has.
        columns: column -> heading.
        marked: which cells are bad; they say so in words, too, for who does not see the colour.
    """
    shown = [column for column in columns if column in table]
    head = "".join(f'<th scope="col">{html.escape(columns[column])}</th>' for column in shown)
    rows = []
    for name, row in table.iterrows():
        decimals = _decimals(float(row.get("sd", math.nan)))
        cells = "".join(_cell(number(row[one], one, decimals), marked(str(name), one)) for one in shown)
        rows.append(f'<tr><th scope="row">{html.escape(str(name))}</th>{cells}</tr>')
    body = "".join(rows)
    return f'<div class="scroll"><table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def table_text(table: pd.DataFrame) -> str:
    """The same numbers for a terminal."""
    rows = {}
    for name, row in table.iterrows():
        decimals = _decimals(float(row.get("sd", math.nan)))
        rows[name] = {column: number(row[column], str(column), decimals) for column in table}
    text: str = pd.DataFrame.from_dict(rows, orient="index").to_string()
    return text


def number(value: float, column: str = "", decimals: int | None = None) -> str:
    """A number as its column has it; a dash where it is not known."""
    value = float(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if column in DECIMALS:
        decimals = DECIMALS[column]
    elif decimals is not None:
        decimals += column.startswith("mcse")
    if decimals is not None and abs(value) < 1e12:
        return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")  # 0.0 turns -0.0 into 0.0
    return f"{value:.3g}".replace("-", "−")


def measured(value: float) -> str:
    """The number of a check, as `Health` prints it."""
    if not math.isfinite(value):
        return number(value)
    whole = abs(value) >= 100 or value == round(value)
    return f"{value:,.0f}" if whole else f"{value:.3f}".replace("-", "−")


def definitions(pairs: Sequence[tuple[str, Any]]) -> str:
    """Names with what they stand for."""
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(_told(value))}</dd></div>" for name, value in pairs
    )
    return f'<dl class="facts">{rows}</dl>'


def _told(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _cell(text: str, bad: bool) -> str:
    return f'<td class="bad" title="beyond its limit">{text}</td>' if bad else f"<td>{text}</td>"


def _decimals(sd: float) -> int | None:
    """As many as show two digits of an error of a tenth of the sd."""
    if not math.isfinite(sd) or sd <= 0:
        return None
    decimals = max(0, 2 - math.floor(math.log10(1.5 * sd)))
    return decimals if decimals <= 6 else None
