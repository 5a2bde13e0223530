"""Checkpoints: a pytree of arrays and a JSON object, written by Orbax, whole or not at all.

A checkpoint is made in a temporary folder and renamed when it is complete, so a kill leaves the last good one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp

Tree = TypeVar("Tree")


class Checkpoints:
    """The checkpoints of a folder, the newest `keep` of them; use as a context manager, or `close()` it."""

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder = folder.absolute()  # Orbax takes no relative paths
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                # The caller donates its arrays to the next update: they must be on disk, or copied, before it goes on.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, step: int, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Writes a pytree of arrays and JSON data, and returns when they are on disk.

        Raises ValueError if the folder holds this step already.
        """
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), metadata=ocp.args.JsonSave(dict(metadata)))
        self._manager.save(step, args=args, force=True)

    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The newest step, None where there is none."""
        return max(self.steps(), default=None)

    def restore(self, step: int, like: Tree) -> Tree:
        """The tree saved at `step`, with the structure, dtypes and shardings of `like` (arrays or ShapeDtypeStructs).

        Raises ValueError for a checkpoint of another structure or other shapes, FileNotFoundError for none at `step`.
        """
        self._require(step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=args)["tree"]

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON data saved at `step`."""
        self._require(step)
        return self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _require(self, step: int) -> None:
        if step not in self.steps():
            raise FileNotFoundError(f"no checkpoint {step} in {self.folder}; there are {self.steps() or 'none'}")
