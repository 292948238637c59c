"""Curvature against dense twins: Jacobians by torch.func, and information written down by hand."""

from __future__ import annotations

from functools import reduce

import pyro
import pyro.distributions as dist
import pytest
import torch
from curvature_cases import BLOCKS, CASES, ROWS, Case, X, normals

import pyro_scale as ps
from pyro_scale import tree
from pyro_scale.curvature.dense import gauss_newton_matrix
from pyro_scale.curvature.diagonal import gauss_newton_diagonal
from pyro_scale.curvature.factors import kronecker_factors
from pyro_scale.curvature.jacobian import Linearised
from pyro_scale.curvature.products import gauss_newton_products

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def linearised(request):
    """Case, position, and its rows in batches of unequal size."""
    case: Case = request.param
    compiled = case.compiled()
    position = compiled.initial_position(1)
    rows, known = torch.arange(sum(BLOCKS)).split(BLOCKS), {}
    batches = [
        Linearised(compiled, "ggn", position, list(position), compiled.batch(some), known=known) for some in rows
    ]
    return case, position, batches


def test_layers_explain_what_they_should(linearised):
    case, _, batches = linearised
    assert (batches[-1].others == []) == case.layered


def test_monte_carlo_information_is_right_on_average():
    """Noise of one column, times the root of how many there are: the average is the sum over columns."""
    case = next(case for case in CASES if case.name == "mlp-7")
    compiled = case.compiled()
    position, batch = compiled.initial_position(1), compiled.batch()
    total = torch.zeros(())
    for column in range(6):  # seven classes have six differences
        noise = torch.zeros(ROWS, 1, 6, dtype=torch.float64)
        noise[..., column] = 6**0.5
        one = Linearised(compiled, "ggn", position, list(position), batch, noise={"obs": noise})
        assert one.information["obs"].root.shape[-1] == 1
        total = total + gauss_newton_matrix(one) / 6
    torch.testing.assert_close(total, case.dense(position), rtol=1e-9, atol=1e-10)


def test_dense(linearised):
    case, position, batches = linearised
    torch.testing.assert_close(sum(map(gauss_newton_matrix, batches)), case.dense(position), rtol=1e-9, atol=1e-10)


def test_diagonal(linearised):
    case, position, batches = linearised
    found = reduce(lambda one, other: tree.map(torch.add, one, other), map(gauss_newton_diagonal, batches))
    torch.testing.assert_close(tree.ravel(found), case.dense(position).diagonal(), rtol=1e-9, atol=1e-10)


