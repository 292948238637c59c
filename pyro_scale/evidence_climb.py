"""Climbs Laplace's evidence in the logarithms of arguments of the model, by BFGS with central differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from pyro_scale.errors import ModelError
from pyro_scale.evidence import Evidence, value_of
from pyro_scale.posterior import Posterior

Place: TypeAlias = NDArray[np.float64]

STEP, ROUGH_STEP = 1e-3, 0.05
"""Of central differences, in the logarithm: of modes by Newton's method in float64, and of others, which are rough."""
FLATTEST, ROUGH_FLATTEST = 1e-5, 0.05
"""Slope at which the climb ends, in nats a unit of the logarithm, likewise."""
FARTHEST = math.log(1e4)
"""How far the logarithm of a value may go from its start."""
LEAST_FALL = 0.01
"""Nats by which the evidence must fall where a value is multiplied or divided by e, for the maximum to be one."""


class Iterate(NamedTuple):
    """Logarithms of values, relative to the start, with the fit there and the slope of its evidence."""

    place: Place
    posterior: Posterior
    slope: Place

    @property
    def value(self) -> float:
        """The evidence, in nats."""
        return value_of(self.posterior)


class _OutOfFits(Exception):
    """None is left for another step."""


class EvidenceClimb:
    """From the start to the maximum.

    Args:
        evidence: the fits.
        start: argument -> value > 0.
        max_fits: after which no step is taken.

    Attributes:
        iterates: what was seen, in order.
    """

    def __init__(self, evidence: Evidence, start: Mapping[str, float], max_fits: int) -> None:
        self.evidence, self.start, self.max_fits = evidence, start, max_fits
        self.iterates: list[Iterate] = []

    @property
    def best(self) -> Iterate:
        """Where the evidence was highest."""
        return max(self.iterates, key=lambda each: each.value)

    @property
    def converged(self) -> bool:
        """Whether the slope there is about 0."""
        return bool(np.abs(self.best.slope).max() <= (ROUGH_FLATTEST if self.evidence.rough else 10 * FLATTEST))

    def values(self, place: Place) -> dict[str, float]:
        """The arguments there."""
        return {name: value * math.exp(x) for (name, value), x in zip(self.start.items(), place, strict=True)}

    def run(self) -> None:
        """Climbs until the slope is about 0, or the fits run out."""
        zero = np.zeros(len(self.start))
        self._minus(zero)  # tells how rough the fits are
        flattest = ROUGH_FLATTEST if self.evidence.rough else FLATTEST
        with suppress(_OutOfFits):
            minimize(self._walled, zero, method="BFGS", jac=True, options={"gtol": flattest})

    def check(self) -> None:
        """Raises where the evidence does not fall on both sides of the best value."""
        best, values = self.best, self.values(self.best.place)
        self.evidence.start_at(best.posterior)
        for k, name in enumerate(self.start):
            for sign, end in ((-1, "0"), (1, "infinity")):
                there = self.values(best.place + sign * np.eye(len(best.place))[k])
                if best.value - self.evidence.value(there) >= LEAST_FALL:
                    continue
                if not self.converged and abs(best.place[k]) < FARTHEST - 1:
                    continue  # it has only not arrived
                raise ModelError(
                    f"The marginal likelihood has no maximum in '{name}': it does not fall on the way from "
                    f"{values[name]:.4g} to {end}, so that the value runs away, or does not matter. Give it a value in "
                    "constants, or a prior as a latent site of the model."
                )

    def _walled(self, place: Place) -> tuple[float, Place]:
        """The same, with a wall at the farthest values; with bounds proper a first step would go as far as these."""
        inside = place.clip(-FARTHEST, FARTHEST)
        value, slope = self._minus(inside)
        beyond = place - inside
        return value + float(beyond @ beyond), np.where(beyond == 0, slope, 2 * beyond)

    def _minus(self, place: Place) -> tuple[float, Place]:
        """Minus the evidence, and minus its slope."""
        for known in self.iterates:
            if np.array_equal(known.place, place):
                return -known.value, -known.slope
        if self.evidence.num_fits + 1 + 2 * len(place) > self.max_fits:
            raise _OutOfFits
        posterior = self.evidence.fit(self.values(place))
        self.evidence.start_at(posterior)
        step = ROUGH_STEP if self.evidence.rough else STEP
        slope = np.zeros(len(place))
        for k, shift in enumerate(step * np.eye(len(place))):
            above, below = (self.evidence.value(self.values(place + sign * shift)) for sign in (1, -1))
            slope[k] = (above - below) / (2 * step)
        self.iterates.append(Iterate(place.copy(), posterior, slope))
        return -self.iterates[-1].value, -slope
