"""Arithmetic on `dict[str, Tensor]`, leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tree = dict[str, Tensor]


def map(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Applies `function` to the leaves of equal name.

    Example:
        >>> map(torch.add, {"w": torch.ones(2)}, {"w": torch.ones(2)})
        {'w': tensor([2., 2.])}
    """
    return {name: function(leaf, *(other[name] for other in others)) for name, leaf in tree.items()}


def shapes(tree: Tree) -> dict[str, torch.Size]:
    """Shape of every leaf."""
    return {name: leaf.shape for name, leaf in tree.items()}


def scale(tree: Tree, factor: float | Tensor) -> Tree:
    """Every leaf times one factor."""
    return {name: factor * leaf for name, leaf in tree.items()}


def size(tree: Tree) -> int:
    """Number of coordinates in all leaves."""
    return sum(leaf.numel() for leaf in tree.values())


def full_like(tree: Tree, value: float | Tree) -> Tree:
    """A tree of the shapes of `tree`: one value everywhere, or the leaves of `value` broadcast to them."""
    if isinstance(value, dict):
        return {name: value[name].to(leaf).expand(leaf.shape) for name, leaf in tree.items()}
    return {name: torch.full_like(leaf, value) for name, leaf in tree.items()}


def ravel(tree: Tree) -> Tensor:
    """All leaves in one vector, in the order of the dict."""
    return torch.cat([leaf.reshape(-1) for leaf in tree.values()])


def flat(tree: Tree, like: dict[str, torch.Size]) -> Tensor:
    """All leaves along the last axis, in the order of the given shapes; leading axes of the leaves stay.

    Example:
        >>> flat({"w": torch.ones(4, 2), "b": torch.zeros(4)}, {"b": torch.Size([]), "w": torch.Size([2])}).shape
        torch.Size([4, 3])
    """
    first, shape = next(iter(like.items()))
    leading = tree[first].shape[: tree[first].ndim - len(shape)]
    return torch.cat([tree[name].reshape(*leading, like[name].numel()) for name in like], -1)


def unravel(vector: Tensor, like: dict[str, torch.Size]) -> Tree:
    """The inverse of `flat` for leaves of the given shapes; leading axes of the vector stay.

    Example:
        >>> unravel(torch.arange(3.), {"w": torch.Size([2]), "b": torch.Size([])})
        {'w': tensor([0., 1.]), 'b': tensor(2.)}
    """
    parts = vector.split([shape.numel() for shape in like.values()], -1)
    leading = vector.shape[:-1]
    return {name: part.reshape((*leading, *shape)) for (name, shape), part in zip(like.items(), parts, strict=True)}


def to(tree: Tree, *args: Any) -> Tree:
    """Every leaf converted by `Tensor.to`."""
    return {name: leaf.to(*args) for name, leaf in tree.items()}
