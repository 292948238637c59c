"""Simulation-based calibration: does a method find, as often as it says, what the data were simulated from?"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pyro_scale.capture import first_line
from pyro_scale.checks import check_count, checked_seed, derived_seeds
from pyro_scale.data import Model, names_of
from pyro_scale.errors import ArgumentError
from pyro_scale.inference import infer
from pyro_scale.posterior import Posterior
from pyro_scale.progress import Reporter
from pyro_scale.types import Kernel

from .ranking import Collected, Draws
from .ranks import LEAST_RANKS, Ranks
from .simulation import Simulator

logger = logging.getLogger("pyro_scale")

Fit = Callable[..., Posterior | Draws]


def sbc(
    model: Model,
    data: Any,
    method: str | Kernel | Fit = "sghmc",
    *,
    num_simulations: int = 100,
    num_draws: int = 100,
    seed: int | None = None,
    sites: Collection[str] | None = None,
    functions: Mapping[str, Callable[[dict[str, Tensor]], Any]] | None = None,
    constants: Mapping[str, Any] | None = None,
    progress: bool = True,
    **infer_kwargs: Any,
) -> Ranks:
    r"""Simulation-based calibration of a method on a model: Talts, Betancourt, Simpson, Vehtari & Gelman (2018).

    Parameters are drawn from the prior and data from the model given them, again and again; each time the method is run
    on the data, and the true value of every parameter is ranked among its draws. If these are from the posterior, ranks
    are uniform. The ranks of the log-likelihood are looked at too: those of parameters are uniform even for a method
    that returns the prior (Modrák et al. 2023).

    Three tests of each parameter: uniformity, by chi-squared; width, by the squares of normal scores of the ranks
    (Cook, Gelman & Rubin 2006), which finds draws that are too narrow or too wide with far fewer simulations; and
    symmetry about the middle, by the sum of these scores: Yao, Vehtari, Simpson & Gelman (2018) ask for that of
    approximations that are known to be too narrow, and may yet have right means. And one of all parameters together,
    whose scores must have mean 0 (Hotelling 1931). p-values are multiplied by the number of tests.

    What n simulations can find: scores of a normal posterior that is moved by δ of its sds are normal, with mean -δ. No
    two-sided test at level α finds the move in a larger share of runs than
    $\Phi(\delta \sqrt n - z_{1 - \alpha / 2})$ (Neyman & Pearson 1933). At n = 300 and δ = 0.2 that is 0.93 at
    α = 0.05, as measured for the sum of scores; and 0.78 at a seventh of it, which is what the seven tests of a model
    with one parameter leave to each (all of them together measure 0.80). With three independent parameters, all moved
    by 0.2, it is found in 0.99 of runs. To find δ in 0.9 of runs takes about $(4 / \delta)^2$ simulations: 400 for
    0.2, 1600 for 0.1. The result prints what it could find.

    Args:
        model: the Pyro model, whose priors can be drawn from.
        data: as `infer` takes them. The columns that the model observes are drawn anew in every simulation; only their
            shape and type count.
        method: as `infer` takes it; or a function of the data (a dict by argument), or of data and a seed, that returns
            a posterior, or draws by site `(num_chains, num_samples, *site)`. One without a seed must not repeat its
            random numbers.
        num_simulations: at least 20; 400 find means that are off by 0.2 sds, and sds that are wrong by a sixth.
        num_draws: among so many draws values are ranked, at least 10; fewer where the effective sample size of a
            coordinate, its median over simulations, is smaller. They are evenly spaced, and so about independent.
        seed: of all randomness; None takes a fresh one.
        sites: latent or deterministic sites whose every coordinate is ranked; None for all latent ones but those with a
            value for each row.
        functions: label -> function of the sites' values (a dict) that is ranked as well, as lambda draw:
            draw["w"].norm().
        constants: keyword arguments that the model receives whole.
        progress: show a progress bar on a terminal.
        infer_kwargs: what else `infer` is to be called with, as batch_size.

    Returns:
        Ranks, with `table`, `p_value`, `passed` and `plot()`. Simulations whose inference fails are listed in
        `failures`; an error of the first one is raised. Ctrl-C returns what there is.

    Raises:
        ArgumentError, DataError, ModelError: of the model, of arguments, or of a prior that cannot be drawn from.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> def exact(data, seed):
        ...     noise = torch.randn(1, 100, generator=torch.Generator().manual_seed(seed))
        ...     return {"mu": (data["y"].sum() + noise * 10**0.5) / 10}
        >>> found = sbc(model, {"y": torch.zeros(9)}, exact, seed=0)
        >>> found.passed
        True

    References:
        Cook, Gelman & Rubin (2006), Validation of software for Bayesian models using posterior quantiles, Journal of
        Computational and Graphical Statistics 15.
        Hotelling (1931), The generalization of Student's ratio, Annals of Mathematical Statistics 2.
        Neyman & Pearson (1933), On the problem of the most efficient tests of statistical hypotheses, Philosophical
        Transactions of the Royal Society A 231.
        Talts, Betancourt, Simpson, Vehtari & Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration, arXiv:1804.06788.
        Yao, Vehtari, Simpson & Gelman (2018), Yes, but did it work?: evaluating variational inference, ICML.
        Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari (2023), Simulation-based calibration checking
        for Bayesian computation: the choice of test quantities shapes sensitivity, Bayesian Analysis.
    """
    num_simulations = check_count("num_simulations", num_simulations, LEAST_RANKS)
    num_draws = check_count("num_draws", num_draws, 10)
    seed = checked_seed(seed)
    placing = {name: infer_kwargs[name] for name in ("device", "dtype") if name in infer_kwargs}
    simulator = Simulator(model, data, constants, **placing)
    collected = Collected(_checked_sites(simulator, sites), dict(functions or {}), num_draws)
    fit = _fit(model, method, constants, infer_kwargs)
    *seeds, last = derived_seeds(seed, 2 * num_simulations + 1)
    reporter = Reporter(num_simulations, progress, None)
    try:
        with _quiet():
            for number in range(num_simulations):
                try:
                    simulated = simulator.draw(seeds[2 * number])
                    collected.add(simulated, fit(simulated.data, seeds[2 * number + 1]))
                except Exception as error:  # whatever a method meets in simulated data; the others count
                    if number == 0:
                        raise
                    collected.failures[number] = first_line(error)
                reporter.update(number + 1, 0)
    except KeyboardInterrupt:
        if not collected.number:
            raise
        logger.warning("Interrupted: %d of %d simulations are done.", collected.number, num_simulations)
    finally:
        reporter.close()
    return collected.ranks(last)


def _fit(
    model: Model, method: str | Kernel | Fit, constants: Mapping[str, Any] | None, infer_kwargs: dict[str, Any]
) -> Callable[[dict[str, Tensor], int], Posterior | Draws]:
    """Data and a seed -> posterior, or draws by site."""
    if isinstance(method, str) or hasattr(method, "bind"):
        if isinstance(method, str) and method.lower() == "nuts":
            raise ArgumentError(
                "method is 'nuts', which infer does not have. Pass a function: lambda data, seed: ps.diagnostics.nuts("
                "model, data, seed=seed, progress=False)."
            )
        kernel: str | Kernel = method  # type: ignore[assignment]
        return lambda data, seed: infer(
            model, data, kernel, constants=constants, seed=seed, progress=False, **infer_kwargs
        )
    if not callable(method) or isinstance(method, type):
        raise ArgumentError(
            f"method is {method!r}; it must be the name of a method, a kernel, or a function of the data (and a seed) "
            "that returns a posterior."
        )
    if infer_kwargs:
        raise ArgumentError(
            f"{names_of(list(infer_kwargs))} are for infer, and method is a function of your own. Set them in there."
        )
    kinds = [
        one.kind for one in inspect.signature(method).parameters.values() if one.default is inspect.Parameter.empty
    ]
    if len([kind for kind in kinds if kind is not inspect.Parameter.VAR_KEYWORD]) > 1:
        return method
    return lambda data, seed: method(data)


def _checked_sites(simulator: Simulator, sites: Collection[str] | None) -> list[str]:
    compiled = simulator.compiled
    if sites is None:
        return [site.name for site in compiled.structure.of_kind("latent") if not site.local]
    if isinstance(sites, str) or not sites or not set(sites) <= set(compiled.drawn):
        raise ArgumentError(
            f"sites is {sites!r}; it must be a list of names among {names_of(compiled.drawn)}, or None for the latent "
            "ones without a value for each row."
        )
    return list(sites)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what every one of many runs would say of itself; errors are told."""

    def serious(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(serious)
    try:
        yield
    finally:
        logger.removeFilter(serious)
