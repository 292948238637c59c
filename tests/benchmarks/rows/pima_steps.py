"""A step of one chain on Pima, once everything is compiled."""

from __future__ import annotations

from measure import Bench, Side, median
from results import Goal, Row, row

from .pima import parameters, wrong


def measure(bench: Bench) -> list[Row]:
    def side(module: str, num_samples: int, one_core: bool = True) -> Side:
        name = f"{module}.{one_core}"
        given = parameters(bench, name, num_samples=num_samples, warmup_steps=1000, num_chains=1)
        return Side(module, given, one_core)

    long, short = bench.steps(20_000, 500), bench.steps(1_500, 100)
    ours, two_cores, blackjax, posteriors = bench.alternate(
        5,
        side("ours.sghmc", long),
        side("ours.sghmc", long, one_core=False),
        side("peers.blackjax_sghmc", long),
        side("peers.posteriors_sghmc", short),
    )
    work = "Pima, SGHMC, batch 32, 1 chain: µs a step"
    rows = []
    for suffix, mine in (("", ours), ("; a second core for the noise", two_cores)):
        for peer, theirs, goal in (("posteriors", posteriors, 250), ("BlackJAX", blackjax, 1.8)):
            our_time, their_time = (median(answers, "step_microseconds") for answers in (mine, theirs))
            rows.append(
                row(
                    work + suffix,
                    f"{our_time:.3g} µs",
                    f"{peer} {their_time:.3g} µs",
                    their_time / our_time,
                    Goal(">=", goal),
                    disagreement=wrong("pyro_scale", mine) or wrong(peer, theirs),
                )
            )
    return rows
