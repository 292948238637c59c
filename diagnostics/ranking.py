"""What one simulation after another adds to simulation-based calibration: which draws are below the true values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_scale.arrays import as_numbers
from pyro_scale.convergence import LEAST_DRAWS, ess
from pyro_scale.data import names_of
from pyro_scale.draws import over_draws
from pyro_scale.errors import ArgumentError
from pyro_scale.posterior import Posterior
from pyro_scale.values import evenly_spaced, labels

from .independent import at_most
from .psis import Array
from .ranks import Ranks
from .simulation import Simulated

LOG_LIKELIHOOD = "log-likelihood"

Draws = Mapping[str, Tensor]
Function = Callable[[dict[str, Tensor]], Any]


class _Compared(NamedTuple):
    """Of one simulation: `(num_draws, parameters)` which draws are below the true value, which are equal to it."""

    below: Array
    equal: Array
    sizes: Array  # effective, of the coordinates of sites


class Collected:
    """Comparisons of true values with draws, so far.

    Args:
        sites: names of those whose coordinates are ranked.
        functions: of a draw (a dict by site), by label.
        num_draws: so many draws are compared, evenly spaced.
    """

    def __init__(self, sites: list[str], functions: Mapping[str, Function], num_draws: int) -> None:
        self.sites = sites
        self.functions = functions
        self.num_draws = num_draws
        self.labels: list[str] = []
        self.compared: list[_Compared] = []
        self.failures: dict[int, str] = {}
        self.unsound = 0

    @property
    def number(self) -> int:
        """Of simulations that have ranks."""
        return len(self.compared)

    def add(self, simulated: Simulated, found: Posterior | Draws) -> None:
        """Compares what was simulated with the draws that a method found.

        Raises:
            ArgumentError: draws that are missing, too few, of another shape or not finite.
        """
        draws = self._checked(found, simulated)
        true, few = simulated.values, _evenly(draws, self.num_draws)
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.sites:
            shape = true[name].shape
            for label, index in zip(labels(name, shape), np.ndindex(*shape), strict=True):
                pairs[label] = true[name][index], few[name].movedim(0, -1)[index]
        at = {name: true[name] for name in few}
        for label, function in self._all_functions(simulated, few).items():
            pairs[label] = (
                torch.as_tensor(function(at)),
                over_draws(function, few, num_rows=simulated.compiled.num_data),
            )
        values = np.array([_array(value) for value, _ in pairs.values()])
        drawn = np.stack([_array(value) for _, value in pairs.values()], 1)
        self.labels = list(pairs)
        self.compared.append(_Compared(drawn < values, drawn == values, self._effective(draws)))
        self.unsound += isinstance(found, Posterior) and not found.verdict

    def ranks(self, seed: int) -> Ranks:
        """Of all simulations so far, among draws thinned to about independent ones."""
        least = float(np.median([each.sizes for each in self.compared], axis=0).min())
        num_draws = max(1, min(self.num_draws, int(least)))
        chosen = evenly_spaced(self.num_draws, num_draws)
        below = np.stack([each.below[chosen].sum(0) for each in self.compared])
        equal = np.stack([each.equal[chosen].sum(0) for each in self.compared])
        generator = torch.Generator().manual_seed(seed)
        share = torch.rand(below.shape, generator=generator, dtype=torch.float64, device="cpu").numpy()
        ranks = (below + share * (equal + 1)) / (num_draws + 1)
        return Ranks(pd.DataFrame(ranks, columns=self.labels), num_draws, self.failures, self.unsound)

    def _all_functions(self, simulated: Simulated, draws: Draws) -> dict[str, Function]:
        """What is ranked beside sites; the log-likelihood where draws of all latent sites are there."""
        functions = dict(self.functions)
        if simulated.compiled.latent.keys() <= draws.keys():
            functions[LOG_LIKELIHOOD] = lambda draw: sum(
                each.sum() for each in simulated.compiled.log_likelihood_at(draw).values()
            )
        return functions

    def _effective(self, draws: Draws) -> Array:
        """Effective sample size of every coordinate; short chains are taken to be independent draws."""
        num_chains, num_samples = draws[self.sites[0]].shape[:2]
        if num_samples < LEAST_DRAWS:
            return np.array([float(num_chains * num_samples)])
        return np.concatenate([_array(ess(draws[name])[0]).flatten() for name in self.sites])

    def _checked(self, found: Posterior | Draws, simulated: Simulated) -> dict[str, Tensor]:
        """Draws by site `(num_chains, num_samples, *site)`, of the shape of what was simulated."""
        given = found.draws if isinstance(found, Posterior) else found
        if not isinstance(given, Mapping):
            raise ArgumentError(
                f"method returned a {type(found).__name__}; it must return a posterior, or a dict of draws by site."
            )
        draws = {name: as_numbers(f"draws['{name}']", one) for name, one in given.items() if name in simulated.values}
        for name in self.sites:
            if name not in draws:
                raise ArgumentError(
                    f"The draws lack site '{name}': they have {names_of(list(given))}. Leave it out of sites."
                )
            self._check_site(name, draws[name], simulated.values[name].shape)
        return draws

    def _check_site(self, name: str, value: Tensor, shape: torch.Size) -> None:
        if value.shape[2:] != shape or value.ndim != 2 + len(shape):
            wanted = ", ".join(["num_chains", "num_samples", *map(str, shape)])
            raise ArgumentError(f"Draws of site '{name}' have shape {tuple(value.shape)}; it must be ({wanted}).")
        number = value.shape[0] * value.shape[1]
        if number == 1:
            raise ArgumentError(
                f"There is one draw of site '{name}': a point has no distribution to check. Use a method that draws, "
                "or fits a distribution, as laplace_diag or sghmc."
            )
        if number < self.num_draws:
            raise ArgumentError(
                f"There are {number} draws, and values are to be ranked among num_draws={self.num_draws}. Raise "
                "num_samples, or lower num_draws."
            )
        if not value.isfinite().all():
            raise ArgumentError(f"Draws of site '{name}' are not finite.")


def _evenly(draws: Draws, num_draws: int) -> dict[str, Tensor]:
    """So many of the draws of all chains, `(num_draws, *site)`."""
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    return {name: at_most(leaf, num_draws) for name, leaf in flat.items()}


def _array(value: Tensor) -> Array:
    return np.asarray(value.detach().double().cpu())
