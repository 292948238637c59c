"""1,000 chains on Pima from a new process, by the clock: imports and compilation count."""

from __future__ import annotations

from measure import Bench, Side, median
from results import Goal, Row, row, spent

from .pima import parameters, wrong


def measure(bench: Bench) -> list[Row]:
    def side(module: str, num_chains: int, num_samples: int = 100) -> Side:
        given = parameters(bench, module, num_samples=num_samples, warmup_steps=1000, num_chains=num_chains)
        return Side(module, given)

    many = bench.steps(1000, 50)
    ours, blackjax = bench.alternate(3, side("ours.sghmc", many), side("peers.blackjax_sghmc", many))
    (posteriors,) = bench.alternate(2, side("peers.posteriors_sghmc", 5, bench.steps(500, 20)))
    seconds = median(ours, "process_seconds")
    jax = median(blackjax, "process_seconds")
    one_by_one = many * 2000 * median(posteriors, "step_microseconds") / 1e6
    mine = wrong("pyro_scale", ours)
    work, shown = f"Pima, {many} chains x 2,000 steps, whole process", f"{seconds:.1f} s"
    return [
        row(
            work,
            shown,
            f"BlackJAX, vmap and scan, {jax:.1f} s",
            jax / seconds,
            Goal(">=", 1),
            disagreement=mine or wrong("BlackJAX", blackjax),
            profile=spent(ours),
        ),
        row(
            work,
            shown,
            f"posteriors, chain by chain, {one_by_one:.0f} s, extrapolated from its time a step",
            one_by_one / seconds,
            Goal(">=", 500),
            disagreement=mine or wrong("posteriors", posteriors),
        ),
    ]
