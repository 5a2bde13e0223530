"""From the published files to a TFDS folder of ArrayRecord shards, without TensorFlow.

TFDS's own writer needs TensorFlow to shuffle a split larger than 1 GB. So shards are written here, with TFDS's
serializer, in the release's order; training shuffles when it reads (`order`). Each unit of the release becomes one
shard, named *.part until it is complete. An interrupted build continues with the first missing shard and ends with the
same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.data.code_contests import counts
from rlef_jax.data.code_contests.examples import features, library, to_bytes
from rlef_jax.data.code_contests.release import SPLITS, Unit, read, units
from rlef_jax.errors import ConfigError
from rlef_jax.files import replacing

NAME = "code_contests"
DONE = "dataset_info.json"  # TFDS's file, written last: it marks a finished build
PLAN = "build.json"  # the sources and settings of the build; once finished also its counts
_COUNTS = "counts"  # folder with the counts of each finished shard
_FORMAT = 1

type Report = Callable[[str, float], None]  # (split, share done)


def build(
    source: Path, output: Path, *, solutions: int = 10, incorrect: int = 10, report: Report | None = None
) -> dict[str, dict[str, Any]]:
    """Builds the data set, or the missing part of it. Returns {split: counts} (see `counts`).

    Args:
      source: a folder with the release.
      output: the data folder.
      solutions, incorrect: largest number of correct and incorrect Python 3 programs kept per problem.
      report: called with a split's name and the fraction of it that is written.

    Raises ConfigError if the source can't be read or `output` holds something else, OSError if it can't be written.
    """
    all_units = units(source)
    plan = _plan(all_units, solutions, incorrect)
    _begin(output, plan)
    splits: dict[str, dict[str, Any]] = {}
    for split in (s for s in SPLITS if any(unit.split == s for unit in all_units)):
        split_units = [unit for unit in all_units if unit.split == split]
        shards = []
        for i, unit in enumerate(split_units):
            path = output / shard_name(split, i, len(split_units))
            report_shard = None if report is None else _scaled(report, split, i, len(split_units))
            shards.append(_shard(path, unit, solutions, incorrect, report_shard))
        splits[split] = _merged(shards)
        if report is not None:
            report(split, 1.0)
    _finish(output, plan | {"splits": splits})
    return {split: info["counts"] for split, info in splits.items()}


def _scaled(report: Report, split: str, index: int, count: int) -> Callable[[float], None]:
    return lambda share: report(split, (index + share) / count)


def read_plan(folder: Path) -> dict[str, Any]:
    """build.json of a finished build. Raises ConfigError if the build is missing, unfinished or damaged."""
    command = f"python -m rlef_jax.data.code_contests --source=FOLDER --output={folder}"
    if not (folder / PLAN).is_file():
        raise ConfigError(f"config.data.dir: no CodeContests in {str(folder)!r}; build it: {command}")
    if not (folder / DONE).is_file():
        raise ConfigError(f"config.data.dir: the build in {str(folder)!r} was interrupted; go on: {command}")
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if plan["format"] == _FORMAT and isinstance(plan["splits"], dict):
            return plan
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"config.data.dir: {folder / PLAN}: {error!r}; build it anew: {command}") from error
    raise ConfigError(f"config.data.dir: {folder} was built in another format; build it anew: {command}")


def _plan(all_units: Sequence[Unit], solutions: int, incorrect: int) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "solutions": solutions,
        "incorrect": incorrect,
        "source": [[u.split, u.path.name, u.first, u.size] for u in all_units],
    }


def _begin(output: Path, plan: dict[str, Any]) -> None:
    """Prepares the output folder. Raises ConfigError if it holds another build or other files."""
    path = output / PLAN
    if path.is_file():
        try:
            old_plan = json.loads(path.read_text(encoding="utf-8"))
            changed = [key for key in plan if old_plan.get(key) != plan[key]]
        except (ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path} is not what a build wrote ({error}): delete {output} and build again") from error
        if changed == ["source"] and not (output / DONE).is_file():
            _remove_changed_shards(output, old_plan["source"], plan["source"])
            _write(path, plan)
        elif changed:
            raise ConfigError(
                f"--output: {output} holds a build of another {changed[0]}: give another folder, or delete that one"
            )
        return
    if output.is_dir() and any(other.name != f"{PLAN}.part" for other in output.iterdir()):
        raise ConfigError(f"--output: {output} is not empty and holds no build: give another folder")
    output.mkdir(parents=True, exist_ok=True)
    _write(path, plan)


def _remove_changed_shards(output: Path, old_source: Sequence[Any], new_source: Sequence[Any]) -> None:
    """Removes shards of an unfinished build whose source file has changed, such as one downloaded again."""
    old, new = (
        {split: [unit for unit in units if unit[0] == split] for split in SPLITS} for units in (old_source, new_source)
    )
    for split in SPLITS:
        for i, unit in enumerate(old[split]):
            if len(old[split]) != len(new[split]) or unit != new[split][i]:
                (output / shard_name(split, i, len(old[split]))).unlink(missing_ok=True)


def shard_name(split: str, index: int, count: int) -> str:
    """TFDS's name for a shard."""
    return f"{NAME}-{split}.array_record-{index:05d}-of-{count:05d}"


