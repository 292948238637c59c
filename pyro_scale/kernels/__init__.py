"""Scalable kernels: settings that `bind` to a target. One file an algorithm."""

from pyro_scale.kernels.sghmc import SGHMC
from pyro_scale.kernels.sgld import SGLD

METHODS = {"sghmc": SGHMC, "sgld": SGLD}
"""What the strings mean that `infer` takes as a method."""

__all__ = ["SGHMC", "SGLD"]
