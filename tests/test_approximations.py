"""What every kernel that fits promises: the protocol, purity, shapes, dtypes, settings; and gradients by autograd."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from typing import Any

import pytest
import torch
from approximation_cases import CASES, NUM_DATA, SITES, ApproximationCase, Linear, drawn, settings_of, started
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import kernels, tree
from pyro_scale.errors import ArgumentError
from pyro_scale.kernels import DenseVI, DiagonalVI, LowRankVI
from pyro_scale.kernels.adam import direction, no_moments
from pyro_scale.kernels.svgd import stein
from pyro_scale.types import Settings

every_kernel = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_stepping = pytest.mark.parametrize(
    "case", [case for case in CASES if not case.kernel.fitting(1).one_pass], ids=lambda case: case.name
)
every_site = pytest.mark.parametrize("shapes", SITES.values(), ids=SITES.keys())
ROWS = slice(0, 7)


def close(first: Any, second: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def test_every_kernel_has_a_row() -> None:
    """Of those whose steps are a fit of their own; Laplace's approximations have tests of theirs."""
    found = {name: getattr(kernels, name) for name in kernels.__all__}
    fitting = {
        name for name, kernel in found.items() if hasattr(kernel, "fitting") and not hasattr(kernel, "approximate")
    }
    assert {case.name for case in CASES} == fitting


@every_kernel
def test_protocol(case: ApproximationCase) -> None:
    assert list(inspect.signature(case.kernel.bind).parameters) == ["target", "num_data"]
    bound = case.kernel.bind(Linear(SITES["matrix"]), NUM_DATA)
    inspect.signature(bound.init).bind("position", "noise")
    inspect.signature(bound.update).bind("state", "batch", "noise", "settings")
    assert (bound.approximation is not None) == case.gaussian


@every_site
@every_kernel
def test_states_and_results_have_the_shapes_of_the_position(case: ApproximationCase, shapes: Any) -> None:
    target = Linear(shapes)
    bound, state = started(case, target)
    assert state._fields == case.state
    before = [leaf.shape for leaf in pytree.tree_leaves(state)]
    noise = drawn(bound.noise_shape(state.position), 2)
    assert noise.keys() in (set(), set(shapes))
    for _ in range(3):
        state, info = bound.update(state, target.batch(ROWS), noise, settings_of(case.kernel))
    assert [leaf.shape for leaf in pytree.tree_leaves(state)] == before
    leading = (case.particles,) if case.particles else ()
    assert {name: leaf.shape for name, leaf in state.position.items()} == {n: (*leading, *s) for n, s in shapes.items()}
    assert info.log_posterior.shape == () and info.log_posterior.isfinite()
    assert info.clamped == 0 and not info.clamped.is_floating_point()
    if case.gaussian:
        gaussian = bound.approximation(state)
        assert tree.shapes(gaussian.mean) == {name: torch.Size(shape) for name, shape in shapes.items()}
        assert gaussian.transform(drawn(shapes, 4, 2)).keys() == shapes.keys()
        assert gaussian.log_det.isfinite()


@every_kernel
def test_update_is_pure(case: ApproximationCase) -> None:
    target = Linear(SITES["several"])
    bound, state = started(case, target)
    noise = drawn(bound.noise_shape(state.position), 2)
    arguments = (state, target.batch(ROWS), noise, settings_of(case.kernel))
    kept, seeds = copy.deepcopy(arguments), torch.random.get_rng_state()
    first = bound.update(*arguments)
    bound.update(first[0], *arguments[1:])
    close(pytree.tree_leaves(arguments), pytree.tree_leaves(kept), tolerance=0)
    close(pytree.tree_leaves(bound.update(*arguments)), pytree.tree_leaves(first), tolerance=0)
    assert torch.equal(seeds, torch.random.get_rng_state())


@every_stepping
def test_vmap_over_fits_equals_one_after_another(case: ApproximationCase) -> None:
    target = Linear(SITES["several"])
    bound = case.kernel.bind(target, NUM_DATA)
    leading = (3, case.particles) if case.particles else (3,)
    starts = drawn(target.shapes, 0, *leading)
    shapes = bound.noise_shape(tree.map(lambda leaf: leaf[0], starts))
    noise, step_sizes = drawn(shapes, 1, 3), torch.tensor([0.05, 0.1, 0.15], dtype=torch.float64)

    def two_steps(position: Any, noise: Any, step_size: Tensor) -> Any:
        state, settings = bound.init(position, noise), Settings(step_size, 0.7, 1.0)
        for rows in (slice(0, 7), slice(7, 14)):
            state, info = bound.update(state, target.batch(rows), noise, settings)
        return state, info

    together = pytree.tree_leaves(torch.vmap(two_steps)(starts, noise, step_sizes))
    for fit in range(3):

        def pick(leaf: Tensor, fit: int = fit) -> Tensor:
            return leaf[fit]

        alone = two_steps(*(pytree.tree_map(pick, each) for each in (starts, noise, step_sizes)))
        close([leaf[fit] for leaf in together], pytree.tree_leaves(alone))


