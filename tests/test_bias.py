"""The predicted bias of a kernel, against covariances written out in full and against chains on real minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import AFFINE, KernelCase, name_of
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

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


def over_epochs(kernel: Any, momentum: tuple[str, ...], noise: Tensor, per_epoch: float) -> Tensor:
    """Covariance of positions, averaged over the steps of an epoch, whose gradient noises sum to 0."""
    if math.isinf(per_epoch):
        transition, injected, pushed = one_step(kernel, momentum)
        system = torch.eye(len(transition) ** 2, dtype=torch.float64) - torch.kron(transition, transition)
        added = injected @ injected.T + pushed @ noise @ pushed.T
        return torch.linalg.solve(system, added.reshape(-1)).reshape(added.shape)[:3, :3]
    per_epoch = int(per_epoch)
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


@pytest.mark.parametrize("per_epoch", [1, 2, 6, 25, math.inf])
@pytest.mark.parametrize("case", AFFINE, ids=name_of)
def test_it_is_the_covariance_over_permutations(case: KernelCase, per_epoch: int) -> None:
    for step_size in (0.03, 0.3):
        kernel = replace(case.kernel, step_size=step_size)
        noise = noise_of(SIZE) * float(per_epoch > 1)
        bias = predicted_bias(kernel, CURVATURE, noise, NUM_DATA, per_epoch)
        alone = over_epochs(kernel, case.momentum, 0 * noise, 1)
        wanted = over_epochs(kernel, case.momentum, noise, per_epoch)
        torch.testing.assert_close(bias.step_size, relative(alone), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(bias.minibatches, relative(wanted) - relative(alone), rtol=1e-5, atol=1e-9)


def chains(kernel: Any, curvature: Tensor, replacement: bool, num_chains: int = 1000, num_steps: int = 600) -> Tensor:
    """Squares of positions along the eigenvectors, averaged over the last two thirds of a chain, `(num_chains, 3)`."""
    values, vectors = torch.linalg.eigh(curvature)
    generator = torch.Generator().manual_seed(2)
    permutations = Permutations(NUM_DATA, SIZE, num_chains, generator)
    settings = Settings(*torch.tensor([kernel.step_size, kernel.temperature, 0.0], dtype=torch.float64))

    def density(position: Position, batch: Tensor) -> Tensor:
        x = position["x"]
        return NUM_DATA * ((batch * x).sum() - (x @ curvature * x).sum() / 2)

    def updating(kernel: Any) -> Callable[..., Any]:
        bound = kernel.bind(density, NUM_DATA)

        def update(state: Any, batch: Tensor, noise: Position) -> Any:
            return bound.update(state, batch, noise, settings)[0]

        # many chains are one of many coordinates, but for a thermostat that these share
        return vmap(update) if isinstance(kernel, SGNHT) else update

    def noise() -> Position:
        return {"x": torch.randn(num_chains, 3, generator=generator, dtype=torch.float64)}

    state = vmap(kernel.bind(density, NUM_DATA).init)(
        {"x": noise()["x"] * (values * NUM_DATA) ** -0.5 @ vectors.T}, noise()
    )
    batches = torch.cat([permutations.draw(50) for _ in range(num_steps // 50)])
    if replacement:
        batches = torch.randint(NUM_DATA, batches.shape, generator=generator)
    pushes, settling = rows()[batches].mean(2), num_steps // 3
    # one that is slow is brought to where a quick one settles
    update = updating(replace(kernel, thermostat_rate=1.0) if isinstance(kernel, SGNHT) else kernel)
    for push in pushes[:settling]:
        state = update(state, push, noise())
    if isinstance(kernel, SGNHT):
        mean = pytree.tree_map(lambda leaf: leaf.mean(0).expand(leaf.shape), state.thermostat)
        state, update = state._replace(thermostat=mean), updating(kernel)
    total = torch.zeros(num_chains, 3, dtype=torch.float64)
    for push in pushes[settling:]:
        state = update(state, push, noise())
        total += (state.position["x"] @ vectors).square()
    return total / (num_steps - settling)


KERNELS = [
    SGLD(step_size=0.06),
    SGHMC(step_size=0.15),
    BAOAB(step_size=0.2, friction=1.4),
    SGNHT(step_size=0.2, thermostat_rate=0.05),
    SGNHT(step_size=0.2, friction=0.5, thermostat="diagonal", thermostat_rate=0.05),
]


@pytest.mark.parametrize("replacement", [False, True], ids=["permutations", "replacement"])
@pytest.mark.parametrize("kernel", KERNELS, ids=["sgld", "sghmc", "baoab", "sgnht", "sgnht, diagonal"])
def test_it_is_what_chains_on_real_minibatches_show(kernel: Any, replacement: bool) -> None:
    """30 comparisons at 4 standard errors: chance fails one run in 500. Thermostats are slow, and fluctuate little."""
    diagonal = getattr(kernel, "thermostat", "") == "diagonal"
    curvature = torch.diag(CURVATURE.diagonal()) if diagonal else CURVATURE
    per_epoch = math.inf if replacement else NUM_DATA / SIZE
    bias = predicted_bias(kernel, curvature, noise_of(SIZE, replacement), NUM_DATA, per_epoch)
    squares = chains(kernel, curvature, replacement) * torch.linalg.eigvalsh(curvature) * NUM_DATA
    found = squares.mean(0).sqrt() - 1
    error = squares.std(0) / math.sqrt(len(squares)) / (2 * squares.mean(0).sqrt())
    wanted = bias.step_size + bias.minibatches
    print(f"{kernel}: {wanted.tolist()}, found {found.tolist()} with errors {error.tolist()}")
    assert (error < 0.01).all()
    assert ((found - wanted).abs() < 4 * error).all()


def test_a_thermostat_that_is_quick_is_predicted_to_a_fifth() -> None:
    """At the rate that is the default: it fluctuates, in three coordinates, with an sd of 1 / sqrt(3)."""
    kernel = SGNHT(step_size=0.25)
    bias = predicted_bias(kernel, CURVATURE, noise_of(SIZE), NUM_DATA, NUM_DATA / SIZE)
    squares = chains(kernel, CURVATURE, False) * torch.linalg.eigvalsh(CURVATURE) * NUM_DATA
    torch.testing.assert_close(bias.minibatches, squares.mean(0).sqrt() - 1, rtol=0.2, atol=0)


@pytest.mark.parametrize("case", [case for case in AFFINE if case.knows_noise], ids=name_of)
def test_what_is_known_of_the_noise_is_taken_out(case: KernelCase) -> None:
    """By a number and by coordinate; and more than all of the injected noise cannot be."""
    step_size, unit = 0.1, case.kernel.temperature / NUM_DATA
    for value in (
        torch.full((3,), 2 * unit),
        torch.tensor([3.0, 0.5, 1.0]) * unit,
        torch.tensor([1e3, 0.0, 1.0]) * unit,
    ):
        known = value.double()
        as_number = float(known[0]) if known.unique().numel() == 1 else tree.unravel(known, SHAPES)
        kernel = replace(case.kernel, step_size=step_size, gradient_variance=as_number)
        bias = predicted_bias(kernel, CURVATURE, noise_of(SIZE), NUM_DATA, 6.0)
        whole = replace(kernel, gradient_variance=tree.unravel(known, SHAPES))
        wanted = relative(over_epochs(whole, case.momentum, noise_of(SIZE), 6) / case.kernel.temperature)
        torch.testing.assert_close(bias.step_size + bias.minibatches, wanted, rtol=1e-5, atol=1e-9)


def test_coordinates_are_the_directions_of_a_diagonal() -> None:
    noise = torch.tensor([0.02, 0.0, 0.05], dtype=torch.float64)
    values = torch.tensor([2.0, 0.1, 1.0], dtype=torch.float64)
    for kernel in (SGLD(step_size=0.1, gradient_variance=0.01), SGNHT(step_size=0.1)):
        bias = predicted_bias(kernel, values, noise, NUM_DATA, 6.0)
        order = values.argsort()
        dense = predicted_bias(kernel, torch.diag(values), torch.diag(noise), NUM_DATA, 6.0)
        for one, other in zip(bias, dense, strict=True):
            torch.testing.assert_close(one[order], other)


@pytest.mark.parametrize(
    "kernel", [SGLD(step_size=0.5), SGHMC(step_size=0.5), BAOAB(step_size=0.5), SGNHT(step_size=0.5)]
)
def test_many_directions_are_as_if_alone(kernel: Any) -> None:
    """Interpolated, where they are many; the last are next to the edge of stability and beyond it, or have no law."""
    many = torch.cat([torch.tensor([-1.0, 0.0]), torch.logspace(-3, 1.5, 3 * KNOTS)]).double()
    noise = 0.05 * torch.ones(len(many), dtype=torch.float64)
    found = predicted_bias(kernel, many, noise, NUM_DATA, 6.0)
    assert found.step_size[:2].isinf().all() and found.step_size[-1].isinf()
    if isinstance(kernel, SGNHT):  # its thermostat is that of all: none settles where one direction is not stable
        return
    alone = [predicted_bias(kernel, many[[i]], noise[[i]], NUM_DATA, 6.0) for i in range(0, len(many), 7)]
    for name in ("step_size", "minibatches"):
        wanted = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(found, name)[::7], wanted, rtol=0.01, atol=1e-6)


def test_the_temperature_scales_noise_that_counts() -> None:
    """At half the temperature the same noise widens twice as much, relative to the posterior that is then narrower."""
    kernel = SGLD(step_size=0.1, temperature=0.5)
    cold = predicted_bias(kernel, CURVATURE, noise_of(SIZE), NUM_DATA, 6.0)
    warm = predicted_bias(replace(kernel, temperature=1.0), CURVATURE, 2 * noise_of(SIZE), NUM_DATA, 6.0)
    for one, other in zip(cold, warm, strict=True):
        torch.testing.assert_close(one, other)


def test_the_least_that_is_asked_for() -> None:
    bias = predicted_bias(PSGLD(step_size=0.1), torch.ones(2), 0, 10, 1)
    assert bias.step_size.tolist() == pytest.approx([(1 - 0.05) ** -0.5 - 1] * 2)
    assert bias.minibatches.tolist() == [0, 0]
    for friction in (0.0, 1.0):
        bias = predicted_bias(SGNHT(step_size=0.3, friction=friction), torch.ones(2), 0.0, 10, 1)
        assert bias.step_size.tolist() == pytest.approx([0, 0], abs=1e-9)
        assert bias.minibatches.tolist() == [0, 0]


def test_noise_adds_up_over_all_the_steps_that_a_slow_direction_remembers() -> None:
    """100,000 of them; white noise adds h V / T / 2 to the variance of an autoregression, and 1 / (1 - h k / 2)."""
    bias = predicted_bias(SGLD(step_size=0.01), 1e-3 * torch.ones(1), 1e-3, 1000, math.inf)
    exact = 1 / (1 - 0.01 * 1e-3 / 2)
    assert float(bias.minibatches) == pytest.approx((exact * (1 + 0.01 / 2)) ** 0.5 - exact**0.5, rel=0.02)
