"""A deep ensemble: several climbs to modes, by the steps of `MAP`, from starts apart: Lakshminarayanan et al. (2017).

References:
    Lakshminarayanan, Pritzel & Blundell (2017), Simple and scalable predictive uncertainty estimation using deep
    ensembles, NeurIPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pyro_scale.kernels.map import MAP, check
from pyro_scale.types import BoundKernel, Fitting, LogPosterior, Schedule


@dataclass(frozen=True)
class Ensemble:
    """Settings of an ensemble, of as many members as there are chains, each from a start of its own.

    Args:
        step_size: as that of `MAP`, where all members climb side by side.
        prior: whether the prior counts; without it each is a maximum of the likelihood.
        optimizer: as that of `MAP`; one of torch's climbs for one member after another.

    Raises:
        ArgumentError: a setting or num_data is negative, NaN or not a number.

    Example:
        >>> Ensemble().fitting(num_chains=4).num_fits
        4
    """

    default_step_size: ClassVar[float] = MAP.default_step_size
    temperature: ClassVar[float] = 1.0

    step_size: float | Schedule | None = None
    prior: bool = True
    optimizer: Any = None

    def __post_init__(self) -> None:
        check("Ensemble", self.step_size, self.prior, self.optimizer)
        if self.optimizer is not None:
            object.__setattr__(self, "step_size", 1.0)  # of the optimizer's own steps

    def fitting(self, num_chains: int) -> Fitting:
        """A climb a chain, over at the mode."""
        return self._member().fitting(1)._replace(num_fits=num_chains)

    def objective(self, target: Any) -> LogPosterior:
        """What is climbed, as a function of position and batch."""
        return self._member().objective(target)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        return self._member().bind(target, num_data)

    def _member(self) -> MAP:
        return MAP(self.step_size, self.prior, self.optimizer)
