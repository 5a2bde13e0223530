"""Updates that would destroy the weights: what is saved of them, and what `rlef_jax.replay_batch` finds out again.

The update itself refuses to apply a gradient whose norm is not finite or too large (`Learner.update`): the weights, and
the optimizer's state, stay as they were.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlef_jax.errors import ConfigError
from rlef_jax.files import named_in_errors, write_json
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.update import Learner, TrainState

FOLDER = "bad_updates"
# A replay computes the states below adapters anew.
_SAVED = tuple(field.name for field in dataclasses.fields(TokenBatch) if field.name != "below")


def save_bad_update(
    workdir: Path, update: int, params: Any, microbatches: Sequence[TokenBatch], metrics: dict[str, float]
) -> Path:
    """Writes the weights that an update started from, those that it trains, and its batch to `bad_updates/UPDATE`.

    Returns that folder.
    """
    folder = workdir / FOLDER / f"{update:06d}"
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with named_in_errors(part):
        _write_update(part, update, params, microbatches, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def _write_update(
    part: Path, update: int, params: Any, microbatches: Sequence[TokenBatch], metrics: dict[str, float]
) -> None:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    weights: dict[str, Any] = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    np.savez(part / "params.npz", **weights)
    for number, batch in enumerate(microbatches):
        arrays: dict[str, Any] = {name: np.asarray(getattr(batch, name)) for name in _SAVED}
        np.savez(part / f"microbatch_{number:04d}.npz", **arrays)
    json_metrics = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
    write_json(part / "metrics.json", {"update": update, **json_metrics})


def saved_updates(workdir: Path) -> list[int]:
    """Numbers of the updates that were saved, in order."""
    return sorted(int(p.name) for p in (workdir / FOLDER).glob("[0-9]*") if p.name.isdigit())


def load_bad_update(workdir: Path, update: int, like: Any) -> tuple[Any, list[TokenBatch], dict[str, Any]]:
    """(params with the structure of `like`, micro-batches, metrics) as `save_bad_update` wrote them.

    Raises ConfigError where that update wasn't saved or its files are of another model.
    """
    folder = workdir / FOLDER / f"{update:06d}"
    if not folder.is_dir():
        raise ConfigError(f"no bad update {update} in {workdir}; there are {saved_updates(workdir) or 'none'}")
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    with np.load(folder / "params.npz") as stored:
        names = [jax.tree_util.keystr(path) for path, _ in leaves]
        if set(names) != set(stored.files):
            raise ConfigError(f"{folder}: its weights are of another model")
        params = jax.tree.unflatten(tree, [stored[name] for name in names])
    microbatches = []
    for path in sorted(folder.glob("microbatch_*.npz")):
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            if set(arrays.files) != set(_SAVED):
                raise ConfigError(f"{path}: another version of rlef_jax saved it: replay it with that one")
            fields = {name: arrays[name] for name in arrays.files}
            microbatches.append(TokenBatch(**fields | {"value_kind": str(fields["value_kind"])}))
    return params, microbatches, json.loads((folder / "metrics.json").read_text())


def describe(learner: Learner, state: TrainState, microbatches: Sequence[TokenBatch]) -> list[str]:
    """Lines that say where the trouble lies: weights, batch, each micro-batch's loss, each part's gradient."""
    lines = [_finite_line("weights", state.params)]
    for number, batch in enumerate(microbatches):
        arrays = {name: getattr(batch, name) for name in _SAVED if name != "value_kind"}
        broken = [name for name, array in arrays.items() if not np.isfinite(np.asarray(array)).all()]
        logp, values = jax.device_get(learner.score(state.params, batch))
        share = {"log-probabilities": logp} | ({} if values is None else {"values": values})
        lines.append(
            f"micro-batch {number}: {batch.tokens.shape[0]} rows of {batch.tokens.shape[1]} tokens; not finite in the"
            f" batch: {', '.join(broken) or 'nothing'}; "
            + "; ".join(f"{k} {_range(v)}" for k, v in share.items())
            + f"; advantages {_range(batch.advantages)}"
        )
    gradients = learner.gradients(state.params, microbatches)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        norm = float(np.linalg.norm(np.asarray(leaf, np.float64)))
        lines.append(f"gradient of {jax.tree_util.keystr(path):<48} norm {norm:.4g}")
    return lines


def _finite_line(name: str, tree: Any) -> str:
    broken = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if not np.isfinite(np.asarray(leaf)).all()
    ]
    return f"{name}: {'not finite in ' + ', '.join(broken) if broken else 'all finite'}"


def _range(array: Any) -> str:
    array = np.asarray(array, np.float64)
    finite = array[np.isfinite(array)]
    span = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "none finite"
    return span + (f" ({array.size - finite.size} not finite)" if finite.size < array.size else "")
