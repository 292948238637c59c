"""Laplace's evidence as a function of arguments of the model: a fit for each of their values, one after another."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from pyro_scale import tree
from pyro_scale.approximate import approximated
from pyro_scale.asked import sites_kept
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.data import Model
from pyro_scale.errors import ModelError
from pyro_scale.fit import Request
from pyro_scale.mode import DENSE_LIMIT
from pyro_scale.posterior import Posterior
from pyro_scale.types import Kernel


class Evidence:
    """Fits of one model at different values of its arguments; each starts at the mode of an earlier one.

    Args:
        model: the model.
        data: as of `infer`.
        kernel: one of Laplace's.
        constants: the other arguments.
        warmup_steps: steps of a fit; None as `infer`.
        seed: of every fit.
        asked: other arguments of `compile_model`.

    Attributes:
        num_fits: how many were made.
        rough: whether modes are not those of Newton's method in float64, or are not known yet.
        mode: site -> value that fits start from; None before the first.
    """

    def __init__(
        self,
        model: Model,
        data: Any,
        kernel: Kernel,
        constants: Mapping[str, Any],
        warmup_steps: int | None,
        seed: int,
        asked: Mapping[str, Any],
    ) -> None:
        self.model, self.data, self.kernel = model, data, kernel
        self.constants, self.asked = dict(constants), dict(asked)
        self.warmup_steps, self.seed = warmup_steps, seed
        self.num_fits = 0
        self.rough = True
        self.mode: dict[str, Any] | None = None

    def fit(self, values: Mapping[str, float], num_samples: int = 1, *, told: bool = False) -> Posterior:
        """Laplace's approximation at values of the arguments; `told` warns of what is amiss.

        Raises:
            ModelError: the fit failed, or its evidence is not finite; but the error itself in the first fit.
        """
        began = time.perf_counter()
        self.num_fits += 1
        try:
            compiled = compile_model(
                self.model, self.data, constants={**self.constants, **values}, seed=self.seed, **self.asked
            )
            kept = sites_kept(compiled, None)
            request = Request(
                kept, num_samples, self.warmup_steps, 1, self.mode, self.seed, False, None, "auto", told=told
            )
            posterior = approximated(compiled, self.kernel, request, began)
        except Exception as error:  # of the model too, which may not like such values
            if self.num_fits == 1:
                raise
            raise ModelError(f"A fit failed at {written(values)}, on the way to the maximum: {error}") from error
        value = posterior.log_marginal_likelihood
        if value is None or not math.isfinite(value):
            raise ModelError(f"The marginal likelihood is {value} at {written(values)}; there is nothing to climb.")
        self.rough = _is_rough(compiled, posterior)
        return posterior

    def value(self, values: Mapping[str, float]) -> float:
        """In nats."""
        return value_of(self.fit(values))

    def start_at(self, posterior: Posterior) -> None:
        """Fits are to start at the mode of this one."""
        compiled, gaussian = posterior.compiled, posterior.approximation
        assert compiled is not None and gaussian is not None
        with torch.no_grad():
            self.mode = compiled.constrain(gaussian.mean, list(gaussian.mean))


def value_of(posterior: Posterior) -> float:
    """The evidence of a fit at temperature 1, in nats."""
    value = posterior.log_marginal_likelihood
    assert value is not None
    return value


def written(values: Mapping[str, float]) -> str:
    """`prior_scale=1.5, noise=0.1`, for messages."""
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())


def _is_rough(compiled: CompiledModel, posterior: Posterior) -> bool:
    assert posterior.approximation is not None
    few = tree.size(posterior.approximation.mean) <= DENSE_LIMIT
    return not few or compiled.data.dtype != torch.float64 or posterior.num_steps > 0
