"""Saved episodes of a workdir's evaluations. Those of its iterations: `rlef_jax.training.episode_io`."""

from __future__ import annotations

from pathlib import Path

_SUFFIX = ".jsonl.gz"


def evaluation_path(workdir: Path, name: str) -> Path:
    """The path of an evaluation's episodes; names are `rlef`, `warm_start_random_feedback`, `valid_000005`, ..."""
    return workdir / "episodes" / f"{name}{_SUFFIX}"


def saved_evaluations(workdir: Path) -> list[str]:
    """Sorted names of the evaluations whose episodes are saved."""
    names = (path.name.removesuffix(_SUFFIX) for path in (workdir / "episodes").glob(f"*{_SUFFIX}"))
    return sorted(name for name in names if not name.isdigit())
