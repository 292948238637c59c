"""Newton's method by conjugate gradients, against modes in closed form and directions of matrices written out."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale import tree
from pyro_scale.curvature.conjugate import conjugate_gradients
from pyro_scale.newton_cg import LEFT, MOST_NEGATIVE, ascend
from pyro_scale.products import Products
from pyro_scale.types import Position

COUNTS = torch.tensor([1.0, 3.0, 40.0, 7.0, 2000.0, 1.0]).double()
"""Observed once each: the mode of the logarithms of Poisson rates is at the logarithms of these."""
START = {"a": torch.zeros(2).double(), "b": torch.zeros(2, 2).double()}
UNITS = COUNTS.rsqrt()


def poisson(at: Position) -> Tensor:
    logs = tree.ravel(at)
    return (COUNTS * logs - logs.exp()).sum()


def left(found: Position) -> float:
    """Nats below the maximum, a coordinate."""
    best = (COUNTS * COUNTS.log() - COUNTS).sum()
    return float(best - poisson(found)) / len(COUNTS)


def test_a_mode_in_closed_form() -> None:
    found = ascend([poisson], START, UNITS, None)
    assert found is not None and tree.shapes(found) == tree.shapes(START)
    print(left(found))
    assert 0 <= left(found) < LEFT


def test_terms_are_summed() -> None:
    parts = [lambda at, share=share: share * poisson(at) for share in (0.2, 0.5, 0.3)]
    found = ascend(parts, START, UNITS, None)
    assert found is not None
    assert left(found) < LEFT


def test_the_whole_corrects_what_a_sample_says() -> None:
    """Terms with counts that are a third too high; the gradient of all rows takes that back."""

    def sample(at: Position) -> Tensor:
        logs = tree.ravel(at)
        return (4 / 3 * COUNTS * logs - logs.exp()).sum()

    def whole(at: Position) -> Tensor:
        return COUNTS - tree.ravel(at).exp()

    found = ascend([sample], START, UNITS, None)
    assert found is not None and left(found) > LEFT
    assert torch.allclose(tree.ravel(found), (4 / 3 * COUNTS).log(), atol=0.05)
    found = ascend([sample], START, UNITS, whole)
    assert found is not None
    assert torch.allclose(tree.ravel(found), COUNTS.log(), atol=0.01)


@pytest.mark.parametrize("start", [-6.0, 9.0])
def test_steps_that_would_go_too_far_are_halved(start: float) -> None:
    """From -6 the first of Newton's steps goes to 394."""
    found = ascend([poisson], tree.full_like(START, start), UNITS, None)
    assert found is not None
    assert left(found) < LEFT


def test_through_a_place_of_negative_curvature() -> None:
    """log(1 + x**2) is concave near its mode only, which is at 0; Cauchy's location."""

    def cauchy(at: Position) -> Tensor:
        return -20 * (1 + at["x"] ** 2).log().sum()

    start = {"x": torch.tensor([1.5, 0.2, -0.3]).double()}
    found = ascend([cauchy], start, torch.full((3,), 40**-0.5).double(), None)
    assert found is not None
    assert float(found["x"].abs().max()) < 0.05


def test_negative_curvature_everywhere_is_left_to_another_method() -> None:
    calls = []

    def valley(at: Position) -> Tensor:
        calls.append(1)
        return at["x"].square().sum().cosh().log()

    assert ascend([valley], {"x": torch.full((3,), 0.1).double()}, torch.ones(3).double(), None) is None
    assert len(calls) <= MOST_NEGATIVE * 3  # a gradient and one or two values a step


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_without_a_finite_gradient_there_is_no_mode(bad: float) -> None:
    assert ascend([lambda at: bad * at["x"].sum()], {"x": torch.ones(2)}, torch.ones(2), None) is None


def test_a_mode_is_no_place_where_rows_that_are_left_out_are_not_finite() -> None:
    found = ascend([poisson], START, UNITS, lambda at: torch.full((6,), torch.nan).double())
    assert found is None


def matrix(seed: int) -> tuple[Tensor, Tensor]:
    """Positive definite with unequal units, and these."""
    root, units = numbers(30, 30, seed=seed), 10 ** torch.linspace(-3, 3, 30).double()
    return (root @ root.T / 30 + torch.eye(30).double()) / units[:, None] / units, units


def test_a_direction_solves_the_equations_but_for_what_may_be_left() -> None:
    hessian, units = matrix(1)
    gradient = numbers(30, seed=2) / units
    solution, negative = conjugate_gradients(lambda v: hessian @ v, gradient, units)
    residual = units * (gradient - hessian @ solution)
    share = float(residual.norm() / (units * gradient).norm())
    print(share)
    assert not negative
    assert share <= 0.03  # the default
    exact = torch.linalg.solve(hessian, gradient)
    error = solution - exact
    assert float(error @ hessian @ error) < 0.01 * float(exact @ hessian @ exact)


def test_units_spare_products() -> None:
    def count(units: Tensor) -> int:
        calls = []

        def product(vector: Tensor) -> Tensor:
            calls.append(1)
            return vector / right**2

        conjugate_gradients(product, numbers(30, seed=3) / right, units)
        return len(calls)

    right = 10 ** torch.linspace(-2, 2, 30).double()
    assert count(right) == 1
    assert count(torch.ones(30).double()) > 5


def test_at_a_mode_there_is_nothing_to_solve() -> None:
    solution, negative = conjugate_gradients(lambda v: torch.full_like(v, torch.nan), torch.zeros(3), torch.ones(3))
    assert torch.equal(solution, torch.zeros(3)) and not negative


@pytest.mark.parametrize("first", [True, False])
def test_negative_curvature_ends_with_a_direction_that_rises(first: bool) -> None:
    curvature = torch.tensor([-1.0, 2.0, 3.0]).double() * (torch.tensor([1.0, -1, -1]).double() if first else 1)
    gradient = torch.tensor([0.1, 1.0, 1.0]).double()
    units = torch.tensor([1.0, 2.0, 0.5]).double()
    direction, negative = conjugate_gradients(lambda v: curvature * v, gradient, units)
    assert negative
    assert float(gradient @ direction) > 0
    # the preconditioned gradient where the first product is negative, else the part that is solved by then
    assert torch.equal(direction, units**2 * gradient) == first


def test_products_are_of_the_negative_hessian() -> None:
    at = {"a": numbers(2, seed=4), "b": numbers(2, 2, seed=5)}
    vector = numbers(6, seed=6)
    assert torch.allclose(Products([poisson], at)(vector), tree.ravel(at).exp() * vector)
