r"""Prior scales, noise and other positive arguments of a model, where Laplace's evidence is highest.

With the arguments $\eta$ of the model and a mode and a normal for each value of them, this climbs

$$\log p(y \mid \eta) \approx \log p(y, \hat\theta_\eta \mid \eta) + \frac{d}{2} \log 2\pi
  + \frac12 \log\det\Sigma_\eta ,$$

"type II maximum likelihood" or "empirical Bayes" (MacKay (1992)), in $\log \eta$, by BFGS with central differences:
every fit starts at the mode of the one before.

References:
    MacKay (1992), A practical Bayesian framework for backpropagation networks, Neural Computation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from pyro_scale.asked import kernel_of
from pyro_scale.checks import check_count, checked_seed
from pyro_scale.data import Model, arguments_of, names_of
from pyro_scale.errors import ArgumentError, ModelError
from pyro_scale.evidence import Evidence, value_of, written
from pyro_scale.evidence_climb import EvidenceClimb
from pyro_scale.posterior import Posterior
from pyro_scale.schedules import check_number
from pyro_scale.types import Kernel

logger = logging.getLogger("pyro_scale")


class EvidenceMaximum(NamedTuple):
    """Where the evidence is highest.

    Attributes:
        values: argument of the model -> the value found.
        posterior: Laplace's approximation with these values.
        log_marginal_likelihood: there, in nats.
        log_marginal_likelihood_at_start: with the values that the climb started from.
        slope: argument -> derivative of the evidence by the logarithm of its value, at the last value looked at; about
            0 at a maximum.
        converged: whether it is; not so where the fits ran out.
        num_fits: fits that were made.
    """

    values: dict[str, float]
    posterior: Posterior
    log_marginal_likelihood: float
    log_marginal_likelihood_at_start: float
    slope: dict[str, float]
    converged: bool
    num_fits: int


def maximize_marginal_likelihood(
    model: Model,
    data: Any,
    start: Mapping[str, float],
    method: str | Kernel = "laplace_dense",
    *,
    num_samples: int = 1000,
    warmup_steps: int | None = None,
    batch_size: int | None = None,
    constants: Mapping[str, Any] | None = None,
    max_fits: int = 200,
    seed: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EvidenceMaximum:
    """Tunes positive arguments of a model, as prior scales and noise, by maximising Laplace's marginal likelihood.

    A step of the climb takes 1 + 2 k fits for k arguments. It finds the maximum above its start; there may be others.

    Args:
        model: a Pyro model that takes these arguments by name.
        data: as of `infer`.
        start: argument -> the value, > 0, that the climb starts from.
        method: "laplace_dense", "laplace_diag", "laplace_kfac", "laplace_lowrank", or one of their kernels at
            temperature 1.
        num_samples: draws of the posterior at the maximum; >= 1.
        warmup_steps: of each fit; None as `infer`.
        batch_size: rows of a minibatch; None for all.
        constants: other arguments that the model receives whole.
        max_fits: most fits; at least 4 k + 2. Where they run out, the best value so far is returned, with a warning.
        seed: of all randomness, the same in each fit; None takes a fresh one.
        device: where to compute; None for that of the data.
        dtype: floating type; None for that of the data. float64 finds the maximum to five digits, float32 to about two.

    Raises:
        ArgumentError: a start is not positive, an argument is none of the model's, the method has no marginal
            likelihood.
        ModelError: there is no maximum, as where a value runs away to 0 or infinity, or changes nothing; or a fit
            failed on the way. Its `posterior` holds the best fit until then.
        PyroScaleError: as `infer`, of the first fit.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y, prior_scale):
        ...     with pyro.plate("groups", y.shape[1]):
        ...         mean = pyro.sample("mean", dist.Normal(0.0, prior_scale))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mean, 1.0).to_event(1), obs=y)
        >>> y = torch.tensor([[3.0, -1.0, 1.0, -3.0]], dtype=torch.float64)
        >>> found = maximize_marginal_likelihood(model, {"y": y}, {"prior_scale": 1.0}, seed=0)
        >>> round(found.values["prior_scale"], 4)  # 1 + prior_scale**2 is the mean square of y, 5
        2.0
    """
    kernel = kernel_of(method)
    _check_method(method, kernel)
    values = _checked_start(model, start, constants)
    num_samples = check_count("num_samples", num_samples, 1)
    max_fits = check_count("max_fits", max_fits, 4 * len(values) + 2)
    asked = {"batch_size": batch_size, "device": device, "dtype": dtype}
    evidence = Evidence(model, data, kernel, constants or {}, warmup_steps, checked_seed(seed), asked)
    climb = EvidenceClimb(evidence, values, max_fits - 2 * len(values) - 1)  # some are left for what follows
    try:
        climb.run()
        climb.check()
    except ModelError as error:
        if climb.iterates:
            error.posterior = climb.best.posterior  # type: ignore[attr-defined]
        raise
    best, converged = climb.best, climb.converged
    if not converged:
        logger.warning(
            "The marginal likelihood is not at its maximum after %d fits: its slope is %s nats a unit of the logarithm "
            "of the values. Raise max_fits, start nearer, or find the modes better: warmup_steps, float64.",
            evidence.num_fits,
            written(dict(zip(values, best.slope.tolist(), strict=True))),
        )
    evidence.start_at(best.posterior)
    posterior = evidence.fit(climb.values(best.place), num_samples, told=True)
    at_start, slope = climb.iterates[0].value, dict(zip(values, best.slope.tolist(), strict=True))
    return EvidenceMaximum(
        climb.values(best.place), posterior, value_of(posterior), at_start, slope, converged, evidence.num_fits
    )


def _check_method(method: str | Kernel, kernel: Any) -> None:
    what = repr(method) if isinstance(method, str) else type(kernel).__name__
    if not hasattr(kernel, "approximate"):
        raise ArgumentError(
            f"method is {what}, which has no marginal likelihood; it must be one of Laplace's: 'laplace_dense', "
            "'laplace_diag', 'laplace_kfac', 'laplace_lowrank'."
        )
    if kernel.temperature != 1:
        raise ArgumentError(f"method is {what} at temperature {kernel.temperature!r}; the evidence is that of 1.")


def _checked_start(model: Model, start: Any, constants: Any) -> dict[str, float]:
    if not isinstance(start, Mapping) or not start:
        raise ArgumentError(
            f"start is {start!r}; it must be a dict, argument of the model -> value to start from, as "
            "{'prior_scale': 1.0}."
        )
    names = arguments_of(model)
    taken = [name for name, each in names.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    for name in start:
        if name not in taken:
            raise ArgumentError(
                f"start names {name!r}, which is no argument of the model; it takes {names_of(taken)}. Give the model "
                "an argument for what is to be tuned."
            )
        if constants is not None and name in constants:
            raise ArgumentError(f"'{name}' is in both start and constants; keep it in one of them.")
    return {name: check_number("start", name, value, positive=True) for name, value in start.items()}
