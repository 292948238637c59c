"""SGHMC of BlackJAX with everything in one `lax.scan`: the rows and noise of a step are drawn inside it.

Its integrator is called directly, so that momentum is kept and the minibatch is a new one at every step: its `step`
draws the momentum anew and keeps the minibatch for several gradients. Its step for the whole log posterior with unit
mass is ours divided by sqrt(N), its friction ours times sqrt(N).
"""

from __future__ import annotations

import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.sgmcmc.diffusions import sghmc
from blackjax.sgmcmc.gradients import grad_estimator
from jax.scipy.stats import norm
from script import answer, parameters

given = parameters()
data = np.load(given["data"])
x, y = jnp.asarray(data["x"]), jnp.asarray(data["y"])
num_data = len(x)
step_size = given["step_size"] / num_data**0.5


def log_prior(w):
    return norm.logpdf(w).sum()


def log_likelihood(w, row):
    covariates, outcome = row
    logit = covariates @ w
    return outcome * jax.nn.log_sigmoid(logit) + (1 - outcome) * jax.nn.log_sigmoid(-logit)


gradient = grad_estimator(log_prior, log_likelihood, num_data)
move = sghmc(alpha=given["friction"] * num_data**0.5)


def step(state, key):
    row_key, noise_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (given["batch_size"],), 0, num_data)
    position, momentum = state
    return move(noise_key, position, momentum, gradient(position, (x[rows], y[rows])), step_size), None


def steps(state, key, number):
    return jax.lax.scan(step, state, jax.random.split(key, number))[0]


def chain(key):
    warmup_key, key = jax.random.split(key)
    start = (jnp.array(given["initial"]), jnp.zeros(x.shape[1]))
    state = steps(start, warmup_key, given["warmup_steps"])

    def draw(state, key):
        state = steps(state, key, given["thinning"])
        return state, state[0]

    return jax.lax.scan(draw, state, jax.random.split(key, given["num_samples"]))[1]


run = jax.jit(jax.vmap(chain)) if given["num_chains"] > 1 else jax.jit(lambda keys: chain(keys[0])[None])
keys = jax.random.split(jax.random.key(given["seed"]), given["num_chains"])
began = time.perf_counter()
compiled = run.lower(keys).compile()
compile_seconds = time.perf_counter() - began
began = time.perf_counter()
draws = jax.block_until_ready(compiled(keys))
seconds = time.perf_counter() - began
np.save(given["draws"], np.asarray(draws))
num_steps = given["warmup_steps"] + given["num_samples"] * given["thinning"]
answer(
    step_microseconds=seconds / num_steps * 1e6,
    compile_seconds=compile_seconds,
    sample_seconds=seconds,
    version=blackjax.__version__,
)
