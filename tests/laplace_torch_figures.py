"""Writes `laplace_torch.json`: what laplace-torch makes of small networks, for test_laplace_torch.py to agree with.

It needs an environment of its own, with torch as in constraints.txt, because a requirement of laplace-torch,
torchvision, would bring another torch:

    pip install torch==2.13.0 numpy scipy tqdm
    pip install --no-deps laplace-torch==0.3.* curvlinops-for-pytorch==3.0.1 backpack-for-pytorch asdfghjkl einops \\
        opt_einsum torchmetrics lightning-utilities unfoldNd
    python tests/laplace_torch_figures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from laplace import Laplace
from laplace.curvature import CurvlinopsEF, CurvlinopsGGN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PRIOR_PRECISION, SIGMA = 1.7, 0.6
NETWORKS: dict[str, Any] = {
    "mlp": lambda outputs: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, outputs)),
    "conv": lambda outputs: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, outputs)
    ),
}
SHAPES = {"mlp": (2,), "conv": (1, 4, 4)}
OUTPUTS = {"classification": 3, "regression": 2}


def figures(network: str, likelihood: str) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(13, *SHAPES[network]).round(decimals=3)
    outputs = OUTPUTS[likelihood]
    y = torch.randint(outputs, (13,)) if likelihood == "classification" else torch.randn(13, outputs).round(decimals=3)
    net = NETWORKS[network](outputs)
    for parameter in net.parameters():
        parameter.data = (torch.randn(parameter.shape) / 2).round(decimals=3)
    found: dict[str, Any] = {"x": x.tolist(), "y": y.tolist()}
    found["weights"] = {name: value.tolist() for name, value in net.named_parameters()}
    loader = DataLoader(TensorDataset(x, y), batch_size=5)  # the last batch is smaller
    for subset in ("all", "last_layer"):
        for structure in ("diag", "full", "kron"):
            for backend in (CurvlinopsGGN, CurvlinopsEF):
                if backend is CurvlinopsEF and subset == "last_layer":
                    continue
                options: dict[str, Any] = {"sigma_noise": SIGMA} if likelihood == "regression" else {}
                la = Laplace(
                    net,
                    likelihood,
                    subset_of_weights=subset,
                    hessian_structure=structure,
                    prior_precision=PRIOR_PRECISION,
                    backend=backend,
                    **options,
                )
                la.fit(loader)
                precision = la.posterior_precision
                matrix = precision.to_matrix() if structure == "kron" else precision
                matrix = torch.diag(matrix) if structure == "diag" else matrix
                kind = "ggn" if backend is CurvlinopsGGN else "fisher"
                found[f"{subset}-{structure}-{kind}"] = {
                    "precision": matrix.tolist(),
                    "log_marginal_likelihood": float(la.log_marginal_likelihood()),
                }
    return found


def rounded(value: Any) -> Any:
    """Nine digits: the agreement asked for is of six."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    everything = {f"{net}-{likelihood}": figures(net, likelihood) for net in NETWORKS for likelihood in OUTPUTS}
    path = Path(__file__).with_name("laplace_torch.json")
    path.write_text(json.dumps(rounded(everything)) + "\n", encoding="utf-8")
