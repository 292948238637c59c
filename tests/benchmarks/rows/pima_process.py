"""27,000 steps of one chain on Pima from a new process: imports, capture, compilation, steps."""

from __future__ import annotations

from measure import Answers, Bench, Side, median
from results import Goal, Row, row, spent

from .pima import parameters, wrong


def measure(bench: Bench) -> list[Row]:
    def run(module: str, name: str, repeat: int) -> Answers:
        given = parameters(bench, f"{name}.{repeat}", seed=repeat, num_samples=2600, warmup_steps=1000, num_chains=1)
        # it holds precompiled headers as well: an empty one is that of a new machine
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(bench.work / f"cache.{repeat}")}
        return bench.alternate(1, Side(module, given, one_core=False, environment=cache))[0]

    empty: Answers = []
    warm: Answers = []
    blackjax: Answers = []
    for repeat in range(bench.steps(3, 1)):
        empty += run("ours.sghmc", "empty", repeat)
        warm += run("ours.sghmc", "warm", repeat)
        blackjax += run("peers.blackjax_sghmc", "blackjax", repeat)
    disagreement = wrong("pyro_scale", warm) or wrong("BlackJAX", blackjax)
    theirs = f"BlackJAX {median(blackjax, 'process_seconds'):.1f} s"

    def line(cache: str, mine: Answers, goal: float) -> Row:
        seconds = median(mine, "process_seconds")
        return row(
            f"Pima, 27,000 steps from a new process, two cores, {cache} compile cache",
            f"{seconds:.1f} s",
            theirs,
            seconds,
            Goal("<=", goal, "s"),
            disagreement=disagreement,
            profile=spent(mine),
        )

    return [line("warm", warm, 9), line("empty", empty, 25)]
