"""The gradient that kernels take, once: `torch.func.grad_and_value` without what only derivatives of it need.

Those of torch can be differentiated again. For that, the gradient of a recurrent layer, which comes as one operation,
is written out step by step, and takes three times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# not public; where another torch has not got these, its own function serves
functorch: Any = torch._C._functorch
transforms: Any = torch._functorch.eager_transforms
PARTS = (
    (functorch, ("_wrap_for_grad", "_unwrap_for_grad", "is_batchedtensor", "is_gradtrackingtensor")),
    (transforms, ("_create_differentiable", "grad_increment_nesting")),
)


def grad_and_value(function: Callable[..., Tensor]) -> Callable[..., tuple[Any, Tensor]]:
    """A function that returns the gradient of `function` in its first argument, and its value.

    It works under `vmap`. Where it is differentiated in turn, it is that of torch.

    Args:
        function: of a tree of tensors, and of further trees; returns a 0-d tensor.

    Example:
        >>> grad_and_value(lambda x: (x["w"] ** 2).sum())({"w": torch.ones(2)})
        ({'w': tensor([2., 2.])}, tensor(2.))
    """
    if not all(hasattr(module, name) for module, names in PARTS for name in names):
        return torch.func.grad_and_value(function)

    def differentiated(position: Any, *rest: Any) -> tuple[Any, Tensor]:
        leaves, structure = pytree.tree_flatten(position)
        if any(map(_is_differentiated, (*leaves, *pytree.tree_leaves(rest)))):
            return torch.func.grad_and_value(function)(position, *rest)
        # operations that write to their result, which gradients that are not differentiated use, lack rules for vmap
        vectorised = any(functorch.is_batchedtensor(leaf) for leaf in leaves)
        # enabled below the level too: there, recurrent layers (vmap has none) keep what their gradient needs
        below = torch.is_grad_enabled() or not vectorised
        with torch.set_grad_enabled(below), transforms.grad_increment_nesting() as level, torch.enable_grad():

            def inside(leaf: Any) -> Any:
                return functorch._wrap_for_grad(leaf, level) if isinstance(leaf, Tensor) else leaf

            def outside(leaf: Tensor) -> Tensor:
                result: Tensor = functorch._unwrap_for_grad(leaf, level)
                # a model may hold parameters
                return result.detach() if result.requires_grad and not vectorised else result

            variables = [transforms._create_differentiable(inside(leaf)) for leaf in leaves]
            value = function(pytree.tree_unflatten(variables, structure), *pytree.tree_map(inside, rest))
            gradients: Any = [None] * len(leaves)
            if value.requires_grad:
                gradients = torch.autograd.grad(value, variables, allow_unused=True, create_graph=vectorised)
            found = [
                outside(torch.zeros_like(leaf) if gradient is None else gradient)
                for leaf, gradient in zip(leaves, gradients, strict=True)
            ]
            return pytree.tree_unflatten(found, structure), outside(value)

    return differentiated


def _is_differentiated(leaf: Any) -> bool:
    """Whether a level of `torch.func.grad` around this one asks for a derivative in it."""
    return isinstance(leaf, Tensor) and functorch.is_gradtrackingtensor(leaf) and leaf.requires_grad


def is_inside(tensor: Tensor) -> bool:
    """Whether a tensor is one of a level of `torch.func`, outside of which it must not be kept."""
    found: bool = functorch.is_functorch_wrapped_tensor(tensor)
    return found
