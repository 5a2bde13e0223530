"""Weights that are numbers: NaN and infinity are refused where weights are read, cast or written, by file and tensor.

A model with one of them is sampled from as well as any other, and its scores look like scores.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from rlef_jax.errors import ConfigError

_CHUNK = 1 << 20  # entries looked at together: a cast copy of a whole tensor would cost as much memory again
# Where all bits of the exponent are ones, a number of 16 bits is infinite or NaN. To convert it first takes longer.
_EXPONENT = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}


def fault(values: np.ndarray, dtypes: Sequence[Any] = ()) -> str | None:
    """What makes an array unfit as weights: an entry that isn't finite, or won't be once it is cast. None if nothing.

    Args:
      values: floats of any shape; also a view of a mapped file.
      dtypes: what it will be cast to, each from the array as it is.
    """
    narrower = _narrower(values.dtype, dtypes)
    for chunk in filter(np.size, _chunks(values)):
        if (bad := _not_finite(chunk)).any():
            return f"holds {chunk[bad][0]}"
        for kind in narrower:
            if max(chunk.max(), -chunk.min()) <= float(jnp.finfo(kind).max):
                continue  # what is above may still be rounded to the largest
            with np.errstate(over="ignore"):
                bad = _not_finite(chunk.astype(kind))
            if bad.any():
                return f"holds {float(chunk[bad][0]):.6g}, which {kind.name} can't hold"
    return None


def check_tensor(where: Any, name: str, values: np.ndarray, dtypes: Sequence[Any] = ()) -> None:
    """Raises ConfigError that names the file `where` and the tensor if `fault` finds something."""
    if (fault_text := fault(values, dtypes)) is not None:
        raise ConfigError(f"{where}: {name} {fault_text}: weights must be finite")


def check_params(where: Any, params: Any, dtypes: Sequence[Any] = ()) -> None:
    """`check_tensor` of every array of a tree, named by its path, on the devices where they lie."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    pending = [[_all_finite(leaf, kind) for kind in (leaf.dtype, *_narrower(leaf.dtype, dtypes))] for _, leaf in leaves]
    for (path, leaf), finite_flags in zip(leaves, jax.device_get(pending), strict=True):
        if not all(finite_flags):
            narrow = _narrower(leaf.dtype, dtypes)[finite_flags.index(False) - 1].name if finite_flags[0] else ""
            values_text = f"what {narrow} can't hold" if narrow else "NaN or infinity"
            raise ConfigError(f"{where}: {jax.tree_util.keystr(path)} holds {values_text}: weights must be finite")


def _narrower(dtype: Any, dtypes: Sequence[Any]) -> list[Any]:
    """Those of `dtypes` whose largest number is below that of `dtype`."""
    return [kind for kind in map(jnp.dtype, dtypes) if float(jnp.finfo(kind).max) < float(jnp.finfo(dtype).max)]


@functools.partial(jax.jit, static_argnums=1)
def _all_finite(array: jax.Array, dtype: Any) -> jax.Array:
    return jnp.isfinite(array.astype(dtype)).all()


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """The entries of an array in flat pieces."""
    if values.size <= _CHUNK:
        yield values.reshape(-1)
    elif values.flags.c_contiguous and values.ndim > 1:
        yield from _chunks(values.reshape(-1))
    else:
        together = max(1, _CHUNK * len(values) // values.size)
        for at in range(0, len(values), together):
            yield from _chunks(values[at : at + together] if together > 1 or values.ndim == 1 else values[at])


def _not_finite(flat: np.ndarray) -> np.ndarray:
    exponent = _EXPONENT.get(flat.dtype)
    return ~np.isfinite(flat) if exponent is None else (flat.view(np.uint16) & exponent) == exponent
