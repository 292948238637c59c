"""The split of predictive uncertainty, against entropies of SciPy and moments of the mixture that draws make up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from pyro_scale.diagnostics import uncertainty
from small_models import numbers

from pyro_scale.errors import ArgumentError


def simplex(*shape: int, seed: int) -> torch.Tensor:
    return numbers(*shape, seed=seed).softmax(-1)


def test_entropies_are_those_of_scipy() -> None:
    values = simplex(7, 5, 3, seed=0)  # (num_samples, rows, classes)
    total, aleatoric, epistemic = (part.numpy() for part in uncertainty(values))
    expected = scipy.stats.entropy(values.mean(0), axis=-1)
    within = scipy.stats.entropy(values, axis=-1).mean(0)
    assert np.allclose(total, expected, rtol=1e-12)
    assert np.allclose(aleatoric, within, rtol=1e-12)
    divergences = [[scipy.stats.entropy(values[s, r], values[:, r].mean(0)) for r in range(5)] for s in range(7)]
    assert np.allclose(epistemic, np.mean(divergences, 0), rtol=1e-10)  # the mean divergence from the average


def test_variances_are_those_of_the_mixture() -> None:
    means, sds = numbers(6, 4, seed=1), numbers(6, 4, seed=2).abs() + 0.1
    total, aleatoric, epistemic = uncertainty(means, sds**2)
    grid = np.linspace(-20, 20, 40001)
    for row in range(4):
        density = scipy.stats.norm.pdf(grid[:, None], means[:, row].numpy(), sds[:, row].numpy()).mean(1)
        mean = np.trapezoid(grid * density, grid)
        assert float(total[row]) == pytest.approx(np.trapezoid((grid - mean) ** 2 * density, grid), rel=1e-6)
    assert torch.allclose(aleatoric, (sds**2).mean(0))
    assert torch.allclose(epistemic, torch.as_tensor(np.var(means.numpy(), 0)))


def test_draws_that_agree_or_contradict_each_other() -> None:
    same = uncertainty([[[0.2, 0.8]], [[0.2, 0.8]]])
    assert float(same.epistemic) == pytest.approx(0, abs=1e-12)
    opposite = uncertainty([[[1.0, 0.0]], [[0.0, 1.0]]])  # 0 log 0 is 0
    assert [float(part) for part in opposite] == pytest.approx([np.log(2), 0.0, np.log(2)])
    alone = uncertainty([[0.3, 0.7]])
    assert float(alone.epistemic) == 0
    assert float(uncertainty([2.0], [0.5]).total) == 0.5


def test_types() -> None:
    values = simplex(4, 2, 3, seed=3)
    assert uncertainty(values.float()).total.dtype == torch.float32
    assert torch.allclose(uncertainty(values.numpy()).total, uncertainty(values).total)
    assert uncertainty([1, 3], [0, 0]).epistemic == 1.0


BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "one probability": (([[0.2, 0.3], [0.1, 0.9]],), r"sum to 0.5 to 1.*torch.stack\(\[1 - p, p\], -1\)"),
    "logits": (([[-1.0, 2.0]],), "the smallest is -1; class probabilities sum to 1"),
    "nan": (([[float("nan"), 1.0]],), "sum to nan"),
    "a vector": (([0.2, 0.8],), "classes along the last. For means, pass variances too"),
    "no draws": ((np.zeros((0, 3)),), r"shape \(0, 3\); they must have draws"),
    "a number": ((0.5, 0.5), r"values have shape \(\)"),
    "shapes": (([1.0, 2.0], [1.0]), r"shape \(2,\) and variances \(1,\)"),
    "negative": (([1.0, 2.0], [1.0, -1.0]), "smallest of the variances is -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_split(name: str) -> None:
    arguments, message = BAD[name]
    with pytest.raises(ArgumentError, match=message):
        uncertainty(*arguments)
