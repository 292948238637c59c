"""Products of Hessians with vectors, and what is made of them, against matrices written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale import tree
from pyro_scale.products import MOST_PRODUCTS, Products, diagonal, largest_eigenvalue
from pyro_scale.types import Position

X = numbers(12, 3, seed=1)
AT = {"a": numbers(1, seed=2)[0], "w": numbers(3, 2, seed=3)}


def rows(first: int, last: int) -> Callable[[Position], Tensor]:
    """A function of a scalar and a matrix site that is far from a quadratic one."""
    x = X[first:last]
    return lambda at: -((x @ at["w"]).exp().sum(1) * at["a"].cos()).sum() - at["a"] ** 4


def dense(terms: list[Callable[[Position], Tensor]], at: Position) -> Tensor:
    """The negative Hessian of the sum."""
    shapes = tree.shapes(at)

    def total(vector: Tensor) -> Tensor:
        return torch.stack([term(tree.unravel(vector, shapes)) for term in terms]).sum()

    return -torch.autograd.functional.hessian(total, tree.ravel(at))


@pytest.mark.parametrize("terms", [[rows(0, 12)], [rows(0, 7), rows(7, 10), rows(10, 12)]], ids=["one", "unequal"])
def test_products_are_those_of_the_matrix(terms: list[Callable[[Position], Tensor]]) -> None:
    products, hessian = Products(terms, AT), dense(terms, AT)
    for seed in range(3):  # a single term is differentiated again and again
        vector = numbers(7, seed=10 + seed)
        assert torch.allclose(products(vector), hessian @ vector, rtol=1e-12, atol=1e-12)
    here = tree.ravel(AT).requires_grad_()
    value = torch.stack([term(tree.unravel(here, tree.shapes(AT))) for term in terms]).sum()
    gradient, total = products.gradient()
    assert torch.allclose(gradient, torch.autograd.grad(value, here)[0], rtol=1e-12)
    assert total == pytest.approx(float(value.detach()), rel=1e-12)
    assert not gradient.requires_grad and not products(numbers(7, seed=4)).requires_grad


def test_without_curvature_products_are_zero() -> None:
    def linear(at: Position) -> Tensor:
        return 3 * at["w"].sum()  # of which a is no part

    def constant(at: Position) -> Tensor:
        return torch.zeros(()).double()

    for terms in ([linear], [constant], [linear, constant]):
        products = Products(terms, AT)
        assert torch.equal(products(torch.ones(7).double()), torch.zeros(7).double())
    assert Products([linear, constant], AT).gradient()[0].tolist() == [0] + [3] * 6


def test_they_can_be_taken_where_gradients_are_off() -> None:
    with torch.no_grad():
        vector = numbers(7, seed=5)
        assert torch.allclose(Products([rows(0, 12)], AT)(vector), dense([rows(0, 12)], AT) @ vector)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_eigenvalue_in_size(sign: float) -> None:
    basis = torch.linalg.qr(numbers(20, 20, seed=6)).Q
    values = sign * torch.cat([torch.tensor([9.0]).double(), torch.linspace(-4, 4, 19).double()])
    matrix = basis @ torch.diag(values) @ basis.T
    start = numbers(20, seed=7)
    size, direction = largest_eigenvalue(lambda v: matrix @ v, start)
    assert 0.98 * 9 < size <= 9 + 1e-9  # from below
    assert float(direction.norm()) == pytest.approx(1)
    assert abs(float(direction @ basis[:, 0])) > 0.95
    assert largest_eigenvalue(lambda v: matrix @ v, 1e-8 * start)[0] == pytest.approx(size, rel=1e-9)


def test_products_are_no_more_than_needed() -> None:
    calls = []

    def product(vector: Tensor) -> Tensor:
        calls.append(1)
        return 2 * vector

    assert largest_eigenvalue(product, torch.ones(3))[0] == pytest.approx(2)
    assert len(calls) == 2

    def turning(vector: Tensor) -> Tensor:  # of two eigenvalues of nearly one size, whose mix never settles
        calls.append(1)
        return (1 + len(calls) % 2) * vector

    calls.clear()
    largest_eigenvalue(turning, torch.ones(3))
    assert len(calls) == MOST_PRODUCTS


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_products_that_are_not_finite_end_the_search(bad: float) -> None:
    size, direction = largest_eigenvalue(lambda v: bad * v, torch.ones(4))
    assert not 0 < size < math.inf
    assert torch.equal(direction, torch.full((4,), 0.5))


def test_the_diagonal_of_a_diagonal_matrix_is_exact() -> None:
    exact = torch.tensor([1e-9, -3.0, 4e12]).double()
    found, error = diagonal(lambda v: exact * v, torch.tensor([1e4, 1.0, 1e-6]).double(), torch.Generator())
    assert torch.allclose(found, exact, rtol=1e-12)
    assert bool((error <= 1e-7 * exact.abs()).all())


def test_the_diagonal_is_right_on_average_and_knows_its_error() -> None:
    """Of 300 estimates: each entry within 4.5 standard errors but for one seed in 2e4; units leave that as it is."""
    scales = torch.tensor([1e-3, 1.0, 50.0, 1e4, 3.0]).double()
    root = numbers(5, 5, seed=8)
    matrix = scales[:, None] * (root @ root.T) * scales
    generator = torch.Generator().manual_seed(0)
    both = [diagonal(lambda v: matrix @ v, 1 / scales, generator) for _ in range(300)]
    found, errors = torch.stack([each for each, _ in both]), torch.stack([each for _, each in both])
    spread = found.std(0)
    print(((found.mean(0) - matrix.diagonal()) / spread * 300**0.5).tolist(), (errors.mean(0) / spread).tolist())
    assert float(((found.mean(0) - matrix.diagonal()) / spread).abs().max()) < 4.5 / 300**0.5
    assert torch.allclose(errors.square().mean(0).sqrt(), spread, rtol=0.25)
    assert float((spread / matrix.diagonal()).max()) < 1  # a large scale does not drown a small one
