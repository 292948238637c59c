"""Predictions as a user asks for them: by the draws of a posterior, or by its normal approximation, linearised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from pyro_scale.checks import check_count, check_seed
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.draws import thinned
from pyro_scale.errors import ArgumentError
from pyro_scale.linear import check_linear
from pyro_scale.linearized import COVARIANCES, LINKS, Covariance, Link, linearized
from pyro_scale.other_rows import can_score, check_observations, new_rows
from pyro_scale.predict import log_predictive_density, predictive
from pyro_scale.prediction import Prediction
from pyro_scale.types import Gaussian


class Wanted(NamedTuple):
    """Arguments of `Posterior.predict`."""

    data: Any
    num_samples: int | None
    seed: int
    linearized: bool
    link: Link | None
    covariance: Covariance | None
    keep_draws: bool


def check_wanted(wanted: Wanted, approximation: Gaussian | None, method: str) -> Wanted:
    """The same, with defaults in place of None; raises `ArgumentError` for what cannot be."""
    for name, allowed in (("link", LINKS), ("covariance", COVARIANCES)):
        value = getattr(wanted, name)
        if value is not None and not wanted.linearized:
            raise ArgumentError(f"{name} is {value!r}, which linearised predictions alone have: add linearized=True.")
        if value is not None and value not in allowed:
            raise ArgumentError(f"{name} is {value!r}; it must be one of {names_of(allowed)}.")
    if wanted.linearized and approximation is None:
        raise ArgumentError(
            f"linearized=True needs a normal approximation of the posterior, and {method} has draws alone. Predict by "
            "these, linearized=False, or fit one: a Laplace or variational method, as infer(method='vi_diag')."
        )
    link, covariance = wanted.link or LINKS[0], wanted.covariance or COVARIANCES[0]
    return wanted._replace(seed=check_seed(wanted.seed), link=link, covariance=covariance)


def predicted(
    compiled: CompiledModel,
    latent_draws: Callable[..., dict[str, Tensor]],
    shape: tuple[int, int],
    approximation: Gaussian | None,
    wanted: Wanted,
) -> Prediction:
    """The predictive distribution.

    Args:
        compiled: the fitted model.
        latent_draws: of a posterior; its method.
        shape: (num_chains, num_samples) of its draws.
        approximation: what to linearise around, if that is wanted.
        wanted: checked.
    """
    new = wanted.data is not None
    on = compiled.on(new_rows(compiled, wanted.data, without_observations=True)) if new else compiled
    if wanted.linearized:
        check_linear(compiled)
        assert approximation is not None and wanted.link is not None and wanted.covariance is not None
        middle = compiled.constrain(approximation.mean, list(compiled.latent))
        return _linearized(on, approximation, middle, shape[0] * shape[1], wanted)
    draws = thinned(latent_draws("predict", new_rows=new), wanted.num_samples)
    scored = not new or can_score(on, draws)
    shape = (shape[0], shape[1] if wanted.num_samples is None else wanted.num_samples)
    prediction = predictive(on, draws, shape, new_rows=new, seed=wanted.seed, keep_draws=wanted.keep_draws)
    if scored:
        density = log_predictive_density(on, draws, shape[0] * shape[1], new_rows=new)
        prediction.log_predictive_density.update(density)
    return prediction


def _linearized(
    on: CompiledModel, approximation: Gaussian, middle: dict[str, Tensor], num_draws: int, wanted: Wanted
) -> Prediction:
    """At the rows of `on`; `middle` is the mean of the approximation, constrained."""
    number = num_draws if wanted.num_samples is None else check_count("num_samples", wanted.num_samples, 1)
    draw = {name: value[None, None] for name, value in middle.items()}
    if wanted.data is not None and can_score(on, draw):
        check_observations(on, draw)
    assert wanted.link is not None and wanted.covariance is not None
    return linearized(
        on,
        approximation,
        num_samples=number,
        seed=wanted.seed,
        link=wanted.link,
        covariance=wanted.covariance,
        keep_draws=wanted.keep_draws,
    )
