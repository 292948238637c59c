"""Shapes of unconstrained values are those that torch finds, with what it imports for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import AffineTransform, ComposeTransform, ReshapeTransform

from pyro_scale.bijections import unconstrained_shape

BIJECTIONS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "real": (biject_to(constraints.real), (4, 3)),
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
