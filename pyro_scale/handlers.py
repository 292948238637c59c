"""Running the Pyro model: given values for its latent sites, a trace of its sites and their log densities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint, independent

from pyro_scale.bijections import log_jacobian, unconstrained_shape
from pyro_scale.data import Data, Model
from pyro_scale.enumeration import Enumerate, check_fixed_support, value_shape
from pyro_scale.errors import ArgumentError, ModelError
from pyro_scale.params import held_value, store_unchanged
from pyro_scale.records import PyroSite, is_data, is_enumerated, is_plate_index, validation
from pyro_scale.subsample import given_indices, refuse_own_subsample
from pyro_scale.types import Position

START_RADIUS = 2.0
"""Chains start uniformly within this distance of 0 in every unconstrained coordinate, as in Stan and Pyro."""


class Run(NamedTuple):
    """One execution of the model.

    Attributes:
        sites: name -> Pyro's record of it, in order of execution; plates' own index sites left out.
        log_jacobian, position: latent site -> log|det d constrained / d unconstrained|, by event; unconstrained value.
    """

    sites: dict[str, PyroSite]
    log_jacobian: dict[str, Tensor]
    position: Position


def run(
    model: Model,
    data: Data,
    rows: Mapping[str, Tensor],
    source: LatentSource,
    *,
    sample_observed: bool = False,
    sample_discrete: bool = False,
    validate: bool = False,
) -> Run:
    """Runs the model on `rows` with latent values from `source`.

    `sample_observed` draws the observed sites anew, and latent sites for which `source` has no value, from the global
    generator: call it within `seeded`. Discrete latent sites are drawn then, or with `sample_discrete`; otherwise
    they take all their values.
    """
    with ExitStack() as stack:
        stack.enter_context(defaults(data.dtype, data.device))
        stack.enter_context(validation(validate))
        stack.enter_context(poutine.block())
        tracer = stack.enter_context(poutine.trace())
        if sample_observed:
            stack.enter_context(_DrawObserved())
        elif not sample_discrete:
            stack.enter_context(Enumerate())
        stack.enter_context(source)
        stack.enter_context(_Prepare(data.params))
        stack.enter_context(store_unchanged())
        if data.plate is not None:
            stack.enter_context(given_indices(data.plate, rows[data.plate]))
        model(**({} if data.plate is not None else rows), **data.constants)
    nodes: Any = tracer.trace.nodes
    sites = {name: node for name, node in nodes.items() if node["type"] == "sample" and not is_plate_index(node)}
    return Run(sites, source.log_jacobian, source.position)


class LatentSource(Messenger):
    """Where latent sites get their values; not the discrete ones, which are summed out or drawn."""

    position: Position

    def __init__(self) -> None:
        super().__init__()
        self.log_jacobian: dict[str, Tensor] = {}

    def __enter__(self) -> Any:
        self.log_jacobian = {}
        return super().__enter__()

    def _pyro_sample(self, msg: PyroSite) -> None:
        if is_plate_index(msg):
            refuse_own_subsample(msg)
        elif not msg["is_observed"] and msg["value"] is None and not is_enumerated(msg):
            self.set_value(msg)

    def set_value(self, msg: PyroSite) -> None:
        raise NotImplementedError


class FromPosition(LatentSource):
    """Unconstrained values by site.

    With a generator, sites that `position` lacks, or has in another shape, start within `START_RADIUS` of 0, and
    their values are added to `position`.
    """

    def __init__(self, position: Position, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.position = position
        self.generator = generator

    def set_value(self, msg: PyroSite) -> None:
        transform = bijection(msg)
        if self.generator is not None:
            self._fill(msg, unconstrained_shape(transform, value_shape(msg)))
        if msg["name"] not in self.position:
            raise ModelError(
                f"The model draws different sites on different runs: '{msg['name']}' came, and was not there before. "
                "Every run must visit the same sites; use a mask or a mixture in place of a branch."
            )
        unconstrained = self.position[msg["name"]]
        value = transform(unconstrained)
        _check_shape(msg, value)
        self.log_jacobian[msg["name"]] = log_jacobian(transform, unconstrained, value)
        msg["value"] = value

    def _fill(self, msg: PyroSite, shape: torch.Size) -> None:
        known = self.position.get(msg["name"])
        if known is None or known.shape != shape:
            assert self.generator is not None
            self.position[msg["name"]] = near_zero(shape, self.generator, torch.zeros(()))


def near_zero(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform within `START_RADIUS` of 0; the same numbers whatever the type and device of `like`."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return uniform.mul_(2).sub_(1).mul_(START_RADIUS).to(like)  # in place: it may be as large as all weights


class FromValues(LatentSource):
    """Constrained values by site; `position` receives what they are unconstrained. Others are drawn by the model."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.position: Position = {}

    def set_value(self, msg: PyroSite) -> None:
        if msg["name"] in self.values:
            value = torch.as_tensor(self.values[msg["name"]]).to(torch.zeros(()))
            if value.shape != value_shape(msg):
                raise ArgumentError(
                    f"The value given for site '{msg['name']}' has shape {tuple(value.shape)}; the site has shape "
                    f"{tuple(value_shape(msg))}."
                )
            self.position[msg["name"]] = bijection(msg).inv(value)
            msg["value"] = value


