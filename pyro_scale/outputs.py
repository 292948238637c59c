"""The parameters of an observed site's distribution, and its log density as a function of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_scale.errors import ModelError
from pyro_scale.records import PyroSite, parts_of

ALTERNATIVES = (
    ("logits", "probs"),
    ("covariance_matrix", "precision_matrix", "scale_tril"),
    ("gate", "gate_logits"),
)
"""Parameters of which a distribution takes one; once another is asked for, torch caches it beside the first."""


def parameters(site: PyroSite) -> dict[str, Tensor]:
    """Parameter -> value, those that the distribution was made with (logits or probs, not both).

    Raises:
        ModelError: the distribution does not name its parameters (a mixture, a transformed distribution).
    """
    fn = innermost(site["fn"])
    names = _made_with(fn)
    if not names:
        raise ModelError(
            f"Site '{site['name']}' is {type(fn).__name__}, which does not name its parameters, so that its outputs "
            "cannot be told. Use log_likelihood (curvature='fisher' or 'hessian'), or a distribution with arg_constraints."
        )
    return {name: getattr(fn, name) for name in names}


def rebuilt(site: PyroSite, values: Mapping[str, Tensor]) -> PyroSite:
    """The site with a distribution of the same family and other parameters."""
    return {**site, "fn": _with_parameters(site["fn"], values)}


def innermost(fn: Any) -> Any:
    """The distribution within `to_event` and `mask`."""
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _made_with(fn: Any) -> list[str]:
    """Names of the parameters, each alternative once."""
    for part in parts_of(fn):  # Multinomial and OneHotCategorical keep a Categorical
        if part.arg_constraints and part.arg_constraints.keys() == fn.arg_constraints.keys():
            return _made_with(part)
    signature = inspect.signature(type(fn).__init__).parameters
    required = [name for name, parameter in signature.items() if parameter.default is inspect.Parameter.empty]
    names = [name for name in fn.arg_constraints if name in vars(fn) or name in required]
    for alternatives in ALTERNATIVES:
        present = [name for name in alternatives if name in names]
        given = [name for name in present if vars(fn).get(name) is getattr(fn, "_param", None)]
        for name in present:
            if name != (given or present)[0]:
                names.remove(name)
    return names


def _with_parameters(fn: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(fn, dist.Independent):
        return _with_parameters(fn.base_dist, values).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return _with_parameters(fn.base_dist, values).mask(fn._mask)
    return type(fn)(**values, **settings(fn), validate_args=False)


def settings(fn: Any) -> dict[str, Any]:
    """What the distribution was made with beside its parameters, as Multinomial's total_count."""
    names = (
        inspect.signature(type(fn).__init__).parameters.keys() - fn.arg_constraints.keys() - {"self", "validate_args"}
    )
    return {name: getattr(fn, name) for name in names if hasattr(fn, name)}
