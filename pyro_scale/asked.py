"""What a user asks `infer` for, as objects: the kernel behind a name, its step size, the sites to keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.errors import ArgumentError
from pyro_scale.kernels import METHODS
from pyro_scale.types import Kernel


def kernel_of(method: str | Kernel) -> Kernel:
    """The kernel that a method stands for."""
    known = f"it must be one of {names_of(list(METHODS))}, or a kernel object, as ps.kernels.SGHMC(step_size=0.01)"
    if isinstance(method, str):
        if method.lower() == "nuts":
            raise ArgumentError(f"method is '{method}', which needs all rows at every step: call ps.diagnostics.nuts.")
        if method not in METHODS:
            raise ArgumentError(f"method is '{method}'; {known}.")
        return kernel_of(METHODS[method]())
    if isinstance(method, type) or not all(hasattr(method, name) for name in ("bind", "step_size", "temperature")):
        got = f"the class {method.__name__}" if isinstance(method, type) else f"a {type(method).__name__}"
        raise ArgumentError(f"method is {got}; {known}.")
    return method


def with_step_size(kernel: Kernel) -> Kernel:
    """A kernel that was not tuned takes its default."""
    if kernel.step_size is not None:
        return kernel
    default = getattr(kernel, "default_step_size", None)
    if default is None:
        raise ArgumentError(f"{type(kernel).__name__} has no step_size and no default for it; set step_size.")
    chosen: Any = replace(kernel, step_size=default)  # type: ignore[type-var]
    return cast(Kernel, chosen)


def refuse_chains(kernel: Kernel, num_superchains: int | None, thinning: int | None, save_warmup: bool) -> None:
    """Refuses what only chains have, of a kernel that has none."""
    asked = {"num_superchains": num_superchains, "thinning": thinning, "save_warmup": save_warmup or None}
    for name, value in asked.items():
        if value is not None:
            raise ArgumentError(
                f"{name} is {value!r}, and {type(kernel).__name__} has no chains that it could be of: leave it out."
            )


def sites_kept(compiled: CompiledModel, keep: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the sites whose draws are kept."""
    if keep is None:
        if not compiled.kept:
            raise ArgumentError(
                "Every site has a value for each row, of which a minibatched run keeps no draws by itself. Name "
                f"those to keep: keep={compiled.drawn}."
            )
        return tuple(compiled.kept)
    if isinstance(keep, str):
        raise ArgumentError(f"keep is the string {keep!r}; it must be a list of site names, as [{keep!r}].")
    if not isinstance(keep, Iterable):
        raise ArgumentError(f"keep is {keep!r}; it must be a list of site names, or None for the default.")
    keep = list(keep)
    for name in keep:
        if name not in compiled.drawn:
            raise ArgumentError(f"keep names '{name}'; the sites with draws are {names_of(compiled.drawn)}.")
    if not keep:
        raise ArgumentError(f"keep is empty; name at least one of {names_of(compiled.drawn)}, or None for the default.")
    return tuple(keep)