class _DrawObserved(Messenger):
    """Draws what is observed, and what has no value yet.

    By `sample`, whose arguments carry the draw's own parameters: `vmap` has no rule for the noise of `rsample`.
    """

    def _pyro_sample(self, msg: PyroSite) -> None:
        if is_data(msg) or (msg["value"] is None and not is_plate_index(msg)):
            msg["is_observed"] = False
            value = msg["fn"].sample()
            # a prior that was made under another default type
            msg["value"] = value.to(torch.zeros(())) if value.is_floating_point() else value


class _Prepare(Messenger):
    """Casts observations at their site, and holds params at what they were on the first run."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.params = params

    def _pyro_sample(self, msg: PyroSite) -> None:
        if is_data(msg) and msg["value"] is not None:
            msg["passed"] = msg["value"]
            msg["value"] = torch.as_tensor(msg["value"]).to(torch.zeros(()))

    def _pyro_param(self, msg: PyroSite) -> None:
        # before Pyro puts it in its global store
        if msg["name"] not in self.params:
            self.params[msg["name"]] = held_value(msg)
        msg["value"] = self.params[msg["name"]]


def bijection(site: PyroSite) -> Any:
    """The map from R^d to the site's support, or the reason why there is none."""
    name, fn = site["name"], site["fn"]
    family = type(getattr(fn, "base_dist", fn)).__name__
    if isinstance(fn, Delta):
        raise ModelError(
            f"Site '{name}' is a Delta, which has no density. Use pyro.deterministic('{name}', value), or a constant."
        )
    check_fixed_support(site)
    support = fn.support
    try:
        return biject_to(_of_component(support))
    except NotImplementedError as error:
        raise ModelError(
            f"Site '{name}' is {family} with support {support}, which has no bijection to real numbers. "
            "Use a distribution with a support that torch.distributions.biject_to knows."
        ) from error


def _of_component(support: Any) -> Any:
    """The support of a mixture whose bounds are numbers, the same for every component; others as they are."""
    if isinstance(support, independent):
        return independent(_of_component(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, MixtureSameFamilyConstraint):
        component = _of_component(support.base_constraint)
        bounds = vars(getattr(component, "base_constraint", component)).values()
        return support if any(isinstance(bound, Tensor) for bound in bounds) else component
    return support


def _check_shape(site: PyroSite, value: Tensor) -> None:
    if value.shape != value_shape(site):
        raise ModelError(
            f"The value at hand for site '{site['name']}' has shape {tuple(value.shape)}, but the model draws it in "
            f"shape {tuple(value_shape(site))}. A site must have the same shape on every run: take the size from "
            "constants, not from the rows (int(g.max()) + 1 changes with them)."
        )


@contextmanager
def defaults(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Torch's default dtype and device for the duration, restored afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # torch.get_default_device fails within torch.func.grad where the user set a device without its number
        default = torch.empty(0).device
        if default == device or default.type == device.type == "cpu":
            yield
        else:  # a device on torch's stack intercepts every call
            with device:
                yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generator, which Pyro draws from, seeded for the duration and restored afterwards.

    By a seed derived from `seed`: data are often made from seed 0 too, and must not share their noise with predictions.
    """
    derived = torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed), device="cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(derived))
        yield
