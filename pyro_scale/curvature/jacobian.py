r"""The likelihood of a batch, linearised: $\sum_n J_n^\top S_n S_n^\top J_n$ without the Jacobians of its rows.

J is the Jacobian of the outputs of a row in the position, and S a root of what the row tells about its outputs; their
product is a generalised Gauss-Newton matrix, or Fisher's information (Martens (2020), section 8). A column c of S has a
gradient $J_n^\top S_{n,c}$ at each row. Sites that layers use give it by what goes into a layer and the gradient of what
comes out, for all rows by one pass backward. The Jacobian in the other sites is formed a coordinate at a time.

References:
    Martens (2020), New insights and perspectives on the natural gradient method, JMLR.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from pyro_scale.curvature.layers import Linear, Use, Watch
from pyro_scale.errors import ModelError
from pyro_scale.types import Batch, CurvatureTarget, Information, Position

Layers = dict[str, list[Use]]
Gradients = dict[GradientEdge, Tensor | None]

SIDE_BY_SIDE = 2**22
"""Numbers of the Jacobian in sites without layers that are held at once."""
FEW = 30


class Linearised:
    """A batch's likelihood at a position, ready to be differentiated.

    Args:
        target: the model.
        kind: "ggn", with the information that the distribution of the outputs expects, or "fisher", with the gradients
            of the log-likelihood of the rows themselves (the empirical Fisher information).
        position: where; all sites.
        names: of the sites in which it is differentiated.
        batch: rows.
        known: what `explained` found in batches of the same model before, and finds now.
        noise: Monte Carlo: standard normals `(n, elements, r)` by observed site, of which the root S becomes one column
            S noise, with the same outer product on average; None for the exact one.
    """

    def __init__(
        self,
        target: CurvatureTarget,
        kind: str,
        position: Position,
        names: Sequence[str],
        batch: Batch,
        *,
        known: dict[Any, frozenset[str]] | None = None,
        noise: Position | None = None,
    ) -> None:
        self.known = {} if known is None else known
        self.leaves = {name: position[name].detach().clone().requires_grad_() for name in names}
        with torch.enable_grad(), Watch(self.leaves) as watch:
            made = OUTPUTS[kind](target, {**position, **self.leaves}, batch)
        self.information = {name: one for name, one in made.items() if one.outputs.requires_grad}
        if noise is not None:
            self.information = {
                name: one._replace(root=(one.root @ noise[name].unsqueeze(-1)))
                for name, one in self.information.items()
            }
        self.num_rows = len(batch.indices)
        self.clamped = sum((one.clamped for one in made.values()), torch.zeros((), dtype=torch.long))
        self.layers: Layers = {}
        for use in watch.uses:
            self.layers.setdefault(use.site, []).append(use)

    def cotangents(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs, and a column of S for all rows; one number that a row observes after another."""
        for one in self.information.values():
            elements = one.outputs.shape[1]
            for element in range(elements):
                for column in range(one.root.shape[-1]):
                    if elements == 1:
                        yield one.outputs, one.root[..., column]
                        continue
                    chosen = torch.zeros_like(one.outputs)
                    chosen[:, element] = one.root[:, element, :, column]
                    yield one.outputs, chosen

    def at_layers(self, layers: Layers, outputs: Tensor, cotangent: Tensor) -> Gradients:
        """Gradient of what comes out of each layer, `(n, ...)`; None where the outputs do not depend on it."""
        edges = list(dict.fromkeys(use.edge for uses in layers.values() for use in uses))
        if not edges:
            return {}
        found = torch.autograd.grad(outputs, edges, cotangent, retain_graph=True, allow_unused=True)
        return dict(zip(edges, found, strict=True))

    def by_row(self, name: str, uses: Sequence[Use], gradients: Gradients, rows: slice = slice(None)) -> Tensor:
        """Gradient in a site of each of some rows, `(n, *site)`."""
        leaf = self.leaves[name]
        found = [
            use.by_row(gradient, leaf.shape, rows) for use in uses if (gradient := gradients[use.edge]) is not None
        ]
        if not found:
            return leaf.new_zeros(len(range(self.num_rows)[rows]), *leaf.shape)
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]

    @cached_property
    def explained(self) -> Layers:
        """Sites whose gradients at the rows their layers give."""
        key = (self.num_rows, tuple((use.site, type(use)) for uses in self.layers.values() for use in uses))
        if key not in self.known:
            self.known[key] = frozenset(self._tried())
        return {name: uses for name, uses in self.layers.items() if name in self.known[key]}

    @property
    def others(self) -> list[str]:
        """The sites that `explained` lacks, where the outputs depend on any."""
        return [name for name in self.leaves if name not in self.explained] if self.information else []

    def _tried(self) -> Layers:
        """By trying: the gradient of a random function of every other row must be that of autograd, and must not reach
        the rows between."""
        right = dict(self.layers)
        generator = torch.Generator().manual_seed(self.num_rows)
        for one in self.information.values():
            cotangent = torch.randn(one.outputs.shape, generator=generator, dtype=torch.float64).to(one.outputs)
            cotangent[1::2] = 0
            at = self.at_layers(right, one.outputs, cotangent)
            leaves = [self.leaves[name] for name in right]
            expected: Any = ()
            if leaves:
                expected = torch.autograd.grad(
                    one.outputs, leaves, cotangent, retain_graph=True, materialize_grads=True, allow_unused=True
                )
            for name, wanted in zip(list(right), expected, strict=True):
                if not self._is_explained(right[name], at, wanted):
                    del right[name]
        return right

    def _is_explained(self, uses: Sequence[Use], gradients: Gradients, expected: Tensor) -> bool:
        total = torch.zeros_like(expected)
        for use in uses:
            if (gradient := gradients[use.edge]) is None:
                continue
            if len(gradient) != self.num_rows or bool(gradient[1::2].any()):
                return False
            if isinstance(use, Linear):
                every = slice(None, None, 2)
                a, g = use.inputs(every).flatten(0, 1), use.arrange(gradient[every]).flatten(0, 1)
                total += (a.mT @ g if use.turned else g.mT @ a).reshape(total.shape)
            else:
                total += use.by_row(gradient, total.shape, slice(None)).sum(0)
        tolerance = 1e-8 if total.dtype == torch.float64 else 1e-3
        return bool((total - expected).abs().max() <= tolerance * (1e-30 + float(expected.abs().max())))

    def jacobian(self, outputs: Tensor, names: Sequence[str]) -> Iterator[tuple[int, Tensor]]:
        """Of the outputs in some sites: first coordinate, and some of the columns, `(columns, n, elements, k)`."""
        leaves = [self.leaves[name] for name in names]
        size = sum(leaf.numel() for leaf in leaves)
        with torch.enable_grad():
            dual = torch.zeros_like(outputs, requires_grad=True)
            gradients = torch.autograd.grad(
                outputs, leaves, dual, create_graph=True, materialize_grads=True, allow_unused=True
            )
            gradient = torch.cat([leaf.reshape(-1) for leaf in gradients])
        if not gradient.requires_grad:
            return
        step = max(1, SIDE_BY_SIDE // max(1, outputs.numel()))
        for first in range(0, size, step):
            number = min(step, size - first)
            directions = gradient.new_zeros(number, size)
            directions[:, first : first + number] = torch.eye(number, dtype=gradient.dtype, device=gradient.device)
            yield first, columns(gradient, dual, directions)


def columns(gradient: Tensor, dual: Tensor, directions: Tensor) -> Tensor:
    """Jacobian of the gradient in the dual, times directions, `(number, *dual)`."""
    if len(directions) > FEW:
        with suppress(RuntimeError):  # an operation that takes no batch of directions
            return torch.autograd.grad(gradient, dual, directions, retain_graph=True, is_grads_batched=True)[0]
    return torch.stack([torch.autograd.grad(gradient, dual, one, retain_graph=True)[0] for one in directions])


def _expected(target: CurvatureTarget, position: Position, batch: Batch) -> dict[str, Information]:
    return target.information(position, batch)


def _observed(target: CurvatureTarget, position: Position, batch: Batch) -> dict[str, Information]:
    """The log-likelihood of each row is its output."""
    terms = target.log_likelihood(position, batch)
    rows = len(batch.indices)
    for name, term in terms.items():
        if len(term) != rows:
            raise ModelError(
                f"Site '{name}' has one log density for all rows, so that the gradients of rows are not known. Use "
                "curvature='hessian'."
            )
    total = torch.stack(list(terms.values())).sum(0).reshape(rows, 1, 1)
    none = torch.zeros((), dtype=torch.long, device=total.device)
    return {"": Information(total, torch.ones_like(total).unsqueeze(-1).detach(), none)}


OUTPUTS = {"ggn": _expected, "fisher": _observed}
