"""The library's exceptions: one type a cause, all of them `PyroScaleError`."""

from __future__ import annotations

from typing import Any


class PyroScaleError(Exception):
    """Base class: `except ps.errors.PyroScaleError` catches everything this package raises on purpose."""


class ArgumentError(PyroScaleError, ValueError):
    """An argument of a public function or a setting of a kernel is out of its range, or its name is unknown."""


class DataError(PyroScaleError, ValueError):
    """The data are empty, ragged, of an unusable type, or hold NaN or infinity."""


class ModelError(PyroScaleError, ValueError):
    """The Pyro model cannot be compiled: no latent site, no observed site, a site that comes and goes, ..."""


class DiscreteSiteError(ModelError):
    """A latent site is discrete, so that it has no gradient, and cannot be summed out either."""


class MinibatchError(ModelError):
    """The model is sound for all of the data, but its density does not split over rows as minibatches need."""


class StartError(PyroScaleError, ValueError):
    """No starting point with a finite log density and gradient was found."""


class UntunedError(PyroScaleError, ValueError):
    """Tuning found no coordinates for a model; `infer` tells why, and takes the default step size."""


class NonFiniteError(PyroScaleError, ArithmeticError):
    """A run met NaN or infinity. `posterior` holds the draws made until then; None if there were none."""

    def __init__(self, message: str, posterior: Any = None) -> None:
        super().__init__(message)
        self.posterior = posterior


class StoppedError(PyroScaleError, RuntimeError):
    """A callback stopped a run before its first draw, so that there is no posterior to return."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The run ended early: {reason}, before the first draw. Let it run longer, or lower warmup_steps."
        )


class FileFormatError(PyroScaleError, ValueError):
    """A file to load was not written by `Posterior.save`, or its suffix names no format we write."""


class MissingModelError(PyroScaleError, RuntimeError):
    """A posterior loaded from a file, or one that kept only some sites, was asked for what needs the model."""


class MissingPackageError(PyroScaleError, ImportError):
    """A package that is not among the requirements, as the one that holds the data of a model, is not installed."""
