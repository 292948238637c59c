"""Measures pyro_scale against other packages, and writes RESULTS.md. `make bench` runs it in its environments."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path

from measure import HERE, PEERS_PYTHON, Bench
from results import Row, document, failed, table

NAMES = [
    *("pima_steps", "pima_process", "pima_chains", "nuts", "networks", "mapped", "million_rows"),
    *("gauss_newton", "vi", "linearized", "laplace_memory"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, help="some of the rows; prints them and writes no file")
    parser.add_argument("--quick", action="store_true", help="short runs that say nothing; writes no file")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="interpreter that has the peers")
    chosen = parser.parse_args()
    began, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="pyro_scale_bench_") as work:
        bench = Bench(Path(work), chosen.peers_python, chosen.quick)
        for name in chosen.only or NAMES:
            print(name, flush=True)
            rows += measured(name, bench)
    print(table(rows))
    if not chosen.only and not chosen.quick:
        minutes = (time.perf_counter() - began) / 60
        (HERE / "RESULTS.md").write_text(document(rows, versions(chosen.peers_python), minutes), encoding="utf-8")


def measured(name: str, bench: Bench) -> list[Row]:
    """The rows of a file in rows/; one that fails is a row as well, and leaves the others alone."""
    try:
        found: list[Row] = importlib.import_module(f"rows.{name}").measure(bench)
    except Exception as error:
        traceback.print_exc()
        return [failed(name, f"{type(error).__name__}: {error}")]
    return found


def versions(peers_python: Path) -> str:
    """Of what ran: ours, and what is pinned for the peers."""
    ours = ", ".join(f"{name} {version(name)}" for name in ("pyro-scale", "torch", "pyro-ppl", "nutpie"))
    files = ("requirements.txt", "requirements-no-deps.txt")
    lines = [line for file in files for line in (HERE / file).read_text(encoding="utf-8").splitlines()]
    names = [line.partition("==")[0] for line in lines if "==" in line]
    program = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    asked = [str(peers_python), "-c", program, *names, "torch"]
    return f"{ours}; peers: {subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()}"


if __name__ == "__main__":
    main()
