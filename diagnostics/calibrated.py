"""How good predictions are, and whether they know it: scores, calibration and coverage in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from pyro_scale.arrays import as_numbers
from pyro_scale.checks import check_seed
from pyro_scale.data import names_of
from pyro_scale.errors import ArgumentError, DataError
from pyro_scale.groups import data_groups
from pyro_scale.other_rows import new_rows, unobserved
from pyro_scale.posterior import Posterior
from pyro_scale.prediction import Prediction

from .coverage import pit
from .site_metrics import of_classes, of_numbers, probabilities_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Calibration:
    """What `calibration` found.

    Attributes:
        table: `value` of every metric, with the `standard_error` that the number of rows leaves it, by site and metric.
        reliability: of sites of classes, by site and bin, as `reliability` returns it; otherwise empty.
        pit: of other sites, probability integral transforms, `(n, *event)`; uniform if predictions are calibrated.
    """

    table: pd.DataFrame
    reliability: pd.DataFrame
    pit: dict[str, Tensor] = field(default_factory=dict)

    def plot(self) -> Figure:
        """Reliability diagrams of classes; histograms of the PIT, and coverage by level, of everything else."""
        from .calibration_plot import figure_of

        return figure_of(self.table, self.reliability, self.pit)


def calibration(
    prediction: Prediction | Posterior,
    data: Any = None,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    num_bins: int = 15,
    num_samples: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Scores, calibration and coverage of predictions, beside what was observed.

    Metrics of every site, as means over rows:

    log_predictive_density: log of the mean likelihood of a row, in nats; higher is better. If a prediction was made
        without observations, of classes that of the marginals: the sum over a row's events of the logs of their
        probabilities, which differs where events depend on each other. Of other sites it is then missing.

    Of Bernoulli and categorical sites (probabilities are the means over draws):

    accuracy: of the most probable class.
    brier: `brier_score`.
    expected_calibration_error: of the probability of 1, or of the most probable of several classes.

    Of other sites, from predictive draws:

    rmse: root of the mean squared error of the predictive mean.
    crps: `crps`, in units of the site.
    coverage_50, ...: share of observations in their central intervals, to be about the level; NaN where there are too
        few draws to tell the ends of the interval, 40 for 95 %.

    Predictive draws of all rows are held in memory, where a posterior predicts itself several times: 13 bytes for each
    row and draw in single precision (measured: 1.05 GB of 200,000 rows and 400 draws), twice that in double. Where rows
    are many pass num_samples: 40 draws in all tell the ends of the 95 % interval.

    Rows of the fit are predicted better than new ones: pass rows that were left out. Observations that the model masks
    are counted as well.

    Args:
        prediction: of `posterior.predict`, or a posterior, which predicts itself.
        data: for a prediction what was observed: site -> `(n, *event)`, or that of its only site. For a posterior rows
            with their observations, as `infer` takes them; None for those of the fit.
        levels: of the intervals, between 0 and 1.
        num_bins: of the reliability diagram.
        num_samples: of a posterior, use that many of the draws of each chain; None for all.
        seed: of predictive draws, and of PIT values between draws.

    Raises:
        ArgumentError: observations that are missing, that do not fit, or that are of a class without probability.
        DataError: observations or draws that are not finite.
        MissingModelError: a posterior without its model.

    Example:
        >>> draws = torch.randn(4, 500, 300, generator=torch.Generator().manual_seed(0))
        >>> found = calibration(Prediction({"obs": draws}), torch.zeros(300))
        >>> round(float(found.table.loc[("obs", "crps"), "value"]), 2)
        0.23
    """
    seed = check_seed(seed)
    if isinstance(prediction, Posterior):
        observed = _observed_in(prediction, data)
        prediction = prediction.predict(data, num_samples=num_samples, seed=seed)
    elif num_samples is not None:
        raise ArgumentError("num_samples is of posteriors; a prediction has its draws. Pass it to predict.")
    elif isinstance(prediction, Prediction):
        observed = _observed(prediction, data)
    else:
        raise ArgumentError(f"calibration got a {type(prediction).__name__}; it takes a prediction or a posterior.")
    rows: dict[tuple[str, str], tuple[float, float]] = {}
    diagrams, transforms = {}, {}
    generator = torch.Generator().manual_seed(seed)
    for site, seen in observed.items():
        _check(site, prediction.draws[site], seen)
        density, probabilities = prediction.log_predictive_density.get(site), probabilities_of(prediction, site)
        if probabilities is None:
            draws = prediction.draws[site].flatten(0, 1).cpu()
            mean = prediction.mean[site].cpu() if site in prediction.mean else draws.double().mean(0)
            metrics = of_numbers(mean, draws, seen, density, levels)
            transforms[site] = pit(draws, seen, generator)
        else:
            metrics, diagrams[site] = of_classes(probabilities.double().cpu(), seen, density, num_bins)
        rows |= {(site, name): value for name, value in metrics.items()}
    index = pd.MultiIndex.from_tuples(rows, names=["site", "metric"])
    table = pd.DataFrame(list(rows.values()), index=index, columns=["value", "standard_error"])
    whole = pd.concat(diagrams, names=["site", "bin"]) if diagrams else pd.DataFrame()
    return Calibration(table, whole, transforms)


