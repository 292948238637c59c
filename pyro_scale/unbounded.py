"""The parameters of an observed site's distribution as numbers without bounds, and the distribution at such numbers.

Probabilities are told by their logits, a covariance by its Cholesky factor, and whatever `arg_constraints` bounds by
what `biject_to` maps to it: the log of a scale, for example.

Logits of classes are those that the model wrote, where it did: torch's distributions keep them less their `logsumexp`,
whose variance is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import distribution
from torch import Tensor
from torch.distributions import LowerCholeskyTransform, biject_to, constraints

from pyro_scale.errors import ModelError
from pyro_scale.outputs import innermost, parameters, rebuilt
from pyro_scale.records import PyroSite

PREFERRED = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}
"""Parameter -> the one that stands for it, where the distribution has both."""


WRITTEN = "_logits_as_written"


@contextmanager
def logits_as_written() -> Iterator[None]:
    """Distributions that Pyro makes for the duration remember the logits that they were made with."""

    def remembering(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = type.__call__(cls, *args, **kwargs)
        if isinstance(kwargs.get("logits"), Tensor):
            _remember(made, kwargs["logits"])
        return made

    distribution.COERCIONS.append(remembering)  # Pyro's own hook for how distributions are made
    try:
        yield
    finally:
        distribution.COERCIONS.remove(remembering)


def _remember(fn: Any, logits: Tensor) -> None:
    """Keeps the logits with the distribution, and with what a plate makes of it by `expand`."""
    expand = fn.expand

    def remembering(batch_shape: Any, *args: Any) -> Any:
        expanded = expand(batch_shape, *args)
        own = logits.shape[len(fn.batch_shape) :]
        _remember(expanded, logits.expand(*batch_shape, *own))
        return expanded

    vars(fn).update({WRITTEN: logits, "expand": remembering})


def without_bounds(site: PyroSite, names: Iterable[str]) -> dict[str, Tensor]:
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
    values = {name: torch.as_tensor(getattr(fn, name)) for name in names}
    if WRITTEN in vars(fn) and vars(fn)[WRITTEN].shape == values["logits"].shape:
        values["logits"] = vars(fn)[WRITTEN]
    return values


def _preferred(fn: Any, name: str) -> str:
    other = PREFERRED.get(name, name)
    return other if other in fn.arg_constraints else name


def _bijection(site: PyroSite, name: str) -> Any:
    fn = innermost(site["fn"])
    constraint = fn.arg_constraints[name]
    if constraint is constraints.lower_cholesky:
        return LowerCholeskyTransform()
    try:
        return biject_to(constraint)
    except NotImplementedError as error:
        raise ModelError(
            f"Site '{site['name']}' is {type(fn).__name__}, and latent sites move its parameter '{name}', which no "
            f"bijection maps to numbers without bounds ({constraint}). Use linearized=False."
        ) from error
