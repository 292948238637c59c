r"""Predictions of the linearised model: from a normal distribution of the parameters of each row's likelihood.

Normal observations have mean and variance in closed form: the variance of their location adds to their own. For others
the parameters are drawn (Immer, Korzepa & Bauer (2021), equation 10), or logits f of variance v are shrunk as a probit
is (MacKay (1992), section 4; Spiegelhalter & Lauritzen (1990)),

$$p \approx \sigma\left( f \, / \sqrt{1 + \pi v / 8} \right),$$

for several classes each logit by its own variance, before the softmax.

References:
    Immer, Korzepa & Bauer (2021), Improving predictions of Bayesian neural nets via local linearization, AISTATS.
    MacKay (1992), The evidence framework applied to classification networks, Neural Computation.
    Spiegelhalter & Lauritzen (1990), Sequential updating of conditional probabilities on directed graphical structures.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import over_draws
from pyro_scale.errors import ArgumentError
from pyro_scale.handlers import seeded
from pyro_scale.linear import Part, SiteFunction, along_rows, functions, row_sites, split
from pyro_scale.outputs import innermost
from pyro_scale.prediction import Prediction, moments
from pyro_scale.records import PyroSite, log_prob, user_scale
from pyro_scale.rows import RowAxis
from pyro_scale.types import Gaussian
from pyro_scale.unbounded import at_unbounded

Link: TypeAlias = Literal["monte_carlo", "probit"]
Covariance: TypeAlias = Literal["full", "diagonal"]
LINKS: tuple[Link, ...] = ("monte_carlo", "probit")
COVARIANCES: tuple[Covariance, ...] = ("full", "diagonal")
"""The first is the default."""

MEAN, COVARIANCE, ROOT = "mean of a row", "covariance of a row", "root of a row"
"""Beside the arguments of the model, whose names have no spaces."""


def by_linear_model(
    compiled: CompiledModel,
    gaussian: Gaussian,
    *,
    num_samples: int,
    seed: int,
    link: Link = "monte_carlo",
    covariance: Covariance = "full",
    keep_draws: bool = True,
) -> Prediction:
    """Predictive distribution of the linearised model at the rows of `compiled`.

    Args:
        compiled: the model on the rows to predict for; observations may be missing, and are scored where they are not.
        gaussian: the posterior of all latent sites, unconstrained.
        num_samples: draws of a row's parameters, where these are drawn.
        seed: of the draws.
        link: from logits to probabilities, by draws or as a probit.
        covariance: whether a row's parameters are taken together, or each by its variance alone.
        keep_draws: whether draws of the observed sites are kept.

    Raises:
        ModelError: the model cannot be linearised; see `linear.functions`.
        ArgumentError: a probit link of what is no logit, or of normal sites alone.
    """
    found = functions(compiled, gaussian, diagonal=covariance == "diagonal")
    if link == "probit":
        _check_probit(compiled, gaussian)
    result = Prediction({})
    with seeded(seed, compiled.data.device):
        for name, function in found.items():
            result.function_mean[name] = function.by_parameter(function.mean)
            result.function_variance[name] = function.by_parameter(function.variance)
            if covariance == "full":
                result.function_covariance[name] = function.covariance
            row = _Row(compiled, gaussian, name, function, num_samples, link, keep_draws)
            _write(result, name, row.everywhere(), function.axis, split=link == "monte_carlo")
    return result


def _check_probit(compiled: CompiledModel, gaussian: Gaussian) -> None:
    """Raises `ArgumentError` where normal sites are all, beside which a probit link is for those that it suits."""
    sites = row_sites(compiled, gaussian.mean, tree.map(lambda leaf: leaf[:1], compiled.data.rows))
    observed = [sites[site.name] for site in compiled.structure.of_kind("observed")]
    if all(_is_normal(site) for site in observed):
        raise ArgumentError(
            f"link is 'probit', which is for Bernoulli and categorical sites, and site '{observed[0]['name']}' is "
            "normal, and has a closed form. Leave link out."
        )


class _Row:
    """What is predicted of one site at one row."""

    def __init__(
        self, compiled: CompiledModel, gaussian: Gaussian, name: str, function: SiteFunction, num_samples: int,
        link: Link, keep_draws: bool,
    ) -> None:  # fmt: skip
        self.compiled, self.gaussian, self.name, self.function = compiled, gaussian, name, function
        self.num_samples, self.link, self.keep_draws = num_samples, link, keep_draws
        rows = compiled.sites[name].rows
        assert rows is not None
        self.rows: RowAxis = rows

    def everywhere(self) -> dict[str, Tensor]:
        """Moments, draws and density at all rows, along the first axis, in blocks of them."""
        function = self.function
        numbers = {MEAN: function.mean, COVARIANCE: function.covariance, ROOT: _root(function.covariance)}
        size = function.mean.shape[1] * (self.num_samples + function.mean.shape[1])
        found: dict[str, Tensor] = over_draws(
            self.at, {**self.compiled.data.rows, **numbers}, "different", num_rows=max(1, size)
        )
        return found

    def at(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        """At one row."""
        numbers = {name: row[name] for name in (MEAN, COVARIANCE, ROOT)}
        rows = {name: leaf.unsqueeze(0) for name, leaf in row.items() if name not in numbers}
        site = row_sites(self.compiled, self.gaussian.mean, rows)[self.name]
        if self.link == "probit" and not _is_normal(site):
            return self._probit(site, numbers[MEAN], numbers[COVARIANCE])
        found = self._closed(site, numbers[MEAN], numbers[COVARIANCE])
        wanted = {"probabilities", "density"} if site["given"] is not None else {"probabilities"}
        if self.keep_draws or not found or "density" in wanted - found.keys():
            return self._drawn(site, numbers[MEAN], numbers[ROOT]) | found
        return found

    def _drawn(self, site: PyroSite, mean: Tensor, root: Tensor) -> dict[str, Tensor]:
        """By draws of the parameters."""
        noise = torch.randn(self.num_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        draws = mean + (noise * root if root.ndim == 1 else noise @ root.mT)
        each = self._told(at_unbounded(site, split(self.function.parts, draws)), site["given"])
        averaged = ("probabilities", "entropy", "mean", "variance")
        found: dict[str, Tensor] = {name: each[name].mean(0) for name in averaged if name in each}
        if "mean" in each:
            found["spread"] = each["mean"].var(0, correction=0)
        if "density" in each:
            found["density"] = each["density"].logsumexp(0) - math.log(self.num_samples)
        return found | ({"draw": each["draw"]} if self.keep_draws else {})

    def _told(self, site: PyroSite, given: Tensor | None) -> dict[str, Tensor]:
        """Of the distributions whose parameters are draws along the first axis."""
        found = moments(site)
        if given is not None:
            density = log_prob({**site, "value": given}, unwrap=self.rows.unwrap)
            found["density"] = density.flatten(1).sum(1)
        if self.keep_draws:
            value = site["fn"].sample()
            found["draw"] = value.to(torch.zeros(())) if value.is_floating_point() else value
        return found

    def _closed(self, site: PyroSite, mean: Tensor, covariance: Tensor) -> dict[str, Tensor]:
        """Of normal observations; nothing of others."""
        inner = innermost(site["fn"])
        parts = self.function.parts
        moved = [part.parameter for part in parts]
        if not _is_normal(site) or "loc" not in moved or not {"loc", "scale"}.issuperset(moved):
            return {}
        variances = split(parts, covariance if covariance.ndim == 1 else covariance.diagonal())
        means = split(parts, mean)
        own = inner.variance
        if "scale" in moved:  # of a log-normal square
            own = (2 * means["scale"] + 2 * variances["scale"]).exp()
        found = {"mean": means["loc"], "variance": own, "spread": variances["loc"]}
        if site["given"] is not None and moved == ["loc"] and _is_plain(site):
            found["density"] = _normal_density(site["given"], means["loc"], inner, covariance)
        return found

    def _probit(self, site: PyroSite, mean: Tensor, covariance: Tensor) -> dict[str, Tensor]:
        parts = self.function.parts
        if not _has_logits(site, parts):
            raise ArgumentError(
                f"link is 'probit', which is for Bernoulli and categorical sites, and site '{self.name}' is "
                f"{type(innermost(site['fn'])).__name__}. Use link='monte_carlo'."
            )
        variance = covariance if covariance.ndim == 1 else covariance.diagonal()
        shrunk = mean * (1 + math.pi / 8 * variance).rsqrt()
        number = self.num_samples if self.keep_draws else 1
        each = self._told(at_unbounded(site, split(parts, shrunk.expand(number, -1))), site["given"])
        return {name: value if name == "draw" else value[0] for name, value in each.items()}


def _normal_density(given: Tensor, loc: Tensor, inner: Any, covariance: Tensor) -> Tensor:
    """Log density of all numbers of a row together."""
    if isinstance(inner, dist.MultivariateNormal):
        size = inner.event_shape[0]
        own = torch.block_diag(*inner.covariance_matrix.reshape(-1, size, size))
    else:
        own = inner.variance.reshape(-1)
    if own.ndim == covariance.ndim == 1:
        alone: Any = dist.Normal(loc.reshape(-1), (own + covariance).sqrt(), validate_args=False)
        return torch.as_tensor(alone.log_prob(given.reshape(-1))).sum()
    full = [part if part.ndim == 2 else torch.diag(part) for part in (own, covariance)]
    together: Any = dist.MultivariateNormal(loc.reshape(-1), full[0] + full[1], validate_args=False)
    return torch.as_tensor(together.log_prob(given.reshape(-1)))


def _is_normal(site: PyroSite) -> bool:
    return type(innermost(site["fn"])) in (dist.Normal, dist.MultivariateNormal)


def _is_plain(site: PyroSite) -> bool:
    """Whether no mask or scale weighs the log density."""
    masked = site["mask"] is not None or isinstance(site["fn"], dist.MaskedDistribution)
    scale = user_scale(site)
    return not masked and not isinstance(scale, Tensor) and float(scale) == 1.0


def _has_logits(site: PyroSite, parts: list[Part]) -> bool:
    families = (torch.distributions.Bernoulli, torch.distributions.Categorical)
    return isinstance(innermost(site["fn"]), families) and [part.parameter for part in parts] == ["logits"]


def _root(covariance: Tensor) -> Tensor:
    """A with A A' = covariance, which may be singular: `(n, k, k)`, or `(n, k)` of variances alone."""
    if covariance.ndim == 2:
        return covariance.clamp(min=0).sqrt()
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()):
        eigenvalues, basis = torch.linalg.eigh(covariance)
        root = basis * eigenvalues.clamp(min=0).sqrt().unsqueeze(-2)
    return root


def _write(result: Prediction, name: str, found: dict[str, Tensor], axis: int, *, split: bool) -> None:
    """Puts rows where they belong; a probit link does not `split` the uncertainty of classes."""
    density, draws = found.pop("density", None), found.pop("draw", None)
    if draws is not None:
        result.draws[name] = along_rows(draws.movedim(1, 0), axis, leading=1).unsqueeze(0)
    if density is not None:
        result.log_predictive_density[name] = density
    joined = tree.map(lambda leaf: along_rows(leaf, axis), found)
    result.describe(name, joined, split=split or "spread" in found)
