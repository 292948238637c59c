"""Networks: a step of SGHMC beside one of SGD on the same network, and the memory that both take."""

from __future__ import annotations

from measure import Bench, Side, median
from results import Goal, Row, row

# name, what it is, steps, at most so many times as long as SGD
STEPS = [
    ("mlp", "MLP 784-256-256-10", 400, 1.3),
    ("cnn", "CNN of 2 convolutions, 28 x 28", 100, 1.1),
    ("lstm", "LSTM of 128 units, 20 steps", 100, 1.1),
    ("wide", "MLP of 10 million weights", 20, 1.3),
]

# glibc then gives memory back when it is freed, and the peak is of what is in use
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def measure(bench: Bench) -> list[Row]:
    rows = []
    for network, name, num_steps, goal in STEPS:
        given = {"network": network, "method": "sghmc", "num_steps": bench.steps(num_steps, 10)}
        both = Side("ours.network", given, one_core=False)
        one, two, sgd = bench.alternate(5, Side("ours.network", given), both, Side("peers.sgd", given))
        theirs = median(sgd, "step_milliseconds")
        noise = max(0.0, median(one, "processor_milliseconds") - median(one, "thread_milliseconds"))
        for suffix, ours in (("", one), ("; a second core for the noise", two)):
            mine = median(ours, "step_milliseconds")
            rows.append(
                row(
                    f"{name}, batch 128, float32: ms a step of SGHMC{suffix}",
                    f"{mine:.3g} ms",
                    f"torch.optim.SGD {theirs:.3g} ms",
                    mine / theirs,
                    Goal("<=", goal),
                    profile=f"{noise:.2g} ms of a step on one core draw its noise, which SGD has none of; without them "
                    f"the processor is busy for {median(ours, 'thread_milliseconds'):.3g} ms",
                )
            )
    return [*rows, memory(bench)]


def memory(bench: Bench) -> Row:
    """The goal is about what SGHMC takes beyond the activations, which are what SGD takes beyond its two buffers."""
    given = {"network": "wide", "method": "sghmc", "num_steps": bench.steps(10, 2)}
    sides = (Side(module, given, environment=AT_ONCE) for module in ("ours.network", "peers.sgd"))
    ours, sgd = bench.alternate(3, *sides)
    weights = sgd[0]["bytes_of_weights"]
    mine, steps, theirs = median(ours, "bytes_taken"), median(ours, "bytes_of_steps"), median(sgd, "bytes_taken")
    activations = theirs - 2 * weights  # gradients and momenta; the weights were there before
    return row(
        f"MLP of {weights / 4e6:.1f} million weights: peak memory of SGHMC, less the activations of an SGD step, "
        "in sizes of the weights",
        f"{megabytes(mine)} above what was held",
        f"torch.optim.SGD {megabytes(theirs)}, {megabytes(activations)} of them activations",
        (mine - activations) / weights,
        Goal("<=", 3.5),
        profile=f"weights {megabytes(weights)}; steps alone take {(steps - activations) / weights:.2g} sizes: state 2, "
        "gradient 1, its parts the rest. The peak is before the first, where the gradient is recorded and checked. "
        "Both processes run with MALLOC_MMAP_THRESHOLD_=1000000, so that glibc gives back at once what is freed",
    )


def megabytes(number: float) -> str:
    return f"{number / 1e6:.0f} MB"
