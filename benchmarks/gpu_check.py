"""What only a card can show, checked on whatever devices there are: make gpu-check, or

    python benchmarks/gpu_check.py [--config=configs/llama32_1b.py] [--init=FOLDER] [--baselines=PYTHON] [--quick]

    devices    JAX's devices, versions and memory; CPUs where there is a card are a failure
    parity     attention over pages by the kernel against the slow one; log-probabilities of the model against those on
               the host's CPU by another attention; float32, and bfloat16
    mismatch   log-probabilities of the same sampled ids, three turns, by sampler and trainer
    mesh       the update's gradients on all devices against one, float32
    update     tokens/s of the configuration's update at its longest rows, and peak memory against `rlef_jax.plan`
    sampling   tokens/s of its sampler, and peak memory; beside `transformers` on torch, and vLLM

Weights are random without --init. PYTHON is an interpreter that has torch with CUDA or vLLM, which run first, in
processes of their own, on one card. Several processes start as those of a run do (launch/slurm_gpu_check.sh): all take
part in the update, each samples on its own devices. Prints a table and a line of JSON; exit code 1: something failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

import gpu_exact
import gpu_speed
import jax
from gpu_subject import FLOAT32, GIB, HALF, Report, subject

from rlef_jax.training.processes import broadcast_from_first, find_job, join


def check_devices(report: Report) -> None:
    """What JAX found."""
    card, smi = jax.local_devices()[0], shutil.which("nvidia-smi")
    asked = [smi or "", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    there = subprocess.run(asked, capture_output=True, text=True, check=False) if smi else None
    has_card = there is not None and there.returncode == 0 and bool(there.stdout.strip())
    report.add(
        "devices", f"{card.device_kind}, {card.platform}", jax.device_count(), card.platform != "cpu" or not has_card
    )
    report.add("devices", "processes", jax.process_count())
    report.add("devices", f"jax {jax.__version__}, {' '.join(card.client.platform_version.split())[:40]}", "")
    if there is not None and has_card:
        report.add("devices", f"driver, memory: {there.stdout.splitlines()[0]}", "")
    limit = (card.memory_stats() or {}).get("bytes_limit")
    report.add("devices", "memory that JAX may use, GiB", limit / GIB if limit else "not told")


def main() -> int:
    """Runs the checks. The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/llama32_1b.py", help="whose model, update and sampler are timed")
    parser.add_argument("--init", default="", help="a folder or GGUF file of weights (default: random ones)")
    parser.add_argument("--baselines", default="", metavar="PYTHON", help="an interpreter with torch or vLLM")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    args = parser.parse_args()
    job = find_job({}, os.environ)
    alone = subject(args, 1, 1)
    others = {} if job else gpu_speed.baselines(args, alone, alone.config.sampling.rows)
    join(job)
    report, s = Report(), subject(args, jax.device_count(), jax.local_device_count())
    check_devices(report)
    with gpu_exact.exact_products():
        gpu_exact.check_kernel(report, s.cfg)
        gpu_exact.check_forward(report, s)
        gpu_exact.check_mismatch(report, s, FLOAT32)
        gpu_exact.check_mesh(report, s)
    gpu_exact.check_mismatch(report, s, HALF)
    planned = broadcast_from_first(lambda: gpu_speed.plan(s))
    learner, (state, reference, sampler) = gpu_speed.check_update(report, s, planned)
    speed = gpu_speed.check_sampling(report, s, sampler, planned)
    for library, other in others.items():
        report.add("sampling", f"{library}: tokens/s on one card", other)
        if isinstance(other, float):
            report.add("sampling", f"ours / {library}", speed / other)
    del learner, state, reference
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
