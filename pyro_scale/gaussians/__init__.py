"""Normal distributions of positions, by the structure of their covariance. One file a structure."""

from pyro_scale.gaussians.dense import DenseGaussian
from pyro_scale.gaussians.diagonal import DiagonalGaussian
from pyro_scale.gaussians.held import HeldGaussian
from pyro_scale.gaussians.kronecker import Block, KroneckerGaussian
from pyro_scale.gaussians.low_rank import LowRankGaussian
from pyro_scale.gaussians.normals import gram, sample

__all__ = [
    "Block",
    "DenseGaussian",
    "DiagonalGaussian",
    "HeldGaussian",
    "KroneckerGaussian",
    "LowRankGaussian",
    "gram",
    "sample",
]
