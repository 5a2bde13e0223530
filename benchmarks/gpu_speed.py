"""Stages of `gpu_check.py` that take time and memory: the update and the sampler, beside a plan and other libraries."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_report import Report
from gpu_subject import GIB, MICROBATCHES, Subject, build_sampler
from update import Case, make_batch

from rlef_jax.planning import target
from rlef_jax.planning.costs import flops_per_token
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.build import build_learner
from rlef_jax.training.processes import all_gather, on_this_process

ROOT = Path(__file__).resolve().parents[1]
UPDATES = 2  # the first one compiles
MEMORY_BOUND = 0.1  # of the plan's number


@dataclasses.dataclass(frozen=True)
class Planned:
    """What `rlef_jax.plan` says a card holds at most, GiB; or why there is no such number, and whether it should be."""

    trains: float = math.nan
    samples: float = math.nan
    missing: str = ""
    failed: bool = False


def check_update(report: Report, s: Subject, planned: Planned) -> tuple[Sampler, Any]:
    """Seconds of the configuration's update with all that a run has on the card: (sampler, what else lies there)."""
    config, p, before = s.config, s.config.ppo, peak_gib()
    learner = build_learner(config, s.cfg)
    dtype = jnp.dtype(config.model.param_dtype)
    policy = s.params(dtype, learner.param_shardings["policy"])
    reference = learner.place_policy(policy)
    state = learner.init(jax.random.PRNGKey(1), s.spoiled("update", policy, math.nan))
    sampler = build_sampler(config, s.cfg, s.spoiled("sampling", on_this_process(policy, learner.mesh), math.nan))
    del policy
    length = p.buckets[-1]
    case = Case(s.cfg, p.microbatch_rows, length, {}, p.microbatch_rows)
    batches = [make_batch(case, seed) for seed in range(MICROBATCHES)]
    seconds = 0.0
    for _ in range(UPDATES):
        began = time.perf_counter()
        state, metrics = learner.update(state, batches)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
    after = peak_gib()
    report.judge("gradients are finite, their norm", metrics["grad_norm"], bool(metrics["applied"]))
    moved = _largest_change(state.params["policy"], reference) / p.learning_rate
    # AdamW moves a weight by one learning rate at most, and its decay by less.
    report.judge("weights move, in learning rates", moved, 0 < moved <= 1.2 * UPDATES, 1.2 * UPDATES)
    tokens = MICROBATCHES * case.tokens / jax.device_count()
    report.tell(f"tokens/s of a device, rows of {length}", tokens / seconds)
    name = described()
    if name is not None:
        flops = 3 * flops_per_token(s.cfg, length, 0.5) * (2 if p.separate_critic else 1) * tokens / seconds
        report.tell(f"share of the {name}'s peak, nothing counted twice", flops / target.card(name).flops)
    report_peak(report, before, after, planned, planned.trains)
    return sampler, (state, reference)


def _largest_change(new: Any, old: Any) -> float:
    """Of any weight, float32."""

    def largest(new: Any, old: Any) -> jax.Array:
        gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))), new, old)
        return jnp.max(jnp.stack(jax.tree.leaves(gaps)))

    return float(jax.jit(largest)(new, old))


def check_sampling(report: Report, s: Subject, sampler: Sampler, planned: Planned) -> float:
    """Seconds of as many requests as the sampler has rows. Tokens a second of a device."""
    (prompt, new, _), before = s.lengths, peak_gib()
    rows, vocabulary = s.config.sampling.rows, s.cfg.vocab_size
    given = np.random.default_rng(1).integers(1, vocabulary, (rows, prompt)).tolist()
    began, samples = 0.0, []
    with sampler.session() as session:
        for step, count in ((0, 2 * s.config.sampling.decode_steps), (1, new)):
            all_gather(step)  # all processes at once
            began = time.perf_counter()
            asked = SamplingConfig(1.0, 1.0, 0, (vocabulary,), min(count, new))
            futures = [
                session.respond(session.dialogue(seed=0, step=step, episode=i), g, asked, turn=0, last=True)
                for i, g in enumerate(given)
            ]
            samples = [f.result() for f in futures]
        seconds = max(all_gather(time.perf_counter() - began))
    after, logp = peak_gib(), np.array([logp for sample in samples for logp in sample.policy_logp])
    ids = np.array([i for sample in samples for i in sample.ids])
    sane = ids.size == rows * new and ids.min() >= 0 and ids.max() < vocabulary and bool(np.all(logp <= 0))
    report.judge("ids are of the vocabulary, log p is no NaN, its mean", float(logp.mean()), sane)
    speed = rows * new / seconds / jax.local_device_count()
    report.tell(f"tokens/s of a device, {rows} x ({prompt} + {new})", speed)
    report_peak(report, before, after, planned, planned.samples)
    return speed


