"""The table of results: what was measured, against what, and whether the goal was met."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measure import Answers, median

HEADER = ("work", "ours", "peer", "ratio", "goal", "met, or why not")


class Goal(NamedTuple):
    """What is wanted of a ratio, or of a number of ours with a unit."""

    sign: str
    value: float
    unit: str = "x"

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}{'' if self.unit == 'x' else ' '}{self.unit}"

    def met(self, value: float) -> bool:
        return value >= self.value if self.sign == ">=" else value <= self.value


class Row(NamedTuple):
    """A line of the table, in words."""

    work: str
    ours: str
    peer: str
    ratio: str
    goal: str
    outcome: str


def row(
    work: str, ours: str, peer: str, ratio: float, goal: Goal, *, disagreement: str | None = None, profile: str = ""
) -> Row:
    """A measured line.

    Args:
        work: what both did.
        ours: our number, with its unit.
        peer: the name of the peer and its number.
        ratio: what the goal is about.
        goal: what is wanted of it.
        disagreement: how the draws of the two differ; then there is no speed to report.
        profile: where the time goes.
    """
    if disagreement:
        return Row(work, "-", "-", "-", str(goal), f"not compared: {disagreement}")
    met = goal.met(ratio)
    outcome = "; ".join(filter(None, ["met" if met else "no", profile]))
    shown = f"{number(ratio)}x" if goal.unit == "x" else "-"
    return Row(work, ours, peer, shown, str(goal), outcome)


def spent(answers: Answers) -> str:
    """Where the seconds of processes of ours went, by their "import_seconds" and "timing"."""
    shares = {"imports": median(answers, "import_seconds")}
    for part in answers[0]["timing"]:
        shares[part] = statistics.median(answer["timing"][part] for answer in answers)
    shares["the rest"] = median(answers, "process_seconds") - sum(shares.values())
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in shares.items())


def failed(name: str, reason: str) -> Row:
    """The line of a measurement that did not end."""
    return Row(name, "-", "-", "-", "-", f"failed: {reason}".replace("|", "/"))


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def document(rows: Sequence[Row], versions: str, minutes: float) -> str:
    """The whole of RESULTS.md."""
    return f"""# Measured against other packages

Made by `make bench` on {datetime.date.today()}, in {minutes:.0f} minutes: {processor()}, {os.cpu_count()} cores, \
Python {platform.python_version()}; {versions}.

One thread: unless a row says otherwise a process is pinned to one core. Numbers are medians of repeated runs, ours and
the peer's by turns; ratios of times of the processor are medians of those of runs one after the other. Ratios of goals
with >= say how many times as fast ours is, those with <= how many times as long it takes. Before a speed is compared,
the draws of both are: within 0.1 posterior sd of the reference in every mean and within 0.9 to 1.1 in every sd,
allowing for four Monte Carlo standard errors.

{table(rows)}
"""


def processor() -> str:
    """The name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