@every_kernel
def test_float32_stays_float32(case: ApproximationCase) -> None:
    target = Linear(SITES["several"], torch.float32)
    bound, state = started(case, target, torch.float32)
    noise = drawn(bound.noise_shape(state.position), 2, dtype=torch.float32)
    for step_size in (case.kernel.step_size, torch.tensor(case.kernel.step_size, dtype=torch.float64)):
        settings = settings_of(case.kernel)._replace(step_size=step_size)
        state, _ = bound.update(state, target.batch(ROWS), noise, settings)
        assert {leaf.dtype for leaf in pytree.tree_leaves(state) if leaf.is_floating_point()} == {torch.float32}


# Settings


@every_kernel
def test_settings_are_immutable_values(case: ApproximationCase) -> None:
    names = [field.name for field in dataclasses.fields(case.kernel)]
    assert sorted(names) == sorted(case.positive + case.non_negative + case.count + case.flag + case.other)
    for name in names:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(case.kernel, name, 0.5)
    twin = dataclasses.replace(case.kernel)
    assert (twin, hash(twin)) == (case.kernel, hash(case.kernel))


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, True, "0.1"], ids=repr)
@every_kernel
def test_settings_out_of_range_are_refused(case: ApproximationCase, value: Any) -> None:
    for name in case.positive + case.non_negative:
        wanted = "a positive finite number" if name in case.positive else "a non-negative finite number"
        with pytest.raises(ArgumentError) as caught:
            dataclasses.replace(case.kernel, **{name: value})
        assert str(caught.value) == f"{case.name}: {name} is {value!r}; it must be {wanted}."
    for name in case.count:
        with pytest.raises(ArgumentError, match=rf"^{case.name}: {name} is .*; it must be a whole number of at least "):
            dataclasses.replace(case.kernel, **{name: value})
    for name in case.flag:
        if value is not True:
            with pytest.raises(ArgumentError, match=rf"^{case.name}: {name} is .*; it must be True or False\.$"):
                dataclasses.replace(case.kernel, **{name: value})


@every_kernel
def test_num_data_out_of_range_is_refused(case: ApproximationCase) -> None:
    for value in (0, -5, math.nan, True, "50"):
        with pytest.raises(ArgumentError, match=r"num_data is .*; it must be a positive finite number\.$"):
            case.kernel.bind(Linear(SITES["scalar"]), value)


@pytest.mark.parametrize("kernel", [DiagonalVI, DenseVI, LowRankVI])
def test_initial_sds_are_checked(kernel: Any) -> None:
    for value in (0.0, -1.0, math.nan, "1"):
        with pytest.raises(ArgumentError, match=rf"^{kernel.__name__}: initial_sd is .*; it must be a positive"):
            kernel(initial_sd=value)
    with pytest.raises(ArgumentError, match=rf"^{kernel.__name__}: initial_sd of 'w' is .* tensor of positive numbers"):
        kernel(initial_sd={"w": torch.tensor([1.0, 0.0])})


