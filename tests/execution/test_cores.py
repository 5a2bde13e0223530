"""The number of usable cores, from affinity and control group quotas (v1, v2, unusual mounts)."""

import math
import os
import pathlib
import subprocess
import sys

import pytest

from rlef_jax.execution.cores import auto_workers, cpu_quota, usable_cores

V1 = pathlib.Path("/sys/fs/cgroup/cpu")


@pytest.fixture
def process(tmp_path):
    """process(cgroup, mounts, files) -> a /proc folder of a process in these groups."""

    def make(cgroup, mounts, files):
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text(cgroup)
        place = str(tmp_path).replace(" ", "\\040")
        (proc / "mountinfo").write_text("".join(f"{line}\n".replace("ROOT", place) for line in mounts))
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return proc

    return make


V1_MOUNT = "25 24 0:22 {root} ROOT/cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V2_MOUNT = "30 24 0:26 {root} ROOT/cg rw - cgroup2 cgroup2 rw,nsdelegate"
QUOTA = {"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n"}


def test_a_v2_quota_counts_at_every_level(process):
    files = {"cg/pod/cpu.max": "350000 100000\n", "cg/pod/box/cpu.max": "max 100000\n"}
    assert cpu_quota(process("0::/pod/box\n", [V2_MOUNT.format(root="/")], files)) == 3.5


def test_a_v1_quota_beside_other_hierarchies(process):
    files = {f"cg/cpu,cpuacct/docker/7/{name}": text for name, text in QUOTA.items()}
    files |= {"cg/cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cg/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
    cgroup = "9:memory:/elsewhere\n4:cpu,cpuacct:/docker/7\n1:name=systemd:/x\n0::/\n"
    mounts = [V1_MOUNT.format(root="/"), "31 24 0:27 / ROOT/cg/memory rw - cgroup cgroup rw,memory"]
    assert cpu_quota(process(cgroup, mounts, files)) == 1.5


@pytest.mark.parametrize("root, path", [("/docker/7", "/docker/7"), ("/", "/../other"), ("/docker/7", "/docker/8")])
def test_a_container_sees_its_own_group_as_the_mount(process, root, path):
    files = {f"cg/cpu,cpuacct/{name}": text for name, text in QUOTA.items()}
    assert cpu_quota(process(f"4:cpu,cpuacct:{path}\n", [V1_MOUNT.format(root=root)], files)) == 1.5


@pytest.mark.parametrize("text", ["max 100000\n", "", "many\n", "100000 0\n"])
def test_no_quota_is_no_limit(process, text):
    assert cpu_quota(process("0::/\n", [V2_MOUNT.format(root="/")], {"cg/cpu.max": text})) == math.inf


def test_where_nothing_can_be_read_there_is_no_limit(tmp_path):
    assert cpu_quota(tmp_path / "none") == math.inf
    assert usable_cores(tmp_path / "none") == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("cores, quota, workers", [(64, "max", 48), (64, "400000", 3), (64, "50000", 1), (2, "max", 1)])
def test_workers_leave_a_quarter_of_what_may_be_used(process, monkeypatch, cores, quota, workers):
    proc = process("0::/\n", [V2_MOUNT.format(root="/")], {"cg/cpu.max": f"{quota} 100000\n"})
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("rlef_jax.execution.cores.usable_cores", lambda _: usable_cores(proc))
    assert auto_workers() == workers


def test_a_real_quota():
    group = V1 / f"rlef-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        pytest.skip(f"no group with a quota can be made here: {error}")
    code = "from rlef_jax.execution.cores import auto_workers\nfrom rlef_jax.execution.cores import usable_cores\n"
    command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$0" -c "$1"', sys.executable]
    try:
        process = subprocess.run(
            [*command, f"{code}print(usable_cores(), auto_workers())"], capture_output=True, text=True
        )
    finally:
        group.rmdir()
    assert process.stdout.split() == ["0.5", "1"], process.stderr
