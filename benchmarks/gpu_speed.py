"""Checks of `gpu_check.py` that take time and memory: the update and the sampler, beside a plan and other libraries."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_subject import GIB, MICROBATCHES, Report, Subject, build_sampler
from update import Case, make_batch

from rlef_jax.planning import target
from rlef_jax.planning.costs import flops_per_token
from rlef_jax.ppo.update import Learner
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.build import build_learner
from rlef_jax.training.processes import all_gather, on_this_process

ROOT = Path(__file__).resolve().parents[1]


def check_update(report: Report, s: Subject, planned: dict[str, float]) -> tuple[Learner, Any]:
    """Seconds of the configuration's update with all that a run has on the card. (learner, state)."""
    config, p = s.config, s.config.ppo
    learner = build_learner(config, s.cfg)
    dtype = jnp.dtype(config.model.param_dtype)
    policy = s.params(dtype, learner.param_shardings["policy"])
    state, reference = learner.init(jax.random.PRNGKey(1), policy), learner.place_policy(policy)
    sampler = build_sampler(config, s.cfg, on_this_process(policy, learner.mesh))
    del policy
    length = p.buckets[-1]
    case = Case(s.cfg, p.microbatch_rows, length, {}, p.microbatch_rows)
    batches = [make_batch(case, seed) for seed in range(MICROBATCHES)]
    seconds = 0.0
    for _ in range(2):  # the first one compiles
        began = time.perf_counter()
        state, metrics = learner.update(state, batches)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
    tokens = MICROBATCHES * case.tokens / jax.device_count()
    report.add("update", "loss is finite, gradients applied", metrics["loss"], bool(metrics["applied"]))
    report.add("update", f"tokens/s of a device, rows of {length}", tokens / seconds)
    name = _described()
    if name is not None:
        flops = 3 * flops_per_token(s.cfg, length, 0.5) * (2 if p.separate_critic else 1) * tokens / seconds
        report.add("update", f"share of the {name}'s peak, nothing counted twice", flops / target.card(name).flops)
    report_peak(report, "update", planned.get("trains"))
    return learner, (state, reference, sampler)


def check_sampling(report: Report, s: Subject, sampler: Sampler, planned: dict[str, float]) -> float:
    """Seconds of as many requests as the sampler has rows. Tokens a second of a device."""
    prompt, new, _ = s.lengths
    rows, vocabulary = s.config.sampling.rows, s.cfg.vocab_size
    given = np.random.default_rng(1).integers(1, vocabulary, (rows, prompt)).tolist()
    began = 0.0
    with sampler.session() as session:
        for step, count in ((0, 2 * s.config.sampling.decode_steps), (1, new)):
            all_gather(step)  # all processes at once
            began = time.perf_counter()
            asked = SamplingConfig(1.0, 1.0, 0, (vocabulary,), min(count, new))
            futures = [
                session.respond(session.dialogue(seed=0, step=step, episode=i), g, asked, turn=0, last=True)
                for i, g in enumerate(given)
            ]
            assert all(len(f.result().ids) == asked.max_new_tokens for f in futures)
        seconds = max(all_gather(time.perf_counter() - began))
    speed = rows * new / seconds / jax.local_device_count()
    report.add("sampling", f"tokens/s of a device, {rows} x ({prompt} + {new})", speed)
    report_peak(report, "sampling", planned.get("samples"))
    return speed


def report_peak(report: Report, check: str, planned: float | None) -> None:
    """The most that JAX has held on this process's first card, against the plan's number."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is None:
        report.add(check, "peak memory: not told by this platform", "left out")
    elif planned is None:
        report.add(check, "peak memory, GiB; no plan for this card", peak / GIB)
    else:
        report.add(check, "peak memory, GiB, within 10 % of the plan's", peak / GIB,
                   abs(peak / GIB - planned) <= 0.1 * planned, planned)  # fmt: skip


def _described() -> str | None:
    """The target that describes this card."""
    kind = jax.local_devices()[0].device_kind
    described = {name: target.FOLDER / f"{name}.txtpb" for name in target.names()}
    return next((n for n, f in described.items() if f.is_file() and f'name: "{kind}"' in f.read_text()), None)


def planned_gib(text: str) -> dict[str, float]:
    """{"trains", "samples": GiB} of what `rlef_jax.plan` prints."""
    return {what: float(size) for what, size in re.findall(r"(trains|samples) in ([\d.]+) GiB", text)}


def plan(s: Subject) -> dict[str, float]:
    """The plan's numbers for this card; {} where no target describes it. It compiles on the CPU, in minutes."""
    name = _described()
    if name is None:
        return {}
    options = [f"--config.{key}={value}" for key, value in s.overrides.items()]
    command = [sys.executable, "-m", "rlef_jax.plan", f"--config={s.path}", f"--target={name}",
               f"--vocabulary={s.cfg.vocab_size}", *options]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return planned_gib(done.stdout)


def baselines(args: argparse.Namespace, s: Subject, rows: int) -> dict[str, float | str]:
    """{library: tokens a second on one card, or why there is no number}. To be called before JAX takes the card."""
    sizes = {name: getattr(s.cfg, name) for name in
             ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff")}  # fmt: skip
    prompt, new, _ = s.lengths
    order = {
        "model": sizes,
        "rows": rows,
        "prompt": prompt,
        "new": new,
        "dtype": "float32" if args.quick else "bfloat16",
    }
    found: dict[str, float | str] = {}
    for library, script in (("transformers", "torch_generate.py"), ("vllm", "vllm_generate.py")):
        find = f"import importlib.util as u; raise SystemExit(not (u.find_spec({library!r}) and u.find_spec('torch')))"
        if not args.baselines or subprocess.run([args.baselines, "-c", find], check=False).returncode:
            found[library] = "not installed"
            continue
        orders = json.dumps(order | {"new": 2}) + "\n" + json.dumps(order)  # the first one warms up
        command = [args.baselines, str(ROOT / "benchmarks" / script)]
        done = subprocess.run(command, input=orders, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
        found[library] = rows * new / json.loads(lines[1])["seconds"] if len(lines) == 2 else "failed"
        if found[library] == "failed":
            print(done.stderr[-2000:], file=sys.stderr)
    return found
