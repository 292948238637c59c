"""Pyro's record of a sample statement: the role it plays, and its log density."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Distribution

PyroSite = dict[str, Any]
Kind = Literal["latent", "enumerated", "observed", "factor", "deterministic"]


def parts_of(fn: Any) -> Iterator[Any]:
    """The distributions that one holds: its base, the components of a mixture, ..."""
    for part in list(vars(fn).values()):
        if isinstance(part, torch.distributions.Distribution):
            yield part


@contextmanager
def validation(enabled: bool) -> Iterator[None]:
    """Pyro's validation on or off; restores torch's flag too, which Pyro overwrites with its own."""
    before = Distribution._validate_args
    try:
        with pyro.validation_enabled(enabled):
            yield
    finally:
        Distribution.set_default_validate_args(before)


@contextmanager
def unvalidated(fn: Any) -> Iterator[None]:
    """No check of values, which reads them and so cannot be recorded; not even where a distribution asks for it."""
    asking = [vars(part) for part in _all_parts(fn) if vars(part).get("_validate_args")]
    for attributes in asking:
        attributes["_validate_args"] = False
    try:
        with validation(False):
            yield
    finally:
        for attributes in asking:
            attributes["_validate_args"] = True


def _all_parts(fn: Any) -> Iterator[Any]:
    yield fn
    for part in parts_of(fn):
        yield from _all_parts(part)


def is_plate_index(site: PyroSite) -> bool:
    """The site that a plate makes for its own indices."""
    return isinstance(site["fn"], _Subsample)


def is_deterministic(site: PyroSite) -> bool:
    """A `pyro.deterministic` site."""
    return bool(site["infer"] and site["infer"].get("_deterministic"))


def is_factor(site: PyroSite) -> bool:
    """A `pyro.factor` site."""
    return isinstance(site["fn"], dist.Unit) or isinstance(getattr(site["fn"], "base_dist", None), dist.Unit)


def is_data(site: PyroSite) -> bool:
    """A site observed with data, which neither deterministic sites nor factors are."""
    return bool(site["is_observed"]) and not is_deterministic(site) and not is_factor(site)


def is_enumerated(site: PyroSite) -> bool:
    """A latent site with a discrete support, which is summed out."""
    fn = site["fn"]
    if site["is_observed"] or isinstance(fn, _Subsample):
        return False
    return bool(fn.has_enumerate_support or fn.support.is_discrete)


def kind_of(site: PyroSite) -> Kind:
    """What role a site plays."""
    if is_deterministic(site):
        return "deterministic"
    if is_factor(site):
        return "factor"
    if is_data(site):
        return "observed"
    return "enumerated" if is_enumerated(site) else "latent"


def holds(site: PyroSite, given: Tensor) -> bool:
    """Whether a site's value is that of an argument, in whatever type."""
    value = site["value"]
    return given.shape == value.shape and torch.equal(given.to(value.dtype), value)


def same(one: Tensor, other: Tensor) -> bool:
    """Equal shapes, and values up to rounding."""
    if one.shape != other.shape:
        return False
    tolerance = 1e-9 if one.dtype == torch.float64 else 1e-4
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def plate_factor(site: PyroSite) -> float:
    """What the site's plates have put into its scale: the product of full size / size."""
    factor = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.size not in (0, frame.full_size):
            factor *= frame.full_size / frame.size
    return factor


def user_scale(site: PyroSite) -> Any:
    """The site's scale without what its plates have put into it."""
    factor = plate_factor(site)
    return site["scale"] if factor == 1.0 else site["scale"] / factor


def log_prob(site: PyroSite, *, unwrap: bool = False, weighted: bool = True) -> Tensor:
    """Log density with the user's own scale and mask, if `weighted`, without the plates' scale.

    `unwrap` keeps event axes apart.
    """
    fn, value = site["fn"], site["value"]
    events = fn.reinterpreted_batch_ndims if unwrap else 0
    with unvalidated(fn):
        density = _density(fn.base_dist if unwrap else fn, value)
    if not weighted:
        return torch.as_tensor(density)
    mask, scale = (append_axes(weight, events) for weight in (site["mask"], user_scale(site)))
    result: Tensor = scale_and_mask(density, scale, mask)
    return result


def _density(fn: Any, value: Tensor) -> Any:
    if type(fn) is dist.Independent:
        return sum_rightmost(_density(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    return _unexpanded(fn, value).log_prob(value)


def _unexpanded(fn: Any, value: Tensor) -> Any:
    """The distribution with parameters of one entry along axes where all are the same, which `value` is to have.

    `Normal(0, 1).expand([2048, 2048])` squares and takes the log of as many scales; a few such are all that memory
    holds of a large model.
    """
    batch, parameters = fn.batch_shape, {name: leaf for name, leaf in vars(fn).items() if isinstance(leaf, Tensor)}
    known = type(fn).__module__ == "pyro.distributions.torch" and not fn.event_shape and not any(parts_of(fn))
    fits = all(leaf.shape == batch for leaf in parameters.values()) and value.shape[value.ndim - len(batch) :] == batch
    if not known or not parameters or not fits:
        return fn
    result = copy(fn)
    for name, leaf in parameters.items():
        for axis in range(leaf.ndim):
            if leaf.stride(axis) == 0 and leaf.shape[axis] > 1:
                leaf = leaf.narrow(axis, 0, 1)
        vars(result)[name] = leaf
    result._batch_shape = torch.Size(np.broadcast_shapes(*(vars(result)[name].shape for name in parameters)))
    return result


def append_axes(weight: Any, events: int) -> Any:
    """A scale or mask of batch shape made to broadcast against values with event axes."""
    if not isinstance(weight, Tensor) or weight.ndim == 0:
        return weight
    return weight.reshape(weight.shape + (1,) * events)
