"""Starts at values that the user gives for some or all of the sites, checked against the sites of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.draws import over_chains
from pyro_scale.enumeration import value_shape
from pyro_scale.errors import ArgumentError
from pyro_scale.handlers import FromPosition, bijection
from pyro_scale.records import PyroSite
from pyro_scale.support import described
from pyro_scale.types import Position


class FromGiven(FromPosition):
    """Constrained values of some sites and unconstrained ones of the others, which `position` holds and receives.

    Attributes:
        inside: whether each given value is in its support, and not at its edge, which lies at infinity.
        supports: what those of the given values are, in words.
    """

    def __init__(self, values: Mapping[str, Tensor], position: Position) -> None:
        super().__init__(dict(position))
        self.values = values
        self.inside: dict[str, Tensor] = {}
        self.supports: dict[str, str] = {}

    def set_value(self, msg: PyroSite) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.values:
            super().set_value(msg)
            return
        value = self.values[name]
        assert value.shape == value_shape(msg)
        self.position[name] = bijection(msg).inv(value)
        parts = (fn.support.check(value), torch.isfinite(value), torch.isfinite(self.position[name]))
        self.inside[name] = torch.stack([part.all() for part in parts]).all()
        self.supports[name] = f"{described(fn.support)} of its {family_of(fn)}"
        msg["value"] = value


class Given:
    """The values that a user passed as starts.

    Args:
        compiled: the model.
        initial: site -> value of the site's shape, for all chains, or `(num_chains, *site)`.
        num_chains: number of chains.

    Raises:
        ArgumentError: a name of no latent site; a value that is no array of numbers, or of another shape.
    """

    def __init__(self, compiled: CompiledModel, initial: Mapping[Any, Any], num_chains: int) -> None:
        self.compiled = compiled
        self.values: Position = {}  # (num_chains, *site)
        place = torch.zeros((), dtype=compiled.data.dtype, device=compiled.data.device)
        for name, value in initial.items():
            _check_name(compiled, name)
            tensor, shape = _tensor(name, value).to(place), value_shape_of(compiled, name)
            if tensor.shape not in (shape, (num_chains, *shape)):
                raise ArgumentError(
                    f"initial['{name}'] has shape {tuple(tensor.shape)}; it must have the site's, {tuple(shape)}, or "
                    f"{(num_chains, *shape)} for a start of each chain's own."
                )
            self.values[name] = tensor.expand(num_chains, *shape)

    @property
    def complete(self) -> bool:
        """Whether every latent site has a value."""
        return self.values.keys() == self.compiled.latent.keys()

    def place(self, chains: list[int], position: Position) -> tuple[Position, Tensor]:
        """Positions of some chains with the given sites at their values, and whether these are in their supports."""

        def one(position: Position, values: Position) -> tuple[Position, Tensor]:
            source = FromGiven(values, position)
            placed = self.compiled.position_of(source)
            return placed, torch.stack(list(source.inside.values())).all()

        values = self.values
        if len(chains) < len(next(iter(values.values()))):
            values = tree.map(lambda leaf: leaf[chains], values)
        placed, inside = over_chains(one, one, position, values)
        return placed, inside

    def check_support(self, chain: int, position: Position) -> None:
        """Raises `ArgumentError` where a value of this chain is outside its support, the other sites at `position`."""
        source = FromGiven(tree.map(lambda leaf: leaf[chain], self.values), position)
        with torch.no_grad():
            self.compiled.position_of(source)
        for name, inside in source.inside.items():
            if not inside:
                raise ArgumentError(
                    f"initial['{name}'] is outside the support {source.supports[name]}, or at its edge, in chain "
                    f"{chain}: {_shown(source.values[name])}. Give a value within it."
                )


def family_of(fn: Any) -> str:
    """The name of a distribution without what `expand`, `mask` and `to_event` put around it."""
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return type(fn).__name__


def value_shape_of(compiled: CompiledModel, name: str) -> torch.Size:
    """Shape of a latent site's value, for all rows."""
    shape = list(compiled.sites[name].shape)
    if name in compiled.local:
        shape[compiled.local[name]] = compiled.num_data
    return torch.Size(shape)


def _check_name(compiled: CompiledModel, name: Any) -> None:
    if name in compiled.latent:
        return
    kind = compiled.sites[name].kind if name in compiled.sites else "no site of the model"
    reasons = {
        "observed": "is observed",
        "enumerated": "is discrete and summed out",
        "deterministic": "is deterministic: it follows from the others",
        "factor": "is a factor",
    }
    raise ArgumentError(
        f"initial names {name!r}, which {reasons.get(kind, f'is {kind}')}. Leave it out: the sites that chains move in "
        f"are {names_of(list(compiled.latent))}."
    )


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"initial['{name}'] is a {type(value).__name__}; it must be a number, tensor or array."
        ) from error


def _shown(value: Tensor) -> str:
    """At most a few numbers of it."""
    numbers = [f"{number:g}" for number in value.flatten()[:5].tolist()]
    return ", ".join([*numbers, "..."] if value.numel() > len(numbers) else numbers)