def test_products(linearised):
    case, position, batches = linearised
    vectors = torch.randn(3, tree.size(position), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sum(gauss_newton_products(batch, vectors) for batch in batches)
    torch.testing.assert_close(found, vectors @ case.dense(position), rtol=1e-9, atol=1e-10)


def test_factors_of_one_row_are_exact_where_a_layer_meets_it_once(linearised):
    case, position, batches = linearised
    rows = case.rows(position)[BLOCKS[0]].flatten(0, 1)  # the batch of one row
    row = rows.T @ rows
    found, first = kronecker_factors(batches[1]), 0
    for name, leaf in position.items():
        block = row[first : first + leaf.numel(), first : first + leaf.numel()]
        first += leaf.numel()
        if name in found.diagonal:
            torch.testing.assert_close(found.diagonal[name].flatten(), block.diagonal(), rtol=1e-9, atol=1e-10)
        elif name not in found.places or int(found.places[name]) == 1:
            if name not in found.places and case.name.startswith(("conv", "sentences")):
                continue  # a bias at several places of a row
            second = found.second[name] if name in found.second else torch.ones(1, 1, dtype=torch.float64)
            torch.testing.assert_close(torch.kron(found.first[name], second), block, rtol=1e-9, atol=1e-10)


def test_factors_of_a_network():
    """A is the mean of the layer's inputs' products, B the block of its bias."""
    case = next(case for case in CASES if case.name == "mlp-7")
    compiled, rows = case.compiled(), torch.arange(sum(BLOCKS)).split(BLOCKS)
    position = compiled.initial_position(1)
    batches = [Linearised(compiled, "ggn", position, list(position), compiled.batch(some)) for some in rows]
    found = reduce(lambda one, other: one + other, map(kronecker_factors, batches))
    hidden = torch.tanh(X @ position["0.weight"].T + position["0.bias"])
    matrix, first = case.dense(position), {}
    start = 0
    for name, leaf in position.items():
        first[name] = slice(start, start + leaf.numel())
        start += leaf.numel()
    for layer, inputs in (("0", X), ("2", hidden)):
        block = matrix[first[f"{layer}.bias"], first[f"{layer}.bias"]]
        weight = f"{layer}.weight"
        torch.testing.assert_close(found.first[f"{layer}.bias"], block, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.first[weight], block, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.second[weight] / found.places[weight], inputs.T @ inputs / len(X))
    assert found.diagonal == {}


class Places(torch.nn.Module):
    """A linear layer along a sequence whose places are observed."""

    def __init__(self) -> None:
        super().__init__()
        self.each = torch.nn.Linear(3, 2, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.each(x)
        return found


def test_shared_weights_are_exact_where_places_are_what_is_observed():
    x, y = normals(7, ROWS, 4, 3), normals(8, ROWS, 4, 2)
    model = ps.bayesian(Places(), prior=dist.Normal(0.0, 1.0), likelihood=lambda out: dist.Normal(out, 0.5).to_event(2))
    compiled = ps.compile_model(model, {"x": x, "y": y})
    position = compiled.initial_position(0)
    batch = Linearised(compiled, "ggn", position, list(position), compiled.batch())
    found, matrix = kronecker_factors(batch), gauss_newton_matrix(batch)
    block = torch.kron(found.first["each.weight"], found.second["each.weight"]) / found.places["each.weight"]
    torch.testing.assert_close(block, matrix[:6, :6])
    torch.testing.assert_close(found.first["each.bias"], matrix[6:, 6:])
    inputs = x.flatten(0, 1)
    torch.testing.assert_close(block, torch.kron(4 * torch.eye(2, dtype=torch.float64), inputs.T @ inputs))


def test_weights_and_masks_of_observations_count():
    """A scale of each row, a mask in the model, and one on the distribution of two numbers a row."""
    scale, mask = torch.linspace(0.5, 2.0, ROWS, dtype=torch.float64), torch.arange(ROWS) % 3 > 0
    inner = torch.stack([torch.arange(ROWS) % 2 > 0, torch.arange(ROWS) > 4], -1)

    def model(x, scale, mask, inner, y, z):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=scale), pyro.poutine.mask(mask=mask):
            pyro.sample("one", dist.Normal(x @ w, 0.5), obs=y)
            both = torch.stack([x @ w, 2 * (x @ w)], -1)
            pyro.sample("two", dist.Normal(both, 2.0).mask(inner).to_event(1), obs=z)

    data = {"x": X, "scale": scale, "mask": mask, "inner": inner, "y": normals(1, ROWS), "z": normals(2, ROWS, 2)}
    compiled = ps.compile_model(model, data)
    position = compiled.initial_position(0)
    each = 4 + (inner * torch.tensor([1.0, 4.0])).sum(1) / 4
    expected = X.T @ ((scale * mask * each)[:, None] * X)
    for batch in (compiled.batch(), compiled.batch(torch.arange(ROWS))):
        found = gauss_newton_matrix(Linearised(compiled, "ggn", position, ["w"], batch))
        torch.testing.assert_close(found, expected)


def test_an_axis_as_long_as_the_rows_is_not_taken_for_them():
    case = next(case for case in CASES if case.name.startswith("time first"))
    compiled = case.compiled()
    position = compiled.initial_position(1)
    batch = Linearised(compiled, "ggn", position, list(position), compiled.batch())  # as many rows as times
    torch.testing.assert_close(gauss_newton_matrix(batch), case.dense(position), rtol=1e-9, atol=1e-10)
    assert set(batch.others) == {"each.weight", "each.bias"}
