"""The parameters of an observed site's distribution as numbers without bounds, and the distribution at such numbers.

Probabilities are told by their logits, a covariance by its Cholesky factor, and whatever `arg_constraints` bounds by
what `biject_to` maps to it: the log of a scale, for example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_scale.errors import ModelError
from pyro_scale.outputs import innermost, parameters, rebuilt
from pyro_scale.records import PyroSite

PREFERRED = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}
"""Parameter -> the one that stands for it, where the distribution has both."""


def unbounded(site: PyroSite, names: Iterable[str]) -> dict[str, Tensor]:
    """Those parameters of the site's distribution, without bounds.

    Raises:
        ModelError: no bijection is known to what a parameter may be.
    """
    values = natural(site)
    return {name: _bijection(site, name).inv(values[name]) for name in names}


def at_unbounded(site: PyroSite, values: Mapping[str, Tensor]) -> PyroSite:
    """The site with these parameters in place of its own; what is not named stays."""
    moved = {name: _bijection(site, name)(value) for name, value in values.items()}
    return rebuilt(site, {**natural(site), **moved})


def natural(site: PyroSite) -> dict[str, Tensor]:
    """Parameter -> value within its bounds."""
    fn = innermost(site["fn"])
    names = [_preferred(fn, name) for name in parameters(site)]
    return {name: torch.as_tensor(getattr(fn, name)) for name in names}


def _preferred(fn: Any, name: str) -> str:
    other = PREFERRED.get(name, name)
    return other if other in fn.arg_constraints else name


def _bijection(site: PyroSite, name: str) -> Any:
    fn = innermost(site["fn"])
    constraint = fn.arg_constraints[name]
    try:
        return biject_to(constraint)
    except NotImplementedError as error:
        raise ModelError(
            f"Site '{site['name']}' is {type(fn).__name__}, and latent sites move its parameter '{name}', which no "
            f"bijection maps to numbers without bounds ({constraint}). Use linearized=False."
        ) from error
