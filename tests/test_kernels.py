"""What every kernel promises: the protocol, purity, shapes, dtypes, and that temperature 0 is `torch.optim.SGD`."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import pytest
import torch
from kernel_cases import (
    CASES,
    KNOWING,
    NUM_DATA,
    SITES,
    converted,
    draw,
    flat,
    leaves,
    log_density,
    name_of,
    settings_of,
    start,
    variance_tree,
)  # fmt: skip

from pyro_scale import kernels, tree
from pyro_scale.types import Settings

every_kernel = pytest.mark.parametrize("case", CASES, ids=name_of)
every_separate_kernel = pytest.mark.parametrize("case", [case for case in CASES if not case.joint], ids=name_of)
every_knowing_kernel = pytest.mark.parametrize("case", KNOWING, ids=name_of)
every_site = pytest.mark.parametrize("shapes", SITES.values(), ids=SITES.keys())

BATCH = torch.tensor(0.4, dtype=torch.float64)

VARIANCES = {"none": 0.0, "number": 0.3, "tree": variance_tree(SITES["several"], 0.3)}
# every way to know the noise of minibatches, for the kernels that can
every_kernel_and_variance = pytest.mark.parametrize(
    ("case", "variance"),
    [(case, VARIANCES[name]) for case in CASES for name in (VARIANCES if case.knows_noise else ["none"])],
    ids=[f"{name_of(case)}-{name}" for case in CASES for name in (VARIANCES if case.knows_noise else ["none"])],
)


def knowing(case, variance):
    """The case's kernel, told of the noise of minibatches if it can be."""
    return dataclasses.replace(case.kernel, **({"gradient_variance": variance} if case.knows_noise else {}))


def close(first, second, tolerance=1e-12):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def test_every_kernel_has_a_row():
    """Of those that sample; `test_approximations.py` asks it of the others."""
    sampling = [name for name in kernels.__all__ if not hasattr(getattr(kernels, name), "fitting")]
    assert sorted({case.name for case in CASES}) == sorted(sampling)
    assert sorted(kernel.__name__ for kernel in kernels.METHODS.values()) == sorted(kernels.__all__)


@every_kernel
def test_protocol(case):
    assert list(inspect.signature(case.kernel.bind).parameters) == ["target", "num_data"]
    bound = case.kernel.bind(log_density, NUM_DATA)
    inspect.signature(bound.init).bind("position", "noise")
    inspect.signature(bound.update).bind("state", "batch", "noise", "settings")


@every_site
@every_kernel
def test_state_and_noise_have_the_shapes_of_the_position(case, shapes):
    bound = case.kernel.bind(log_density, NUM_DATA)
    position = draw(torch.Generator().manual_seed(0), shapes)
    assert bound.noise_shape(position) == shapes
    state = bound.init(position, draw(torch.Generator().manual_seed(1), shapes))
    close(state.position, position, tolerance=0)
    for _ in range(2):
        assert state._fields == case.state
        for field in case.moving:
            assert {name: tuple(leaf.shape) for name, leaf in getattr(state, field).items()} == shapes
        state, _ = bound.update(state, BATCH, position, settings_of(case.kernel, adapting=1.0))


@every_kernel
def test_other_fields_start_as_the_settings_say_and_keep_their_shape(case):
    bound = case.kernel.bind(log_density, NUM_DATA)
    state = start(bound, SITES["several"], seed=0)
    assert {*case.moving, *case.other} == set(case.state)
    for name, value in case.other.items():
        assert set(flat(state, name).tolist()) == {value}
    noise = draw(torch.Generator().manual_seed(1), SITES["several"])
    after, _ = bound.update(state, BATCH, noise, settings_of(case.kernel, adapting=1.0))
    assert [leaf.shape for leaf in leaves(after)] == [leaf.shape for leaf in leaves(state)]


@every_kernel
def test_info_reports_the_start_of_the_step_and_nothing_clamped(case):
    bound = case.kernel.bind(log_density, NUM_DATA)
    state = start(bound, SITES["several"], seed=0)
    noise = draw(torch.Generator().manual_seed(1), SITES["several"])
    _, info = bound.update(state, BATCH, noise, settings_of(case.kernel))
    close(info.log_posterior, log_density(state.position, BATCH), tolerance=0)
    assert info.clamped == 0
    assert not info.clamped.is_floating_point()


@every_kernel_and_variance
def test_update_is_pure(case, variance):
    kernel = knowing(case, variance)
    bound = kernel.bind(log_density, NUM_DATA)
    noise = draw(torch.Generator().manual_seed(1), SITES["several"])
    arguments = (start(bound, SITES["several"], seed=0), BATCH.clone(), noise, settings_of(kernel, adapting=1.0))
    kept = copy.deepcopy(arguments)
    seeds = torch.random.get_rng_state()
    first = bound.update(*arguments)
    bound.update(first[0], *arguments[1:])  # a step between, which a hidden counter would remember
    close(arguments, kept, tolerance=0)
    close(bound.update(*arguments), first, tolerance=0)
    assert torch.equal(seeds, torch.random.get_rng_state())


