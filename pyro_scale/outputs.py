"""The parameters of an observed site's distribution, and its log density as a function of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_scale.errors import ModelError
from pyro_scale.handlers import PyroSite


def parameters(site: PyroSite) -> dict[str, Tensor]:
    """Parameter -> value, those that the distribution was made with (logits or probs, not both).

    Raises:
        ModelError: the distribution does not name its parameters (a mixture, a transformed distribution).
    """
    fn = _innermost(site["fn"])
    known = [name for name in fn.arg_constraints if name in fn.__dict__]
    names = known if known else list(fn.arg_constraints)
    if not names:
        raise ModelError(
            f"Site '{site['name']}' is {type(fn).__name__}, which does not name its parameters, so that its outputs "
            "cannot be told. Use log_likelihood, or a distribution with arg_constraints."
        )
    return {name: getattr(fn, name) for name in names}


def rebuilt(site: PyroSite, values: Mapping[str, Tensor]) -> PyroSite:
    """The site with a distribution of the same family and other parameters."""
    return {**site, "fn": _with_parameters(site["fn"], values)}


def _innermost(fn: Any) -> Any:
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _with_parameters(fn: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(fn, dist.Independent):
        return _with_parameters(fn.base_dist, values).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return _with_parameters(fn.base_dist, values).mask(fn._mask)
    return type(fn)(**values, validate_args=False)
