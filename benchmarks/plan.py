"""Plan against reality: python benchmarks/plan.py [--case tiny smollm2] [--repeats 5] [--quick]

The update of a case of `update.py`, predicted as `python -m rlef_jax.plan --card=measured` does (operations and bytes
of the compiled programs, the machine's speeds as `planning/machine.py` measures them) and timed, in turns: other work
slows both. The goal is to agree within 25 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from update import CASES, Case, Worker, prepare, programs_of

from rlef_jax.planning.costs import Seconds, training_seconds
from rlef_jax.planning.machine import measure
from rlef_jax.planning.programs import Program

SERVE = str(Path(__file__).with_name("update.py"))


def predicted(programs: dict[str, Program], case: Case) -> tuple[Seconds, list[float]]:
    """Seconds of an update on this machine as it is now, and its speeds: GFLOP/s, GB/s."""
    card = measure(case.model, case.microbatch_rows * case.length)
    parts = (training_seconds(programs[name].work, card, 1.0, 1.0) for name in ("gradients", "apply"))
    return sum(parts, Seconds(0.0, 0.0, 0.0)), [card.flops / 1e9, card.memory_bandwidth / 1e9]


def compare(name: str, repeats: int) -> dict[str, Any]:
    """Rounds of both, in turns."""
    case = CASES[name]
    programs = programs_of(case)
    work = [programs[part].work for part in ("gradients", "apply")]
    flops, moved = (sum(getattr(w, unit) for w in work) / 1e9 for unit in ("flops", "bytes"))
    print(f"{name}: {flops:,.0f} GFLOP of products, {moved:,.1f} GB")
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(case, Path(folder))
        worker = Worker(sys.executable, SERVE, "--serve", name, folder)
        for _ in range(2):  # it compiles, and takes the memory that it will use again
            worker.ask("step")
        for number in range(repeats):
            before, _ = predicted(programs, case)
            seconds = worker.ask("step")["seconds"]
            after, speeds = predicted(programs, case)
            guess = (before.total + after.total) / 2
            rounds.append((guess, seconds, guess / seconds))
            print(
                f"  round {number + 1}: predicted {guess:.2f} s (products {after.compute:.2f}, memory"
                f" {after.memory:.2f} at {speeds[0]:.0f} GFLOP/s and {speeds[1]:.0f} GB/s), measured {seconds:.2f} s",
                flush=True,
            )
        worker.close()
    predictions, times, ratios = zip(*rounds)
    return {
        "case": name, "ours": statistics.median(predictions), "baseline": statistics.median(times),
        "ratio": statistics.median(ratios), "limit_share": None, "unit": "s", "ratios": ratios,
    }  # fmt: skip


def main() -> None:
    """Runs the cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=["tiny", "smollm2"], default=["tiny", "smollm2"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of the tiny case")
    args = parser.parse_args()
    names, repeats = (["tiny"], 1) if args.quick else (args.case, args.repeats)
    results = [compare(name, repeats) for name in names]
    print(f"{'':<11}{'predicted':>11}{'measured':>10}{'ratio':>8}")
    for r in results:
        print(f"{r['case']:<11}{r['ours']:>9.2f} s{r['baseline']:>8.2f} s{r['ratio']:>8.2f}")
    print(json.dumps({"benchmark": "plan", "results": results}))


if __name__ == "__main__":
    main()
