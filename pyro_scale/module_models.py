"""`bayesian`: a torch module with a prior over its parameters, and a likelihood of its output, as a Pyro model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.func import functional_call

from pyro_scale.data import Model
from pyro_scale.errors import ArgumentError
from pyro_scale.module_checks import check_held, check_mode, check_module, check_site, unchanged
from pyro_scale.parameter_priors import Prior, Rule, all_names, chosen, distribution, is_function, kind, placed, rules

Likelihood = Callable[[Any], Distribution]


def bayesian(
    module: nn.Module,
    *,
    prior: Prior,
    likelihood: Likelihood,
    sites: str | Sequence[str] | None = None,
    observed: str = "y",
) -> Model:
    """A torch module as a Pyro model: its parameters become latent sites, its output the parameters of a likelihood.

    The model's arguments are those of the module's `forward`, then the observations. Where `forward` requires one alone
    it is called `x`, so that the model of most modules is `model(x, y=None)`. What is said of rows holds for inputs as
    for all data: a row is an element of the first axis, so that recurrent layers need `batch_first=True`.

    The sites are called as the parameters, "0.weight", each parameter that is tied to others one site. The rows are in
    the plate "data", the observed site is "obs". The module itself is never changed. Its training mode is looked at
    when the model runs; its values are read here, once: what is changed later does not reach the model. Held values
    and the prior's parameters take the floating type and device of the inputs.

    Args:
        module: any module of torch whose output for a row depends on no other row. One whose batch normalisation or
            dropout is in training mode is refused: call `module.eval()`.
        prior: a Pyro distribution for every parameter, of one number, or of a shape that expands to the parameter's,
            independent over entries; or a function of a parameter's name and value that gives one; or a dict from
            patterns of names to these, as `{"*.bias": dist.Normal(0.0, 1.0), "*": lambda name, value: ...}`. `*`, `?`
            and `[...]` are as in a shell, `*` matches dots too, and the first pattern that matches counts. A
            function is called whenever the model runs, with a value of the data's type.
        likelihood: a function of the module's output that gives the Pyro distribution of the observations, one a row:
            of batch shape `(n,)`; `to_event(1)` makes a vector of a row's numbers. It may draw further sites, as
            `pyro.sample("noise", dist.HalfNormal(1.0))`, which all rows share.
        sites: the parameters that have a prior: a pattern or several, as "4.*" for a last layer; None for all of them,
            whatever their `requires_grad`. The others, and buffers, are constants.
        observed: the model's argument for the observations.

    Returns:
        A model for `infer`, and for Pyro itself.

    Raises:
        ArgumentError: something is not as described, a parameter has no pattern, or a pattern no parameter. Running
            the model raises it too, for a likelihood that gives anything else than a distribution for each row.

    Example:
        >>> import pyro.distributions as dist
        >>> import pyro_scale as ps
        >>> layers = [nn.Linear(4, 50, device="meta"), nn.Tanh(), nn.Linear(50, 1, device="meta")]  # values: not needed
        >>> def by_inputs(name, value):
        ...     return dist.Normal(0.0, value.shape[-1] ** -0.5)
        >>> model = ps.bayesian(
        ...     nn.Sequential(*layers),
        ...     prior={"*.weight": by_inputs, "*.bias": dist.Normal(0.0, 1.0)},
        ...     likelihood=lambda out: dist.Normal(out.squeeze(-1), 1.0),
        ... )
        >>> x, y = torch.ones(30, 4), torch.ones(30)
        >>> kernel = ps.kernels.SGHMC(step_size=0.01)
        >>> posterior = ps.infer(model, {"x": x, "y": y}, kernel, batch_size=10, num_samples=5, num_chains=2, seed=0)
        >>> posterior.draws["0.weight"].shape
        torch.Size([2, 5, 50, 4])
        >>> posterior.predict({"x": x[:3]}).mean["obs"].shape
        torch.Size([3])
    """
    check_module(module)
    check_mode(module)
    if isinstance(likelihood, torch.distributions.Distribution) or not callable(likelihood):
        raise ArgumentError(
            f"likelihood is {kind(likelihood)}; it must be a function of the module's output that gives a "
            "distribution, as lambda out: dist.Normal(out.squeeze(-1), 0.1)."
        )
    inputs, signature = _arguments(module, observed)
    names = all_names(module)
    priors = rules(prior, chosen(sites, names), names)
    parameters = dict(module.named_parameters())
    values = {
        name: _kept(parameters[name]) if is_function(rule) else _shape(parameters[name])
        for name, rule in priors.items()
    }
    for name, rule in priors.items():
        check_site(name, parameters[name])
        distribution(name, rule, values[name], parameters[name])
    held = {name: value for name, value in parameters.items() if name not in priors} | dict(module.named_buffers())
    check_held(held)
    held = {name: _kept(value) for name, value in held.items()}
    return ModuleModel(module, priors, values, held, likelihood, observed, inputs, signature)


@dataclass(frozen=True, eq=False)
class ModuleModel:
    """What `bayesian` returns.

    Attributes:
        module: computes the output, at other values than its own.
        priors: site -> its distribution, or the function that gives it.
        values: site -> the parameter as it was, or, where no function asks for it, its shape on the device "meta".
        held: parameter without a prior, or buffer -> value.
        likelihood: output -> distribution of the observations.
        observed: the argument for the observations.
        inputs: argument of the model -> that of the module's `forward`.
    """

    module: nn.Module
    priors: Mapping[str, Rule]
    values: Mapping[str, Tensor]
    held: Mapping[str, Tensor]
    likelihood: Likelihood
    observed: str
    inputs: Mapping[str, str]
    __signature__: inspect.Signature

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Runs the model."""
        check_mode(self.module)
        given = self.__signature__.bind(*args, **kwargs).arguments
        observations = given.pop(self.observed, None)
        like = _like(given.values())
        state = {name: placed(value, like) for name, value in self.held.items()}
        for name, rule in self.priors.items():
            state[name] = pyro.sample(name, distribution(name, rule, self.values[name], like))
        with unchanged(state):
            output = functional_call(self.module, state, (), {self.inputs[name]: leaf for name, leaf in given.items()})
        fn: Any = self.likelihood(output)
        _check_rows(fn, given)
        with pyro.plate("data", fn.batch_shape[0]):
            pyro.sample("obs", fn, obs=observations)


