"""Shapes of unconstrained values, and Jacobians, are those that torch finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import AffineTransform, ComposeTransform, ReshapeTransform

from pyro_scale.bijections import log_jacobian, unconstrained_shape

BIJECTIONS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "real": (biject_to(constraints.real), (4, 3)),
    "real, in events": (biject_to(constraints.independent(constraints.real, 1)), (4, 3)),
    "real, in events of events": (biject_to(constraints.independent(constraints.real_vector, 1)), (5, 4, 3)),
    "positive": (biject_to(constraints.positive), ()),
    "nonnegative": (biject_to(constraints.nonnegative), (4,)),
    "interval": (biject_to(constraints.interval(0.0, torch.ones(3))), (4, 3)),
    "interval in an event": (biject_to(constraints.independent(constraints.interval(-1.0, 2.0), 1)), (4, 3)),
    "simplex": (biject_to(constraints.simplex), (4, 3)),
    "correlations": (biject_to(constraints.corr_cholesky), (4, 3, 3)),
    "of more entries than values": (AffineTransform(torch.zeros(3), torch.ones(4, 1)), ()),
    "one after another": (ComposeTransform([ReshapeTransform((6,), (2, 3)), ReshapeTransform((2, 3), (3, 2))]), (3, 2)),
}


@pytest.mark.parametrize("bijection, shape", BIJECTIONS.values(), ids=BIJECTIONS)
def test_unconstrained_shapes(bijection: Any, shape: tuple[int, ...]) -> None:
    found = unconstrained_shape(bijection, torch.Size(shape))
    assert found == bijection.inverse_shape(torch.Size(shape))
    assert isinstance(found, torch.Size)


@pytest.mark.parametrize("bijection, shape", BIJECTIONS.values(), ids=BIJECTIONS)
def test_jacobians(bijection: Any, shape: tuple[int, ...]) -> None:
    unconstrained = torch.linspace(-1, 1, 2 * bijection.inverse_shape(torch.Size(shape)).numel(), dtype=torch.float64)
    unconstrained = unconstrained.reshape(2, *bijection.inverse_shape(torch.Size(shape)))
    if isinstance(bijection, ComposeTransform) and bijection.parts:  # torch's own takes no axis in front of these
        unconstrained = unconstrained[0]
    value = bijection(unconstrained)
    found, expected = (
        log_jacobian(bijection, unconstrained, value),
        bijection.log_abs_det_jacobian(unconstrained, value),
    )
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_jacobian_of_an_identity_takes_no_memory() -> None:
    weights = torch.ones(1000, 1000)
    for bijection, shape in (
        (biject_to(constraints.real), (1000, 1000)),
        (biject_to(constraints.real_vector), (1000,)),
    ):
        found = log_jacobian(bijection, weights, weights)
        assert found.shape == shape and found.untyped_storage().nbytes() == weights.itemsize