# What a step follows


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("stick", [True, False], ids=["stick-the-landing", "with the score"])
@pytest.mark.parametrize(
    "kernel", [DiagonalVI(num_particles=3), DenseVI(num_particles=3), LowRankVI(rank=2, num_particles=3)],
    ids=lambda kernel: type(kernel).__name__,
)  # fmt: skip
def test_variational_slopes_are_those_of_autograd(kernel: Any, stick: bool, temperature: float) -> None:
    """Of the objective at the same draws, differentiated through them in the fields of the state."""
    target = Linear(SITES["several"])
    kernel = dataclasses.replace(kernel, stick_the_landing=stick, initial_sd=drawn_sds(target))
    bound = kernel.bind(target, NUM_DATA)
    state = bound.init(drawn(target.shapes, 0), ())
    if isinstance(kernel, DenseVI):
        state = state._replace(factor=state.factor @ (torch.eye(9).double() + torch.ones(9, 9).double().tril(-1) / 7))
    if isinstance(kernel, LowRankVI):  # of unequal lengths: autograd does not like equal singular values
        state = state._replace(columns=state.columns * torch.tensor([1.0, 4.0]).double())
    noise, batch = drawn(bound.noise_shape(state.position), 5), target.batch(ROWS)
    after, info = bound.update(state, batch, noise, Settings(0.1, temperature))

    moved = state._replace(**{n: pytree.tree_map(lambda x: x.clone().requires_grad_(), getattr(state, n))
                              for n in state._fields[: state._fields.index("mean_moments")]})  # fmt: skip
    q = bound.approximation(moved)
    draws = q.transform(noise)
    held = bound.approximation(state) if stick else q
    values = torch.stack([target(tree.map(lambda leaf, k=k: leaf[k], draws), batch) for k in range(3)])
    lower = (values - temperature * held.log_prob(draws)).mean()
    close(info.log_posterior, lower.detach(), tolerance=1e-9)
    # the entropy itself has no noise: with the score, its own gradient is meant and not that at the draws
    if not stick:
        lower = values.mean() + temperature * q.log_det / 2
    lower.backward()
    # Adam's first moment is a tenth of the first slope
    slope = {n.removesuffix("_moments"): getattr(after, n).mean for n in after._fields if n.endswith("_moments")}
    along_mean = bound.approximation(state).spread({n: x.grad.unsqueeze(0) for n, x in moved.position.items()})
    close(tree.ravel(slope["mean"]) / 0.1, tree.ravel(along_mean), tolerance=1e-8)
    if "sd" in slope:
        close(tree.ravel(slope["sd"]) / 0.1, tree.ravel({n: x.grad for n, x in moved.log_sd.items()}) / 2, 1e-8)
    if "scale" in slope:
        close(tree.ravel(slope["scale"]) / 0.1, tree.ravel({n: x.grad for n, x in moved.log_scale.items()}) / 2, 1e-8)
        close(slope["column"][""] / 0.1, moved.columns.grad / 2, 1e-8)
    if "factor" in slope:
        expected = (state.factor.T @ moved.factor.grad).tril()
        close(slope["factor"][""] / 0.1, expected - expected.diagonal().diag() / 2, 1e-8)


def drawn_sds(target: Linear) -> Any:
    return tree.map(lambda leaf: 0.1 + leaf.abs(), drawn(target.shapes, 8))


def test_a_step_of_variational_inference_knows_no_units() -> None:
    """Coordinates times a number each: the step is the same in units of q."""
    factors = torch.logspace(-3, 3, 6, dtype=torch.float64).reshape(2, 3)
    target = Linear(SITES["matrix"])

    def scaled(position: Any, batch: Any) -> Tensor:
        return target({"w": position["w"] * factors}, batch)

    noise, start = drawn({"w": (1, 2, 3)}, 1), drawn(target.shapes, 0)
    for kernel in (DiagonalVI, LowRankVI, DenseVI):
        found = []
        for function, by in ((target, torch.ones(2, 3).double()), (scaled, factors)):
            bound = kernel(step_size=0.1, initial_sd={"w": 1 / by}).bind(function, NUM_DATA)
            state = bound.init({"w": start["w"] / by}, ())
            for _ in range(3):
                state, _ = bound.update(state, target.batch(), noise, Settings(0.1, 1.0))
            gaussian = bound.approximation(state)
            ends = gaussian.transform(drawn({"w": (2, 3)}, 3, 4))
            found.append(ends["w"] * by)
        close(found[0], found[1], tolerance=1e-7)


def test_adam_is_that_of_torch() -> None:
    """`torch.optim.Adam` on the same slopes, and steps in proportion to slopes far below the damping."""
    slopes = [drawn({"w": (3,)}, seed) for seed in range(5)]
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    position, moments = torch.zeros(3, dtype=torch.float64), no_moments({"w": weight.detach()})
    for count, slope in enumerate(slopes, start=1):
        weight.grad = -slope["w"]
        optimizer.step()
        ahead, moments = direction(slope, *moments, torch.tensor(count))
        position = position + 0.1 * ahead["w"]
    close(position, weight.detach(), tolerance=1e-10)
    small = {"w": torch.tensor([1e-4, -2e-4], dtype=torch.float64)}
    ahead, _ = direction(small, *no_moments(small), torch.tensor(1), 1.0)
    close(ahead["w"], small["w"], tolerance=1e-3)


def test_particles_move_as_the_sums_of_the_paper_say() -> None:
    """Liu & Wang (2016), equation 8, by two loops and the gradient of the kernel by autograd."""
    particles, slopes = drawn({"x": (4, 2)}, 0)["x"], drawn({"x": (4, 2)}, 1)["x"]
    apart = torch.pdist(particles)
    width = float(apart.sort().values[3]) ** 2 / math.log(4)
    expected = torch.zeros_like(particles)
    for i in range(4):
        for j in range(4):
            other = particles[j].clone().requires_grad_()
            kernel = torch.exp(-((other - particles[i]) ** 2).sum() / width)
            kernel.backward()
            expected[i] += (kernel.detach() * slopes[j] + 0.3 * other.grad) / 4
    close(stein(particles, slopes, 0.3), expected, tolerance=1e-10)
    close(stein(particles[:1], slopes[:1], 1.0), slopes[:1])


