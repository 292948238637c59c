"""The kernel Stein discrepancy of a posterior's draws, by the gradients of its model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_scale.arrays import as_numbers
from pyro_scale.assessment import why_not_examined
from pyro_scale.checks import check_count, check_seed
from pyro_scale.compile import CompiledModel
from pyro_scale.convergence import LEAST_DRAWS, ess
from pyro_scale.draws import over_draws, thinned
from pyro_scale.errors import ArgumentError
from pyro_scale.posterior import Posterior
from pyro_scale.types import Position
from pyro_scale.values import labels

from .distances import LEAST
from .independent import independent_draws
from .scores import full_scores, noisy_scores, vectors
from .stein import KSD, stein_discrepancy


def ksd(
    draws: Posterior | Any,
    scores: Any = None,
    *,
    reference: Posterior | Any = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    c: float = 1.0,
    beta: float = -0.5,
) -> KSD:
    """Kernel Stein discrepancy of draws from their posterior, by the inverse multiquadric kernel.

    It needs no draws that are known to be right: the model's gradients are enough. It is taken of unconstrained values
    in units of standard deviations: of the reference's draws, or of the draws' own. The latter are dangerous: draws
    that are too narrow shrink the gradients too, and seem better than they are; too wide ones stretch them.
    Values can be set beside each other only if they are in the same units, so pass the same `reference` for all.

    The draws of a chain are not independent, and neighbours would move the U-statistic up by more than its standard
    error. Of a posterior both are therefore of about independent draws alone, as in `compare`: as far apart in their
    chains as the coordinate that mixes worst needs. Of draws passed with their scores both hold only if these are
    independent, which is not checked.

    A mode that no draw is in is not noticed: its gradients are not seen. Equations, and what noise of minibatches does,
    are in `pyro_scale.diagnostics.stein`.

    Args:
        draws: a posterior that has its model; or unconstrained draws `(n, d)`, with their scores.
        scores: gradients of the log density at these draws, `(n, d)`; or independent, unbiased and noisy estimates of
            them, `(repeats, n, d)`. None for a posterior.
        reference: a posterior, or for draws others `(m, d)`, whose standard deviations are the unit; None takes those
            of the draws themselves.
        num_samples: use that many of the draws of each chain, evenly spaced; None for all. Time grows with the square.
        batch_size: rows of two minibatches at each draw, whose noise is accounted for; it makes the result noisier, by
            the ratio of all rows to these. None for all rows, in blocks.
        seed: of the minibatches.
        c, beta: length of the kernel, in sds, and its exponent, between -1 and 0.

    Returns:
        Value, V- and U-statistic, and the latter's standard error, which is NaN of less than 8 independent draws of a
        posterior.

    Raises:
        ArgumentError: draws and scores that do not fit, that are not finite, or that do not vary.
        MissingModelError: the posterior has no model, or did not keep a latent site.
        MinibatchError: gradients cannot be taken of minibatches.

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> exact, wide = ksd(x, -x), ksd(3 * x, -3 * x, reference=x)
        >>> abs(exact.u_statistic) < 4 * exact.standard_error < wide.u_statistic
        True
    """
    if not 0 < c < float("inf") or not -1 < beta < 0:
        raise ArgumentError(f"c is {c!r} and beta {beta!r}; c must be positive, and beta between -1 and 0.")
    if isinstance(draws, Posterior):
        if scores is not None:
            raise ArgumentError("The scores of a posterior follow from its model; pass them with unconstrained draws.")
        values, gradients, names, compiled = _of_posterior(draws, num_samples, batch_size, check_seed(seed))
        others = None if reference is None else _unconstrained(compiled, _reference_draws(compiled, reference))
    else:
        if num_samples is not None or batch_size is not None:
            raise ArgumentError("num_samples and batch_size are of posteriors; thin draws and scores yourself.")
        values, gradients = _checked(draws, scores)
        names = [str(index) for index in range(values.shape[1])]
        others = None if reference is None else _matrix("reference", reference, values.shape[1])
    _check_finite(values, gradients, names)
    sds = _units(values if others is None else others, names, own=others is None)
    found = stein_discrepancy(values / sds, gradients * sds, c=c, beta=beta)
    if not isinstance(draws, Posterior):
        return found
    values, gradients = _independent(values, gradients, num_chains=len(next(iter(draws.draws.values()))))
    if len(values) < found.num_draws:
        few = stein_discrepancy(values / sds, gradients * sds, c=c, beta=beta)
        _, _, u_statistic, error, _, number = few
        found = found._replace(u_statistic=u_statistic, standard_error=error, num_independent=number)
    return found if len(values) >= LEAST else found._replace(standard_error=math.nan)


def _independent(values: Tensor, gradients: Tensor, num_chains: int) -> tuple[Tensor, Tensor]:
    """About independent draws of chains one after another, `(n, d)`, and their scores, `(repeats, n, d)`."""
    chains = values.unflatten(0, (num_chains, -1))
    enough = chains.shape[1] >= LEAST_DRAWS
    effective = float(torch.stack(ess(chains)).min()) if enough else math.nan
    together = torch.cat([values, *gradients], 1).unflatten(0, (num_chains, -1))
    kept = independent_draws(together, effective, len(values)).unflatten(1, (-1, values.shape[1]))
    return kept[:, 0], kept[:, 1:].transpose(0, 1)


def _of_posterior(
    posterior: Posterior, num_samples: int | None, batch_size: int | None, seed: int
) -> tuple[Tensor, Tensor, list[str], CompiledModel]:
    """Unconstrained draws `(n, d)`, scores `(repeats, n, d)`, names of the coordinates, and the model."""
    latent = posterior.latent_draws("ksd", new_rows=False)
    compiled = posterior.model_for("ksd")
    if reason := why_not_examined(compiled, latent):
        raise ArgumentError(f"ksd takes gradients at the draws, and cannot: {reason}.")
    flat = {name: value.flatten(0, 1) for name, value in thinned(latent, num_samples).items()}
    positions: Position = over_draws(compiled.unconstrain, flat, num_rows=compiled.rows_run(list(flat)))
    if batch_size is None:
        found = [full_scores(compiled, positions)]
    else:
        found = noisy_scores(compiled, positions, check_count("batch_size", batch_size, 1, compiled.num_data), seed)
    names = [label for name, shape in compiled.latent.items() for label in labels(name, shape)]
    return vectors(positions), torch.stack([vectors(each) for each in found]), names, compiled


def _unconstrained(compiled: CompiledModel, draws: dict[str, Tensor]) -> Tensor:
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    return vectors(over_draws(compiled.unconstrain, flat, num_rows=compiled.rows_run(list(flat))))


def _reference_draws(compiled: CompiledModel, reference: Any) -> dict[str, Tensor]:
    if not isinstance(reference, Posterior):
        raise ArgumentError(f"reference is a {type(reference).__name__}; with a posterior it must be one as well.")
    if missing := [name for name in compiled.latent if name not in reference.draws]:
        raise ArgumentError(f"The reference has no draws of '{missing[0]}', whose sds are to be the unit.")
    return {name: reference.draws[name] for name in compiled.latent}


def _checked(draws: Any, scores: Any) -> tuple[Tensor, Tensor]:
    """Draws `(n, d)` and scores `(repeats, n, d)`."""
    if scores is None:
        raise ArgumentError(f"draws are a {type(draws).__name__} without scores; pass their gradients, or a posterior.")
    values = _matrix("draws", draws)
    given = as_numbers("scores", scores)
    gradients = given.double().cpu()
    gradients = gradients.unsqueeze(0) if gradients.ndim == 2 else gradients
    if gradients.ndim != 3 or gradients.shape[1:] != values.shape or len(gradients) == 0:
        raise ArgumentError(
            f"scores have shape {tuple(given.shape)} and draws {tuple(values.shape)}; scores must "
            "have the shape of the draws, or that with several estimates along an axis in front."
        )
    return values, gradients


def _matrix(name: str, draws: Any, size: int | None = None) -> Tensor:
    values = as_numbers(name, draws).double().cpu()
    if values.ndim != 2 or 0 in values.shape or (size is not None and values.shape[1] != size):
        wanted = "(n, d), at least one of them" if size is None else f"(m, {size}), as the draws have"
        raise ArgumentError(f"{name} have shape {tuple(values.shape)}; they must be unconstrained draws {wanted}.")
    return values


def _check_finite(values: Tensor, gradients: Tensor, names: list[str]) -> None:
    for what, found in (("value", values), ("gradient", gradients.sum(0))):
        bad = (~found.isfinite()).nonzero()
        if len(bad):
            draw, coordinate = bad[0].tolist()
            raise ArgumentError(
                f"The unconstrained {what} of coordinate {names[coordinate]} is {float(found[draw, coordinate])} at "
                f"draw {draw}. Leave out draws that are not finite, or lie on the boundary of the support by rounding."
            )


def _units(values: Tensor, names: list[str], *, own: bool) -> Tensor:
    """Standard deviations of every coordinate."""
    sds = values.std(0) if len(values) > 1 else torch.full_like(values[0], torch.nan)
    sds = torch.where((values == values[0]).all(0), 0.0, sds)
    still = (~(sds.isfinite() & (sds > 0))).nonzero()
    if len(still):
        whose, remedy = ("draws", "Pass a reference whose draws do") if own else ("reference's draws", "Take another")
        raise ArgumentError(
            f"The {whose} of coordinate {names[int(still[0])]} do not vary, so that their standard deviation is no "
            f"unit. {remedy}."
        )
    return sds
