"""Structured normal distributions against dense twins: torch's MultivariateNormal and plain linear algebra."""

from __future__ import annotations

import pytest
import torch

from pyro_scale import tree
from pyro_scale.errors import ArgumentError
from pyro_scale.gaussians import (
    Block,
    DenseGaussian,
    DiagonalGaussian,
    HeldGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    gram,
    sample,
)

SHAPES = {"scale": torch.Size([]), "weight": torch.Size([3, 2, 2]), "bias": torch.Size([3]), "none": torch.Size([0])}
SIZE = sum(shape.numel() for shape in SHAPES.values())


def drawn(seed, shapes=SHAPES, dtype=torch.float64, leading=()):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn((*leading, *shape), generator=generator, dtype=dtype) for name, shape in shapes.items()}


def positive(seed, dtype=torch.float64):
    return tree.map(lambda leaf: 0.3 + leaf.square(), drawn(seed, dtype=dtype))


def spd(size, seed, dtype=torch.float64):
    root = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=dtype)


def columns(seed, dtype=torch.float64):
    return torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(dtype):
    covariance = spd(SIZE, 1, dtype)
    return DenseGaussian(drawn(0, dtype=dtype), torch.linalg.cholesky(covariance)), covariance


def dense_of_precision(dtype):
    precision = spd(SIZE, 2, dtype)
    return DenseGaussian.of_precision(drawn(0, dtype=dtype), precision), torch.linalg.inv(precision)


def diagonal(dtype):
    sd = positive(3, dtype)
    return DiagonalGaussian(drawn(0, dtype=dtype), sd), torch.diag(tree.ravel(sd).square())


def low_rank_of_covariance(dtype):
    sd, u = positive(4, dtype), columns(5, dtype)
    return LowRankGaussian.of_covariance(drawn(0, dtype=dtype), sd, u), torch.diag(tree.ravel(sd).square()) + u @ u.T


def low_rank_of_precision(dtype):
    own, u = positive(6, dtype), columns(7, dtype)
    precision = torch.diag(tree.ravel(own)) + u @ u.T
    return LowRankGaussian.of_precision(drawn(0, dtype=dtype), own, u), torch.linalg.inv(precision)


def kronecker(dtype):
    left, right, bias = spd(3, 8, dtype), spd(4, 9, dtype), spd(3, 10, dtype)
    (a, q), (b, r), (c, s) = (torch.linalg.eigh(matrix) for matrix in (left, right, bias))
    blocks = {
        "scale": Block((), torch.full((), 2.5, dtype=dtype)),
        "weight": Block((q, r), a[:, None] * b + 0.7),
        "bias": Block((s,), c),
        "none": Block((), torch.ones(0, dtype=dtype)),
    }
    weight = torch.kron(left, right) + 0.7 * torch.eye(12, dtype=dtype)
    precision = torch.block_diag(torch.full((1, 1), 2.5, dtype=dtype), weight, bias)
    return KroneckerGaussian(drawn(0, dtype=dtype), blocks), torch.linalg.inv(precision)


CASES = [dense, dense_of_precision, diagonal, low_rank_of_covariance, low_rank_of_precision, kronecker]
every_case = pytest.mark.parametrize("made", CASES, ids=lambda made: made.__name__)


def factor_of(gaussian):
    """F, column by column, from `transform`."""
    identity = tree.unravel(torch.eye(SIZE, dtype=tree.ravel(gaussian.mean).dtype), SHAPES)
    return (tree.flat(gaussian.transform(identity), SHAPES) - tree.ravel(gaussian.mean)).T


@every_case
def test_covariance_is_that_of_the_dense_twin(made):
    gaussian, covariance = made(torch.float64)
    factor = factor_of(gaussian)
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gaussian.log_det, torch.logdet(covariance), rtol=1e-9, atol=1e-9)


@every_case
def test_rows_spread_as_their_covariance(made):
    gaussian, covariance = made(torch.float64)
    rows = drawn(11, leading=(5,))
    flat = tree.flat(rows, SHAPES)
    torch.testing.assert_close(tree.flat(gaussian.spread(rows), SHAPES), flat @ factor_of(gaussian))
    torch.testing.assert_close(gram(gaussian.spread(rows)), flat @ covariance @ flat.T, rtol=1e-9, atol=1e-10)


@every_case
def test_log_density_is_that_of_torch(made):
    gaussian, covariance = made(torch.float64)
    twin = torch.distributions.MultivariateNormal(tree.ravel(gaussian.mean), covariance)
    positions = drawn(12, leading=(2, 3))
    expected = twin.log_prob(tree.flat(positions, SHAPES))
    torch.testing.assert_close(gaussian.log_prob(positions), expected, rtol=1e-9, atol=1e-9)
    one = tree.map(lambda leaf: leaf[1, 2], positions)
    torch.testing.assert_close(gaussian.log_prob(one), expected[1, 2], rtol=1e-9, atol=1e-9)
    mapped = torch.func.vmap(torch.func.vmap(gaussian.log_prob))(positions)
    torch.testing.assert_close(mapped, expected, rtol=1e-9, atol=1e-9)


