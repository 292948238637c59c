"""Schedules are immutable functions of the step alone; a kernel takes one wherever it takes a number."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from kernel_cases import CASES, NUM_DATA, SITES, flat, log_density, name_of, start

from pyro_scale.errors import ArgumentError
from pyro_scale.schedules import as_schedule, check_number, constant, cosine, cyclical, polynomial

ALL = [
    constant(0.2),
    polynomial(0.2, power=0.55, offset=100.0),
    polynomial(0.2, power=0.0),
    cosine(0.2, 0.01, num_steps=200),
    cosine(0.2, 0.2, num_steps=200),
    cyclical(0.2, cycle_steps=30),
]
FALLING = [schedule for schedule in ALL if not isinstance(schedule, cyclical)]
every_schedule = pytest.mark.parametrize("schedule", ALL, ids=repr)


@pytest.mark.parametrize(
    ("schedule", "step", "value"),
    [
        (constant(0.1), 0, 0.1),
        (constant(0.1), 10**9, 0.1),
        (constant(0.0), 3, 0.0),
        (polynomial(0.1, power=1.0, offset=10.0), 0, 0.1),
        (polynomial(0.1, power=1.0, offset=10.0), 10, 0.05),
        (polynomial(0.1, power=1.0, offset=10.0), 90, 0.01),
        (polynomial(0.1, power=0.5, offset=1.0), 3, 0.05),
        (polynomial(0.1, power=0.5, offset=2.0), 48, 0.02),
        (polynomial(0.1), 1000, 0.1 * 2**-0.55),
        (cosine(0.2, 0.0, num_steps=100), 0, 0.2),
        (cosine(0.2, 0.0, num_steps=100), 50, 0.1),
        (cosine(0.2, 0.0, num_steps=90), 30, 0.15),
        (cosine(0.2, 0.1, num_steps=90), 60, 0.125),
        (cosine(0.2, 0.1, num_steps=90), 90, 0.1),
        (cosine(0.2, 0.1, num_steps=90), 10**6, 0.1),
        (cosine(0.1, 0.3, num_steps=4), 2, 0.2),
        (cyclical(0.2, cycle_steps=90), 0, 0.2),
        (cyclical(0.2, cycle_steps=90), 30, 0.15),
        (cyclical(0.2, cycle_steps=90), 45, 0.1),
        (cyclical(0.2, cycle_steps=90), 90, 0.2),
        (cyclical(0.2, cycle_steps=90), 90 * 10**6 + 60, 0.05),
        (cyclical(0.2, cycle_steps=1, exploration=0.0), 7, 0.2),
    ],
    ids=repr,
)
def test_values_computed_by_hand(schedule, step, value):
    assert schedule(step) == pytest.approx(value, rel=1e-14, abs=1e-17)


@pytest.mark.parametrize("schedule", FALLING, ids=repr)
def test_falls_from_the_first_value_and_stays_in_bounds(schedule):
    values = [schedule(step) for step in range(300)]
    assert all(type(value) is float for value in values)
    assert values[0] == pytest.approx(0.2, rel=1e-15)
    assert all(after <= before for before, after in itertools.pairwise(values))
    assert min(values) > 0


def test_robbins_monro_powers():
    """log value falls by `power` per unit of log step, far beyond the offset."""
    for power in (0.55, 1.0):
        schedule = polynomial(0.1, power=power, offset=10.0)
        assert math.log(schedule(10**8) / schedule(10**9), 10) == pytest.approx(power, rel=1e-6)


def test_cosine_ends_at_its_final_value_and_not_before():
    schedule = cosine(0.2, 0.01, num_steps=200)
    assert schedule(199) > 0.01
    assert {schedule(step) for step in range(200, 210)} == {0.01}


def test_a_cycle_repeats_and_falls_to_nearly_nothing():
    """As equation 1 of the paper has it, with K iterations in M cycles and its k counted from 1."""
    schedule = cyclical(0.2, cycle_steps=50)
    paper = [0.1 * (math.cos(math.pi * ((k - 1) % 50) / 50) + 1) for k in range(1, 151)]
    assert [schedule(step) for step in range(150)] == pytest.approx(paper, rel=1e-14)
    assert 0 < schedule(49) < 1e-3 * schedule(0)
    assert all(type(schedule(step)) is float for step in range(50))


@pytest.mark.parametrize(
    ("cycle_steps", "exploration", "first"),
    [(8, 0.75, 6), (8, 0, 0), (100, 0.55, 55), (100, 0.57, 57), (7, 0.5, 4), (1, 0, 0)],
)
def test_sampling_is_the_end_of_every_cycle(cycle_steps, exploration, first):
    schedule = cyclical(0.1, cycle_steps=cycle_steps, exploration=exploration)
    for before in (0, cycle_steps, 1000 * cycle_steps):
        found = [schedule.sampling(before + step) for step in range(cycle_steps)]
        assert found == [False] * first + [True] * (cycle_steps - first)


def test_a_cycle_that_leaves_no_step_is_refused():
    cyclical(0.1, cycle_steps=10, exploration=0.9)
    with pytest.raises(ArgumentError) as caught:
        cyclical(0.1, cycle_steps=10, exploration=0.95)
    assert str(caught.value) == (
        "cyclical: exploration is 0.95, which leaves none of 10 steps to sample from; it must be at most 0.9."
    )
    with pytest.raises(ArgumentError, match=r"^cyclical: cycle_steps is 2.5; it must be a whole number\.$"):
        cyclical(0.1, cycle_steps=2.5)


@every_schedule
def test_immutable_values(schedule):
    """Equal settings are equal, and a schedule does not remember which steps it was asked for."""
    for field in dataclasses.fields(schedule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, field.name, 0.5)
    twin = dataclasses.replace(schedule)
    assert (twin, hash(twin)) == (schedule, hash(schedule))
    forward = [schedule(step) for step in range(50)]
    assert [twin(step) for step in reversed(range(50))] == forward[::-1]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf, True, "0.1", None])
@pytest.mark.parametrize(
    ("make", "name", "wanted"),
    [
        (lambda v: constant(v), "constant: value", "a non-negative finite number"),
        (lambda v: polynomial(v), "polynomial: initial", "a non-negative finite number"),
        (lambda v: polynomial(0.1, power=v), "polynomial: power", "a non-negative finite number of at most 1"),
        (lambda v: polynomial(0.1, offset=v), "polynomial: offset", "a positive finite number"),
        (lambda v: cosine(v, 0.1, num_steps=5), "cosine: initial", "a non-negative finite number"),
        (lambda v: cosine(0.1, v, num_steps=5), "cosine: final", "a non-negative finite number"),
        (lambda v: cosine(0.1, 0.0, num_steps=v), "cosine: num_steps", "a positive finite number"),
        (lambda v: cyclical(v, cycle_steps=5), "cyclical: initial", "a non-negative finite number"),
        (lambda v: cyclical(0.1, cycle_steps=v), "cyclical: cycle_steps", "a positive finite number"),
        (
            lambda v: cyclical(0.1, 5, exploration=v),
            "cyclical: exploration",
            "a non-negative finite number of at most 1",
        ),
    ],
    ids=[
        "constant",
        "initial",
        "power",
        "offset",
        "cosine-initial",
        "final",
        "num_steps",
        "cyclical-initial",
        "cycle_steps",
        "exploration",
    ],
)
def test_arguments_out_of_range(make, name, wanted, value):
    with pytest.raises(ArgumentError) as caught:
        make(value)
    assert str(caught.value) == f"{name} is {value!r}; it must be {wanted}."


@pytest.mark.parametrize(
    "make",
    [lambda: polynomial(0.1, power=1.01), lambda: polynomial(0.1, offset=0), lambda: cosine(0.1, 0.0, num_steps=0)],
    ids=["power", "offset", "num_steps"],
)
def test_ends_of_the_ranges(make):
    with pytest.raises(ArgumentError):
        make()
    polynomial(0.0, power=1.0)


def test_check_number_returns_a_float():
    for value in (0, 3, 0.5):
        number = check_number("owner", "name", value)
        assert type(number) is float
        assert number == value
    assert check_number("owner", "name", 2, below=2.0) == 2
    with pytest.raises(ArgumentError, match=r"^owner: name is 0; it must be a positive finite number\.$"):
        check_number("owner", "name", 0, positive=True)


def test_as_schedule():
    assert as_schedule("owner", "name", 0.1) == constant(0.1)
    given = cosine(0.2, 0.0, num_steps=10)
    assert as_schedule("owner", "name", given, positive=True) is given
    with pytest.raises(ArgumentError, match=r"^owner: name is 0; it must be a positive"):
        as_schedule("owner", "name", 0, positive=True)
    with pytest.raises(ArgumentError, match=r"^owner: name\(0\) is nan; it must be a non-negative"):
        as_schedule("owner", "name", lambda step: math.nan)


@pytest.mark.parametrize("schedule", [*ALL, lambda step: 0.2], ids=[*map(repr, ALL), "function"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_kernel_takes_a_schedule_for_a_number(case, schedule):
    """It starts as the kernel whose settings are the values at step 0."""
    scheduled = dataclasses.replace(case.kernel, step_size=schedule, temperature=schedule)
    assert scheduled.step_size is schedule
    first = dataclasses.replace(case.kernel, step_size=schedule(0), temperature=schedule(0))
    states = [start(kernel.bind(log_density, NUM_DATA), SITES["several"], seed=0) for kernel in (scheduled, first)]
    assert torch.equal(flat(states[0]), flat(states[1]))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_kernel_tries_a_schedule_at_step_0(case):
    for name, value in (("step_size", 0.0), ("step_size", -0.1), ("temperature", math.nan), ("temperature", "hot")):
        with pytest.raises(ArgumentError) as caught:
            dataclasses.replace(case.kernel, **{name: lambda step, value=value: value})
        assert str(caught.value).startswith(f"{case.name}: {name}(0) is {value!r}; it must be a ")
