"""The table of biases: what was predicted beside what was found, and how often the prediction is right."""

from __future__ import annotations

import datetime
import math
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from results import processor

WIDTH = 118
TOLD = 3
"""Standard errors from 0 beyond which an error counts as seen."""
FAR = 4.5
"""Standard errors beyond which a mean is off: one of 500 is by chance in a table of 300."""
UNKNOWN = 0.15
"""A standard error of an sd, relative to it, beyond which the sd is nothing that exists, or diverges."""


class Cell(NamedTuple):
    """What was predicted and found of one run, of the direction in which most is predicted.

    Attributes:
        predicted: error of the sd relative to itself; infinite where there is no stationary law.
        actual, standard_error: the same, found; NaN where chains met values that are not finite.
        mean_error, mean_standard_error: of the mean farthest off by its standard error, in posterior sds.
        num_means: that were measured, one for each direction.
    """

    predicted: float
    actual: float
    standard_error: float
    mean_error: float
    mean_standard_error: float
    num_means: int

    @property
    def diverges(self) -> bool:
        return not self.standard_error <= UNKNOWN * (1 + self.actual)

    @property
    def told(self) -> bool:
        """Whether the error found is told from 0."""
        return self.diverges or abs(self.actual) > TOLD * self.standard_error

    @property
    def right(self) -> bool:
        """Whether the prediction is within a factor of 2."""
        if self.diverges or math.isinf(self.predicted):
            return self.diverges and math.isinf(self.predicted)
        return 0.5 <= self.predicted / self.actual <= 2

    def __str__(self) -> str:
        found = "diverges" if self.diverges else f"{percent(self.actual)} ± {percent(self.standard_error)}"
        wrong = " (wrong)" if self.told and not self.right else ""
        return f"{percent(self.predicted)} / {found}{wrong}"


def percent(value: float) -> str:
    """Two digits, or all before the point."""
    if math.isinf(value):
        return "∞"
    return f"{100 * value:.1f}".replace("-0.0", "0.0") if abs(value) < 0.0995 else f"{100 * value:.0f}"


Table: TypeAlias = dict[tuple[str, float], Cell]
"""Of a kernel, by minibatch in words and step size."""


def mean_of(cell: Cell) -> str:
    """The error of the mean that is farthest off by its standard error, in per cent of the posterior's sd."""
    if cell.diverges:
        return "diverges"
    wrong = " (wrong)" if abs(cell.mean_error) > FAR * cell.mean_standard_error else ""
    return f"{percent(cell.mean_error)} ± {percent(cell.mean_standard_error)}{wrong}"


def table(cells: Table, shown: Callable[[Cell], str] = str) -> str:
    """In Markdown: a line for each minibatch, a column for each step size."""
    batches, step_sizes = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    lines = [["rows of a minibatch", *(f"step size {step_size:g}" for step_size in step_sizes)]]
    lines.append(["---"] * len(lines[0]))
    lines += [[batch, *(shown(cells[batch, step_size]) for step_size in step_sizes)] for batch in batches]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(cells: Sequence[Cell]) -> str:
    """How many predictions can be judged, and are right; and what became of the means."""
    told = [cell for cell in cells if cell.told]
    kept = [cell for cell in cells if not cell.diverges]
    farthest = max(kept, key=lambda cell: abs(cell.mean_error / cell.mean_standard_error))
    off = abs(farthest.mean_error), abs(farthest.mean_error / farthest.mean_standard_error)
    means = sum(cell.num_means for cell in kept)
    return (
        f"Of {len(cells)} runs {len(cells) - len(kept)} diverge, and {len(told) - len(cells) + len(kept)} have an sd "
        f"that is more than {TOLD} standard errors off. For {sum(cell.right for cell in told)} of these {len(told)} "
        "the prediction is right: divergence, or an error within a factor of 2 of the one found. The other "
        f"{len(cells) - len(told)} runs cannot judge it. Means are predicted to be right: of {means} the "
        f"farthest is {off[0]:.3f} posterior sds off, {off[1]:.1f} standard errors."
    )


def document(found: Mapping[str, Table], minutes: float, what: str) -> str:
    """The whole of BIAS.md.

    Args:
        found: by kernel.
        minutes: that it took.
        what: was measured, in words.
    """
    meaning = (
        "in per cent of the posterior's sd, in the direction, among the eigenvectors of the curvature, in which most "
        "is predicted: 1.0 is an sd 1 per cent too wide, 100 one that is twice as wide as it should be, -30 one that "
        'is 0.7 of it. ∞ is predicted where draws have no stationary variance; "diverges" was found: values overflow, '
        f"or the sd has a standard error above {100 * UNKNOWN:.0f} per cent of itself. Errors within "
        f"{TOLD} standard errors of 0 may be chance."
    )
    means = (
        "A cell of the tables to come is the error found of a mean ± its standard error, in per cent of the "
        "posterior's sd, in the direction in which it has most standard errors; predicted is 0 everywhere. Of so many "
        f"means some are {TOLD} standard errors off by chance; one beyond {FAR} would be called wrong."
    )
    made = (
        f"Made by `make bias` on {datetime.date.today()}, in {minutes:.0f} minutes: one core of {processor()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}."
    )
    paragraphs = [
        "# The bias of kernels: predicted and measured",
        textwrap.fill(what, WIDTH),
        "A cell reads",
        "    predicted / found ± its standard error",
        textwrap.fill(meaning, WIDTH),
        textwrap.fill(verdict([cell for cells in found.values() for cell in cells.values()]), WIDTH),
        textwrap.fill(made, WIDTH),
        *(f"## {name}: standard deviations\n\n{table(cells)}" for name, cells in found.items()),
        textwrap.fill(means, WIDTH),
        *(f"## {name}: means\n\n{table(cells, mean_of)}" for name, cells in found.items()),
    ]
    return "\n\n".join(paragraphs) + "\n"
