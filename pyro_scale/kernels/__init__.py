"""Scalable kernels: settings that `bind` to a target. One file an algorithm."""

from pyro_scale.kernels.baoab import BAOAB
from pyro_scale.kernels.dense_ekf import DenseEKF
from pyro_scale.kernels.dense_laplace import DenseLaplace
from pyro_scale.kernels.dense_vi import DenseVI
from pyro_scale.kernels.diagonal_ekf import DiagonalEKF
from pyro_scale.kernels.diagonal_laplace import DiagonalLaplace
from pyro_scale.kernels.diagonal_vi import DiagonalVI
from pyro_scale.kernels.ensemble import Ensemble
from pyro_scale.kernels.kronecker_laplace import KroneckerLaplace
from pyro_scale.kernels.low_rank_laplace import LowRankLaplace
from pyro_scale.kernels.low_rank_vi import LowRankVI
from pyro_scale.kernels.map import MAP
from pyro_scale.kernels.psgld import PSGLD
from pyro_scale.kernels.sghmc import SGHMC
from pyro_scale.kernels.sgld import SGLD
from pyro_scale.kernels.sgnht import SGNHT
from pyro_scale.kernels.svgd import SVGD
from pyro_scale.kernels.swag import SWAG

METHODS = {
    "sghmc": SGHMC,
    "sgld": SGLD,
    "sgnht": SGNHT,
    "baoab": BAOAB,
    "psgld": PSGLD,
    "map": MAP,
    "ensemble": Ensemble,
    "vi_diag": DiagonalVI,
    "vi_dense": DenseVI,
    "vi_lowrank": LowRankVI,
    "swag": SWAG,
    "svgd": SVGD,
    "ekf_diag": DiagonalEKF,
    "ekf_dense": DenseEKF,
    "laplace_diag": DiagonalLaplace,
    "laplace_dense": DenseLaplace,
    "laplace_kfac": KroneckerLaplace,
    "laplace_lowrank": LowRankLaplace,
}
"""What the strings mean that `infer` takes as a method."""

__all__ = [
    "BAOAB",
    "MAP",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "SVGD",
    "SWAG",
    "DenseEKF",
    "DenseLaplace",
    "DenseVI",
    "DiagonalEKF",
    "DiagonalLaplace",
    "DiagonalVI",
    "Ensemble",
    "KroneckerLaplace",
    "LowRankLaplace",
    "LowRankVI",
]
