"""Bayesian inference for ordinary Pyro models, from minibatches, at any size."""

from pyro_scale import errors, kernels, schedules

__all__ = ["errors", "kernels", "schedules"]
