"""Predictions as a user asks for them: by the draws of a posterior, or by its normal approximation, linearised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_scale.checks import check_count, check_seed
from pyro_scale.data import names_of
from pyro_scale.draws import thinned
from pyro_scale.errors import ArgumentError
from pyro_scale.linear import check_linear
from pyro_scale.linearized import COVARIANCES, LINKS, Covariance, Link, by_linear_model
from pyro_scale.other_rows import can_score, check_observations, new_rows
from pyro_scale.predict import log_predictive_density, predictive
from pyro_scale.prediction import Prediction
from pyro_scale.types import Gaussian

if TYPE_CHECKING:
    from pyro_scale.posterior import Posterior


class Wanted(NamedTuple):
    """Arguments of `Posterior.predict`."""

    data: Any
    num_samples: int | None
    seed: int
    linearized: bool
    link: Link | None
    covariance: Covariance | None
    keep_draws: bool


def predicted(posterior: Posterior, wanted: Wanted) -> Prediction:
    """The predictive distribution; see `Posterior.predict`."""
    gaussian, method = posterior.approximation, posterior.settings.get("method", "this posterior")
    link, covariance = _checked(wanted, gaussian, method)
    seed, new = check_seed(wanted.seed), wanted.data is not None
    compiled = posterior.model_for("predict")
    on = compiled.on(new_rows(compiled, wanted.data, without_observations=True)) if new else compiled
    num_chains, num_samples = next(iter(posterior.draws.values())).shape[:2]
    if wanted.linearized:
        assert gaussian is not None
        check_linear(compiled)
        middle = {
            name: value[None, None] for name, value in compiled.constrain(gaussian.mean, [*compiled.latent]).items()
        }
        if new and can_score(on, middle):
            check_observations(on, middle)
        number = num_chains * num_samples if wanted.num_samples is None else wanted.num_samples
        number, keep = check_count("num_samples", number, 1), wanted.keep_draws
        return by_linear_model(
            on, gaussian, num_samples=number, seed=seed, link=link, covariance=covariance, keep_draws=keep
        )
    draws = thinned(posterior.latent_draws("predict", new_rows=new), wanted.num_samples)
    scored = not new or can_score(on, draws)
    shape = (num_chains, num_samples if wanted.num_samples is None else wanted.num_samples)
    prediction = predictive(on, draws, shape, new_rows=new, seed=seed, keep_draws=wanted.keep_draws)
    if scored:
        density = log_predictive_density(on, draws, shape[0] * shape[1], new_rows=new)
        prediction.log_predictive_density.update(density)
    return prediction


def _checked(wanted: Wanted, approximation: Gaussian | None, method: str) -> tuple[Link, Covariance]:
    """Link and covariance, with defaults in place of None; raises `ArgumentError` for what cannot be."""
    for name, allowed in (("link", LINKS), ("covariance", COVARIANCES)):
        value = getattr(wanted, name)
        if value is not None and not wanted.linearized:
            raise ArgumentError(f"{name} is {value!r}, which linearised predictions alone have: add linearized=True.")
        if value is not None and value not in allowed:
            raise ArgumentError(f"{name} is {value!r}; it must be one of {names_of(allowed)}.")
    if wanted.linearized and approximation is None:
        raise ArgumentError(
            f"linearized=True needs a normal approximation of the posterior, and {method} has draws alone. Predict by "
            "these, linearized=False, or fit one: a Laplace or variational method, as infer(method='laplace_diag')."
        )
    return wanted.link or LINKS[0], wanted.covariance or COVARIANCES[0]
