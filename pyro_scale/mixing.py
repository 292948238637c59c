"""Whether chains mix: checks of draws alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_scale.convergence import LEAST_DRAWS, ess, rhat, rhat_nested
from pyro_scale.health import Check, at_most

RHAT_LIMIT = 1.01
ESS_A_CHAIN = 100
"""The limits of Vehtari et al. (2021), Rank-normalization, folding, and localization, Bayesian Analysis."""
MOST_SCALARS = 256
"""Of more values so many are looked at, evenly spaced, at least one of every site."""
FALSE_ALARMS = 1e-3
"""How often superchains of chains that have forgotten their starts may fail."""
MOST_CHAINS = 4
"""More chains need not bring more draws: they are what many short chains are for."""
LONGER = "Raise num_samples or thinning"


def of_draws(draws: Mapping[str, Tensor], num_modes: int = 1) -> list[Check]:
    """R-hat and effective sample sizes, as far as there are enough draws to tell.

    Args:
        draws: site -> `(num_chains, num_samples, *site)`.
        num_modes: that are known, and that no chain leaves.
    """
    names, values = scalars(draws)
    num_chains, num_samples, number = values.shape
    if num_samples < LEAST_DRAWS or number == 0:
        return []
    apart, (bulk, tail) = rhat(values), ess(values)
    bulk, tail = (torch.where(_still(values), torch.nan, each) for each in (bulk, tail))
    least = ESS_A_CHAIN * min(num_chains, MOST_CHAINS)
    modes = "If they stay apart, they"
    if num_modes > 1:
        modes = f"Warm-up found {num_modes} modes, and chains"
    found = [
        _within("R-hat", apart, RHAT_LIMIT, names, f"chains disagree. {LONGER}. {modes} have found different modes."),
        _within("ESS, mean", -bulk, -least, names, f"too few independent draws. {LONGER}."),
        _within("ESS, tails", -tail, -least, names, f"too few independent draws. {LONGER}."),
    ]
    return [check for check in found if check is not None]


def of_superchains(draws: Mapping[str, Tensor], num_superchains: int) -> list[Check]:
    """Nested R-hat of chains of which some started together, `(num_chains, num_samples, *site)`.

    The means of superchains whose chains have forgotten their starts differ as their chains do among themselves: an F
    test. What it does not exclude is allowed for in the limit.
    """
    from scipy.special import fdtri

    names, values = scalars(draws)
    num_chains, number = len(values), values.shape[2]
    if number == 0:
        return []
    apart = rhat_nested(values, num_superchains)
    means = values.mean(1).unflatten(0, (num_superchains, -1))
    among = means.var(1).mean(0) * num_superchains / num_chains  # of a superchain's mean, as its chains tell it
    within = means.mean(1).var(0) / (apart**2 - 1)
    quantile = float(fdtri(num_superchains - 1, num_chains - num_superchains, 1 - FALSE_ALARMS / number))
    limits = (RHAT_LIMIT**2 + quantile * among / within).sqrt()
    margin = torch.where(apart.isfinite() & limits.isfinite(), apart - limits, -math.inf)
    worst = int(margin.argmax())
    if not math.isfinite(float(margin[worst])):
        return []
    remedy = "chains remember where they started. Raise warmup_steps."
    return [at_most("nested R-hat", float(apart[worst]), float(limits[worst]), names[worst], remedy)]


def of_still(draws: Mapping[str, Tensor]) -> list[Check]:
    """Of values of latent sites that are the same in all draws, `(num_chains, num_samples, *site)`, of several."""
    names, values = scalars(draws)
    if values.shape[0] * values.shape[1] < LEAST_DRAWS or not names:
        return []
    still = _still(values)
    number = int(still.sum())
    if number == 0:
        return []
    remedy = (
        "it does not move: step_size is too small for the precision of its numbers. Raise it, or use dtype=float64."
    )
    return [Check("values that stand still", number, 0, False, names[int(still.int().argmax())], remedy)]


def _still(values: Tensor) -> Tensor:
    """Which values `(num_chains, num_samples, values)` are the same in all draws."""
    return (values == values[0, 0]).flatten(0, 1).all(0)


def scalars(draws: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
    """Names, as "w[2, 0]", and draws `(num_chains, num_samples, values)` of all values, or of some of too many."""
    total = sum(value[0, 0].numel() for value in draws.values())
    names: list[str] = []
    columns: list[Tensor] = []
    for site, value in draws.items():
        shape, size = value.shape[2:], value[0, 0].numel()
        wanted = size if total <= MOST_SCALARS else max(1, MOST_SCALARS * size // total)
        chosen = torch.linspace(0, size - 1, min(size, wanted)).round().long()
        columns.append(value.reshape(*value.shape[:2], -1)[..., chosen.to(value.device)])
        if not shape:
            names.append(site)
            continue
        # NumPy's: torch's own would import what it has for symbolic shapes
        places = zip(*(each.tolist() for each in np.unravel_index(chosen.numpy(), tuple(shape))), strict=True)
        names += [f"{site}[{', '.join(map(str, place))}]" for place in places]
    return names, torch.cat([column.double() for column in columns], -1)


def _within(name: str, values: Tensor, limit: float, names: Sequence[str], remedy: str) -> Check | None:
    """Of the largest value; negative ones stand for what has a smallest. None if all are undefined, as of constants."""
    known = torch.where(values.isnan(), -math.inf, values)
    worst = int(known.argmax())
    value = float(known[worst])
    if value == -math.inf:
        return None
    return at_most(name, value, limit, names[worst], remedy)._replace(value=abs(value), limit=abs(limit))
