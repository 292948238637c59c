"""Pyro models with the real data they are for."""

from .conjugate import body_mass, conjugate_regression, exact_posterior
from .glm import logistic_regression, pima
from .problem import Moments, Problem
from .schools import eight_schools, schools_noncentered

__all__ = [
    "Moments",
    "Problem",
    "body_mass",
    "conjugate_regression",
    "eight_schools",
    "exact_posterior",
    "logistic_regression",
    "pima",
    "schools_noncentered",
]
