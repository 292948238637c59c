r"""Sites with a value for each row, under minibatches: a table of all rows, of which a step moves those of its batch.

The log posterior of a batch counts the rows' own terms N / n times, which is right for what all rows share; the
gradient of one row's value is thereby N / n times too long, and is divided by it again. One row's curvature is O(1)
where that of a shared site is O(N), while a kernel's step size is meant for curvatures of O(N): the kernel sees the
value in units of $\sqrt{N}$. Without the first a table's sd comes out 1.4 times too wide, without the second it hardly
moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.errors import MinibatchError
from pyro_scale.gradient import ControlVariate, Frame
from pyro_scale.row_coordinates import RowCoordinates
from pyro_scale.types import Batch, LogPosterior, Position
from pyro_scale.whitening import Whitened

UNCHANGED = Frame()


class LocalTarget:
    """A target in the kernel's coordinates: local sites in units of sqrt(num_data), their gradient that of full batch.

    Its values are those of the target.
    """

    def __init__(self, target: CompiledModel) -> None:
        self.target = target
        self.local = tuple(target.local)
        self.unit = math.sqrt(target.num_data)

    @property
    def log_volume(self) -> float:
        """Log determinant of `position`, by which log densities of the two coordinates differ."""
        return sum(self.target.latent[name].numel() for name in self.local) * math.log(self.unit)

    def position(self, coordinates: Position) -> Position:
        """The target's position."""
        return self._scaled(coordinates, self.unit)

    def coordinates(self, position: Position) -> Position:
        """The inverse of `position`."""
        return self._scaled(position, 1 / self.unit)

    def __call__(self, coordinates: Position, batch: Batch) -> Tensor:
        return self.target(self._at_rows(coordinates, batch), batch)

    def log_likelihood(self, coordinates: Position, batch: Batch) -> dict[str, Tensor]:
        """That of the target, unscaled."""
        return self.target.log_likelihood(self._at_rows(coordinates, batch), batch)

    def _at_rows(self, coordinates: Position, batch: Batch) -> Position:
        """The target's position, the gradient of local sites divided by the batch's scale."""
        position = self.position(coordinates)
        for name in self.local:
            held = position[name].detach()
            position[name] = held + (position[name] - held) / batch.scale
        return position

    def _scaled(self, position: Position, factor: float) -> Position:
        return {name: factor * leaf if name in self.local else leaf for name, leaf in position.items()}


class Table:
    """States of all chains whose trees by site hold the values of all rows, and the part of them that a batch moves.

    Every tree by site in a state counts, as position, momentum or a preconditioner, in tuples within it too: kernels
    know nothing of it. Without local sites, and in full batch, the part is the whole.

    Args:
        compiled: the model.
        frame: what its chains move in.

    Attributes:
        target: what kernels are bound to.
    """

    def __init__(self, compiled: CompiledModel, frame: Frame = UNCHANGED) -> None:
        own = LocalTarget(compiled) if compiled.local else None
        self.changed: LocalTarget | Whitened | RowCoordinates | None = own if frame.whitened is None else frame.whitened
        target = compiled if self.changed is None else self.changed
        self.target: LogPosterior = ControlVariate(target) if frame.anchor else target
        part = compiled.local if compiled.batch_size is not None else {}
        self.axes = {name: axis + 1 for name, axis in part.items()}  # behind that of the chains

    def coordinates(self, position: Position) -> Position:
        """The kernel's coordinates of a position."""
        return position if self.changed is None else self.changed.coordinates(position)

    def position(self, coordinates: Position) -> Position:
        """The inverse of `coordinates`."""
        return coordinates if self.changed is None else self.changed.position(coordinates)

    def rows(self, state: Any, indices: Tensor | None) -> Any:
        """The state with the rows of a batch only; `indices` are `(num_chains, n)`."""
        if indices is None or not self.axes:
            return state
        chains = torch.arange(len(indices), device=indices.device).unsqueeze(1)

        def take(leaf: Tensor, axis: int) -> Tensor:
            return leaf.movedim(axis, 1)[chains, indices].movedim(1, axis)

        return self._over(state, take)

    def write(self, state: Any, after: Any, indices: Tensor | None) -> Any:
        """The state after a step: rows of the batch as they are in `after`, written in place, and all else from it.

        A batch that spans two permutations may hold a row twice; one of the two moves is then kept.
        """
        if indices is None or not self.axes:
            return after
        chains = torch.arange(len(indices), device=indices.device).unsqueeze(1)

        def put(field: Any, moved: Any) -> Any:
            if isinstance(field, tuple):
                return _like(moved, map(put, field, moved))
            if not isinstance(field, dict):
                return moved
            for name, axis in self.axes.items():
                if name in field:
                    field[name].movedim(axis, 1)[chains, indices] = moved[name].movedim(axis, 1)
            return {name: field[name] if name in self.axes else leaf for name, leaf in moved.items()}

        return put(state, after)

    def copied(self, state: Any) -> Any:
        """A state of its own, that steps to come do not write to."""
        return pytree.tree_map(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), state)

    def check(self, kernel: Any, whole: Any, part: Any) -> None:
        """Raises `MinibatchError` where a kernel's state has something beside trees by site that follows the rows.

        Args:
            kernel: named in the message.
            whole: a state over all rows.
            part: one over those of a batch.
        """
        for name, one, other in zip(type(whole)._fields, whole, part, strict=True):
            if _shapes(one, self.axes) != _shapes(other, self.axes):
                raise MinibatchError(
                    f"{type(kernel).__name__} cannot hold site {names_of(list(self.axes))}, which has a value for each "
                    f"row: '{name}' of its state joins all of them and cannot be cut into rows. Use another kernel, as "
                    "sghmc, or batch_size=None."
                )

    def _over(self, state: Any, function: Callable[[Tensor, int], Tensor]) -> Any:
        def one(name: str, leaf: Tensor) -> Tensor:
            return function(leaf, self.axes[name]) if name in self.axes else leaf

        def mapped(field: Any) -> Any:
            if isinstance(field, tuple):
                return _like(field, map(mapped, field))
            return {name: one(name, leaf) for name, leaf in field.items()} if isinstance(field, dict) else field

        return mapped(state)


def _like(state: Any, parts: Iterable[Any]) -> Any:
    """A tuple, named as the state is."""
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _shapes(field: Any, local: Collection[str]) -> list[torch.Size]:
    """Of all tensors but those of the local sites in a tree by site."""
    if isinstance(field, tuple):
        return [shape for part in field for shape in _shapes(part, local)]
    if isinstance(field, dict):
        field = {name: leaf for name, leaf in field.items() if name not in local}
    return [leaf.shape for leaf in pytree.tree_leaves(field) if isinstance(leaf, Tensor)]
