"""Models whose generalised Gauss-Newton matrix is written down by hand: outputs and their information as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import jacrev

import pyro_scale as ps
from pyro_scale import tree
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.types import Position

ROWS = 11
BLOCKS = (4, 1, 6)
"""Unequal batches."""


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normals(0, ROWS, 3)
IMAGES = normals(1, ROWS, 2, 5, 4)
WORDS = torch.randint(5, (ROWS, 4), generator=torch.Generator().manual_seed(2))
LABELS = torch.randint(7, (ROWS,), generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Case:
    """A model and its twin.

    Attributes:
        model, data: as for `compile_model`.
        outputs: `(position) -> (n, k)`, or `(n, elements, k)`.
        fisher: outputs -> information, `(..., k, k)`.
        layered: whether layers explain all sites.
    """

    name: str
    model: Any
    data: dict[str, Tensor]
    outputs: Callable[[Position], Tensor]
    fisher: Callable[[Tensor], Tensor]
    layered: bool = True

    def compiled(self) -> CompiledModel:
        return compile_model(self.model, self.data, dtype=torch.float64)

    def rows(self, position: Position) -> Tensor:
        """J' S of the rows, `(n, elements, r, d)`: S from an eigendecomposition."""
        shapes = tree.shapes(position)

        def raveled(vector: Tensor) -> Tensor:
            found = self.outputs(tree.unravel(vector, shapes))
            return found.unsqueeze(1) if found.ndim == 2 else found

        vector = tree.ravel(position)
        jacobian, information = jacrev(raveled)(vector), self.fisher(raveled(vector))
        values, basis = torch.linalg.eigh(information)
        root = basis * values.clamp(min=0).sqrt().unsqueeze(-2)
        return torch.einsum("nekr,nekd->nerd", root, jacobian)

    def dense(self, position: Position) -> Tensor:
        rows = self.rows(position).flatten(0, 2)
        return rows.T @ rows


def unit(outputs: Tensor) -> Tensor:
    return torch.diag_embed(torch.ones_like(outputs))


def categorical(outputs: Tensor) -> Tensor:
    p = outputs.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def module_case(name: str, module: nn.Module, data: Tensor, num_outputs: int, layered: bool = True) -> Case:
    """One output: logistic regression; two: two normal numbers a row; seven: seven classes."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    likelihoods: dict[int, Any] = {
        1: lambda out: dist.Bernoulli(logits=out.squeeze(-1)),
        2: lambda out: dist.Normal(out, 0.5).to_event(1),
        7: lambda out: dist.Categorical(logits=out),
    }
    fishers: dict[int, Any] = {
        1: lambda out: (out.sigmoid() * (1 - out.sigmoid())).unsqueeze(-1),
        2: lambda out: 4 * unit(out),
        7: categorical,
    }
    observed = {1: (LABELS > 3).double(), 2: normals(5, ROWS, 2), 7: LABELS}[num_outputs]
    model = ps.bayesian(module, prior=dist.Normal(0.0, 1.0), likelihood=likelihoods[num_outputs])

    def outputs(position: Position) -> Tensor:
        result: Tensor = torch.func.functional_call(module, position, (data,))
        return result

    return Case(f"{name}-{num_outputs}", model, {"x": data, "y": observed}, outputs, fishers[num_outputs], layered)


def mlp(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, num_outputs))


def convolutional(num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=(1, 2), padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Flatten(2),
        nn.Conv1d(3, 2, 3, padding=1, dilation=2),
        nn.GroupNorm(1, 2),
        nn.Flatten(),
        nn.Linear(16, num_outputs),
    )


class Sentences(nn.Module):
    """An embedding, a linear layer along the sequence, and a norm; the mean over the sequence goes on."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3, padding_idx=0)
        self.each = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.last = nn.Linear(3, num_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.norm(torch.tanh(self.each(self.words(x)))).mean(1))
        return found


class Shared(nn.Module):
    """One matrix in two places, and once more where no layer sees it."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3))
        self.last = nn.Linear(3, 2)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.tanh(torch.nn.functional.linear(x, self.weight))
        turned = torch.tanh(torch.nn.functional.linear(turned, self.weight))
        found: Tensor = self.last(turned) + (self.weight.square().sum() if self.hidden else 0.0) * x[:, :1].sin()
        return found


class TimeFirst(nn.Module):
    """Rows are on the second axis of what goes through the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Linear(3, 2)
        self.last = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.stack([x, x.cos(), 2 * x, *[x.sin() + i for i in range(ROWS - 3)]])  # as many as rows
        found: Tensor = self.last(torch.tanh(self.each(times)).mean(0))
        return found


def regression(x: Tensor, y: Any = None) -> None:
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    last = pyro.sample("last", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    bias = pyro.sample("bias", dist.StudentT(5.0, 0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(torch.tanh(x @ weight) @ last + bias, noise), obs=y)


def of_regression(position: Position) -> Tensor:
    loc = torch.tanh(X @ position["weight"]) @ position["last"] + position["bias"]
    return torch.stack([loc, position["noise"].expand(ROWS)], -1)


def of_normal(outputs: Tensor) -> Tensor:
    """Of a location and the logarithm of a scale."""
    return torch.diag_embed(torch.stack([(-2 * outputs[..., 1]).exp(), torch.full_like(outputs[..., 1], 2.0)], -1))


def counts(x: Tensor, y: Any = None, z: Any = None) -> None:
    """Two observed sites of different families; rates of three numbers a row."""
    rate = pyro.sample("rate", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        log_rate = x @ rate.T
        pyro.sample("counts", dist.Poisson((log_rate * shift).exp()).to_event(1), obs=y)
        pyro.sample("flag", dist.Bernoulli(logits=log_rate.sum(-1)), obs=z)


def of_counts(position: Position) -> Tensor:
    log_rate = X @ position["rate"].T
    return torch.cat([log_rate * position["shift"], log_rate.sum(-1, keepdim=True)], -1)


def of_poisson_and_flag(outputs: Tensor) -> Tensor:
    flag = outputs[..., 3].sigmoid()
    return torch.diag_embed(torch.cat([outputs[..., :3].exp(), (flag * (1 - flag)).unsqueeze(-1)], -1))


CASES = [
    *[module_case("mlp", mlp(k), X, k) for k in (1, 2, 7)],
    *[module_case("conv", convolutional(k), IMAGES, k) for k in (2, 7)],
    module_case("sentences", Sentences(7), WORDS, 7),
    module_case("shared", Shared(hidden=False), X, 2),
    module_case("hidden", Shared(hidden=True), X, 2, layered=False),
    module_case("time first", TimeFirst(), X, 1, layered=False),
    Case("regression", regression, {"x": X, "y": normals(6, ROWS)}, of_regression, of_normal, layered=False),
    Case(
        "counts",
        counts,
        {"x": X, "y": LABELS.double().unsqueeze(-1).expand(-1, 3), "z": (LABELS > 2).double()},
        of_counts,
        of_poisson_and_flag,
    ),
]
