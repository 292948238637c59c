"""Which torch modules a model can be made of: their output is a function of inputs and parameters, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from pyro_scale.data import names_of
from pyro_scale.errors import ArgumentError


def check_module(module: object) -> None:
    """Raises `ArgumentError` unless it is a module of torch with parameters that have shapes."""
    if not isinstance(module, nn.Module):
        what = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise ArgumentError(f"module is {what}; it must be a torch.nn.Module, as torch.nn.Linear(3, 1).")
    for name, part in module.named_modules():
        if isinstance(part, PyroModule):
            raise ArgumentError(
                f"{_where(name)} is a PyroModule, whose sites are Pyro's own; pass a model made of PyroModules to "
                "ps.infer as it is, or build the module from torch.nn."
            )
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ArgumentError(f"module is a {type(module).__name__} without parameters, so that nothing has a prior.")
    if lazy := [name for name, value in parameters.items() if is_lazy(value)]:
        raise ArgumentError(
            f"module has parameters without shapes yet: {names_of(lazy)}. Call it once on a few rows, as module(x[:2])."
        )


def check_mode(module: nn.Module) -> None:
    """Raises `ArgumentError` where training mode, or the lack of statistics, joins rows or adds noise."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            raise ArgumentError(
                f"{_where(name)} is a {type(part).__name__} without running statistics, which joins the rows of a "
                "batch in every mode. Build it with track_running_stats=True, or take GroupNorm or LayerNorm."
            )
        if not part.training:
            continue
        if isinstance(part, _NormBase) and part.running_mean is not None:
            raise ArgumentError(
                f"{_where(name)} is a {type(part).__name__} in training mode, where the statistics of a batch join "
                "its rows. Call module.eval() first: then it uses its running statistics."
            )
        if _is_noisy(part):
            raise ArgumentError(
                f"{_where(name)} is a {type(part).__name__} in training mode, whose noise is not in the model. Call "
                "module.eval() first; the prior takes the part of dropout."
            )


def check_site(name: str, value: Tensor) -> None:
    """Raises `ArgumentError` for a parameter that cannot have a prior."""
    if not value.is_floating_point():
        raise ArgumentError(
            f"Parameter '{name}' is of {value.dtype}; a prior needs floating numbers. Hold it at its value: name the "
            "others in sites."
        )


def check_held(held: Mapping[str, Tensor]) -> None:
    """Raises `ArgumentError` where a parameter or buffer has no numbers to be held at."""
    if without := [name for name, value in held.items() if value.is_meta]:
        raise ArgumentError(
            f"{names_of(without)} are on the device 'meta' and have no values to be held at. Build the module on "
            "another device, or give them a prior."
        )


@contextmanager
def unchanged(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Raises `ArgumentError` where a forward call has written to a parameter or buffer."""
    # in inference mode torch counts no writes
    before = {name: value._version for name, value in state.items() if not value.is_inference()}
    yield
    if written := [name for name, version in before.items() if state[name]._version != version]:
        raise ArgumentError(
            f"The module's forward writes to {names_of(written)}, and parameters and buffers are not to change while "
            "their density is computed. Switch it off (running statistics: module.eval(); Embedding: max_norm=None)."
        )


def _is_noisy(part: nn.Module) -> bool:
    if isinstance(part, nn.RReLU):
        return True
    if isinstance(part, _DropoutNd):
        return part.p > 0
    return isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout > 0


def _where(name: str) -> str:
    return f"Submodule '{name}'" if name else "module"
