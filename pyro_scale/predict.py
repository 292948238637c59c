"""Posterior predictions: draws of the observed sites for given rows, their moments, and uncertainty split in two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.data import Data, read
from pyro_scale.draws import over_draws
from pyro_scale.errors import DataError, MinibatchError, ModelError
from pyro_scale.handlers import FromValues, PyroSite, run, seeded

BLOCK_DRAWS = 256


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive distribution of the observed sites at n rows.

    Every field maps an observed site to a tensor. The split follows Depeweg et al. (2018), section 3: `total` is
    `aleatoric` (noise that data of this kind keep, however well the parameters are known) plus `epistemic` (what more
    data would remove). For Bernoulli and categorical sites these are entropies and mutual information, in nats;
    for others variances, in squared units of the site.

    Attributes:
        draws: one draw of the site for each posterior draw, `(num_chains, num_samples, n, *event)`.
        mean: mean of the predictive distribution, `(n, *event)`; class probabilities `(n, classes)` if categorical.
        sd: its standard deviation, `(n, *event)`; not given for categorical sites.
        total, aleatoric, epistemic: uncertainty, `(n, *event)`.
        log_predictive_density: log of the mean likelihood of each row, `(n,)`, in nats, if observations were passed.

    Sites whose distribution has no closed mean and variance are left out of all but `draws`.
    """

    draws: dict[str, Tensor]
    mean: dict[str, Tensor] = field(default_factory=dict)
    sd: dict[str, Tensor] = field(default_factory=dict)
    total: dict[str, Tensor] = field(default_factory=dict)
    aleatoric: dict[str, Tensor] = field(default_factory=dict)
    epistemic: dict[str, Tensor] = field(default_factory=dict)
    log_predictive_density: dict[str, Tensor] = field(default_factory=dict)