def peak_gib() -> float | None:
    """The most that JAX has held on this process's first device so far; None where the platform doesn't tell."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / GIB


def report_peak(report: Report, before: float | None, after: float | None, plan: Planned, planned: float) -> None:
    """A stage's peak memory against `planned`. JAX never lowers a peak: an earlier stage's may hide it."""
    what = "peak memory, GiB"
    if before is None or after is None:
        report.skip(what, "this platform doesn't tell it")
    elif plan.failed:
        report.judge(f"{what}: {plan.missing}", after, False)
    elif plan.missing:
        report.tell(what, after)
        report.skip("peak memory against the plan", plan.missing)
    elif after <= before:
        report.skip(what, f"at most the {before:.1f} of an earlier stage")
    else:
        near = abs(after - planned) <= MEMORY_BOUND * planned
        report.judge(f"{what}, within {MEMORY_BOUND:.0%} of the plan's", after, near, planned)


def described() -> str | None:
    """The target that describes this card."""
    kind = jax.local_devices()[0].device_kind
    texts = {name: target.FOLDER / f"{name}.txtpb" for name in target.names()}
    return next((n for n, f in texts.items() if f.is_file() and f'name: "{kind}"' in f.read_text()), None)


def planned_gib(text: str) -> dict[str, float]:
    """{"trains", "samples": GiB} of what `rlef_jax.plan` prints."""
    return {what: float(size) for what, size in re.findall(r"(trains|samples) in ([\d.]+) GiB", text)}


def plan(s: Subject, name: str | None) -> Planned:
    """The plan's numbers for the target of this name; it compiles on the host's CPU, in minutes."""
    if s.quick:
        return Planned(missing="--quick")
    if name is None:
        return Planned(missing=f"no target of rlef_jax.plan describes {jax.local_devices()[0].device_kind}")
    options = [f"--config.{key}={value}" for key, value in s.overrides.items()]
    command = [sys.executable, "-m", "rlef_jax.plan", f"--config={s.path}", f"--target={name}",
               f"--vocabulary={s.cfg.vocab_size}", *options]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = planned_gib(done.stdout)
    if set(found) != {"trains", "samples"}:
        print(done.stderr[-2000:], file=sys.stderr)
        return Planned(missing=f"the plan ended with code {done.returncode}", failed=True)
    return Planned(**found)


def baselines(args: argparse.Namespace, s: Subject) -> dict[str, dict[str, Any]]:
    """{library: {"speed": tokens a second on one card, "device"}, or {"skipped" or "failed": why}}.

    To be called before JAX takes the card's memory.
    """
    names = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff", "tie_embeddings")
    sizes = {name: getattr(s.cfg, name) for name in names}
    (prompt, new, _), rows = s.lengths, s.config.sampling.rows
    dtype = "float32" if args.quick else "bfloat16"
    order = {"model": sizes, "rows": rows, "prompt": prompt, "new": new, "dtype": dtype}
    scripts = {"transformers": "torch_generate.py", "vllm": "vllm_generate.py"}
    return {library: _baseline(args.baselines, library, script, order) for library, script in scripts.items()}


def _baseline(python: str, library: str, script: str, order: dict[str, Any]) -> dict[str, Any]:
    if not python:
        return {"skipped": "no --baselines=PYTHON"}
    find = f"import importlib.util as u; raise SystemExit(not (u.find_spec({library!r}) and u.find_spec('torch')))"
    if subprocess.run([python, "-c", find], check=False).returncode:
        return {"skipped": f"{python} has none"}
    orders = json.dumps(order | {"new": 2}) + "\n" + json.dumps(order)  # the first one warms up
    command = [python, str(ROOT / "benchmarks" / script)]
    done = subprocess.run(command, input=orders, capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if len(answers) != 2:
        print(done.stderr[-2000:], file=sys.stderr)
        return {"failed": f"{script} ended with code {done.returncode}"}
    return {"speed": order["rows"] * order["new"] / answers[1]["seconds"], "device": answers[1]["device"]}


def check_baselines(report: Report, found: dict[str, dict[str, Any]], ours: float | None) -> None:
    """Other libraries' tokens a second, and ours over theirs."""
    for library, other in found.items():
        if "skipped" in other:
            report.skip(library, other["skipped"])
        elif "failed" in other:
            report.judge(f"{library}: {other['failed']}", "", False)
        else:
            report.tell(f"{library}: tokens/s on one device", other["speed"], on=other["device"])
            if ours is not None:
                report.tell(f"ours / {library}", ours / other["speed"])
