"""Arithmetic on `dict[str, Tensor]`, against the same arithmetic leaf by leaf."""

from __future__ import annotations

import pytest
import torch

from pyro_scale import tree

TREES = {
    "scalar": {"z": torch.tensor(0.5, dtype=torch.float64)},
    "several": {
        "b": torch.tensor([1.0, -2.0], dtype=torch.float64),
        "a": torch.tensor(3.0, dtype=torch.float64),
        "w": torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
        "empty": torch.zeros(0, 4, dtype=torch.float64),
    },
}
every_tree = pytest.mark.parametrize("leaves", TREES.values(), ids=TREES.keys())


def same(one, other):
    """Same names in the same order, and equal leaves of equal dtype."""
    assert list(one) == list(other)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_map_goes_by_name_and_not_by_order():
    leaves = TREES["several"]
    turned = dict(reversed(leaves.items()))
    same(tree.map(torch.sub, leaves, turned), {name: leaf - leaf for name, leaf in leaves.items()})
    three = tree.map(lambda x, y, z: x + 10 * y + 100 * z, leaves, turned, leaves)
    same(three, {name: x + 10 * x + 100 * x for name, x in leaves.items()})


def test_map_refuses_a_tree_that_lacks_a_leaf():
    with pytest.raises(KeyError, match="b"):
        tree.map(torch.add, TREES["several"], {"a": torch.ones(())})


@every_tree
def test_scale_and_size(leaves):
    for factor in (-2.0, torch.tensor(-2.0, dtype=torch.float64)):
        same(tree.scale(leaves, factor), {name: -2 * leaf for name, leaf in leaves.items()})
    assert tree.size(leaves) == len(tree.ravel(leaves))
    assert tree.size(TREES["several"]) == 9


@every_tree
def test_unravel_inverts_ravel(leaves):
    vector = tree.ravel(leaves)
    assert vector.shape == (tree.size(leaves),)
    same(tree.unravel(vector, tree.shapes(leaves)), leaves)


def test_ravel_keeps_the_order_of_the_dict():
    assert tree.ravel(TREES["several"]).tolist() == [1, -2, 3, 0, 1, 2, 3, 4, 5]


def test_unravel_refuses_a_vector_of_another_length():
    with pytest.raises(RuntimeError, match="split"):
        tree.unravel(torch.zeros(8), tree.shapes(TREES["several"]))


def test_ravel_and_unravel_under_vmap():
    batch = {name: torch.stack([leaf, leaf + 1]) for name, leaf in TREES["several"].items()}
    vectors = torch.vmap(tree.ravel)(batch)
    assert vectors.shape == (2, 9)
    same(torch.vmap(lambda vector: tree.unravel(vector, tree.shapes(TREES["several"])))(vectors), batch)


@every_tree
def test_full_like(leaves):
    same(tree.full_like(leaves, 0.25), {name: torch.full_like(leaf, 0.25) for name, leaf in leaves.items()})


def test_full_like_broadcasts_a_tree_and_takes_the_dtype_of_the_leaves():
    leaves = tree.to(TREES["several"], torch.float32)
    values = {name: torch.tensor(0.25, dtype=torch.float64) for name in leaves}
    same(tree.full_like(leaves, values), tree.full_like(leaves, 0.25))
    values["w"] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert tree.full_like(leaves, values)["w"].tolist() == [[1, 2, 3], [1, 2, 3]]


@every_tree
def test_to(leaves):
    narrow = tree.to(leaves, torch.float32)
    assert {leaf.dtype for leaf in narrow.values()} == {torch.float32}
    same(tree.to(narrow, torch.float64), leaves)


@every_tree
def test_arguments_are_left_as_they_were(leaves):
    kept = {name: leaf.clone() for name, leaf in leaves.items()}
    vector = tree.ravel(leaves)
    tree.map(torch.add, leaves, leaves)
    tree.scale(leaves, 3.0)
    tree.full_like(leaves, leaves)
    tree.unravel(vector, tree.shapes(leaves))
    same(leaves, kept)