@every_separate_kernel
def test_sites_that_the_target_separates_move_as_if_alone(case):
    def separate(position, batch):
        return sum(log_density({name: leaf}, batch) for name, leaf in position.items())

    bound = case.kernel.bind(separate, NUM_DATA)
    state = start(bound, SITES["several"], seed=0)
    noise = draw(torch.Generator().manual_seed(1), SITES["several"])
    together, _ = bound.update(state, BATCH, noise, settings_of(case.kernel))
    for name in state.position:
        own = type(state)(*({name: field[name]} for field in state))
        alone, _ = bound.update(own, BATCH, {name: noise[name]}, settings_of(case.kernel))
        close(type(state)(*({name: field[name]} for field in together)), alone)


@every_kernel_and_variance
def test_vmap_over_chains_equals_one_after_another(case, variance):
    kernel = knowing(case, variance)
    bound = kernel.bind(log_density, NUM_DATA)
    generator = torch.Generator().manual_seed(2)
    chains = {name: (3, *shape) for name, shape in SITES["several"].items()}
    position, first, second = (draw(generator, chains) for _ in range(3))
    batches = torch.randn(3, generator=generator, dtype=torch.float64)
    step_sizes = kernel.step_size * torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)

    def one_chain(position, batch, first, second, step_size):
        return bound.update(bound.init(position, first), batch, second, Settings(step_size, kernel.temperature, 1.0))

    arguments = (position, batches, first, second, step_sizes)
    together = torch.vmap(one_chain)(*arguments)
    for chain in range(3):

        def pick(value, chain=chain):
            return {k: v[chain] for k, v in value.items()} if isinstance(value, dict) else value[chain]

        state, info = one_chain(*(pick(argument) for argument in arguments))
        close(type(state)(*(pick(field) for field in together[0])), state)
        close(type(info)(*(pick(field) for field in together[1])), info)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every_kernel_and_variance
def test_dtype_is_kept(case, dtype, variance, as_tensor):
    bound = knowing(case, variance).bind(log_density, NUM_DATA)
    settings = settings_of(case.kernel, adapting=1.0)
    noise = draw(torch.Generator().manual_seed(1), SITES["several"], dtype)
    state = start(bound, SITES["several"], seed=0, dtype=dtype)
    wide = converted(state, torch.float64)
    exact, _ = bound.update(wide, BATCH.to(dtype).double(), tree.to(noise, torch.float64), settings)
    if as_tensor:
        settings = Settings(*(torch.tensor(value, dtype=dtype) for value in settings))
    state, info = bound.update(state, BATCH.to(dtype), noise, settings)
    assert info.log_posterior.dtype == dtype
    assert {leaf.dtype for leaf in leaves(state)} == {dtype}
    close(flat(state).double(), flat(exact), tolerance=8 * torch.finfo(dtype).eps)


@every_kernel
def test_settings_of_the_step_rule_whether_numbers_or_tensors(case):
    """The runner evaluates schedules ahead, so `update` must not fall back on the kernel's own step size."""
    settings = Settings(0.6 * case.kernel.step_size, 0.3)
    own = dataclasses.replace(case.kernel, step_size=settings.step_size, temperature=settings.temperature)
    noise = draw(torch.Generator().manual_seed(1), SITES["several"])
    state = start(case.kernel.bind(log_density, NUM_DATA), SITES["several"], seed=0)
    wanted = own.bind(log_density, NUM_DATA).update(state, BATCH, noise, settings)
    tensors = Settings(*(torch.tensor(float(value), dtype=torch.float64) for value in settings))
    for handed in (settings, tensors):
        close(case.kernel.bind(log_density, NUM_DATA).update(state, BATCH, noise, handed), wanted)


@every_kernel
def test_two_bound_kernels_do_not_influence_each_other(case):
    def steps(runs, order):
        states = [start(bound, SITES["several"], seed=0) for bound, _ in runs]
        generators = [torch.Generator().manual_seed(3) for _ in runs]
        for index in order:
            bound, settings = runs[index]
            noise = draw(generators[index], SITES["several"])
            states[index], _ = bound.update(states[index], BATCH, noise, settings)
        return [flat(state) for state in states]

    colder = dataclasses.replace(case.kernel, step_size=0.5 * case.kernel.step_size, temperature=0.1)
    first, second = (lambda k=k: (k.bind(log_density, NUM_DATA), settings_of(k)) for k in (case.kernel, colder))
    woven = steps([first(), second()], order=[0, 1, 1, 0, 0, 1])
    close(woven, steps([first()], [0] * 3) + steps([second()], [0] * 3), tolerance=0)


