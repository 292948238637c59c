"""Runs scripts in processes of their own, ours and a peer's by turns, so that a busy minute meets both."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
LIMIT_SECONDS = 900

Answers = list[dict[str, Any]]


class ScriptError(Exception):
    """A script failed; the message is the last line that it wrote."""


class Side(NamedTuple):
    """A script and what it is told.

    Attributes:
        module: as "ours.sghmc" or "peers.sgd"; the folder decides which environment runs it.
        parameters: handed to it as JSON.
        one_core: pin the process to one core, so that one thread is one thread whatever libraries start.
        environment: variables on top of those of all scripts.
    """

    module: str
    parameters: Mapping[str, Any]
    one_core: bool = True
    environment: Mapping[str, str] = {}


@dataclass(frozen=True)
class Bench:
    """Where and how often to measure.

    Attributes:
        work: a folder for data, draws and caches of compilers, which is deleted at the end.
        peers_python: the interpreter of the peers.
        quick: a trial of the scripts: short runs, nothing to quote.
    """

    work: Path
    peers_python: Path = PEERS_PYTHON
    quick: bool = False

    def steps(self, full: int, quick: int) -> int:
        """A number that a trial makes smaller."""
        return quick if self.quick else full

    def run(self, side: Side) -> dict[str, Any]:
        """The answer of one script, and its "process_seconds"."""
        python = sys.executable if side.module.startswith("ours") else str(self.peers_python)
        pinned = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))] if side.one_core and can_pin() else []
        command = [*pinned, python, "-m", side.module, json.dumps(dict(side.parameters))]
        began = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                cwd=HERE,
                env=self._environment(side),
                capture_output=True,
                text=True,
                timeout=LIMIT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ScriptError(f"{side.module} took more than {LIMIT_SECONDS} s") from error
        seconds = time.perf_counter() - began
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ScriptError(f"{side.module} exited with {done.returncode}: {last}")
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"  {side.module}: {seconds:.1f} s {answer}", flush=True)
        return answer | {"process_seconds": seconds}

    def alternate(self, repeats: int, *sides: Side) -> list[Answers]:
        """The answers of every side, `repeats` of each, one side after the other. A `seed` counts upwards."""
        answers: list[Answers] = [[] for _ in sides]
        for repeat in range(1 if self.quick else repeats):
            for side, found in zip(sides, answers, strict=True):
                changed = dict(side.parameters)
                if "seed" in changed:
                    changed["seed"] += repeat
                if "draws" in changed:
                    changed["draws"] = f"{changed['draws']}.{repeat}.npy"
                found.append(self.run(side._replace(parameters=changed)) | {"draws": changed.get("draws")})
        return answers

    def _environment(self, side: Side) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor")}
        flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        return {**os.environ, **threads, **caches, **flags, **side.environment}


def can_pin() -> bool:
    """Whether a process can be kept to one core: Linux, with util-linux."""
    return hasattr(os, "sched_getaffinity") and shutil.which("taskset") is not None


def median(answers: Sequence[Mapping[str, Any]], key: str) -> float:
    """The median of one of the numbers that the runs of a script answered."""
    return statistics.median(answer[key] for answer in answers)