def _observed_in(posterior: Posterior, data: Any) -> dict[str, Tensor]:
    """What the rows that a posterior is to predict were observed to be."""
    compiled = posterior.model_for("calibration")
    if data is not None:
        latent = posterior.latent_draws("calibration", new_rows=True)
        compiled = compiled.on(new_rows(compiled, data, without_observations=True))
        if missing := unobserved(compiled, latent):
            argument = compiled.sites[missing[0]].argument
            name = "its observations" if argument is None else f"'{argument}'"
            raise ArgumentError(
                f"What site '{missing[0]}' was is to be set beside its prediction: pass {name} in data."
            )
    observed = data_groups(compiled)["observed_data"]
    if not observed:
        raise ArgumentError(
            "The rows of a DataLoader are never all there; pass some of them, with observations, as data."
        )
    return {site: torch.from_numpy(value) for site, value in observed.items()}


def _observed(prediction: Prediction, data: Any) -> dict[str, Tensor]:
    """Observations by site, of a mapping or of the only site."""
    sites = list(prediction.draws)
    if not sites:
        raise ArgumentError("The prediction holds no draws: predict with them kept, as posterior.predict(data) does.")
    if data is None:
        raise ArgumentError(
            f"A prediction does not hold what was observed: pass the values of {names_of(sites)} as data."
        )
    if not isinstance(data, Mapping):
        if len(sites) != 1:
            raise ArgumentError(f"The prediction is of {names_of(sites)}: pass a dict of what was observed of each.")
        data = {sites[0]: data}
    if unknown := [name for name in data if name not in sites]:
        raise ArgumentError(f"The prediction has no site '{unknown[0]}'; it has {names_of(sites)}.")
    if not data:
        raise ArgumentError(f"data is empty; pass what was observed of {names_of(sites)}.")
    return {site: as_numbers(f"data['{site}']", value).cpu() for site, value in data.items()}


def _check(site: str, draws: Tensor, observed: Tensor) -> None:
    """Raises unless finite draws `(num_chains, num_samples, n, *event)` are of what was observed."""
    if draws.shape[2:] != observed.shape or observed.ndim == 0 or len(observed) == 0:
        raise ArgumentError(
            f"Site '{site}' is predicted for values of shape {tuple(draws.shape[2:])}, and the observations have shape "
            f"{tuple(observed.shape)}. Predict and pass the same rows, at least one."
        )
    for what, values in (("observation", observed), ("predictive draw", draws)):
        if bad := int((~values.isfinite()).sum()):
            raise DataError(f"Site '{site}' has {bad} {what}s that are not finite. Leave out these rows.")
