"""How draws are spread, and how slowly they come: covariances and autocorrelation times of short runs."""

from __future__ import annotations

import torch
from torch import Tensor


def factor_of_spread(draws: Tensor, effective: float, curvature: Tensor) -> Tensor:
    r"""Lower triangle L whose $L L^\top$ is the covariance of draws, shrunk towards the inverse of their curvature.

    A covariance of fewer draws than coordinates has directions in which it is far too small or too large by chance.
    The mean curvature of the same draws is known much better: each of them tells all its entries. The covariance of a
    log-concave density is at least its inverse, by the inequality of Cramer and Rao; what goes beyond that is learned
    as far as noise does not explain it: `shrunk_covariance`, in the coordinates in which the curvature is 1.

    Args:
        draws: with mean 0, `(n, d)`.
        effective: how many independent draws they are worth.
        curvature: mean of the negative Hessians at draws, in the same units, `(d, d)`.

    Example:
        >>> factor_of_spread(torch.ones(1, 1), 1.0, torch.tensor([[4.0]]))
        tensor([[0.5000]])
    """
    lower = factor_of_inverse(curvature)
    white = torch.linalg.solve_triangular(lower, draws.T, upper=False).T
    factor: Tensor = lower @ torch.linalg.cholesky(shrunk_covariance(white, effective))
    return factor


def factor_of_inverse(precision: Tensor) -> Tensor:
    """Lower triangle L with L L^T = P^-1, `(..., d, d)`; without P^-1, which rounding may leave indefinite.

    Example:
        >>> factor_of_inverse(torch.tensor([[4.0]]))
        tensor([[0.5000]])
    """
    upper = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1)  # U U^T = P
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, identity.expand_as(precision), upper=True)
    return inverse.mT


def shrunk_covariance(draws: Tensor, effective: float) -> Tensor:
    """Covariance of draws whose covariance would be the identity if their coordinates were right, `(d, d)`.

    It is shrunk towards the identity by the share of the difference that noise explains: Ledoit & Wolf (2004),
    theorem 2.1, with the variances that the entries have for normal draws.

    Args:
        draws: with mean 0, `(n, d)`.
        effective: how many independent draws they are worth.

    Example:
        >>> shrunk_covariance(torch.eye(2, dtype=torch.float64).repeat(10, 1) * 2**0.5, 1.0)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    covariance = draws.T @ draws / len(draws)
    identity = torch.eye(draws.shape[1], dtype=draws.dtype, device=draws.device)
    variances = covariance.diagonal()
    noise = float((torch.outer(variances, variances) + covariance**2).sum()) / effective
    distance = float((covariance - identity).square().sum())
    share = min(1.0, noise / distance) if distance > 0 else 1.0
    return share * identity + (1 - share) * covariance


def shrunk_variances(variances: Tensor, effective: float) -> Tensor:
    """As `shrunk_covariance`, of a diagonal of variances `(d,)` that would be 1 if coordinates were right.

    Example:
        >>> shrunk_variances(torch.tensor([4.0, 4.0]), 1e6)
        tensor([4.0000, 4.0000])
    """
    noise = float((2 * variances**2).mean()) / effective
    distance = float(((variances - 1) ** 2).mean())
    share = min(1.0, noise / distance) if distance > 0 else 1.0
    return share + (1 - share) * variances


def autocorrelation_times(draws: Tensor) -> Tensor:
    """Steps that bring one independent draw, by coordinate, `(d,)`, at least 1; all steps if no chain has moved.

    Geyer's initial positive sequence, on autocorrelations over all chains as in Vehtari et al. (2021), equation 10:
    chains that disagree lengthen it.

    Args:
        draws: `(num_steps, num_chains, d)`.

    References:
        Geyer (1992), Practical Markov chain Monte Carlo, Statistical Science.
        Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization, Bayesian
        Analysis.
    """
    length, num_chains, _ = draws.shape
    means = draws.mean(0)
    spectrum = torch.fft.rfft(draws - means, 2 * length, dim=0)
    autocovariance = torch.fft.irfft(spectrum.abs() ** 2, 2 * length, dim=0)[:length].mean(1) / length
    within = autocovariance[0] * length / max(1, length - 1)
    between = means.var(0) if num_chains > 1 else torch.zeros_like(within)
    total = autocovariance[0] + between
    correlation = 1 - (within - autocovariance) / torch.where(total > 0, total, 1.0)
    pairs = correlation[: length // 2 * 2].reshape(length // 2, 2, -1).sum(1)
    positive = (pairs > 0).long().cumprod(0)
    times = 2 * (pairs * positive).sum(0) - 1
    return torch.where(total > 0, times.clamp(1, length), float(length))
