"""Building and reading a synthetic CodeContests past 1 GB: python benchmarks/code_contests.py [--quick] [--keep=FOLDER]

Writes parquet files in the release's layout (each one row group, as published, with solutions in C++ and Java that the
build drops), builds them in a process of its own, and reads problems at random. Three quarters of the problems have 60
tests of a kilobyte, a quarter 400 of two. Prints a table and one line of JSON: seconds and peak memory of the build
against 2 GB, milliseconds a problem against 2 ms, and the baseline of both: reading the parquet columns that are
needed, and TFDS's own access to a record, without making a Problem of it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from rlef_jax import arguments
from rlef_jax.data.code_contests.reader import open_split

COLUMNS = (
    "name", "description", "public_tests", "private_tests", "generated_tests", "solutions", "incorrect_solutions",
)  # fmt: skip


def _digits(rng: random.Random, size: int) -> str:
    return " ".join(str(rng.getrandbits(20)) for _ in range(size // 7)) + "\n"


def _row(number: int, rng: random.Random) -> dict:
    count, size = (400, 2000) if number % 4 == 0 else (60, 1000)

    def tests(n: int) -> dict:
        return {"input": [_digits(rng, size) for _ in range(n)], "output": [_digits(rng, 20) for _ in range(n)]}

    program = "".join(rng.choices("abcdefghij \n", k=1000))
    programs = {"language": [2, 4, 3] * 40, "solution": [program + str(i) for i in range(120)]}
    return {
        "name": f"{number}", "description": _digits(rng, 1500), "public_tests": tests(2), "private_tests": tests(8),
        "generated_tests": tests(count - 10), "source": 2, "difficulty": 8, "solutions": programs,
        "incorrect_solutions": programs, "cf_contest_id": number, "cf_index": "B", "cf_points": 0.0, "cf_rating": 1200,
        "cf_tags": ["math"], "is_description_translated": False, "untranslated_description": "",
        "time_limit": {"seconds": 2, "nanos": 0}, "memory_limit_bytes": 256 << 20, "input_file": "", "output_file": "",
    }  # fmt: skip


def write_release(folder: Path, files: int, rows: int) -> None:
    """Parquet files of one row group each."""
    for number in range(files):
        rng = random.Random(number)
        table = pa.Table.from_pylist([_row(number * rows + i, rng) for i in range(rows)])
        pq.write_table(table, folder / f"train-{number:05d}-of-{files:05d}.parquet", row_group_size=rows)


def _timed_build(source: Path, output: Path) -> tuple[float, float]:
    """Seconds, and the peak memory in GB, of the command."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "rlef_jax.data.code_contests", f"--source={source}", f"--output={output}"], check=True
    )
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def _timed_parquet(source: Path) -> float:
    """Seconds to read the columns that the build needs, and nothing else."""
    began = time.perf_counter()
    for path in sorted(source.glob("*.parquet")):
        for _ in pq.ParquetFile(path, buffer_size=1 << 20).iter_batches(8, columns=list(COLUMNS)):
            pass
    return time.perf_counter() - began


def main() -> None:
    """Writes, builds, reads, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size")
    parser.add_argument("--keep", type=arguments.path, help="where the files go, and stay; default: a temporary folder")
    args = parser.parse_args()
    base = args.keep or Path(tempfile.mkdtemp())
    files, rows, reads = (2, 40, 40) if args.quick else (16, 340, 1500)
    source, output = base / "source", base / "built"
    try:
        if not source.is_dir():
            source.mkdir(parents=True)
            write_release(source, files, rows)
        shutil.rmtree(output, ignore_errors=True)
        parquet_s = _timed_parquet(source)
        build_s, peak_gb = _timed_build(source, output)
        problems = open_split(str(output), "train")
        records = tfds.builder_from_directory(output).as_data_source("train")
        rng, ours, raw, tests = random.Random(0), [], [], 0
        for _ in range(reads):
            i, j = rng.randrange(len(problems)), rng.randrange(len(problems))
            began = time.perf_counter()
            problem = problems[i]
            middle = time.perf_counter()
            records[j]
            raw.append(time.perf_counter() - middle)
            ours.append(middle - began)
            tests += len(problem.public_tests) + len(problem.hidden_tests)
    finally:
        if args.keep is None:
            shutil.rmtree(base)
    size = records.dataset_info.splits["train"].num_bytes / 1e9
    read_ms, raw_ms = (1000 * statistics.fmean(times) for times in (ours, raw))
    slowest = 1000 * sorted(ours)[int(0.99 * len(ours))]
    print(f"{len(problems)} problems, {size:.2f} GB serialised, {tests / reads:.0f} tests a problem read")
    print(f"build     {build_s:8.1f} s   (reading the parquet columns alone {parquet_s:.1f} s), peak {peak_gb:.2f} GB")
    print(f"a problem {read_ms:8.2f} ms  (TFDS's record alone {raw_ms:.2f} ms), 99th percentile {slowest:.2f} ms")
    cases = (
        ("build", build_s, parquet_s, None, "s"),
        ("build, peak memory (limit 2)", peak_gb, 2.0, peak_gb / 2, "GB"),
        ("random access (limit 2)", read_ms, raw_ms, read_ms / 2, "ms"),
    )
    results = [
        {"case": case, "ours": a, "baseline": b, "ratio": a / b, "limit_share": share, "unit": unit}
        for case, a, b, share, unit in cases
    ]
    print(json.dumps({"benchmark": "code_contests", "results": results}))


if __name__ == "__main__":
    main()
