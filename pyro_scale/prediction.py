"""What is told of a posterior predictive distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scale.outputs import innermost
from pyro_scale.records import PyroSite
from pyro_scale.rows import RowAxis
from pyro_scale.split import of_entropies, of_variances


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive distribution of the observed sites at n rows.

    Every field maps an observed site to a tensor. The split follows Depeweg et al. (2018), section 3: `total` is
    `aleatoric` (noise that data of this kind keep, however well the parameters are known) plus `epistemic` (what more
    data would remove). For Bernoulli and categorical sites these are entropies and mutual information, in nats;
    for others variances, in squared units of the site.

    Attributes:
        draws: one draw of the site for each posterior draw, `(num_chains, num_samples, n, *event)`; empty where they
            are not kept.
        mean: mean of the predictive distribution, `(n, *event)`; class probabilities `(n, classes)` if categorical.
        sd: its standard deviation, `(n, *event)`; not given for categorical sites.
        total, aleatoric, epistemic: uncertainty, `(n, *event)`.
        log_predictive_density: log of the mean likelihood of each row, `(n,)`, in nats, if observations were passed.
        function_mean, function_variance: of a linearised prediction; site -> parameter of its distribution, without
            bounds (logits, or the log of a scale) -> its mean and variance at each row, in the parameter's shape.
        function_covariance: of a linearised prediction with `covariance="full"`; the covariance of a row's parameters,
            all numbers of `function_mean` in their order, `(n, k, k)`.

    Sites whose distribution has no closed mean and variance are left out of all but `draws`. Where the model draws
    latent values for each row anew (discrete sites; any with a value a row, at new rows), what they add is not told
    from either part: `aleatoric` and `epistemic` are left out.
    """

    draws: dict[str, Tensor]
    mean: dict[str, Tensor] = field(default_factory=dict)
    sd: dict[str, Tensor] = field(default_factory=dict)
    total: dict[str, Tensor] = field(default_factory=dict)
    aleatoric: dict[str, Tensor] = field(default_factory=dict)
    epistemic: dict[str, Tensor] = field(default_factory=dict)
    log_predictive_density: dict[str, Tensor] = field(default_factory=dict)
    function_mean: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    function_variance: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    function_covariance: dict[str, Tensor] = field(default_factory=dict)

    def describe(self, site: str, averages: Mapping[str, Tensor], *, split: bool = True) -> None:
        """Fills in what is known of a site.

        Args:
            site: its name.
            averages: over draws, of `moments`; of a number `spread` too, the variance of its mean over draws.
            split: whether to tell the two parts of its uncertainty.
        """
        if "probabilities" in averages:
            probabilities = averages["probabilities"]
            binary = probabilities.shape == averages["entropy"].shape  # one probability a row
            family: Any = dist.Bernoulli if binary else dist.Categorical
            self.mean[site] = probabilities
            if binary:
                self.sd[site] = (probabilities * (1 - probabilities)).sqrt()
            entropy = family(probs=probabilities, validate_args=False).entropy()
            parts = of_entropies(entropy, averages["entropy"])
        elif "mean" in averages:
            self.mean[site] = averages["mean"]
            parts = of_variances(averages["variance"], averages["spread"])
            self.sd[site] = parts.total.sqrt()
        else:
            return
        self.total[site] = parts.total
        if split:
            self.aleatoric[site], self.epistemic[site] = parts.aleatoric, parts.epistemic


def moments(site: PyroSite) -> dict[str, Tensor]:
    """Functions of one draw's distribution whose averages over draws give the predictive moments and the split."""
    inner = innermost(site["fn"])
    if isinstance(inner, (torch.distributions.Bernoulli, torch.distributions.Categorical)):
        finite: Any = inner
        return {"probabilities": finite.probs, "entropy": finite.entropy()}
    try:
        return {"mean": inner.mean, "variance": inner.variance}
    except (NotImplementedError, AttributeError):
        return {}


def axis_of_rows(site: PyroSite, rows: RowAxis) -> int:
    """The axis of a site's values, and of its distribution's parameters, which follows the rows; from the left."""
    fn = site["fn"].base_dist if rows.unwrap else site["fn"]
    return len(fn.batch_shape) + rows.axis