def _shard(
    path: Path, unit: Unit, solutions: int, incorrect: int, report: Callable[[float], None] | None
) -> dict[str, Any]:
    """Writes a shard unless it exists. Returns its counts and positions."""
    counts_path = path.parent / _COUNTS / f"{path.name}.json"
    if path.is_file():
        with contextlib.suppress(OSError, ValueError):  # missing or damaged counts: write the shard again
            return json.loads(counts_path.read_text(encoding="utf-8"))
    (path.parent / DONE).unlink(missing_ok=True)  # of a finished build whose shard was deleted
    part = path.with_name(path.name + ".part")
    info = _write_shard(part, unit, solutions, incorrect, report)
    counts_path.parent.mkdir(exist_ok=True)
    _write(counts_path, info)
    os.replace(part, path)  # last: a shard under its final name is complete and has counts
    return info


def _write_shard(
    path: Path, unit: Unit, solutions: int, incorrect: int, report: Callable[[float], None] | None
) -> dict[str, Any]:
    module = library("array_record.python.array_record_module")
    total: dict[str, Any] = {"read": 0, "kept": 0}
    several: list[int] = []
    files: list[int] = []
    writer = module.ArrayRecordWriter(str(path), "group_size:1")  # as TFDS does: each record can be read alone
    try:
        for problem, share in read(unit, solutions=solutions, incorrect=incorrect):
            total["read"] += 1
            if report is not None:
                report(share)
            if reason := counts.reason_to_drop(problem, unit.split):
                total = counts.added(total, {"dropped": {reason: 1}})
                continue
            try:
                record = to_bytes(problem)
            except UnicodeEncodeError as error:
                raise ConfigError(f"{unit.path}: problem {problem.name!r}: text that UTF-8 can't hold") from error
            one = counts.count(problem, len(record))
            several += [total["kept"]] * one["facts"]["several_answers"]
            files += [total["kept"]] * one["facts"]["files"]
            total = counts.added(total, one)
            writer.write(record)
    finally:
        writer.close()
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return {"counts": total, "several_answers": several, "files": files}


def _merged(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A split's counts, and its positions of the problems that exclusion rules select."""
    total: dict[str, Any] = {"read": 0, "kept": 0}
    by_rule: dict[str, list[int]] = {"several_answers": [], "files": []}
    for shard in shards:
        for kind, positions in by_rule.items():
            positions += [total["kept"] + place for place in shard[kind]]
        total = counts.added(total, shard["counts"])
    lengths = [shard["counts"]["kept"] for shard in shards]
    return {"counts": total, "places": by_rule, "shard_lengths": lengths}


def _finish(output: Path, plan: dict[str, Any]) -> None:
    """Writes what TFDS needs to read the shards."""
    if (output / DONE).is_file():
        return
    tfds = library("tensorflow_datasets")
    _write(output / PLAN, plan)
    # First into a separate folder: of these files, the one that marks a finished build must appear last.
    staging = output / "metadata.part"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    infos = []
    for split, info in plan["splits"].items():
        lengths = info["shard_lengths"]
        template = tfds.core.ShardedFileTemplate(
            data_dir=output, dataset_name=NAME, split=split, filetype_suffix="array_record"
        )
        infos.append(tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=info["counts"].get("bytes", 0), filename_template=template
        ))  # fmt: skip
        for i in range(len(lengths)):  # TFDS checks that the shards' files exist
            (staging / shard_name(split, i, len(lengths))).touch()
    tfds.folder_dataset.write_metadata(
        data_dir=staging, features=features(), split_infos=infos, check_data=False,
        description="CodeContests (Li et al., 2022) as RLEF trains on it.",
        homepage="https://github.com/google-deepmind/code_contests",
    )  # fmt: skip
    names = [path.name for path in staging.glob("*.json") if path.name != DONE]
    for name in [*names, DONE]:
        os.replace(staging / name, output / name)
    shutil.rmtree(staging)


def _write(path: Path, value: Any) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
