"""Convergence of what a model predicts, where its parameters need not converge themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pyro_scale.convergence import LEAST_DRAWS
from pyro_scale.draws import thinned
from pyro_scale.errors import ArgumentError, ModelError
from pyro_scale.other_rows import new_rows
from pyro_scale.posterior import Posterior
from pyro_scale.predict import conditional_means

from .value_moments import moments_of

COLUMNS = ["mean", "sd", "ess_bulk", "ess_tail", "r_hat"]


def predictive_convergence(posterior: Posterior, data: Any = None, *, num_samples: int | None = None) -> pd.DataFrame:
    """R-hat and effective sample sizes of predictions: of the mean of every row given a draw.

    The weights of a network may be permuted without a change of what it predicts, so that their chains disagree for no
    reason that matters: what is to converge are its predictions at the rows of interest. The mean is a number's
    expectation, or a class's probability, whose effective sizes are those of its log-odds, since they are of ranks.

    Args:
        posterior: with its model.
        data: rows to predict, as for `posterior.predict`, without observations or with them; None for those of the fit.
        num_samples: use that many of the draws of each chain, evenly spaced; None for all. Memory holds a number for
            each draw, row and class.

    Returns:
        One row for each value, by `site` and `value` ("3" of row 3, "3, 1" of its class or component 1), with its
        `mean` and `sd` over draws, `ess_bulk`, `ess_tail`, and `r_hat`, which is NaN of a single chain; the last three
        are NaN where a prediction does not vary. `table.nlargest(5, "r_hat")` are those that have converged least.

    Raises:
        ArgumentError: fewer than 4 draws a chain.
        ModelError: the mean is not known of any site, or not without latent values that are not among the draws.
        MissingModelError: the posterior has no model, or did not keep a latent site.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_scale import compile_model
        >>> def model(x, y=None):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("obs", dist.Normal(w**2 * x, 1.0), obs=y)
        >>> draws = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)) * 0.1
        >>> draws = draws + torch.tensor([[1.0], [-1.0]])  # chains of opposite sign predict the same
        >>> compiled = compile_model(model, {"x": torch.ones(3), "y": torch.ones(3)})
        >>> about = {"sample_stats": {}, "num_steps": 500, "step_size": None, "timing": {}, "settings": {}}
        >>> posterior = Posterior({"w": draws}, compiled=compiled, **about)
        >>> round(float(predictive_convergence(posterior)["r_hat"].max()), 1)
        1.0
    """
    if not isinstance(posterior, Posterior):
        raise ArgumentError(
            f"predictive_convergence got a {type(posterior).__name__}; it takes a posterior, as infer returns."
        )
    new = data is not None
    draws = thinned(posterior.latent_draws("predictive_convergence", new_rows=new), num_samples)
    compiled = posterior.model_for("predictive_convergence")
    on = compiled.on(new_rows(compiled, data, without_observations=True)) if new else compiled
    num_chains, available = next(iter(posterior.draws.values())).shape[:2]
    shape = (num_chains, available if num_samples is None else num_samples)
    if shape[1] < LEAST_DRAWS:
        raise ArgumentError(
            f"There are {shape[1]} draws a chain; R-hat and effective sample sizes need {LEAST_DRAWS}. Those of an "
            "ensemble or a mode have neither."
        )
    means = conditional_means(on, draws, shape, new_rows=new)
    if not means:
        raise ModelError("No observed site has a distribution whose mean is known in closed form.")
    return pd.concat({site: _measured(value) for site, value in means.items()}, names=["site", "value"])


def _measured(values: Tensor) -> pd.DataFrame:
    """Of every value of `(num_chains, num_samples, ...)`."""
    labels = [", ".join(map(str, index)) for index in np.ndindex(values.shape[2:])]
    return moments_of(values.flatten(2))[COLUMNS].set_axis(labels)
