"""Which parameters of a module have a prior, and which one each of them has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.distributions import Transform

from pyro_scale.data import names_of
from pyro_scale.errors import ArgumentError

Rule: TypeAlias = Distribution | Callable[[str, Tensor], Distribution]
Prior: TypeAlias = Rule | Mapping[str, Rule]
Names: TypeAlias = Mapping[str, Sequence[str]]
"""Parameter -> all its names: a tied one has several."""

EXAMPLE = "as dist.Normal(0.0, 1.0) of pyro.distributions"


def chosen(sites: str | Sequence[str] | None, names: Names) -> list[str]:
    """The parameters that patterns name; all for None."""
    if sites is None:
        return list(names)
    patterns = [sites] if isinstance(sites, str) else sites
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(each, str) for each in patterns):
        raise ArgumentError(
            f"sites is {sites!r}; it must be a pattern or a list of patterns of parameter names, as '4.*', or None for "
            "all parameters."
        )
    matched = [_matching(f"sites has the pattern {pattern!r}, which", pattern, names) for pattern in patterns]
    return [name for name in names if any(name in found for found in matched)]


def rules(prior: Prior, selected: Sequence[str], names: Names) -> dict[str, Rule]:
    """Selected parameter -> distribution, or the function that gives it; of a dict, what the first match says."""
    if not isinstance(prior, Mapping):
        _check_rule("prior", prior, ", or a dict of them by patterns of names")
        return dict.fromkeys(selected, prior)
    if not prior:
        raise ArgumentError("prior is an empty dict; it must have an entry, as {'*': dist.Normal(0.0, 1.0)}.")
    found: dict[str, Rule] = {}
    for pattern, rule in prior.items():
        _check_rule(f"prior[{pattern!r}]", rule)
        matched = _matching(f"prior has the pattern {pattern!r}, which", pattern, names)
        new = [name for name in matched if name not in found]
        if not new:
            raise ArgumentError(
                f"prior has the pattern {pattern!r}, all of whose parameters an earlier pattern has taken: the first "
                "that matches counts. Put it before the wider one."
            )
        found |= dict.fromkeys(new, rule)
    if left := [name for name in selected if name not in found]:
        raise ArgumentError(
            f"prior has no pattern for the parameters {names_of(left)}. Add one, as a last entry '*' for all others, "
            "or hold them at their values: name the others in sites."
        )
    return {name: found[name] for name in selected}


def distribution(name: str, rule: Rule, value: Tensor, like: Tensor) -> Any:
    """The prior of one parameter, over its shape: independent but for the distribution's own event axes.

    A function gets the parameter's value, and what it returns the type and device of `like`.
    """
    prior: Any = rule(name, placed(value, like)) if is_function(rule) else rule
    if not isinstance(prior, Distribution):
        raise ArgumentError(
            f"prior gives {kind(prior)} for parameter '{name}'; it must give a distribution, {EXAMPLE}."
        )
    fn: Any = prior
    if fn.support.is_discrete:
        raise ArgumentError(
            f"prior gives {kind(fn)} for parameter '{name}', which is discrete; it must be continuous, {EXAMPLE}."
        )
    shape, events = value.shape, len(fn.event_shape)
    batch = shape[: max(0, len(shape) - events)]
    if fn.event_shape != shape[len(batch) :] or not _expands(fn.batch_shape, batch):
        raise ArgumentError(
            f"prior gives {kind(fn)} of batch shape {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)} "
            f"for parameter '{name}', to whose shape {tuple(shape)} it does not expand. Give a distribution of one "
            f"number, {EXAMPLE}, or a function of name and value that gives one of its shape."
        )
    return placed(fn, like).expand(batch).to_event(len(batch))


def is_function(rule: Rule) -> bool:
    """Whether it gives a distribution, rather than being one: distributions can be called too."""
    return not isinstance(rule, Distribution)


def placed(thing: Any, like: Tensor) -> Any:
    """A tensor, or a copy of a distribution with all that it holds, in the type and on the device of another tensor.

    What was made elsewhere than in the model was made under another default type.
    """
    if isinstance(thing, Tensor):
        if thing.is_meta:
            return thing
        return thing.to(like) if thing.is_floating_point() else thing.to(like.device)
    if isinstance(thing, list):
        return [placed(item, like) for item in thing]
    if not isinstance(thing, torch.distributions.Distribution | Transform):
        return thing
    result = copy(thing)
    vars(result).update({name: placed(part, like) for name, part in vars(thing).items()})
    return result


def kind(value: object) -> str:
    """What something is, for messages."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, torch.distributions.Distribution) and not isinstance(value, Distribution):
        return f"a {type(value).__name__} of torch.distributions"
    return repr(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"


def all_names(module: torch.nn.Module) -> dict[str, list[str]]:
    """Parameter -> all its names, of which the first is the one it goes by."""
    found: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in found.values()}


def _check_rule(what: str, rule: object, otherwise: str = "") -> None:
    if isinstance(rule, type) or not callable(rule):
        raise ArgumentError(
            f"{what} is {kind(rule)}; it must be a distribution, {EXAMPLE}, or a function of name and value that "
            f"gives one{otherwise}."
        )


def _matching(what: str, pattern: object, names: Names) -> list[str]:
    found = [name for name, all_names in names.items() if any(fnmatchcase(each, str(pattern)) for each in all_names)]
    if not found:
        raise ArgumentError(f"{what} matches no parameter; the module has {names_of(list(names))}.")
    return found


def _expands(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return bool(torch.broadcast_shapes(shape, to) == to)
    except RuntimeError:
        return False
