"""Bayesian inference for ordinary Pyro models, from minibatches, at any size."""

from importlib import import_module
from typing import Any

from pyro_scale import errors, kernels, schedules
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.files import load
from pyro_scale.inference import infer
from pyro_scale.module_models import bayesian
from pyro_scale.posterior import Posterior
from pyro_scale.prediction import Prediction

__all__ = [
    "CompiledModel",
    "Posterior",
    "Prediction",
    "bayesian",
    "compile_model",
    "errors",
    "infer",
    "kernels",
    "load",
    "schedules",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`ps.diagnostics` and `ps.models` are imported when first used."""
    if name in ("diagnostics", "models"):
        return import_module(f"pyro_scale.{name}")
    raise AttributeError(f"module 'pyro_scale' has no attribute '{name}'")
