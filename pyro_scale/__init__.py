"""Bayesian inference for ordinary Pyro models, from minibatches, at any size."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_scale import errors, kernels, schedules
    from pyro_scale.compile import CompiledModel, compile_model
    from pyro_scale.empirical_bayes import maximize_marginal_likelihood
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
    "maximize_marginal_likelihood",
    "schedules",
]
__version__ = "0.1.0"

_MODULES = ("diagnostics", "errors", "kernels", "models", "schedules")
_HOMES = {
    "CompiledModel": "compile",
    "Posterior": "posterior",
    "Prediction": "prediction",
    "bayesian": "module_models",
    "compile_model": "compile",
    "infer": "inference",
    "load": "files",
    "maximize_marginal_likelihood": "empirical_bayes",
}


def __getattr__(name: str) -> Any:
    """Everything is imported when first used: what reads a saved file needs neither torch nor Pyro."""
    if name in _MODULES:
        return import_module(f"pyro_scale.{name}")
    if name in _HOMES:
        return getattr(import_module(f"pyro_scale.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pyro_scale' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_HOMES})
