r"""Where sites are the weights of layers: what goes in, and where the gradient of what comes out can be read.

For a linear layer $z = W a$ the gradient in W of a function of one row is $g a^\top$ with $g = \nabla_z$, so that
squares and outer products of gradients need no gradient of a row itself. A convolution is a linear layer of its
patches, an embedding one of indicator vectors; both, and a linear layer applied to a sequence, share their weight over
R places of a row, whose gradients add up: $\sum_r g_r a_r^\top$. A bias or an element-wise factor has $g$, or g times
what it multiplies, summed over what it is broadcast along.

Layers are found by watching torch's functions while a model runs, so that they may stand in a module or in plain code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from pyro_scale.types import Position


@dataclass(frozen=True)
class Linear:
    """A site as the matrix of a linear map.

    Attributes:
        site: its name.
        edge: where the gradient of the result comes by.
        inputs: a of some of the rows, `(n, R, i)`, made when asked for.
        arrange: gradient of the result -> g, `(n, R, o)`.
        turned: whether the site is stored as `(i, o)` rather than `(o, i)`.
    """

    site: str
    edge: GradientEdge
    inputs: Callable[[slice], Tensor]
    arrange: Callable[[Tensor], Tensor]
    turned: bool

    def by_row(self, gradient: Tensor, shape: torch.Size, rows: slice) -> Tensor:
        """Gradient in the site of each of some rows, `(n, *site)`."""
        a, g = self.inputs(rows), self.arrange(gradient[rows])
        found = a.mT @ g if self.turned else g.mT @ a
        return found.reshape(len(found), *shape)


@dataclass(frozen=True)
class Elementwise:
    """A site that is added to something, or multiplies it.

    Attributes:
        site: its name.
        edge: where the gradient of the result comes by.
        factor: what is multiplied; None for a sum.
        shape: the site's, with as many axes as the result.
    """

    site: str
    edge: GradientEdge
    factor: Tensor | None
    shape: tuple[int, ...]

    def by_row(self, gradient: Tensor, shape: torch.Size, rows: slice) -> Tensor:
        """Gradient in the site of each of some rows, `(n, *site)`."""
        each = gradient[rows] if self.factor is None else gradient[rows] * self._factor(rows)
        along = [axis for axis in range(1, each.ndim) if self.shape[axis] == 1]
        found = each.sum(along) if along else each
        return found.reshape(len(found), *shape)

    def _factor(self, rows: slice) -> Tensor:
        assert self.factor is not None
        whole = self.factor.ndim < len(self.shape) or len(self.factor) == 1
        return self.factor if whole else self.factor[rows]


Use = Linear | Elementwise


class Watch(TorchFunctionMode):
    """Records what sites are used for, while a function of them runs.

    Args:
        sites: leaves of the graph.

    Attributes:
        uses: in order.
    """

    def __init__(self, sites: Position) -> None:
        super().__init__()
        self.sites = sites
        self.where = {leaf.data_ptr(): name for name, leaf in sites.items() if leaf.numel()}
        self.uses: list[Use] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        reader = READERS.get(func)
        if reader is not None and isinstance(result, Tensor) and result.requires_grad and result.ndim:
            reader(self, get_gradient_edge(result), result, *args, **(kwargs or {}))
        return result

    def name(self, value: Any) -> str | None:
        """The site that a tensor is, or None."""
        if not isinstance(value, Tensor) or not value.requires_grad or value.numel() == 0:
            return None
        name = self.where.get(value.data_ptr())
        return name if name is not None and value.numel() == self.sites[name].numel() else None

    def matrix(self, value: Tensor, inputs: Callable[[slice], Tensor], edge: GradientEdge, arrange: Any) -> None:
        """Records a linear map by the matrix `(o, i)` in the first axis and the others."""
        name = self.name(value)
        if name is None:
            return
        if value.is_contiguous():
            self.uses.append(Linear(name, edge, inputs, arrange, turned=False))
        elif value.ndim == 2 and value.mT.is_contiguous():
            self.uses.append(Linear(name, edge, inputs, arrange, turned=True))

    def elementwise(self, value: Any, edge: GradientEdge, factor: Tensor | None, shape: tuple[int, ...]) -> None:
        """Records a site that is the same for all rows."""
        name = self.name(value)
        if name is not None and value.is_contiguous() and shape[:1] == (1,):
            self.uses.append(Elementwise(name, edge, factor, shape))


def _places(leaf: Tensor) -> Tensor:
    """`(n, R, i)` of `(n, ..., i)`."""
    return leaf.reshape(len(leaf), leaf[:1, ..., 0].numel(), leaf.shape[-1])


def _channels(leaf: Tensor) -> Tensor:
    """`(n, R, c)` of `(n, c, ...)`."""
    return leaf.flatten(2).mT if leaf.ndim > 2 else leaf.unsqueeze(1)


def _at_channels(result: Tensor, number: int) -> tuple[int, ...]:
    return (1, number, *[1] * (result.ndim - 2))


def _linear(
    watch: Watch, edge: GradientEdge, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> None:
    if x.ndim > 1:
        held = x.detach()
        watch.matrix(weight, lambda rows: _places(held[rows]), edge, _places)
        watch.elementwise(bias, edge, None, (*[1] * (result.ndim - 1), result.shape[-1]))


def _matmul(watch: Watch, edge: GradientEdge, result: Tensor, x: Any, weight: Any, **_: Any) -> None:
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or x.ndim < 2 or weight.ndim not in (1, 2):
        return
    held = x.detach()
    if weight.ndim == 1:
        watch.matrix(weight.unsqueeze(0), lambda rows: _places(held[rows]), edge, lambda g: _places(g.unsqueeze(-1)))
    else:
        watch.matrix(weight.mT, lambda rows: _places(held[rows]), edge, _places)


def _addmm(
    watch: Watch, edge: GradientEdge, result: Tensor, bias: Tensor, x: Tensor, weight: Tensor, **scaled: Any
) -> None:
    if not scaled:
        _matmul(watch, edge, result, x, weight)
        _add(watch, edge, result, result, bias)


def _conv(
    watch: Watch,
    edge: GradientEdge,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    space = weight.ndim - 2
    if x.ndim != weight.ndim or space > 2 or groups != 1 or isinstance(padding, str):
        return
    held = x.detach()

    def pair(value: Any, alone: int) -> tuple[int, ...]:
        both = (value,) * space if isinstance(value, int) else tuple(value) * (space if len(value) == 1 else 1)
        return (alone, *both) if space == 1 else both

    def patches(rows: slice) -> Tensor:
        image = held[rows].unsqueeze(2) if space == 1 else held[rows]
        kernel = pair(tuple(weight.shape[2:]), 1)
        return F.unfold(image, kernel, pair(dilation, 1), pair(padding, 0), pair(stride, 1)).mT

    watch.matrix(weight, patches, edge, _channels)
    watch.elementwise(bias, edge, None, _at_channels(result, result.shape[1]))


def _embedding(
    watch: Watch, edge: GradientEdge, result: Tensor, indices: Tensor, weight: Tensor, padding_idx: Any = None, *_: Any,
    **__: Any,
) -> None:  # fmt: skip
    def indicators(rows: slice) -> Tensor:
        found = F.one_hot(indices[rows].reshape(len(indices[rows]), -1), len(weight)).to(weight.dtype)
        if padding_idx is not None and padding_idx != -1:
            found[..., padding_idx] = 0
        return found

    if indices.ndim:
        watch.matrix(weight.mT, indicators, edge, _places)


def _batch_norm(
    watch: Watch, edge: GradientEdge, result: Tensor, x: Tensor, mean: Any, variance: Any, weight: Any = None,
    bias: Any = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> None:  # fmt: skip
    if training or mean is None:
        return
    shape = _at_channels(result, result.shape[1])
    if watch.name(weight) is not None:
        normal = ((x - mean.reshape(shape)) * (variance.reshape(shape) + eps).rsqrt()).detach()
        watch.elementwise(weight, edge, normal, shape)
    watch.elementwise(bias, edge, None, shape)


def _layer_norm(
    watch: Watch, edge: GradientEdge, result: Tensor, x: Tensor, normalized_shape: Any, weight: Any = None,
    bias: Any = None, eps: float = 1e-5,
) -> None:  # fmt: skip
    shape = (*[1] * (result.ndim - len(normalized_shape)), *normalized_shape)
    if watch.name(weight) is not None:
        watch.elementwise(weight, edge, F.layer_norm(x.detach(), normalized_shape, eps=eps), shape)
    watch.elementwise(bias, edge, None, shape)


def _group_norm(
    watch: Watch, edge: GradientEdge, result: Tensor, x: Tensor, num_groups: int, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> None:  # fmt: skip
    shape = _at_channels(result, result.shape[1])
    if watch.name(weight) is not None:
        watch.elementwise(weight, edge, F.group_norm(x.detach(), num_groups, eps=eps), shape)
    watch.elementwise(bias, edge, None, shape)


def _add(watch: Watch, edge: GradientEdge, result: Tensor, one: Any, other: Any, **scaled: Any) -> None:
    if scaled:
        return
    for value in (one, other):
        if watch.name(value) is not None:
            watch.elementwise(value, edge, None, (*[1] * (result.ndim - value.ndim), *value.shape))


def _mul(watch: Watch, edge: GradientEdge, result: Tensor, one: Any, other: Any) -> None:
    for value, factor in ((one, other), (other, one)):
        if watch.name(value) is not None and isinstance(factor, Tensor):
            shape = (*[1] * (result.ndim - value.ndim), *value.shape)
            watch.elementwise(value, edge, factor.detach(), shape)


READERS: dict[Any, Callable[..., None]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.addmm: _addmm,
    **dict.fromkeys((F.conv1d, F.conv2d, torch.conv1d, torch.conv2d), _conv),
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.mv, Tensor.matmul, Tensor.mm, Tensor.mv, Tensor.__matmul__), _matmul
    ),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _mul),
}
"""Function of torch -> what reads the uses of sites off its arguments."""
