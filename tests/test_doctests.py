"""Runs the examples of every docstring, under the names that users import."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

# The two folders at the top of the source tree are not in pyro_scale's own, except in a wheel.
ROOTS = ["pyro_scale", "pyro_scale.models", "pyro_scale.diagnostics"]
MODULES = sorted(
    set(ROOTS).union(
        module.name
        for root in ROOTS
        for module in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}.")
        if not module.name.endswith("__main__")
    )
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    for examples in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name):
        runner.run(examples, out=output.append)
    assert not runner.failures, "".join(output)
