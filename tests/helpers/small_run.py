"""The whole training job at its smallest, started as a process, and the comparison of two finished runs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rlef_jax import config as config_lib
from rlef_jax.train import train
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.training.metrics_writer import read_metrics
from rlef_jax.types import Episode
from tests.helpers.compiled import READ_ONLY

OVERRIDES: dict[str, Any] = {
    "model.init": "",
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_head": 8,
    "model.d_ff": 32,
    "episode.max_new_tokens": 8,
    "sampling.rows": 4,
    "sampling.workers": 1,
    "sampling.cache_lengths": (),
    "sampling.prefill_chunks": (64,),
    "ppo.rollouts": 8,
    "ppo.updates": 2,
    "ppo.microbatch_rows": 4,
    "ppo.buckets": (256,),
    "train.iterations": 10,
    "train.checkpoint_every": 2,
    "train.plots": False,
    "eval.split": "",
    "eval.problems": 4,
    "eval.bootstrap_samples": 20,
}


def command(workdir: Path, overrides: dict[str, Any] | None = None, *flags: str) -> list[str]:
    """The command line of `rlef_jax.train` on a tiny run."""
    values = OVERRIDES | (overrides or {})
    options = [f"--config.{key}={value}" for key, value in values.items()]
    return [
        sys.executable, "-m", "rlef_jax.train", "--config=configs/tiny.py", f"--workdir={workdir}", *options, *flags,
    ]  # fmt: skip


def environment(**extra: str) -> dict[str, str]:
    """Of a process that compiles much and computes little, with `extra`."""
    return os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **extra}


def start(workdir: Path, overrides: dict[str, Any] | None = None, *flags: str, **extra: str) -> subprocess.Popen[str]:
    """Starts a run, which may be killed, in a process group of its own, with `extra` in its environment."""
    return subprocess.Popen(
        command(workdir, overrides, *flags),
        env=environment(**READ_ONLY, **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(workdir: Path, overrides: dict[str, Any] | None = None, *flags: str, **extra: str) -> str:
    """Runs to the end with `extra` in its environment; the output. Fails if the run does."""
    done = subprocess.run(
        command(workdir, overrides, *flags),
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def finish_here(workdir: Path, overrides: dict[str, Any] | None = None) -> None:
    """As `finish`, in this process, which has imported everything. Fixture `as_processes_compile` makes it the same."""
    train(config_lib.load("configs/tiny.py", overrides=OVERRIDES | (overrides or {})), workdir)


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """A record of metrics.jsonl without what a clock or the machine decides."""
    return {
        name: value
        for name, value in record.items()
        if not name.startswith(("time", "idle/", "sampler/", "pool/busy", "pool/retries", "pool/seconds/", "memory"))
        and "per_s" not in name
    }


def untimed(episode: Episode) -> Episode:
    """An episode without what a clock or the machine decides."""

    def results(part: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dataclasses.replace(r, cpu_s=0.0, wall_s=0.0, memory_bytes=0) for r in part)

    def verdict(v: Any) -> Any:
        return v and dataclasses.replace(v, public=results(v.public), hidden=results(v.hidden))

    turns = tuple(dataclasses.replace(t, verdict=verdict(t.verdict)) for t in episode.turns)
    return dataclasses.replace(episode, turns=turns)


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, metrics and episodes are equal bit for bit, times apart."""
    with np.load(one / "policy.npz") as a, np.load(other / "policy.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    with Checkpoints(one / "checkpoints", read_only=True) as a, Checkpoints(other / "checkpoints", read_only=True) as b:
        assert a.latest is not None and a.latest == b.latest
        # The hashes are of every byte: policy, critic, both moments, step.
        assert a.metadata(a.latest) == b.metadata(b.latest)
    assert [timeless(r) for r in read_metrics(one)] == [timeless(r) for r in read_metrics(other)]
    names = sorted(p.name for p in (one / "episodes").iterdir())
    assert names == sorted(p.name for p in (other / "episodes").iterdir())
    for name in names:
        first, second = read_episodes(one / "episodes" / name), read_episodes(other / "episodes" / name)
        assert [untimed(e) for e in first] == [untimed(e) for e in second], name
    for name in sorted(p.name for p in (one / "evaluations").glob("*.json")):
        assert json.loads((one / "evaluations" / name).read_text()) == json.loads(
            (other / "evaluations" / name).read_text()
        )


def leftovers(workdir: Path) -> list[str]:
    """What a run must not leave behind: half-written files."""
    return [str(p) for p in workdir.rglob("*") if p.name.endswith(".part") or "checkpoint-tmp" in p.name]


def group_members(group: int) -> list[int]:
    """The processes of a process group that haven't ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[2]) == group and stat[0] != "Z":  # stat[2]: the session's process group
                found.append(int(entry.name))
    return found


def wait_until_gone(group: int, seconds: float = 10.0) -> bool:
    """Whether all processes of a group end in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not group_members(group):
            return True
        time.sleep(0.1)
    return False
