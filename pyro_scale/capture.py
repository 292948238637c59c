"""Recording a function as a graph of tensor operations, so that Pyro's handlers run once and not at every step.

A function is run once, and what reaches the dispatcher is recorded: under `vmap` and `grad` that is the batched
operations of the value and of its gradient. Python is gone from the graph; so a function whose course depends on
values cannot be recorded, and one that reads state outside its arguments must not be. Both are found out here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx
from torch.func import vmap
from torch.utils import _pytree as pytree

from pyro_scale.floating import write_out_types
from pyro_scale.graph import simplify, undecided_shape
from pyro_scale.in_place import written_in_place
from pyro_scale.tracing import traced

logger = logging.getLogger("pyro_scale")

Function = Callable[..., Any]

Mapped: TypeAlias = tuple[Any, ...]
"""For each argument, whether its tensors have a leading chain axis; or, of a tuple, that of each part."""

MOST_COMPARED = 2**16
"""About so many entries of a tensor tell whether a recorded graph gives what the function gives."""


class CaptureError(Exception):
    """A function cannot be recorded; the message says why."""


class Recorded:
    """A function as a graph of tensor operations; takes and returns what the function does.

    Attributes:
        graph: of the tensors among the arguments, in order, to those of the result; what else it needs is in buffers.
        where: places of the tensors among the leaves of the arguments.
        structure: of the result.
    """

    def __init__(self, graph: fx.GraphModule, where: Sequence[int], structure: Any) -> None:
        held = [*graph.named_parameters(), *graph.named_buffers()]
        for name, tensor in [(name, tensor) for name, tensor in held if tensor.requires_grad]:
            delattr(graph, name)  # a model may hold it
            graph.register_buffer(name, tensor.detach(), persistent=False)
        self.graph = graph
        self._run = written_in_place(graph)
        self.where = where
        self.structure = structure

    def tensors(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        """What the graph takes."""
        given = pytree.tree_leaves(arguments)
        return [given[i] for i in self.where]

    def result(self, leaves: Sequence[Tensor]) -> Any:
        """What the function returns, from what the graph does."""
        return pytree.tree_unflatten(leaves, self.structure)

    def described(self) -> str | None:
        """All but the values of what it holds; None where a graph within holds tensors of its own."""
        modules = [module for module in self.graph.modules() if isinstance(module, fx.GraphModule)]
        if any(list(module.buffers()) for module in modules[1:]):
            return None
        kinds = [(node.name, node.meta.get("kind")) for module in modules for node in module.graph.nodes]
        return "\n".join([f"{self.where} {self.structure} {kinds}", *(module.code for module in modules)])

    def __call__(self, *arguments: Any) -> Any:
        # some operations keep what their gradient needs, another operation of the graph, only where it is enabled
        with torch.enable_grad():
            return self.result(self._run(*(tensor.detach() for tensor in self.tensors(arguments))))


class Step(NamedTuple):
    """A function over all chains, and how it runs.

    Attributes:
        function: of arguments whose mapped ones have a leading chain axis.
        how: as "captured" or "eager, chain by chain".
        recorded: the graph, if there is one.
        apart: whether the graph is of one chain, without the chain axis, and serves one after another.
        reason: why it is not recorded, if it is not.
    """

    function: Function
    how: str
    recorded: Recorded | None
    apart: bool
    reason: str = ""


def record(function: Function, *example: Any, fixed: Collection[int] = ()) -> Recorded:
    """Records `function` at example arguments; the result takes arguments of the same structure, shapes and types.

    Args:
        function: takes and returns trees of tensors; numbers in the arguments are taken as they are.
        example: the arguments of a first call.
        fixed: positions of arguments that are the same in every call; what they alone decide is computed here.

    Raises:
        CaptureError: it depends on values of its arguments, or fails otherwise while it is recorded.

    Example:
        >>> captured = record(lambda x: {"y": x.sin() + 1}, torch.zeros(3))
        >>> captured(torch.zeros(3))
        {'y': tensor([1., 1., 1.])}
    """
    leaves, spec = pytree.tree_flatten(example)
    owners = [i for i, argument in enumerate(example) for _ in pytree.tree_leaves(argument)]
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    out_spec: list[Any] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for i, tensor in zip(where, tensors, strict=True):
            filled[i] = tensor
        result, structure = pytree.tree_flatten(function(*pytree.tree_unflatten(filled, spec)))
        out_spec[:] = [structure]
        return [torch.as_tensor(leaf) for leaf in result]

    try:
        with _without_hints():
            graph = traced(flat, [leaves[i] for i in where])
    except Exception as error:  # torch raises a dozen types here, and a user's model any
        raise CaptureError(first_line(error)) from error
    if operation := undecided_shape(graph):
        raise CaptureError(f"the shape of a result of {operation} depends on values")
    write_out_types(graph)
    simplify(graph, {k: leaves[i] for k, i in enumerate(where) if owners[i] in fixed})
    return Recorded(graph, where, out_spec[0])


def fastest(
    function: Function, mapped: Mapped, *example: Any, fixed: Collection[int] = (), apart: bool = False
) -> Step:
    """The quickest way that works to run a function of one chain over all chains.

    Tried in order: vectorised over chains and captured; vectorised; captured, chain by chain; chain by chain. What
    stood in the way is logged in one line.

    Args:
        function: of the arguments of one chain.
        mapped: which arguments have a leading chain axis.
        example: the arguments for all chains.
        fixed: positions of arguments that are the same in every call.
        apart: chain by chain even if it can be vectorised: for one chain, or chains that are large.
    """
    if not apart:
        axes = tuple(_axes(argument, yes) for argument, yes in zip(example, mapped, strict=True))
        vectorised = vmap(function, in_dims=axes)
        try:
            with torch.no_grad(), _without_hints():
                expected = _sampled(vectorised(*example))
        except Exception as error:  # whatever vmap cannot do; what is the model's own fault is raised below
            unmappable = f"The model cannot be vectorised over chains: {first_line(error)}."
        else:
            recorded, reason = _recorded(vectorised, example, expected, fixed)
            if reason:
                logger.info("Steps run through Pyro's handlers. %s", reason)
            # not recorded, a model that holds parameters would tie every step to all the ones before
            chosen = torch.no_grad()(recorded or vectorised)
            return Step(chosen, "captured" if recorded else "eager", recorded, False, reason)
    one_chain = at_chain(0, mapped, example)
    with torch.no_grad():
        expected = _sampled(function(*one_chain))
    recorded, reason = _recorded(function, one_chain, expected, fixed)
    how = "captured" if recorded else "eager"
    if not apart:
        logger.info("Chains run one after another, %s. %s", how, f"{unmappable} {reason}".strip())
    elif reason:
        logger.info("Steps run through Pyro's handlers. %s", reason)
    one_by_one = torch.no_grad()(partial(_chain_by_chain, recorded or function, mapped))
    return Step(
        one_by_one, how if _num_chains(mapped, example) == 1 else f"{how}, chain by chain", recorded, True, reason
    )


def record_or_keep(function: Function, *example: Any, fixed: Collection[int] = ()) -> tuple[Function, str]:
    """The recorded function and "captured"; or the function itself and "eager", with a log line that says why."""
    recorded, reason = _recorded(function, example, _sampled(function(*example)), fixed)
    if reason:
        logger.info("The log posterior runs through Pyro's handlers. %s", reason)
    return recorded or function, "captured" if recorded else "eager"


@contextmanager
def _without_hints() -> Iterator[None]:
    """Torch tells of operations that it can only do chain by chain; that is still faster than the whole model so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _recorded(
    function: Function, example: tuple[Any, ...], expected: list[Tensor], fixed: Collection[int]
) -> tuple[Recorded | None, str]:
    """The graph and "", or None and why there is none; `expected` is a sample of what the function gives."""
    try:
        recorded = record(function, *example, fixed=fixed)
    except CaptureError as error:
        return None, f"Capture failed: {error}."
    if not all(map(_close, _sampled(recorded(*example)), expected)):
        return None, "The captured graph gives other values: the model reads outside state."
    return recorded, ""


