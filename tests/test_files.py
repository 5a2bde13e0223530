"""Disks that are full, read-only or out of inodes: real small file systems, where this user may mount them."""

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rlef_jax import config, train
from rlef_jax.files import replacing, write_text
from rlef_jax.training.episode_io import write_episodes
from rlef_jax.training.metrics_writer import FILE_NAME, MetricsWriter, read_metrics
from tests.helpers.small_run import command, environment, finish_here, leftovers

ROOT = Path(__file__).parents[1]


@pytest.fixture
def disk(tmp_path):
    """`disk(options)` mounts a file system in memory, again with other options where it is there already."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(options):
        again = ["-o", f"remount,{options}"] if os.path.ismount(folder) else ["-t", "tmpfs", "-o", options, "tests"]
        done = subprocess.run(["mount", *again, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return folder

    yield mounted
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Takes all the room there is; returns the file that has it."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler


def test_each_writer_names_its_file_and_leaves_the_old_one(disk):
    folder = disk("size=400k")
    path = folder / "episodes" / "000000.jsonl.gz"
    write_episodes(path, [])
    write_text(folder / "note.json", "old")
    writer = MetricsWriter(folder)
    writer.write(0, {"a": 1.0})
    filler = fill(folder)
    with pytest.raises(OSError, match=r"No space left on device: '.*/note\.json'"):
        write_text(folder / "note.json", "new" * 5000)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x\.npz'"), replacing(folder / "x.npz") as file:
        file.write(os.urandom(10_000))
    with pytest.raises(OSError, match=r"No space left on device: '.*/config\.json'"):
        config.save(config.base_config(), folder)
    with pytest.raises(OSError, match=rf"No space left on device: '.*/({FILE_NAME}|tensorboard/events\..*)'"), writer:
        for step in range(1, 1000):
            writer.write(step, {f"name{i}": 1.0 for i in range(100)})
    assert not leftovers(folder) and (folder / "note.json").read_text() == "old"
    assert gzip.decompress(path.read_bytes()) == b""
    filler.unlink()
    with MetricsWriter(folder, start_step=1) as again:  # the line that was cut is dropped
        again.write(1, {"a": 2.0})
    assert [record["step"] for record in read_metrics(folder)] == [0, 1]


def run(arguments):
    return subprocess.run(
        arguments, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, cwd=ROOT, timeout=600
    )


def one_line(done, *parts):
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: "), done
    for part in parts:
        assert part in line, line


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_a_run_that_fills_the_disk_says_what_is_kept_and_goes_on_after_room_is_made(disk, capsys):
    folder = disk("size=1500k")
    wanted = {"train.checkpoint_every": 1, "train.keep_checkpoints": 50}
    done = run(command(folder / "run", wanted))
    one_line(done, f"{folder}/run/", "the last good checkpoint is ")  # of what is written, anything may be hit first
    kept = int(re.search(r"the last good checkpoint is (\d+)", done.stderr)[1])
    assert max(int(p.name) for p in (folder / "run" / "checkpoints").iterdir() if p.name.isdigit()) == kept
    assert not processes_in(folder)
    disk("size=100m")
    finish_here(folder / "run", wanted)
    assert f"going on from iteration {kept} " in capsys.readouterr().out
    assert [record["step"] for record in read_metrics(folder / "run")] == list(range(10))
    assert not leftovers(folder)


def processes_in(folder):
    """Processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


# Saves, and at some point writes a file, as a run does between its saves.
SAVES = """
    import sys
    from pathlib import Path
    import jax.numpy as jnp
    from absl import logging
    from rlef_jax.command_line import errors_as_lines
    from rlef_jax.files import write_text
    from rlef_jax.training.checkpoint import Checkpoints

    logging.set_verbosity(logging.FATAL)
    folder, wait, rows = Path(sys.argv[1]), sys.argv[2] == "wait", int(sys.argv[3])
    with errors_as_lines(), Checkpoints(folder / "checkpoints", keep=50) as checkpoints:
        with checkpoints.last_good_in_errors():
            for step in range(1, 40):
                state = {f"w{i}": jnp.full((1000,), step * i / 7) for i in range(rows)}
                checkpoints.save(step, {"state": state}, {})
                if wait:
                    checkpoints.wait()
                write_text(folder / f"episodes_{step}", "x" * 20_000)
"""


@pytest.mark.parametrize("options", ["size=600k", "size=50m,nr_inodes=120"], ids=["no room", "no inodes"])
@pytest.mark.parametrize(("wait", "rows"), [("wait", 2), ("go on", 40)])
def test_whatever_is_hit_first_is_one_line(disk, options, wait, rows):
    folder = disk(options)
    done = run([sys.executable, "-c", textwrap.dedent(SAVES), str(folder), wait, str(rows)])
    one_line(done, "No space left on device" if "episodes_" in done.stderr else "could not be written", " checkpoint")
    assert str(folder) in done.stderr


@pytest.mark.parametrize("what", ["read-only", "a file", "below a file"])
def test_a_workdir_that_cannot_be_is_one_line(disk, tmp_path, monkeypatch, capsys, what):
    if what == "read-only":
        workdir = disk("size=1m,ro") / "run"
    else:
        workdir = tmp_path / "file"
        workdir.write_text("")
        workdir = workdir / "run" if what == "below a file" else workdir
    monkeypatch.setattr(sys, "argv", command(workdir)[2:])
    with pytest.raises(SystemExit) as ended:
        train.main()
    one_line(argparse.Namespace(returncode=ended.value.code, stderr=capsys.readouterr().err), f"'{workdir}'")


def test_an_evaluation_names_the_file_that_could_not_be_written(disk, tmp_path):
    folder = disk("size=100k")
    fill(folder)
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"task_id": "x", "solution": "print(1)"}) + "\n")
    done = run([sys.executable, "-m", "rlef_jax.evaluate", f"--judge-only={samples}", "--problems=1",
                "--benchmark=mini_contests/valid", "--turns=1", f"--out={folder}/out"])  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode in (1, 2) and line.startswith("error: "), done