def predictive(compiled: CompiledModel, draws: Mapping[str, Tensor], *, new_rows: bool, seed: int) -> Prediction:
    """Predictive distribution at the rows of `compiled`.

    Args:
        compiled: the model on the rows to predict for; observations may be missing.
        draws: latent site -> constrained draws `(num_chains, num_samples, *site)`.
        new_rows: whether the rows are others than the model was fitted to: latent sites that follow the rows are
            then drawn from their prior given the other sites.
        seed: of the draws.
    """
    values = {name: draws[name] for name in compiled.latent if not (new_rows and compiled.sites[name].local)}
    num_chains, num_samples = next(iter(values.values())).shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in values.items()}
    averages: dict[str, Tensor] = {}
    samples: dict[str, list[Tensor]] = {}

    def one(draw: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        found = run(compiled.model, compiled.data, compiled.data.rows, FromValues(draw), sample_observed=True).sites
        sites = {site.name: found[site.name] for site in compiled.structure.of_kind("observed")}
        return {name: {"draw": site["value"], **_moments(site)} for name, site in sites.items()}

    with seeded(seed, compiled.data.device):
        for start in range(0, num_chains * num_samples, BLOCK_DRAWS):
            block = tree.map(lambda leaf, start=start: leaf[start : start + BLOCK_DRAWS], flat)
            for name, found in over_draws(one, block, randomness="different").items():
                samples.setdefault(name, []).append(found.pop("draw"))
                for moment, value in found.items():
                    share = value.sum(0) / (num_chains * num_samples)
                    averages[f"{name}\0{moment}"] = averages.get(f"{name}\0{moment}", 0) + share
    stacked = {name: torch.cat(parts).unflatten(0, (num_chains, num_samples)) for name, parts in samples.items()}
    return _summarise(stacked, averages)


def _moments(site: PyroSite) -> dict[str, Tensor]:
    """Functions of one draw's distribution whose averages over draws give the predictive moments and the split."""
    fn = site["fn"]
    inner = fn
    while isinstance(inner, (dist.Independent, dist.MaskedDistribution)):
        inner = inner.base_dist
    if isinstance(inner, (torch.distributions.Bernoulli, torch.distributions.Categorical)):
        finite: Any = inner
        return {"probabilities": finite.probs, "entropy": finite.entropy()}
    try:
        mean, variance = inner.mean, inner.variance
    except (NotImplementedError, AttributeError):
        return {}
    return {"mean": mean, "square": mean.square(), "variance": variance}


def _summarise(draws: dict[str, Tensor], averages: dict[str, Tensor]) -> Prediction:
    result = Prediction(draws)
    for name in draws:
        average = {key.split("\0")[1]: value for key, value in averages.items() if key.split("\0")[0] == name}
        if "entropy" in average:
            probabilities = average["probabilities"]
            scalar = probabilities.shape == average["entropy"].shape  # Bernoulli: one probability a row
            family: Any = dist.Bernoulli if scalar else dist.Categorical
            result.mean[name] = probabilities
            if scalar:
                result.sd[name] = (probabilities * (1 - probabilities)).sqrt()
            predictive_family: Any = family(probs=probabilities, validate_args=False)
            result.total[name] = predictive_family.entropy()
            result.aleatoric[name] = average["entropy"]
            result.epistemic[name] = (result.total[name] - result.aleatoric[name]).clamp(min=0)
        elif "mean" in average:
            result.mean[name] = average["mean"]
            result.aleatoric[name] = average["variance"]
            result.epistemic[name] = (average["square"] - average["mean"].square()).clamp(min=0)
            result.total[name] = result.aleatoric[name] + result.epistemic[name]
            result.sd[name] = result.total[name].sqrt()
    return result


def log_likelihood(compiled: CompiledModel, draws: Mapping[str, Tensor], *, new_rows: bool) -> dict[str, Tensor]:
    """Observed site -> log-likelihood of every row at every draw, `(num_chains, num_samples, n)`, in nats.

    Raises:
        MinibatchError: latent sites follow the rows, so that new rows have no values for them.
    """
    local = [name for name in compiled.latent if compiled.sites[name].local]
    if new_rows and local:
        raise MinibatchError(
            f"Site '{local[0]}' has a value for each row the model was fitted to, and none for other rows, so their "
            "log-likelihood is not known. Call log_likelihood() without data."
        )
    values = {name: draws[name] for name in compiled.latent}
    num_chains, num_samples = next(iter(values.values())).shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in values.items()}
    blocks = []
    for start in range(0, num_chains * num_samples, BLOCK_DRAWS):
        block = tree.map(lambda leaf, start=start: leaf[start : start + BLOCK_DRAWS], flat)
        blocks.append(over_draws(compiled.log_likelihood_at, block))
    if not blocks[0]:
        raise ModelError("No observed site of the model has a log-likelihood.")
    return {name: torch.cat([b[name] for b in blocks]).unflatten(0, (num_chains, num_samples)) for name in blocks[0]}


def new_rows(compiled: CompiledModel, data: Any, *, without_observations: bool = False) -> Data:
    """Other rows for the same model, checked against those of the fit.

    Args:
        compiled: the fitted model.
        data: in the form that `compile_model` takes.
        without_observations: arguments that are only observed may be missing; the model then gets None for them.

    Raises:
        ArgumentError, DataError: as `compile_model`; or rows of another shape than those of the fit.
    """
    if isinstance(data, Mapping):
        data = {name: value for name, value in data.items() if value is not None}
    observed = {site.argument for site in compiled.structure.of_kind("observed") if site.argument}
    fitted = compiled.data
    optional = frozenset(observed) if without_observations else frozenset()
    table = read(compiled.model, data, fitted.constants, dtype=fitted.dtype, device=fitted.device, optional=optional)
    for name, value in table.rows.items():
        if name in fitted.rows and value.shape[1:] != fitted.rows[name].shape[1:]:
            raise DataError(
                f"data['{name}'] has rows of shape {tuple(value.shape[1:])}; those of the fit have shape "
                f"{tuple(fitted.rows[name].shape[1:])}. Pass the same columns in the same order."
            )
    absent = {name: None for name in optional if name not in table.rows}
    return replace(table, constants={**table.constants, **absent})
