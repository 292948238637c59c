"""The predicted bias of a kernel, against covariances written out in full and against chains on real minibatches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import AFFINE, KernelCase, name_of
from torch import Tensor
from torch.func import vmap

from pyro_scale import tree
from pyro_scale.batches import Permutations
from pyro_scale.bias import KNOTS, predicted_bias
from pyro_scale.kernels import BAOAB, PSGLD, SGHMC, SGLD, SGNHT
from pyro_scale.types import Position, Settings

NUM_DATA, SIZE = 60, 10
GENERATOR = torch.Generator().manual_seed(0)
ROTATION = torch.linalg.qr(torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64)).Q
CURVATURE = ROTATION @ torch.diag(torch.tensor([0.4, 1.0, 2.1], dtype=torch.float64)) @ ROTATION.T
SHAPES = {"a": torch.Size([]), "b": torch.Size([2])}


def rows() -> Tensor:
    """Gradients of the rows at the mode, `(N, 3)`: correlated, otherwise than the curvature, with mean 0."""
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.8, 0.0], [-0.5, 0.3, 0.4]], dtype=torch.float64)
    found = torch.randn(NUM_DATA, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ mixing.T
    return found - found.mean(0)


def noise_of(size: int, replacement: bool = False) -> Tensor:
    """Covariance of the mean of so many rows."""
    each = rows().T @ rows() / NUM_DATA
    return each / size if replacement else each / size * (NUM_DATA - size) / (NUM_DATA - 1)


def target(position: Position, batch: Tensor) -> Tensor:
    """Of N rows of curvature CURVATURE each; the batch is its rows' gradient at 0, a row."""
    x = tree.ravel(position)
    return NUM_DATA * (batch @ x - x @ CURVATURE @ x / 2)


def relative(covariance: Tensor, curvature: Tensor = CURVATURE) -> Tensor:
    """sds along the eigenvectors of the curvature, relative to the posterior's, minus 1."""
    values, vectors = torch.linalg.eigh(curvature)
    return ((vectors * (covariance @ vectors)).sum(0) * values * NUM_DATA).sqrt() - 1


def one_step(kernel: Any, momentum: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of the state, of the noise and of the gradient per datum in one step of all coordinates."""
    bound = kernel.bind(target, NUM_DATA)
    zero = torch.zeros(3, dtype=torch.float64)
    start = bound.init(tree.unravel(zero, SHAPES), tree.unravel(zero, SHAPES))
    moving = ("position", *momentum)

    def step(vector: Tensor) -> Tensor:
        *state, noise, gradient = vector.split(3)
        fields = {name: tree.unravel(part, SHAPES) for name, part in zip(moving, state, strict=True)}
        settings = Settings(kernel.step_size, kernel.temperature)
        after, _ = bound.update(start._replace(**fields), gradient, tree.unravel(noise, SHAPES), settings)
        return torch.cat([tree.ravel(getattr(after, name)) for name in moving])

    size = 3 * len(moving)
    matrix = torch.stack([step(basis) for basis in torch.eye(size + 6, dtype=torch.float64)], 1)
    return matrix[:, :size], matrix[:, size : size + 3], matrix[:, size + 3 :]


def over_epochs(kernel: Any, momentum: tuple[str, ...], noise: Tensor, per_epoch: int) -> Tensor:
    """Covariance of positions, averaged over the steps of an epoch, whose gradient noises sum to 0."""
    transition, injected, pushed = one_step(kernel, momentum)
    size = len(transition)
    same = torch.eye(per_epoch, dtype=torch.float64)
    noises = torch.kron((per_epoch * same - 1) / (per_epoch - 1), noise) if per_epoch > 1 else 0 * noise
    pushes = torch.zeros(size, 3 * per_epoch, dtype=torch.float64)  # by every noise of the epoch, so far
    own, power, maps = torch.zeros(size, size, dtype=torch.float64), torch.eye(size, dtype=torch.float64), []
    for number in range(per_epoch):
        pushes = transition @ pushes
        pushes[:, 3 * number : 3 * number + 3] += pushed
        own = transition @ own @ transition.T + injected @ injected.T
        power = transition @ power
        maps.append((power, own + pushes @ noises @ pushes.T))
    system = torch.eye(size**2, dtype=torch.float64) - torch.kron(power, power)
    first = torch.linalg.solve(system, maps[-1][1].reshape(-1)).reshape(size, size)
    return torch.stack([through @ first @ through.T + added for through, added in maps]).mean(0)[:3, :3]


@pytest.mark.parametrize("per_epoch", [1, 2, 6, 25])
@pytest.mark.parametrize("case", AFFINE, ids=name_of)
def test_it_is_the_covariance_over_permutations(case: KernelCase, per_epoch: int) -> None:
    for step_size in (0.03, 0.3):
        kernel = replace(case.kernel, step_size=step_size)
        noise = noise_of(SIZE) if per_epoch > 1 else torch.zeros(3, 3, dtype=torch.float64)
        bias = predicted_bias(kernel, CURVATURE, noise, NUM_DATA, per_epoch)
        alone = over_epochs(kernel, case.momentum, 0 * noise, 1)
        wanted = over_epochs(kernel, case.momentum, noise, per_epoch)
        torch.testing.assert_close(bias.step_size, relative(alone), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(bias.minibatches, relative(wanted) - relative(alone), rtol=1e-5, atol=1e-9)
