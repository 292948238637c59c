r"""Kernel Stein discrepancy: how far draws are from a density of which only the gradient of its logarithm is known.

With the score $s(x) = \nabla \log p(x)$ and the inverse multiquadric kernel $k(x, y) = (c^2 + \|x - y\|^2)^\beta$, of
which $q = c^2 + r^2$ and $r = \|x - y\|$, the Stein kernel of Gorham & Mackey (2017), section 2, is

$$k_0(x, y) = \nabla_x \cdot \nabla_y k + s(x) \cdot \nabla_y k + s(y) \cdot \nabla_x k + s(x) \cdot s(y)\, k
            = -2 \beta d\, q^{\beta - 1} - 4 \beta (\beta - 1) r^2 q^{\beta - 2}
              - 2 \beta q^{\beta - 1} (s(x) - s(y)) \cdot (x - y) + s(x) \cdot s(y)\, q^\beta.$$

Its mean over independent x and y of a distribution is the squared discrepancy, which is 0 for p alone. The V-statistic
is the mean over all pairs of draws, each with itself included, and at least 0; the U-statistic leaves those out, and is
unbiased.

Scores may be noisy: $\hat s(x_i) = s(x_i) + e_i$ with noise of mean 0 given the draws, independent from draw to draw,
as from a minibatch of its own for each draw. In the pair of two draws each noise appears at most once in a product, and
$\mathbb{E}(e_i \cdot e_j) = 0$: the U-statistic stays unbiased. A pair of a draw with itself has $\|\hat s\|^2$, whose
mean is $\|s\|^2$ plus the variance of the noise, so that the V-statistic would grow by $c^{2\beta} n^{-2} \sum_i
\operatorname{tr} \operatorname{Cov}(e_i)$. With R independent estimates of each score, $\|s\|^2$ is estimated without
bias by the mean of $\hat s^{(a)} \cdot \hat s^{(b)}$ over the pairs of different ones; elsewhere their mean is taken.

References:
    Gorham & Mackey (2017), Measuring sample quality with kernels, ICML.
    Liu, Lee & Jordan (2016), A kernelized Stein discrepancy for goodness-of-fit tests, ICML, on the U-statistic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024
"""Draws whose pairs with as many others are looked at at once."""


class KSD(NamedTuple):
    """A kernel Stein discrepancy; `float` of it is `value`.

    Attributes:
        value: root of the V-statistic, at least 0: the discrepancy of the draws themselves.
        v_statistic: mean of the Stein kernel over all pairs.
        u_statistic: the same without pairs of a draw with itself: unbiased, so that for independent draws of the
            posterior it lies around 0, on either side. NaN for a single draw.
        standard_error: of the U-statistic, of independent draws; somewhat too large near 0. NaN for a single draw.
        num_draws: how many draws were looked at.
        num_independent: how many of them the U-statistic and its standard error are of.
    """

    value: float
    v_statistic: float
    u_statistic: float
    standard_error: float
    num_draws: int
    num_independent: int

    def __float__(self) -> float:
        return self.value


def stein_discrepancy(draws: Tensor, scores: Tensor, *, c: float = 1.0, beta: float = -0.5) -> KSD:
    """Kernel Stein discrepancy, in memory of a block of pairs.

    Args:
        draws: `(n, d)`.
        scores: gradients of the log density at the draws, `(repeats, n, d)`: exact if there is one of each, otherwise
            independent estimates of the same.
        c: length of the kernel, positive, in units of the draws.
        beta: its exponent, between -1 and 0.
    """
    draws, scores = draws.double(), scores.double()
    draws = draws - draws.mean(0)
    mean, repeats, (n, d) = scores.mean(0), len(scores), draws.shape
    rows = torch.zeros(n, dtype=torch.float64)
    for i in range(0, n, BLOCK):
        for j in range(i, n, BLOCK):
            first, second = slice(i, i + BLOCK), slice(j, j + BLOCK)
            values = _stein_kernel(draws[first], mean[first], draws[second], mean[second], c, beta)
            if i == j:
                values.fill_diagonal_(0)
            else:
                rows[second] += values.sum(0)
            rows[first] += values.sum(1)
    squares = mean.square().sum(1)
    if repeats > 1:  # the sum over pairs of different estimates, by all pairs less those of each with itself
        squares = (repeats**2 * squares - scores.square().sum((0, 2))) / (repeats * (repeats - 1))
    diagonal = -2 * beta * d * c ** (2 * beta - 2) + squares * c ** (2 * beta)
    v_statistic = float((rows.sum() + diagonal.sum()) / n**2)
    error = 2 * float((rows / (n - 1)).std()) / math.sqrt(n) if n > 1 else math.nan
    u_statistic = float(rows.sum()) / (n * (n - 1)) if n > 1 else math.nan
    return KSD(math.sqrt(max(0.0, v_statistic)), v_statistic, u_statistic, error, n, n)


def _stein_kernel(x: Tensor, score_x: Tensor, y: Tensor, score_y: Tensor, c: float, beta: float) -> Tensor:
    """Of every x with every y, `(n, m)`."""
    squared = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    along = (score_x * x).sum(1)[:, None] + (score_y * y).sum(1) - score_x @ y.T - x @ score_y.T
    q = c**2 + squared
    trace = -2 * beta * x.shape[1] * q ** (beta - 1) - 4 * beta * (beta - 1) * squared * q ** (beta - 2)
    found: Tensor = trace - 2 * beta * q ** (beta - 1) * along + (score_x @ score_y.T) * q**beta
    return found