@every_site
@every_kernel
def test_temperature_0_is_torch_sgd(case, shapes):
    kernel = dataclasses.replace(case.kernel, temperature=0.0)
    bound = kernel.bind(log_density, NUM_DATA)
    generator = torch.Generator().manual_seed(4)
    state = start(bound, shapes, seed=0)
    parameters = {name: leaf.clone().requires_grad_() for name, leaf in state.position.items()}
    optimizer = torch.optim.SGD(parameters.values(), **case.sgd(kernel))
    for _ in range(100):
        batch = torch.randn((), generator=generator, dtype=torch.float64)
        state, _ = bound.update(state, batch, draw(generator, shapes), settings_of(kernel))
        optimizer.zero_grad()
        (-log_density(parameters, batch) / NUM_DATA).backward()
        optimizer.step()
        close(state.position, {name: leaf.detach() for name, leaf in parameters.items()})


def quadratic(num_data):
    """Of unequal curvatures a datum, coordinates coupled; the batch is a constant gradient a datum."""

    def target(position, batch):
        x = tree.ravel(position)
        curvature = torch.linspace(0.3, 2.0, len(x), dtype=torch.float64)
        return num_data * (batch * x.sum() - (curvature * x**2).sum() / 2 - x.mean() ** 2)

    return target


def path(kernel, scale, num_data, num_steps=30):
    """Positions and momenta in units of `scale`, from a start so many units from the mode, some steps of warm-up."""
    bound = kernel.bind(quadratic(num_data), num_data)
    generator = torch.Generator().manual_seed(5)
    shapes = SITES["several"]
    state = bound.init(tree.scale(draw(generator, shapes), scale), draw(generator, shapes))
    taken = []
    for step in range(num_steps):
        batch = scale * torch.randn((), generator=generator, dtype=torch.float64)
        settings = settings_of(kernel, adapting=float(step < num_steps // 2))
        state, _ = bound.update(state, batch, draw(generator, shapes), settings)
        fields = ("position", "momentum") if hasattr(state, "momentum") else ("position",)
        taken.append(flat(state, *fields) / scale)
    return torch.stack(taken)


@every_kernel
def test_a_step_size_carries_over_to_any_number_of_data(case):
    """With curvatures a datum as they are, 1000 times the rows make the posterior sqrt(1000) narrower."""
    close(path(case.kernel, 1e-3**0.5, 1000), path(case.kernel, 1.0, 1), tolerance=1e-10)
    close(path(case.kernel, 1e-3, 10**6), path(case.kernel, 1.0, 1), tolerance=1e-10)


@every_kernel
def test_a_temperature_shrinks_the_path_by_its_root(case):
    cold = dataclasses.replace(case.kernel, temperature=0.25)
    close(path(cold, 0.5, 1), path(case.kernel, 1.0, 1), tolerance=1e-10)


@every_knowing_kernel
def test_too_large_a_gradient_variance_is_clamped_and_counted(case):
    """Only the 2 coordinates of 9 that are at fault lose their noise."""
    shapes = SITES["several"]
    variance = variance_tree(shapes, 1e-3)
    variance["scale"].fill_(1e6)
    variance["bias"][1] = 1e6
    noise = draw(torch.Generator().manual_seed(1), shapes)

    def step(variance, noise):
        kernel = dataclasses.replace(case.kernel, gradient_variance=variance)
        bound = kernel.bind(log_density, NUM_DATA)
        return bound.update(start(bound, shapes, seed=0), BATCH, noise, settings_of(kernel))

    silent = {name: torch.zeros_like(leaf) for name, leaf in noise.items()}
    (moved, info), (still, _) = step(variance, noise), step(variance, silent)
    stopped = {name: leaf > 1 for name, leaf in variance.items()}
    for name in shapes:
        assert torch.equal(moved.position[name] == still.position[name], stopped[name])
    assert info.clamped == 2
    assert step(1e6, noise)[1].clamped == 9
    close(step(1e6, noise)[0], step(1e6, silent)[0], tolerance=0)
    assert step(1e-3, noise)[1].clamped == 0


@every_knowing_kernel
def test_a_number_as_gradient_variance_is_that_number_at_every_coordinate(case):
    noise = draw(torch.Generator().manual_seed(1), SITES["several"])

    def step(variance):
        bound = dataclasses.replace(case.kernel, gradient_variance=variance).bind(log_density, NUM_DATA)
        return bound.update(start(bound, SITES["several"], seed=0), BATCH, noise, settings_of(case.kernel))

    close(step(0.3), step(variance_tree(SITES["several"], 0.3)))
    close(step(0.0), step(variance_tree(SITES["several"], 0.0)))
    scalars = {name: torch.tensor(0.3, dtype=torch.float64) for name in SITES["several"]}
    close(step(scalars), step(0.3))
