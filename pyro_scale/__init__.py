"""Bayesian inference for ordinary Pyro models, from minibatches, at any size."""

from pyro_scale import errors, kernels, schedules
from pyro_scale.compile import CompiledModel, compile_model

__all__ = ["CompiledModel", "compile_model", "errors", "kernels", "schedules"]