def _arguments(module: nn.Module, observed: object) -> tuple[dict[str, str], inspect.Signature]:
    """Argument of the model -> that of the module, and the model's signature."""
    forward = inspect.signature(module.forward)
    own = [each for each in forward.parameters.values() if each.kind is not each.VAR_KEYWORD]
    if not own or any(each.kind in (each.VAR_POSITIONAL, each.POSITIONAL_ONLY) for each in own):
        raise ArgumentError(
            f"module is a {type(module).__name__}, and its forward{forward} does not name its inputs, as the data "
            "must. Wrap it in a module with a forward that does, as forward(self, x)."
        )
    if not isinstance(observed, str) or not observed.isidentifier():
        raise ArgumentError(f"observed is {observed!r}; it must be the name of an argument, as 'y'.")
    required = [each.name for each in own if each.default is each.empty]
    alone = len(required) == 1 and "x" not in forward.parameters
    inputs = {"x" if alone and each.name in required else each.name: each.name for each in own}
    if observed in inputs:
        raise ArgumentError(
            f"observed is {observed!r}, which is an input of the module too; give the observations another name, as "
            "observed='target'."
        )
    either, by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    first = [inspect.Parameter(name, either) for name, each in inputs.items() if each in required]
    last = [each.replace(kind=by_name) for each in own if each.name not in required]
    return inputs, inspect.Signature([*first, inspect.Parameter(observed, either, default=None), *last])


def _kept(value: Tensor) -> Tensor:
    """As it is now, whatever becomes of the module."""
    return value.detach().clone()


def _shape(value: Tensor) -> Tensor:
    return value.detach().to("meta")


def _like(inputs: Iterable[Any]) -> Tensor:
    """An empty tensor of the floating type and device of the inputs."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    floating = (value.dtype for value in tensors if value.is_floating_point())
    return torch.empty(0, dtype=next(floating, None), device=tensors[0].device if tensors else None)


def _check_rows(fn: Any, inputs: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` unless it is a distribution for each row of the inputs."""
    if not isinstance(fn, Distribution):
        raise ArgumentError(
            f"likelihood gives {kind(fn)}; it must give a distribution of pyro.distributions, as "
            "dist.Normal(out.squeeze(-1), 0.1)."
        )
    lengths = {name: len(value) for name, value in inputs.items() if isinstance(value, Tensor) and value.ndim}
    shape: tuple[int, ...] = tuple(getattr(fn, "batch_shape", ()))
    if len(shape) == 1 and shape[0] in lengths.values():
        return
    if len(shape) > 1 and shape[0] in lengths.values():
        remedy = f"Add .to_event({len(shape) - 1}), which makes one observation of the numbers of a row"
        remedy += ", or take squeeze(-1) of the output." if shape[-1] == 1 else "."
    else:
        remedy = "Give every row its own; layers that take rows for times need batch_first=True."
    rows = ", ".join(f"{length} in '{name}'" for name, length in lengths.items())
    raise ArgumentError(
        f"likelihood gives {kind(fn)} of batch shape {shape}, and the rows are {rows}; its batch shape must be "
        f"(rows,). {remedy}"
    )
