"""Pyro models with the real data they are for."""

from .conjugate import body_mass, conjugate_regression, exact_posterior
from .errors_in_variables import noisy_covariate, true_value_moments, usual_pressure
from .factorisation import matrix_factorisation, movielens, rmse
from .glm import logistic_regression, pima
from .mixtures import enumerated_mixture, faithful, normal_mixture
from .networks import concrete, perceptron
from .problem import Moments, Problem
from .schools import eight_schools, eight_schools_centered, schools_centered, schools_noncentered
from .varying_intercepts import county_intercepts, radon, radon_moments
from .wells import double_well, mode_weights, quadrant, well_density

__all__ = [
    "Moments",
    "Problem",
    "body_mass",
    "concrete",
    "conjugate_regression",
    "county_intercepts",
    "double_well",
    "eight_schools",
    "eight_schools_centered",
    "enumerated_mixture",
    "exact_posterior",
    "faithful",
    "logistic_regression",
    "matrix_factorisation",
    "mode_weights",
    "movielens",
    "noisy_covariate",
    "normal_mixture",
    "perceptron",
    "pima",
    "quadrant",
    "radon",
    "radon_moments",
    "rmse",
    "schools_centered",
    "schools_noncentered",
    "true_value_moments",
    "usual_pressure",
    "well_density",
]
