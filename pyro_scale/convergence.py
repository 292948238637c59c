r"""Whether chains have converged, and how many independent draws theirs are worth: of many values at once.

The definitions, and the numbers, are those of ArviZ, which takes longer to import than many a run lasts.

References:
    Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an improved
    R-hat for assessing convergence of MCMC, Bayesian Analysis.
    Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman (2024), Nested R-hat: assessing the convergence of
    Markov chain Monte Carlo when running many short chains, Bayesian Analysis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_scale.errors import ArgumentError

LEAST_DRAWS = 4
"""Half a chain of fewer draws has no variance."""
TAILS = (0.05, 0.95)
CONSTANT = 1e-15
"""Values within so little of each other do not move; all of them are worth as much."""


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger of that of location and of spread: Vehtari et al. (2021), section 4.

    Args:
        draws: `(num_chains, num_samples, ...)`; at least 4 draws a chain.

    Returns:
        For each value, `(...)`; NaN where draws are not finite, or do not move at all.

    Example:
        >>> apart = torch.arange(20.0).reshape(2, 10)
        >>> round(float(rhat(apart)), 2)
        3.1
    """
    halves = _halves(draws)
    folded = (halves - _quantile(halves.flatten(0, 1).sort(0).values, 0.5)).abs()
    found = torch.maximum(_ratio(_rank_normalised(halves)), _ratio(_rank_normalised(folded)))
    return found.reshape(draws.shape[2:])


def rhat_nested(draws: Tensor, num_superchains: int) -> Tensor:
    """Nested R-hat: as R-hat for many chains that are short, of which some started at the same place.

    Chains that start together make a superchain, whose mean has little noise although each chain is short; what is
    left between the means of superchains is what the chains remember of their starts. Margossian et al. (2024),
    equation 10.

    Args:
        draws: `(num_chains, num_samples, ...)`, chains of one superchain next to each other; a single draw is enough.
        num_superchains: at least 2; divides the number of chains, which is at least twice as large.

    Returns:
        For each value, `(...)`.

    Raises:
        ArgumentError: another number of superchains.
    """
    num_chains, num_samples = draws.shape[:2]
    if num_superchains < 2 or num_chains % num_superchains or (num_chains == num_superchains and num_samples == 1):
        raise ArgumentError(
            f"num_superchains is {num_superchains}; it must be at least 2, and divide the {num_chains} chains into "
            "superchains of two or more."
        )
    grouped = _two_dimensional(draws).unflatten(0, (num_superchains, -1))  # (superchains, chains, draws, values)
    means = grouped.mean(2)
    within = torch.zeros_like(means[:, 0])
    if num_samples > 1:
        within = within + grouped.var(2).mean(1)
    if means.shape[1] > 1:
        within = within + means.var(1)
    found: Tensor = (1 + means.mean(1).var(0) / within.mean(0)).sqrt()
    return found.reshape(draws.shape[2:])


def ess(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Effective sample sizes of bulk and tail: Vehtari et al. (2021), sections 3 and 4.

    Args:
        draws: `(num_chains, num_samples, ...)`; at least 4 draws a chain.

    Returns:
        For each value, `(...)`: of the rank-normalised draws, and the smaller one of the 5 and the 95 % quantile. NaN
        where draws are not finite.
    """
    halves = _halves(draws)
    flat = _two_dimensional(draws).flatten(0, 1)
    ordered = flat.sort(0).values
    tails = [_effective((halves <= _quantile(ordered, share)).to(halves)) for share in TAILS]
    bulk, tail = _effective(_rank_normalised(halves)), torch.minimum(*tails)
    finite = flat.isfinite().all(0)
    bulk, tail = (torch.where(finite, each, torch.nan).reshape(draws.shape[2:]) for each in (bulk, tail))
    return bulk, tail


def ess_mean(draws: Tensor) -> Tensor:
    """Effective sample size of the mean: Vehtari et al. (2021), section 3.

    Args:
        draws: `(num_chains, num_samples, ...)`; at least 4 draws a chain.

    Returns:
        For each value, `(...)`.
    """
    return _effective(_halves(draws)).reshape(draws.shape[2:])


def effective_size(draws: Tensor) -> float:
    """How many independent draws the mean of a series `(num_chains, num_samples)` is worth.

    Chains of less than 4 draws count as if these were independent.
    """
    return float(draws.numel() if draws.shape[1] < LEAST_DRAWS else ess_mean(draws))


def _two_dimensional(draws: Tensor) -> Tensor:
    """`(num_chains, num_samples, values)`, in double precision."""
    return draws.reshape(*draws.shape[:2], -1).double()


def _halves(draws: Tensor) -> Tensor:
    """Each chain as two, `(2 * num_chains, num_samples // 2, values)`; the draw in the middle belongs to neither."""
    num_samples = draws.shape[1]
    if num_samples < LEAST_DRAWS:
        raise ArgumentError(f"There are {num_samples} draws a chain; R-hat and effective sample sizes need 4.")
    half, values = num_samples // 2, _two_dimensional(draws)
    return torch.stack([values[:, :half], values[:, num_samples - half :]], 1).flatten(0, 1)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Of sorted values `(n, values)`, interpolated; rounded as in SciPy, since values are compared with it."""
    place = len(ordered) * share + (1 - share)
    below = min(max(math.floor(place), 1), len(ordered) - 1)
    part = place - below
    return (1 - part) * ordered[below - 1] + part * ordered[below]


def _rank_normalised(chains: Tensor) -> Tensor:
    """Normal scores of the ranks over all chains, ties at their average."""
    flat = chains.flatten(0, 1).T.contiguous()
    ordered = flat.sort(1).values
    below, upto = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    ranks = (below + upto + 1) / 2
    scores = torch.special.ndtri((ranks.double() - 0.375) / (flat.shape[1] + 0.25))
    return torch.where(flat.isfinite(), scores, torch.nan).T.reshape(chains.shape)


def _ratio(chains: Tensor) -> Tensor:
    """Standard deviation over all chains, relative to that within one."""
    length = chains.shape[1]
    within, between = chains.var(1).mean(0), length * chains.mean(1).var(0)
    return ((between / within + length - 1) / length).sqrt()


def _effective(chains: Tensor) -> Tensor:
    """Effective sample size of means by Geyer's initial monotone sequence, for each value."""
    num_chains, length, _ = chains.shape
    spectrum = torch.fft.rfft(chains - chains.mean(1, keepdim=True), 2 * length, dim=1)
    autocovariance = torch.fft.irfft(spectrum.abs() ** 2, 2 * length, dim=1)[:, :length].mean(0) / length
    within = autocovariance[0] * length / (length - 1)
    total = autocovariance[0] + chains.mean(1).var(0)
    correlation = 1 - (within - autocovariance) / total
    correlation[0] = 1
    most = max(0, (length - 3) // 2)
    pairs = correlation[: 2 * most + 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs[:most] > 0).long().cumprod(0)
    falling = pairs[:most].cummin(0).values if most else pairs[:0]
    counted = positive.sum(0, keepdim=True)
    # of the pair after those that count, the first half alone
    half = correlation[: 2 * most + 1 : 2].gather(0, counted)[0]
    half = torch.where((half > 0) | (pairs.gather(0, counted)[0] >= 0), half, 0.0)
    number = num_chains * length
    time = 2 * (falling * positive).sum(0) - 1 + half
    found = number / time.clamp(min=1 / math.log10(number))
    flat = chains.flatten(0, 1)
    return torch.where(flat.amax(0) - flat.amin(0) < CONSTANT, float(number), found)