def test_swag_has_the_moments_of_its_path() -> None:
    """Mean and variances of the positions passed, and the last distances from the mean so far as columns."""
    target = Linear(SITES["matrix"])
    kernel = kernels.SWAG(step_size=0.02, rank=3, collect_every=2)
    bound = kernel.bind(target, NUM_DATA)
    state = bound.init(drawn(target.shapes, 0), ())
    path, columns = [], []
    for step in range(1, 12):
        state, _ = bound.update(state, target.batch(slice(step, step + 5)), (), Settings(0.02, 1.0))
        path.append(state.position["w"])
        if step % 2 == 0:
            columns.append(state.position["w"] - torch.stack(path).mean(0))
    passed, last = torch.stack(path), torch.stack(columns[-3:]).flatten(1)
    gaussian = bound.approximation(state)
    close(gaussian.mean["w"], passed.mean(0), tolerance=1e-10)
    spread = gaussian.spread({"w": torch.eye(6, dtype=torch.float64).reshape(6, 2, 3)})["w"].flatten(1)
    expected = passed.var(0).flatten().diag() / 2 + last.T @ last / (2 * (3 - 1))
    close(spread @ spread.T, expected, tolerance=1e-10)


@pytest.mark.parametrize("shapes", SITES.values(), ids=SITES.keys())
@pytest.mark.parametrize("sizes", [[30], [7, 7, 7, 7, 2], [1] * 30], ids=["one batch", "unequal", "row by row"])
def test_the_filter_is_exact_on_linear_data_in_any_order(sizes: list[int], shapes: Any) -> None:
    target = Linear(shapes)
    mean, covariance = target.exact()
    order = torch.randperm(NUM_DATA, generator=torch.Generator().manual_seed(len(sizes)))
    for temperature in (1.0, 0.25):
        bound = kernels.DenseEKF(temperature=temperature).bind(target, NUM_DATA)
        state = bound.init(
            drawn(target.shapes, 0, dtype=torch.float64) | tree.map(torch.zeros_like, drawn(shapes, 0)), ()
        )
        for rows in order.split(sizes):
            state, _ = bound.update(state, target.batch(rows), (), Settings(1.0, temperature))  # type: ignore[arg-type]
        gaussian = bound.approximation(state)
        close(tree.ravel(gaussian.mean), mean, tolerance=1e-9)
        close(gaussian.factor @ gaussian.factor.T, temperature * covariance, tolerance=1e-9)


def test_the_diagonal_filter_takes_the_exact_step_of_its_normal() -> None:
    """All rows in one batch: mean and variances of the posterior; from batch to batch correlations are forgotten."""
    target = Linear(SITES["several"])
    mean, covariance = target.exact()
    bound = kernels.DiagonalEKF().bind(target, NUM_DATA)
    zero = tree.map(torch.zeros_like, drawn(target.shapes, 0))
    after, _ = bound.update(bound.init(zero, ()), target.batch(), (), Settings(1.0, 1.0))
    close(tree.ravel(after.position), mean, tolerance=1e-9)
    close(tree.ravel(after.variance), covariance.diagonal(), tolerance=1e-9)
    state = bound.init(zero, ())
    prior_mean, variance = torch.zeros(9, dtype=torch.float64), torch.full((9,), 4.0, dtype=torch.float64)
    for rows in (slice(0, 20), slice(20, 30)):
        state, _ = bound.update(state, target.batch(rows), (), Settings(1.0, 1.0))
        x, y = target.x[rows], target.y[rows]
        updated = torch.linalg.inv(torch.diag(1 / variance) + 4 * x.T @ x)
        prior_mean = updated @ (prior_mean / variance + 4 * x.T @ y)
        variance = updated.diagonal()
    close(tree.ravel(state.position), prior_mean, tolerance=1e-9)
    close(tree.ravel(state.variance), variance, tolerance=1e-9)


@pytest.mark.parametrize("kernel", [kernels.DiagonalEKF, kernels.DenseEKF])
def test_transitions_add_their_variance_before_each_batch(kernel: Any) -> None:
    """One row that tells nothing: what is left is the prior's variance and that of the transitions."""
    target = Linear(SITES["scalar"])
    target.x = torch.zeros_like(target.x)
    bound = kernel(transition_sd=0.5).bind(target, NUM_DATA)
    state = bound.init({"z": torch.zeros((), dtype=torch.float64)}, ())
    for _ in range(3):
        state, _ = bound.update(state, target.batch(slice(0, 1)), (), Settings(1.0, 1.0))
    spread = bound.approximation(state).spread({"z": torch.ones(1, dtype=torch.float64)})["z"]
    close(spread.square().sum(), torch.tensor(4 + 3 * 0.25, dtype=torch.float64), tolerance=1e-9)