@every_case
def test_gradient_of_the_log_density(made):
    gaussian, covariance = made(torch.float64)
    position = drawn(13)
    away = tree.ravel(position) - tree.ravel(gaussian.mean)
    expected = -torch.linalg.solve(covariance, away)
    torch.testing.assert_close(tree.ravel(torch.func.grad(gaussian.log_prob)(position)), expected, rtol=1e-8, atol=1e-9)


@every_case
def test_leading_axes_and_single_draws_agree(made):
    gaussian, _ = made(torch.float64)
    noise = drawn(14, leading=(2, 3))
    together = gaussian.transform(noise)
    alone = gaussian.transform(tree.map(lambda leaf: leaf[1, 0], noise))
    torch.testing.assert_close(tree.map(lambda leaf: leaf[1, 0], together), alone)
    assert tree.shapes(alone) == SHAPES


@every_case
def test_draws_are_of_the_seed_and_have_the_moments(made):
    gaussian, covariance = made(torch.float64)
    draws, again = (sample(gaussian, 4000, torch.Generator().manual_seed(0)) for _ in range(2))
    assert all(torch.equal(draws[name], again[name]) for name in SHAPES)
    flat = tree.flat(draws, SHAPES)
    z = (flat.mean(0) - tree.ravel(gaussian.mean)) / (covariance.diagonal() / 4000).sqrt()
    print(f"largest z of the means {z.abs().max():.2f}")
    assert z.abs().max() < 4.5  # once in 9,000 for sixteen means
    ratio = flat.var(0) / covariance.diagonal()
    assert (ratio - 1).abs().max() < 5 * (2 / 4000) ** 0.5  # once in 100,000


@every_case
def test_single_precision_stays_single(made):
    gaussian, covariance = made(torch.float32)
    draws = sample(gaussian, 2, torch.Generator().manual_seed(0))
    assert {leaf.dtype for leaf in draws.values()} == {torch.float32}
    twin = torch.distributions.MultivariateNormal(tree.ravel(gaussian.mean).double(), covariance.double())
    expected = twin.log_prob(tree.flat(draws, SHAPES).double())
    torch.testing.assert_close(gaussian.log_prob(draws).double(), expected, rtol=1e-3, atol=1e-3)


def test_sites_are_found_by_name_and_not_by_order():
    for made in CASES:
        gaussian, _ = made(torch.float64)
        position = drawn(15)
        turned = dict(reversed(position.items()))
        torch.testing.assert_close(gaussian.log_prob(turned), gaussian.log_prob(position))
        torch.testing.assert_close(gaussian.transform(turned), gaussian.transform(position))
        rows = tree.map(lambda leaf: leaf.unsqueeze(0), turned)
        torch.testing.assert_close(gram(gaussian.spread(rows)), gram(gaussian.spread(dict(reversed(rows.items())))))


def test_number_of_draws_is_checked():
    gaussian, _ = diagonal(torch.float64)
    with pytest.raises(ArgumentError, match="n is 0; it must be a whole number of at least 1"):
        sample(gaussian, 0, torch.Generator())


def test_held_sites_do_not_move_and_do_not_count():
    inner, covariance = dense(torch.float64)
    held = {"held": torch.full((2,), 3.0, dtype=torch.float64)}
    gaussian = HeldGaussian(inner, held, ("weight", "held", "scale", "bias", "none"))
    assert list(gaussian.mean) == ["weight", "held", "scale", "bias", "none"]
    draws = sample(gaussian, 7, torch.Generator().manual_seed(0))
    assert torch.equal(draws["held"], torch.full((7, 2), 3.0, dtype=torch.float64))
    alone = sample(inner, 7, torch.Generator().manual_seed(0))
    assert draws["weight"].shape == alone["weight"].shape and draws["weight"].std(0).min() > 0
    torch.testing.assert_close(gaussian.log_prob(draws), inner.log_prob({name: draws[name] for name in SHAPES}))
    rows = drawn(11, leading=(5,)) | {"held": torch.ones(5, 2, dtype=torch.float64)}
    flat = tree.flat(rows, SHAPES)
    torch.testing.assert_close(gram(gaussian.spread(rows)), flat @ covariance @ flat.T, rtol=1e-9, atol=1e-10)
    assert gaussian.log_det == inner.log_det


@pytest.mark.parametrize("made", [dense, diagonal, low_rank_of_covariance], ids=lambda made: made.__name__)
def test_rescaled_is_the_law_of_scaled_distances(made):
    """About another mean, each coordinate times a number of its own."""
    gaussian, _ = made(torch.float64)
    mean = tree.map(lambda leaf: leaf + 1, gaussian.mean)
    factors = tree.map(lambda leaf: 0.5 + leaf.abs(), gaussian.mean)
    noise = tree.map(lambda leaf: torch.sin(leaf + 1), gaussian.mean)
    found = gaussian.rescaled(mean, factors).transform(noise)
    away = tree.map(torch.sub, gaussian.transform(noise), gaussian.mean)
    torch.testing.assert_close(found, tree.map(lambda m, f, x: m + f * x, mean, factors, away))
