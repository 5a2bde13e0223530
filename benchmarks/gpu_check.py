"""What only a card can show, checked on whatever devices there are: make gpu-check, or

    python benchmarks/gpu_check.py [--config=configs/llama32_1b.py] [--init=FOLDER] [--baselines=PYTHON] [--quick]

    devices    JAX's devices, versions and memory, a sum over all devices; CPUs where there is a card are a failure
    parity     attention over pages by the kernel against the slow one; log-probabilities of the model against those on
               the host's CPU by another attention; float32, and bfloat16
    mismatch   log-probabilities of the same sampled ids, three turns, by sampler and trainer
    mesh       the update's gradients on all devices against one, float32
    update     the configuration's update at its longest rows: tokens/s, and peak memory against `rlef_jax.plan`
    sampling   its sampler: tokens/s, and peak memory
    baselines  tokens/s of `transformers` on torch and of vLLM, and ours over theirs

Weights are random without --init. PYTHON is an interpreter that has torch with CUDA or vLLM, which run first, in
processes of their own, on one card. Several processes start as those of a run do (launch/slurm_gpu_check.sh): all take
part in the update, each samples on its own devices. Prints a table, what became of each stage and a line of JSON; exit
code 1: a stage failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

import gpu_exact
import gpu_speed
import jax
import numpy as np
from gpu_report import Report
from gpu_subject import FLOAT32, GIB, HALF, Subject, subject
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlef_jax.command_line import errors_as_lines
from rlef_jax.errors import ConfigError
from rlef_jax.training.processes import broadcast_from_first, find_job, is_first, join

SPOILED = ("devices", "parity", "mismatch", "mesh", "update", "sampling")
STAGES = (*SPOILED, "baselines")


def nvidia_smi() -> str:
    """The cards that the driver shows, with its version and their memory; "" where it shows none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    asked = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def check_devices(report: Report, s: Subject, shown: str) -> None:
    """What JAX found, and whether all of it works together."""
    card = jax.local_devices()[0]
    report.judge(f"JAX uses {card.device_kind}; nvidia-smi shows {'a card' if shown else 'none'}",
                 jax.device_count(), card.platform != "cpu" or not shown)  # fmt: skip
    report.tell("processes", jax.process_count())
    report.tell(f"jax {jax.__version__}, {' '.join(card.client.platform_version.split())[:40]}")
    for line in shown.splitlines():
        report.tell(f"nvidia-smi: {line}")
    limit = (card.memory_stats() or {}).get("bytes_limit")
    report.tell("memory that JAX may use, GiB", limit / GIB if limit else "not told")
    count = jax.device_count()
    where = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec("all"))
    numbers = np.arange(1, count + 1, dtype=np.float32)
    array = s.spoiled("devices", jax.make_array_from_callback(numbers.shape, where, lambda index: numbers[index]))
    off = abs(float(jax.jit(lambda a: a.sum())(array)) - count * (count + 1) / 2)
    report.at_most("a sum over all devices: gap", off, 0.0)


def check_all(args: argparse.Namespace) -> int:
    """Runs the stages. The exit code."""
    job, shown = find_job({}, os.environ), nvidia_smi()
    if not shown and not args.quick:
        raise ConfigError("nvidia-smi shows no card; --quick runs a tiny model on CPUs")
    if not shown:  # the quick form compiles much and computes little
        jax.config.update("jax_disable_most_optimizations", True)
    others = gpu_speed.baselines(args, subject(args, 1, 1)) if "baselines" in args.stages and not job else {}
    join(job)
    report, s = Report(jax.default_backend()), subject(args, jax.device_count(), jax.local_device_count())
    with report.stage("devices"):
        check_devices(report, s, shown)
    if jax.default_backend() == "cpu" and not args.quick:
        return report.end()  # the rest would take hours
    timed = {"update", "sampling"} & set(args.stages)
    pool = concurrent.futures.ThreadPoolExecutor(1)
    planning = pool.submit(gpu_speed.plan, s, gpu_speed.described()) if timed and is_first() else None
    check_numbers(report, s, args.stages)
    speed = check_speeds(report, s, lambda: planning.result() if planning else None) if timed else None
    if "baselines" in args.stages:
        with report.stage("baselines"):
            if job:
                report.skip("baselines", "in a job of one process only")
            gpu_speed.check_baselines(report, others, speed)
    return report.end()


def check_numbers(report: Report, s: Subject, stages: Sequence[str]) -> None:
    """The stages that compare numbers; where float32 has a bound, products are in float32."""
    checks = {
        "parity": [gpu_exact.check_kernel, gpu_exact.check_forward],
        "mismatch": [functools.partial(gpu_exact.check_mismatch, dtype=FLOAT32)],
        "mesh": [gpu_exact.check_mesh],
    }
    with gpu_exact.exact_products():
        for name in [name for name in checks if name in stages]:
            with report.stage(name):
                for check in checks[name]:
                    check(report, s)
    if "mismatch" in stages:
        with report.stage("mismatch"):
            gpu_exact.check_mismatch(report, s, HALF)


def check_speeds(report: Report, s: Subject, make_plan: Callable[[], gpu_speed.Planned | None]) -> float | None:
    """The update and the sampler with all that lies on a card of a run; the sampler's tokens a second of a device.

    `make_plan` is called in the first process.
    """
    sampler, held, speed = None, None, None
    with report.stage("update"):
        planned = broadcast_from_first(make_plan)
        sampler, held = gpu_speed.check_update(report, s, planned)
    with report.stage("sampling"):
        if sampler is None:
            report.skip("sampling", "the update failed")
        else:
            speed = gpu_speed.check_sampling(report, s, sampler, planned)
    del held  # until here it lay on the card
    return speed


def main() -> None:
    """Exits with 1 where a stage failed, with 2 where it can't begin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/llama32_1b.py", help="whose model, update and sampler are timed")
    parser.add_argument("--init", default="", help="a folder or GGUF file of weights (default: random ones)")
    parser.add_argument("--baselines", default="", metavar="PYTHON", help="an interpreter with torch or vLLM")
    parser.add_argument(
        "--stages", nargs="+", default=STAGES, choices=STAGES,
        help="only these, and devices; update and sampling go together",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument(
        "--spoil", nargs="+", default=[], choices=SPOILED, help="a wrong number for these stages: they must fail"
    )
    args = parser.parse_args()
    with errors_as_lines():
        code = check_all(args)
    sys.exit(code)


if __name__ == "__main__":
    main()
