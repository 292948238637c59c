"""Laplace's approximation against laplace-torch 0.3, whose figures laplace_torch_figures.py writes."""

from __future__ import annotations

import json
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from laplace_cases import NETWORKS, OUTPUTS, PRIOR_PRECISION, SIGMA, precision_of

import pyro_scale as ps
from pyro_scale.kernels import DenseLaplace, DiagonalLaplace, KroneckerLaplace
from pyro_scale.laplace_fit import laplace_at

FIGURES = json.loads(Path(__file__).with_name("laplace_torch.json").read_text(encoding="utf-8"))
STRUCTURES = {"diag": DiagonalLaplace, "full": DenseLaplace, "kron": KroneckerLaplace}
SITES = {"mlp": "2.*", "conv": "3.*"}
LIKELIHOODS = {
    "classification": lambda out: dist.Categorical(logits=out),
    "regression": lambda out: dist.Normal(out, SIGMA).to_event(1),
}
ROWS = [(case, name) for case, found in FIGURES.items() for name in found if "-" in name]


@pytest.mark.parametrize(("case", "name"), ROWS, ids=lambda value: value)
def test_precision_and_evidence(case, name):
    figures, (network, likelihood), (subset, structure, kind) = FIGURES[case], case.split("-"), name.split("-")
    prior = dist.Normal(torch.tensor(0.0, dtype=torch.float64), PRIOR_PRECISION**-0.5)
    model = ps.bayesian(NETWORKS[network](OUTPUTS[likelihood]), prior=prior, likelihood=LIKELIHOODS[likelihood])
    data = {"x": torch.tensor(figures["x"], dtype=torch.float64), "y": torch.tensor(figures["y"])}
    compiled = ps.compile_model(model, data, batch_size=5)
    position = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures["weights"].items()}
    sites = SITES[network] if subset == "last_layer" else None
    fit = laplace_at(compiled, STRUCTURES[structure](curvature=kind, sites=sites), position, seed=0)
    expected = torch.tensor(figures[name]["precision"], dtype=torch.float64)
    empirical_of_a_regression = kind == "fisher" and likelihood == "regression"
    if empirical_of_a_regression:
        # theirs is half of the squares of the slopes 2 r J of r**2, over sigma**2: 2 sigma**2 times those of r J /
        # sigma**2, the slopes of the log-likelihood, as test_laplace.py has it in closed form
        prior_part = PRIOR_PRECISION * torch.eye(len(expected), dtype=torch.float64)
        expected = prior_part + (expected - prior_part) / (2 * SIGMA**2)
    found = precision_of(fit.gaussian)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    if empirical_of_a_regression:
        return
    held = [leaf for site, leaf in position.items() if site not in getattr(fit.gaussian, "gaussian", fit.gaussian).mean]
    # we count the prior density of the weights that are held, laplace-torch does not
    theirs = figures[name]["log_marginal_likelihood"] + sum(float(prior.log_prob(leaf).sum()) for leaf in held)
    assert fit.log_marginal_likelihood == pytest.approx(theirs, rel=1e-6)
