"""Host memory of an evaluation of 100,000 rollouts, beside all of its episodes held at once.

    .venv/bin/python benchmarks/evaluation_memory.py --workdir=runs/demo [--quick]

The rollouts are not sampled: the evaluation's folder is filled with a run's own saved ones of test_500
(`episodes/rlef.jsonl.gz`), each as often as a problem has rollouts, 200 as in the paper (B.1). Then `rlef_jax.evaluate`
goes on in that folder: it finds every chunk made, and does all that it does after sampling, intervals too. The
baseline is a process that keeps the episodes, and nothing else: a tenth of them, scaled up. Memory is resident size:
the highest of the evaluation (`ru_maxrss`), and what the baseline's grew by. The goal is 2 GiB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlef_jax.evaluation.chunk_store import CHUNKS, SETTINGS
from rlef_jax.training.episode_io import read_episodes, write_episodes

ROOT = Path(__file__).resolve().parents[1]
TURNS = 3
_GIB = 1 << 30
# Run by a process of its own: what the episodes of some chunks take.
_HOLD = """
import os, sys
from pathlib import Path
from rlef_jax.training.episode_io import read_episodes
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
held = [e for path in sys.argv[1:] for e in read_episodes(Path(path))]
print(len(held), resident() - before)
"""


def evaluation(workdir: Path, folder: Path, rollouts: int) -> list[str]:
    """The command line of an evaluation of test_500 in `folder`."""
    return [
        sys.executable, "-m", "rlef_jax.evaluate", f"--workdir={workdir}", "--split=test_500", f"--turns={TURNS}",
        f"--samples={TURNS * rollouts}", f"--chunk={rollouts}", f"--out={folder}",
    ]  # fmt: skip


def begin(command: list[str], folder: Path) -> None:
    """Lets an evaluation write its settings, and ends it."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not ((folder / SETTINGS).exists() and (folder / "inputs.json").exists()):
        if process.poll() is not None:
            raise SystemExit(f"error: the evaluation ended: {process.communicate()[1]}")
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def fill(workdir: Path, folder: Path, rollouts: int) -> int:
    """Writes a chunk for each problem; how many episodes that are."""
    count = 0
    for number, episode in enumerate(read_episodes(workdir / "episodes" / "rlef.jsonl.gz")):
        copies = [dataclasses.replace(episode, index=count + i) for i in range(rollouts)]
        write_episodes(folder / CHUNKS / f"{number:06d}.jsonl.gz", copies)
        count += rollouts
    return count


def measured(command: list[str]) -> tuple[int, float, str]:
    """(highest resident bytes, seconds, output) of a command."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"error: {' '.join(command)} failed:\n{text[-3000:]}")
    return usage.ru_maxrss << 10, time.perf_counter() - began, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="a finished run of configs/tiny.py")
    parser.add_argument("--quick", action="store_true", help="5,000 episodes")
    args = parser.parse_args()
    rollouts = 10 if args.quick else 200
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "evaluation"
        command = evaluation(args.workdir.resolve(), folder, rollouts)
        begin(command, folder)
        count = fill(args.workdir, folder, rollouts)
        ours, seconds, _ = measured(command)
        chunks = sorted(map(str, (folder / CHUNKS).iterdir()))
        held, grown = map(int, measured([sys.executable, "-c", _HOLD, *chunks[::10]])[2].split()[-2:])
    baseline = grown / held * count
    print(f"{count:,} rollouts of 500 problems, in {seconds:.0f} s")
    print(f"rlef_jax.evaluate, at most        {ours / _GIB:6.2f} GiB (JAX and the model included)")
    print(f"all episodes held, from {held:,} {baseline / _GIB:6.2f} GiB")
    results = {
        "case": f"{count} rollouts", "ours": ours / _GIB, "baseline": baseline / _GIB, "ratio": baseline / ours,
        "limit_share": None, "unit": "GiB",
    }  # fmt: skip
    print(json.dumps({"benchmark": "evaluation_memory", "results": [results]}))


if __name__ == "__main__":
    main()