def _axes(argument: Any, mapped: Any) -> Any:
    """What `vmap` takes for in_dims: 0 at every tensor of what is mapped."""
    if isinstance(mapped, tuple):
        return type(argument)(*map(_axes, argument, mapped))
    return pytree.tree_map(lambda leaf: 0 if mapped and isinstance(leaf, Tensor) else None, argument)


def at_chain(index: int, mapped: Mapped, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What one chain gets of the arguments for all of them; views."""

    def select(leaf: Any, axis: int | None) -> Any:
        return leaf if axis is None else leaf[index]

    return tuple(pytree.tree_map(select, each, _axes(each, part)) for each, part in zip(arguments, mapped, strict=True))


def _chain_by_chain(function: Function, mapped: Mapped, *arguments: Any) -> Any:
    results = [function(*at_chain(index, mapped, arguments)) for index in range(_num_chains(mapped, arguments))]
    if len(results) == 1:  # a view: the chain may be large
        return pytree.tree_map(lambda leaf: torch.as_tensor(leaf).unsqueeze(0), results[0])
    return pytree.tree_map(lambda *leaves: torch.stack([torch.as_tensor(leaf) for leaf in leaves]), *results)


def _sampled(result: Any) -> list[Tensor]:
    """Evenly spaced entries of the tensors in a result: all of them would be in memory while another is computed."""
    leaves = [torch.as_tensor(leaf).reshape(-1) for leaf in pytree.tree_leaves(result)]
    return [leaf[:: max(1, leaf.numel() // MOST_COMPARED)].clone() for leaf in leaves]


def _num_chains(mapped: Mapped, arguments: tuple[Any, ...]) -> int:
    first = arguments[mapped.index(True)]
    return len(next(leaf for leaf in pytree.tree_leaves(first) if isinstance(leaf, Tensor)))


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-9 if one.dtype == torch.float64 else 1e-3
    return torch.allclose(one, other.to(one.dtype), rtol=tolerance, atol=tolerance, equal_nan=True)


def first_line(error: BaseException) -> str:
    """Type and first line of an error, for a sentence on what went wrong."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip(' .')}" if lines else type(error).__name__
