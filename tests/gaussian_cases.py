"""Normal distributions of positions with any structure of their covariance, each with its dense twin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.gaussians import Block, DenseGaussian, DiagonalGaussian, KroneckerGaussian, LowRankGaussian
from pyro_scale.types import Gaussian, Position


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(size: int, seed: int) -> Tensor:
    root = numbers(size, size + 2, seed=seed)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def diagonal(mean: Position) -> Gaussian:
    return DiagonalGaussian(mean, tree.map(lambda leaf: 0.1 + numbers(*leaf.shape, seed=1).abs(), mean))


def dense(mean: Position) -> Gaussian:
    return DenseGaussian(mean, torch.linalg.cholesky(spd(tree.size(mean), 2)))


def low_rank(mean: Position) -> Gaussian:
    sd = tree.map(lambda leaf: 0.1 + numbers(*leaf.shape, seed=3).abs(), mean)
    return LowRankGaussian.of_covariance(mean, sd, numbers(tree.size(mean), 3, seed=4) / 3)


def kronecker(mean: Position) -> Gaussian:
    blocks = {}
    for seed, (name, leaf) in enumerate(mean.items()):
        pairs = [torch.linalg.eigh(spd(size, 10 * seed + size)) for size in leaf.shape]
        eigenvalues = torch.ones((), dtype=torch.float64)
        for values, _ in pairs:
            eigenvalues = eigenvalues[..., None] * values
        blocks[name] = Block(tuple(basis for _, basis in pairs), eigenvalues + 0.5)
    return KroneckerGaussian(mean, blocks)


STRUCTURES: list[Callable[[Position], Gaussian]] = [diagonal, dense, low_rank, kronecker]


def covariance_of(gaussian: Gaussian) -> Tensor:
    """F F', from F column by column, in the order of `tree.ravel`."""
    shapes = tree.shapes(gaussian.mean)
    identity = tree.unravel(torch.eye(tree.size(gaussian.mean), dtype=torch.float64), shapes)
    factor = (tree.flat(gaussian.transform(identity), shapes) - tree.ravel(gaussian.mean)).T
    return factor @ factor.T
