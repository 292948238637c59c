"""Scalable kernels: settings that `bind` to a target. One file an algorithm."""

from pyro_scale.kernels.baoab import BAOAB
from pyro_scale.kernels.diagonal_vi import DiagonalVI
from pyro_scale.kernels.map import MAP
from pyro_scale.kernels.psgld import PSGLD
from pyro_scale.kernels.sghmc import SGHMC
from pyro_scale.kernels.sgld import SGLD
from pyro_scale.kernels.sgnht import SGNHT

METHODS = {
    "sghmc": SGHMC,
    "sgld": SGLD,
    "sgnht": SGNHT,
    "baoab": BAOAB,
    "psgld": PSGLD,
    "map": MAP,
    "vi_diag": DiagonalVI,
}
"""What the strings mean that `infer` takes as a method."""

__all__ = ["BAOAB", "MAP", "PSGLD", "SGHMC", "SGLD", "SGNHT", "DiagonalVI"]
