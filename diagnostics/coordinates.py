"""The coordinates that NUTS moves in: whitened at the posterior mode, where that describes the posterior."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.mode import DENSE_LIMIT, Mode, find_mode
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Position, Shapes
from pyro_scale.whitening import Whitened

logger = logging.getLogger("pyro_scale")

TRIAL_DRAWS = 200


class Coordinates(NamedTuple):
    """From the vector that NUTS moves to a position of the model.

    Attributes:
        shapes: of the position.
        whitened: the change of variables; None for the unconstrained coordinates themselves.
        centers: vectors around which the chains start, one a chain.
    """

    shapes: Shapes
    whitened: Whitened | None
    centers: list[Tensor]

    def position(self, vector: Tensor) -> Position:
        """The model's position, undoing the whitening."""
        z = tree.unravel(vector, self.shapes)
        return z if self.whitened is None else self.whitened.position(z)


def find_coordinates(compiled: CompiledModel, starts: Sequence[Position], seed: int) -> Coordinates:
    """Whitened coordinates at the highest of the modes above the starts, if the posterior looks normal in them.

    Every chain starts around the mode above its own start, so that chains in different modes disagree.
    """
    shapes = tree.shapes(starts[0])
    origin = torch.zeros_like(tree.ravel(starts[0]))
    climbs = starts if tree.size(starts[0]) <= DENSE_LIMIT else starts[:1]
    modes = [find_mode(compiled, start, seed=seed) for start in climbs]
    found = [mode for mode in modes if mode.converged]
    if not found:
        logger.info("NUTS runs in the unconstrained coordinates: no posterior mode was found to whiten at.")
        return Coordinates(shapes, None, [origin] * len(starts))
    best = max(found, key=lambda mode: mode.log_posterior)
    whitened = Whitened(compiled, best, 1)
    spread = spread_of_weights(compiled, whitened, best, seed)
    if not spread <= len(origin) ** 0.5:
        logger.info(
            "NUTS runs in the unconstrained coordinates: the curvature at the mode does not describe the posterior, "
            "whose log density leaves that of a normal by %.1f nats (as in a hierarchical model, at group sd 0).",
            spread,
        )
        return Coordinates(shapes, None, [origin] * len(starts))
    centers = [tree.ravel(whitened.coordinates(mode.position)) if mode.converged else origin for mode in modes]
    return Coordinates(shapes, whitened, (centers * len(starts))[: len(starts)])


def spread_of_weights(compiled: CompiledModel, whitened: Whitened, mode: Mode, seed: int) -> float:
    """How far the posterior is from the normal that the mode and its curvature suggest, in nats.

    The interquartile range of log posterior minus log density of the normal over draws of the normal: 0 if they are
    equal, and of the order of the square root of the dimension or less where the normal is a fair description.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = compiled.batch()
    excess = []
    for _ in range(TRIAL_DRAWS):
        flat = torch.randn(tree.size(mode.position), generator=generator, dtype=torch.float64, device="cpu")
        z = tree.unravel(flat.to(whitened.center), whitened.shapes)
        value = -math.inf
        with suppress(LinAlgError), torch.no_grad():
            value = float(whitened(z, batch))
        excess.append(value + float(flat.square().sum()) / 2)
    values = torch.tensor(excess, dtype=torch.float64).nan_to_num(nan=-torch.inf)
    low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    return float(high - low)
