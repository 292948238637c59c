"""Whether chains mix: checks of draws alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_scale.convergence import LEAST_DRAWS, ess, rhat, rhat_nested
from pyro_scale.health import RHAT_LIMIT, Check, at_most, of_mixing
from pyro_scale.moments import Moments
from pyro_scale.values import chosen, labels

FALSE_ALARMS = 1e-3
"""How often superchains of chains that have forgotten their starts may fail."""


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
    bulk, tail = (torch.where(_still(values), torch.nan, each) for each in ess(values))
    apart = rhat(values).cpu().numpy()
    sizes = (bulk.cpu().numpy(), tail.cpu().numpy())
    return of_mixing(names, apart, *sizes, num_chains=num_chains, num_modes=num_modes)


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


def of_moments(moments: Mapping[str, Moments], num_samples: int) -> list[Check]:
    """R-hat of values of rows that are not kept, of the site where it is largest; pooled over its values.

    Args:
        moments: site -> mean and sd over the draws of each chain, `(num_chains, *site)`.
        num_samples: draws of a chain.
    """
    found: dict[str, float] = {}
    for name, (mean, sd) in moments.items():
        within = sd.double().square().mean(0)
        ratios = (mean.double().var(0) / within)[within > 0] if len(mean) > 1 else within[:0].flatten()
        if num_samples >= LEAST_DRAWS and ratios.numel() > 0 and bool(ratios.isfinite().all()):
            found[name] = math.sqrt((num_samples - 1) / num_samples + float(ratios.mean()))
    if not found:
        return []
    site = max(found, key=lambda name: found[name])
    remedy = "chains disagree on values of rows, which move with their minibatches alone. Raise thinning or batch_size."
    return [at_most("R-hat, rows", found[site], RHAT_LIMIT, site, remedy)]


def _still(values: Tensor) -> Tensor:
    """Which values `(num_chains, num_samples, values)` are the same in all draws."""
    return (values == values[0, 0]).flatten(0, 1).all(0)


def scalars(draws: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
    """Names, as "w[2, 0]", and draws `(num_chains, num_samples, values)` of all values, or of some of too many."""
    shapes = {site: tuple(value.shape[2:]) for site, value in draws.items()}
    names: list[str] = []
    columns: list[Tensor] = []
    for site, places in chosen(shapes).items():
        flat = draws[site].flatten(2) if shapes[site] else draws[site].unsqueeze(-1)
        columns.append(flat[..., torch.from_numpy(places).to(flat.device)])
        names += labels(site, shapes[site], places)
    return names, torch.cat([column.double() for column in columns], -1)
