"""Checkpoints: named pytrees of arrays and a JSON object, written by Orbax beside the run, whole or not at all.

A checkpoint is written to a temporary folder and renamed when it is complete, so a kill leaves the last good one.
Its metadata has shapes and hashes of what was saved: one of another model, or whose bytes have changed, is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep_rules

from rlef_jax.errors import ConfigError, RunError

_SCORE = "score"
_METADATA = "metadata"


class DamagedCheckpointError(RunError):
    """A checkpoint that cannot be read back as it was saved."""


class Checkpoints:
    """The checkpoints of a folder: the newest `keep` and the best. Use as a context manager, or `close()` it.

    The best is the one saved with the highest score, the latest of equals. `read_only` leaves the folder as it is, so
    that a run which is writing to it isn't disturbed.
    """

    def __init__(self, folder: Path, *, keep: int = 3, read_only: bool = False) -> None:
        self.folder = folder.absolute()  # Orbax takes no relative paths
        self._keep, self._read_only = keep, read_only
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        if self._read_only:
            return ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(read_only=True))
        best = keep_rules.BestN(get_metric_fn=lambda m: m[_SCORE], keep_checkpoints_without_metrics=False, n=1)
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep_rules.AnyPreservationPolicy([keep_rules.LatestN(self._keep), best]),
                create=True,
                enable_async_checkpointing=True,
                # Created synchronously, so that a folder that can't be created is an error of `save`. Otherwise the
                # writers would wait for it for twenty minutes, and the process for them.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                cleanup_tmp_directories=True,
            ),
        )

    def save(
        self, step: int, items: Mapping[str, Any], metadata: Mapping[str, Any], *, score: float | None = None
    ) -> None:
        """Starts to write pytrees of arrays and JSON data; the arrays may be donated once this returns.

        Raises ValueError if the folder holds this step already, RunError if this or the last save can't be written.
        """
        if step in self.steps():
            raise ValueError(f"{self.folder} holds checkpoint {step} already: it exists")
        # Orbax copies from an accelerator before it returns; on a CPU it would go on reading the caller's own buffers.
        copies = {name: jax.tree.map(_snapshot, tree) for name, tree in items.items()}
        shapes = {name: _shapes(tree) for name, tree in copies.items()}
        facts = {"shapes": shapes, "hashes": {name: content_hash(tree) for name, tree in copies.items()}}
        args = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in copies.items()},
            **{_METADATA: ocp.args.JsonSave({**metadata, **facts})},
        )
        try:
            self._manager.save(step, args=args, metrics=None if score is None else {_SCORE: score}, force=True)
        except Exception as error:  # whatever the file system makes Orbax raise
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Returns when everything saved is on disk. Raises RunError where it could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The newest step, None where there is none."""
        return max(self.steps(), default=None)

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """The items saved at `step` that `like` names, with its structure, dtypes and shardings (arrays or structs).

        Raises FileNotFoundError for none at `step`, ConfigError for one of another structure, shape or dtype,
        DamagedCheckpointError for one that is not what was saved.
        """
        saved = self.metadata(step)
        for name, tree in like.items():
            self._compare(step, name, saved["shapes"].get(name, {}), _shapes(tree))
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, tree) for name, tree in like.items()}
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()})
        try:
            composite = self._manager.restore(step, args=args)
            restored = {name: composite[name] for name in like}
        except Exception as error:  # zarr, OCDBT and JSON each have their own
            raise self._damaged(step, error) from error
        for name, tree in restored.items():
            if (saved_hash := saved["hashes"].get(name)) is not None and content_hash(tree) != saved_hash:
                raise self._damaged(step, ValueError(f"the hash of {name!r} is not the one that was saved"))
        return restored

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON data saved at `step`. Raises FileNotFoundError, DamagedCheckpointError."""
        if step not in self.steps():
            raise FileNotFoundError(f"no checkpoint {step} in {self.folder}; there are {self.steps() or 'none'}")
        try:
            composite = self._manager.restore(step, args=ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()}))
            if not {"shapes", "hashes"} <= set(composite[_METADATA]):
                raise ValueError("its metadata lacks shapes or hashes")
            return composite[_METADATA]
        except Exception as error:
            raise self._damaged(step, error) from error

    def set_aside(self, step: int) -> Path:
        """Moves a checkpoint out of the way, so that its step can be saved again. Returns where it lies now."""
        self.wait()
        self._manager.close()
        target = self.folder.with_name("damaged_" + self.folder.name) / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        shutil.move(self.folder / str(step), target)
        self._manager = self._open()
        return target

    def close(self) -> None:
        """Ends what is under way. Raises RunError where something that was saved could not be written."""
        try:
            self._manager.close()
        except Exception as error:
            raise self._unwritten(error) from error

    @contextlib.contextmanager
    def last_good_in_errors(self) -> Iterator[None]:
        """Adds to a file system error the checkpoint from which the run can go on."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(RunError):
                self.wait()
            raise RunError(f"{error}; {self._last_good()}") from error

    def __enter__(self) -> Self:
        self._hook_before = sys.unraisablehook
        sys.unraisablehook = _without_late_callbacks(sys.unraisablehook)
        logging.getLogger("asyncio").addFilter(_not_a_later_failure)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, RunError):  # after one, callbacks come until the process ends
            sys.unraisablehook = self._hook_before
            logging.getLogger("asyncio").removeFilter(_not_a_later_failure)
        # After an error, the one that closing meets is what came of it, or less than it.
        with contextlib.suppress(RunError) if kind is not None else contextlib.nullcontext():
            try:
                if kind is None:
                    self.wait()
            finally:
                self.close()

    def _compare(self, step: int, name: str, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        for leaf in sorted({*saved, *expected}):
            if saved.get(leaf) != expected.get(leaf):
                raise ConfigError(
                    f"checkpoint {step} in {self.folder} is of another model: {name}{leaf} is"
                    f" {saved.get(leaf, 'absent')} there, {expected.get(leaf, 'absent')} in this config"
                )

    def _unwritten(self, error: Exception) -> RunError:
        return RunError(
            f"a checkpoint could not be written to {self.folder}: {_first_line(error)}; {self._last_good()}."
            " Is the disk full?"
        )

    def _last_good(self) -> str:
        steps = self.steps()
        return f"the last good checkpoint is {steps[-1]}" if steps else "there is no checkpoint yet"

    def _damaged(self, step: int, error: Exception) -> DamagedCheckpointError:
        return DamagedCheckpointError(f"checkpoint {step} in {self.folder} is damaged: {_first_line(error)}")


def _without_late_callbacks(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A `sys.unraisablehook` that is silent about writes which ended after their save had failed.

    TensorStore tells each of them, from threads of its own, to an event loop that Orbax has closed by then.
    """

    def quiet(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    return quiet


def _not_a_later_failure(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio's log is worth a line.

    Orbax waits for its writes together and raises the first error. asyncio would print those of the other writes, each
    with its traceback, whenever their futures are collected.
    """
    return "exception was never retrieved" not in record.getMessage()


def _snapshot(leaf: jax.Array) -> jax.Array:
    on_cpu = any(device.platform == "cpu" for device in leaf.devices())
    return jnp.copy(leaf) if on_cpu else leaf


def _shapes(tree: Any) -> dict[str, str]:
    """Each leaf's path, shape and dtype: {"['w']": "float32[3,2]"}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in leaves
    }


def content_hash(tree: Any) -> str | None:
    """A hash of all bytes; None where parts of the arrays lie in other processes."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return None
        digest.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
