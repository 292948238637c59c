"""Whole numbers and seeds: what is accepted and refused wherever one enters, and where random numbers are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import X, Y
from posterior_cases import generator, regression, spread_posterior

from pyro_scale.batches import Permutations
from pyro_scale.checks import check_count, checked_seed, derived_seeds
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError
from pyro_scale.posterior import Posterior

DATA = {"x": X, "y": Y}


def small_posterior() -> Posterior:
    return spread_posterior(regression, DATA, num_samples=5)


def model_of(posterior: Posterior) -> CompiledModel:
    assert posterior.compiled is not None
    return posterior.compiled


def test_counts() -> None:
    for value in (1, np.int64(1), np.uint8(1)):
        assert type(check_count("n", value, 1, 3)) is int
    for bad in (0, 4, -1, 1.0, np.float64(1.0), True, np.bool_(True), "1", None):
        with pytest.raises(ArgumentError) as caught:
            check_count("n", bad, 1, 3)
        assert str(caught.value) == f"n is {bad!r}; it must be a whole number from 1 to 3."
    with pytest.raises(ArgumentError, match=r"^n is 0; it must be a whole number of at least 1\.$"):
        check_count("n", 0, 1)


def test_a_fresh_seed_is_a_seed() -> None:
    fresh = {checked_seed(None) for _ in range(10)}
    assert len(fresh) == 10
    assert all(checked_seed(seed) == seed for seed in fresh)


SEEDED: dict[str, Callable[[Posterior, Any], object]] = {
    "sample": lambda posterior, seed: posterior.sample(2, seed),
    "predict": lambda posterior, seed: posterior.predict(seed=seed),
    "add_groups": lambda posterior, seed: posterior.add_groups("prior", seed=seed),
    "compile_model": lambda posterior, seed: compile_model(regression, DATA, seed=seed),
    "initial_position": lambda posterior, seed: model_of(posterior).initial_position(seed),
}


@pytest.mark.parametrize("call", SEEDED.values(), ids=SEEDED)
def test_seeds_are_whole_numbers(call: Callable[[Posterior, Any], object]) -> None:
    fitted = small_posterior()
    for bad in (-1, 1.5, "a", True, 2**63):
        with pytest.raises(ArgumentError) as caught:
            call(fitted, bad)
        assert str(caught.value).startswith(f"seed is {bad!r}; it must be a whole number from 0 to 2**63 - 1")
    call(fitted, np.int64(3))


def test_numpy_integers_give_what_python_s_give() -> None:
    fitted = small_posterior()
    plain, numpy = (fitted.sample(kind(3), kind(1))["w"] for kind in (int, np.int64))
    assert torch.equal(plain, numpy)
    plain, numpy = (fitted.predict(num_samples=kind(3), seed=kind(1)).draws["obs"] for kind in (int, np.int64))
    assert torch.equal(plain, numpy)


def test_a_default_device_of_the_user_s_does_not_matter() -> None:
    """The generators are the CPU's, and so are the data; "meta" stands for any device that is another."""
    fitted, found = small_posterior(), []
    for device in ("cpu", "meta"):
        with torch.device(device):
            compiled = compile_model(regression, DATA, batch_size=5)
            position = compiled.initial_position(0)
            predicted = fitted.predict({"x": X}, seed=1).draws["obs"]
            rows = Permutations(6, 4, 1, generator(0)).draw(2)
            assert len(derived_seeds(0, 2)) == 2
        found.append([position["w"], fitted.sample(3, seed=0)["w"], predicted, rows])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
