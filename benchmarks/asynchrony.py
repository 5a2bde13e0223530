"""What sampling ahead gains when the judge is slow: python benchmarks/asynchrony.py [--quick]

The same small training job (a real model, sampler, judge and update) with `train.max_staleness` 0, 1 and 4, while every
verdict takes an extra second to arrive, as it would from judges elsewhere. On two shared cores sampler and learner
compete for the same arithmetic, so what can be gained is the time in which both would wait.

Prints the medians over iterations (the first two, which compile, left out) and one line of JSON. The limit is the
iteration whose waiting is hidden altogether: the synchronous one minus its wait for the judge.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import jax

from rlef_jax import config as config_lib
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.train import train
from rlef_jax.training.metrics_writer import read_metrics
from rlef_jax.types import Limits, TestCase, TestResult

LATENCY_S = 1.0
STALENESS = (0, 1, 4)
OVERRIDES = {
    "ppo.rollouts": 128, "ppo.updates": 2, "eval.split": "", "train.checkpoint_every": 1000,
    "train.save_episodes": False,
}  # fmt: skip


class DistantPool(ExecutionPool):
    """The judge, whose answers take `LATENCY_S` longer."""

    def run(
        self, program: str, tests: Sequence[TestCase], limits: Limits, *, stop_at_first_failure: bool = False
    ) -> Future[tuple[TestResult, ...]]:
        late: Future[tuple[TestResult, ...]] = Future()

        def pass_on(done: Future[tuple[TestResult, ...]]) -> None:
            timer = threading.Timer(LATENCY_S, lambda: late.set_result(done.result()))
            timer.daemon = True
            timer.start()

        super().run(program, tests, limits, stop_at_first_failure=stop_at_first_failure).add_done_callback(pass_on)
        return late


def iterations_of(staleness: int, count: int, seed: int) -> list[dict[str, float]]:
    """The metrics of a run's iterations, those that compile left out."""
    config = config_lib.load(
        "configs/tiny.py",
        overrides=OVERRIDES | {"train.max_staleness": staleness, "train.iterations": count + 2, "seed": seed},
    )
    with tempfile.TemporaryDirectory() as folder, DistantPool(2, find_python()) as judge:
        with contextlib.redirect_stdout(io.StringIO()):
            train(config, Path(folder), judge=judge)
        return read_metrics(Path(folder))[2:]


def main() -> None:
    """Runs the settings in turn, several times over, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of two iterations each")
    quick = parser.parse_args().quick
    rounds, count = (1, 2) if quick else (2, 6)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        iterations: dict[int, list[dict[str, float]]] = {staleness: [] for staleness in STALENESS}
        for seed in range(rounds):
            for staleness in STALENESS:
                iterations[staleness] += iterations_of(staleness, count, seed)
    medians = {
        s: {k: statistics.median(r[k] for r in rows) for k in ("time/total", "idle/learner", "idle/actor")}
        for s, rows in iterations.items()
    }
    judged = statistics.median(r["time/wait for judge"] for r in iterations[0])
    limit = medians[0]["time/total"] - judged
    print(f"{'max_staleness':>14}{'s/iteration':>13}{'gain':>7}{'learner idle':>14}{'actor idle':>12}")
    results = []
    for s, m in medians.items():
        gain = medians[0]["time/total"] / m["time/total"]
        print(f"{s:>14}{m['time/total']:>13.1f}{gain:>6.2f}x{m['idle/learner']:>13.0%}{m['idle/actor']:>12.0%}")
        results.append({
            "case": f"max_staleness={s}", "ours": m["time/total"], "baseline": medians[0]["time/total"], "ratio": gain,
            "limit_share": limit / m["time/total"], "unit": "s/iteration",
        })  # fmt: skip
    print(f"limit: {limit:.1f} s, the synchronous iteration without its {judged:.1f} s of waiting for the judge")
    print(json.dumps({"benchmark": "asynchrony", "results": results}))


if __name__ == "__main__":
    main()
