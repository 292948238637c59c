"""The verdict on a run: checks, each a number beside its limit, and what to change where one fails."""

from __future__ import annotations

import logging
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from pyro_scale.progress import interactive

if TYPE_CHECKING:  # a verdict can be read from a file without torch
    from torch import Tensor

    from pyro_scale.temperature import Measured

logger = logging.getLogger("pyro_scale")

CLAMPED_LIMIT = 0.01
RHAT_LIMIT = 1.01
ESS_A_CHAIN = 100
"""The limits of Vehtari et al. (2021), Rank-normalization, folding, and localization, Bayesian Analysis."""
MOST_CHAINS = 4
"""More chains need not bring more draws: they are what many short chains are for."""
LONGER = "Raise num_samples or thinning"
ERRORS = 3
"""A number that is measured fails when it is beyond its limit by so many of its standard errors."""
WIDTH = 110


class Check(NamedTuple):
    """One number that must stay within a limit.

    Attributes:
        name: what it is.
        value: the number, at the value or site where it is worst.
        limit: it fails beyond; a largest value, but for effective sample sizes.
        passed: whether it did.
        where: the value or site; "" where it is the run's.
        remedy: what it means that the check failed, and what to change; "" for one that passed.
    """

    name: str
    value: float
    limit: float
    passed: bool
    where: str = ""
    remedy: str = ""


def at_most(name: str, value: float, limit: float, where: str, remedy: str) -> Check:
    """A check that passes up to its limit, and then needs no remedy."""
    passed = value <= limit
    return Check(name, value, limit, passed, where, "" if passed else remedy)


class Health:
    """Checks of a posterior, by name; true if all of them passed. Printed as a table.

    Args:
        checks: what was looked at.
        left_out: sentences on what could not be.

    Example:
        >>> health = Health([Check("R-hat", 1.3, 1.01, False, "w", "chains disagree.")])
        >>> bool(health), health["R-hat"].value
        (False, 1.3)
        >>> print(health)
        Health: 1 of 1 check failed
          R-hat  1.300  limit 1.010  FAILED  w
          R-hat of w: chains disagree.
    """

    def __init__(self, checks: Sequence[Check], left_out: Sequence[str] = ()) -> None:
        self.checks = tuple(checks)
        self.left_out = tuple(left_out)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def __bool__(self) -> bool:
        return not self.failed

    def __getitem__(self, name: str) -> Check:
        return {check.name: check for check in self.checks}[name]

    def __str__(self) -> str:
        number = len(self.checks)
        verdict = f"{so_many(number)} passed" if number else "no checks could be made"
        if self.failed:
            verdict = f"{len(self.failed)} of {so_many(number)} failed"
        cells = [
            (one.name, _number(one.value), f"limit {_number(one.limit)}", _word(one), one.where) for one in self.checks
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        said = [f"{_named(one)}: {one.remedy}" for one in self.failed] + list(self.left_out)
        told = [textwrap.fill(each, WIDTH, subsequent_indent="    ") for each in said]
        return "\n  ".join([f"Health: {verdict}", *rows, *told])

    __repr__ = __str__


def so_many(number: int) -> str:
    """So many checks, in words."""
    return f"{number} check" if number == 1 else f"{number} checks"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _word(check: Check) -> str:
    return "passed" if check.passed else "FAILED"


def tell(health: Health, progress: bool) -> None:
    """Warns of failed checks; says that all have passed where a progress bar was shown."""
    if health.failed:
        failed = (
            f"{_named(one)} is {_number(one.value)}, limit {_number(one.limit)}: {one.remedy}" for one in health.failed
        )
        logger.warning(
            "%d of %s of the run failed (`posterior.health` makes more).\n  %s",
            len(health.failed),
            so_many(len(health.checks)),
            "\n  ".join(failed),
        )
    elif progress and interactive():
        tqdm.write(f"{so_many(len(health.checks))} of the run passed (`posterior.health` makes more).", file=sys.stderr)


def _named(check: Check) -> str:
    return f"{check.name} of {check.where}" if check.where else check.name


def least_ess(num_chains: int) -> int:
    """How many independent draws there should be."""
    return ESS_A_CHAIN * min(num_chains, MOST_CHAINS)


def of_mixing(
    names: Sequence[str], rhat: ArrayLike, bulk: ArrayLike, tail: ArrayLike, *, num_chains: int, num_modes: int = 1
) -> list[Check]:
    """R-hat and effective sample sizes of mean and tails, of each value that has a name; NaN where unknown.

    `num_modes` are known, and no chain leaves its own.
    """
    least = least_ess(num_chains)
    modes = "If they stay apart, they"
    if num_modes > 1:
        modes = f"Warm-up found {num_modes} modes, and chains"
    found = [
        _within("R-hat", rhat, RHAT_LIMIT, names, f"chains disagree. {LONGER}. {modes} have found different modes."),
        _within("ESS, mean", -np.asarray(bulk), -least, names, f"too few independent draws. {LONGER}."),
        _within("ESS, tails", -np.asarray(tail), -least, names, f"too few independent draws. {LONGER}."),
    ]
    return [check for check in found if check is not None]


def _within(name: str, values: ArrayLike, limit: float, names: Sequence[str], remedy: str) -> Check | None:
    """Of the largest value; negative ones stand for what has a smallest. None if all are undefined, as of constants."""
    known = np.asarray(values, dtype=float)
    known = np.where(np.isnan(known), -math.inf, known)
    value = float(known.max(initial=-math.inf))
    if value == -math.inf:
        return None
    return at_most(name, value, limit, names[int(known.argmax())], remedy)._replace(value=abs(value), limit=abs(limit))


def of_sds(name: str, errors: Mapping[str, Measured], limit: float, wide: str, narrow: str) -> Check | None:
    """Of the site whose standard deviations are wrong by most, as measured; None where that could not be.

    Args:
        name: of the check.
        errors: site -> by how much its sds are wrong, relative to themselves.
        limit: of the error.
        wide: what to change where draws are too wide.
        narrow: the same where they are not wide enough.
    """
    excess = {site: abs(each.value) - ERRORS * each.error for site, each in errors.items() if math.isfinite(each.error)}
    if not excess:
        return None
    site = max(excess, key=lambda each: excess[each])
    value, passed = errors[site].value, excess[site] <= limit
    how = f"its draws are {1 + value:.2f} times as wide as the posterior. {wide if value > 0 else narrow}"
    return Check(name, abs(value), limit, passed, site, "" if passed else how)


def of_noise(clamped: int, steps: int) -> Check:
    """Of the share of steps of a coordinate at which minibatches brought more noise than a kernel can take out."""
    share = clamped / max(1, steps)
    remedy = (
        "more noise was to be taken out than is injected. Lower step_size or gradient_variance, or raise batch_size."
    )
    return at_most("clamped noise", share, CLAMPED_LIMIT, "", remedy)


def of_divergences(diverging: Tensor) -> Check:
    """Of NUTS: the number of draws after which the integrator diverged."""
    remedy = "the posterior has a corner that the draws may miss. Reparametrise the model (non-centred groups)."
    return at_most("divergences", int(diverging.sum()), 0, "", remedy)


def of_ending(reason: str | None) -> list[Check]:
    """Of a run that ended before it had all its draws."""
    return [Check("early end", 1, 0, False, "", f"the run ended early: {reason.removesuffix('.')}.")] if reason else []
