"""A job of several processes: who is who, and what must go from one to the others.

Each process drives its own devices and runs the same program on the same episodes. A job's processes are looked up in
this order:

    flags        --coordinator=HOST:PORT --processes=4 --process=0
    environment  RLEF_JAX_COORDINATOR, RLEF_JAX_PROCESSES, RLEF_JAX_PROCESS
    a cluster    SLURM and Kubernetes, as JAX knows them, where RLEF_JAX_PROCESSES is "auto"

JAX's own handler of SIGTERM, which only notes that it came, is switched off: a stopped job ends as one process would.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlef_jax.errors import ConfigError
from rlef_jax.training.meeting import meet

NAMES = {"coordinator": "RLEF_JAX_COORDINATOR", "processes": "RLEF_JAX_PROCESSES", "process": "RLEF_JAX_PROCESS"}
HEARTBEAT_S = 20
"""A process that says nothing for so long is dead, and its job ends."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Process `process` of `processes`, which meet at `coordinator`; all None where JAX finds out by itself."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def find_job(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Job | None:
    """The job that flags and environment name; None for a process by itself.

    Raises ConfigError where some of what is needed is missing, or isn't a number.
    """
    values = {name: flags.get(name) or environment.get(variable) for name, variable in NAMES.items()}
    if not any(values.values()):
        return None
    if values["processes"] == "auto":
        return Job()
    missing = [f"--{name} or {NAMES[name]}" for name, value in values.items() if not value]
    if missing:
        raise ConfigError(f"a job of several processes needs {', '.join(missing)} too")
    try:
        processes, process = int(values["processes"] or ""), int(values["process"] or "")
    except ValueError as error:
        raise ConfigError(f"--processes and --process are numbers: {error}") from error
    if not 0 <= process < processes:
        raise ConfigError(f"--process={process} must be from 0 to {processes - 1}, one less than --processes")
    return Job(values["coordinator"], processes, process)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --coordinator, --processes and --process; `join_named` reads them."""
    for name, help_text in (
        ("coordinator", "HOST:PORT where the job's processes meet"),
        ("processes", 'how many there are, or "auto" under SLURM and Kubernetes'),
        ("process", "which one this is, from 0"),
    ):
        parser.add_argument(f"--{name}", help=f"in a job of several processes (docs/cluster.md): {help_text}")


def join_named(args: argparse.Namespace) -> None:
    """`join`s the job that a command line with `add_job_arguments` or the environment names."""
    join(find_job({name: getattr(args, name) for name in NAMES}, os.environ))


def join(job: Job | None) -> None:
    """Waits until all processes of the job are there. To be called before anything else asks JAX for devices.

    Raises ConfigError, RunError where the coordinator's address can't be used or not all came: see `meeting.meet`.
    """
    if job is None:
        return
    if job.coordinator is not None and job.processes is not None and job.process is not None:
        meet(job.coordinator, job.processes, job.process)
    jax.config.update("jax_enable_preemption_service", False)
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        job.coordinator, job.processes, job.process, heartbeat_timeout_seconds=HEARTBEAT_S,
        cluster_detection_method="deactivate" if job.coordinator else None,
    )  # fmt: skip


def is_first() -> bool:
    """Whether this is the process that writes logs, metrics and results."""
    return jax.process_index() == 0


def all_gather(item: Any) -> list[Any]:
    """Every process's item, in their order; each process must call this, as often as the others do."""
    if jax.process_count() == 1:
        return [item]
    data = np.frombuffer(pickle.dumps(item), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([data.size]))[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def broadcast_from_first(make: Callable[[], Any]) -> Any:
    """What `make()` gives in the first process, in all of them; the others wait for it."""
    return all_gather(make() if is_first() else None)[0]


def on_host(tree: Any) -> Any:
    """Arrays that lie on all processes' devices, as numpy arrays in the first process; None in place of each in others.

    No device ever holds more than one of them whole.
    """
    if jax.process_count() == 1:
        return tree

    def one(array: Any) -> np.ndarray | None:
        whole = on_this_process(array, array.sharding.mesh)
        return np.asarray(whole) if is_first() else None

    return jax.tree.map(one, tree)


def on_this_process(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Arrays that lie on all processes' devices, whole on one of this process's; where they are in a job of one."""
    if jax.process_count() == 1:
        return tree
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    replicated = jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)
    return jax.tree.map(lambda a: a.addressable_data(0), replicated)
