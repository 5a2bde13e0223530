"""The sampler: continuous batching of multi-turn dialogues over a fixed number of rows, with weights of its own.

A *dialogue* grows by turns: `Session.respond` gives it the next prompt's tokens and returns a future of the response.
It keeps its row, keys and values between turns, so that only new tokens are prefilled; while it waits it gives the row
up only if others need one, and then its keys and values are kept on the host and put back bit for bit. Prompts join and
responses leave between two dispatches of a few decoding steps each; new weights are taken there too. A prompt that
several dialogues begin with is prefilled once.

What a response becomes depends on nothing but what docs/sampler.md names: every program has the same shapes whatever
else is going on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from rlef_jax.model.lora import split
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.programs import Programs
from rlef_jax.sampling.session import Session


def _base_of(params: Params, cfg: ModelConfig) -> list[Any]:
    """The arrays beside which adapters are; none of a model without."""
    if cfg.lora is None:
        return []
    return jax.tree.leaves({**params, "layers": split(params["layers"])[0]})


def _same(now: list[Any], before: list[Any]) -> bool:
    """Whether these are the very same arrays, and can't have changed."""
    return 0 < len(now) == len(before) and all(isinstance(a, jax.Array) and a is b for a, b in zip(now, before))


class Sampler:
    """Compiled programs, and the weights that they run with. Samplers may share programs; each has its own weights."""

    def __init__(self, programs: Programs, *, workers: int = 1, min_ready_fraction: float = 0.0) -> None:
        """Args:
          workers: caches with a thread each, for devices that one program can't keep busy (CPU cores).
          min_ready_fraction: a worker waits until this share of the dialogues in its rows has work, the others'
            programs being judged meanwhile: a dispatch costs the same however many rows have work. For devices that
            have something else to do, CPU cores again; 0 never waits.

        Raises ValueError for several workers on several devices: their collectives would cross.
        """
        if workers > 1 and programs.mesh.size > 1:
            raise ValueError(f"workers={workers} on a mesh of {programs.mesh.size} devices: must be 1 there")
        self.programs, self.workers, self.min_ready_fraction = programs, workers, min_ready_fraction
        self._weights: tuple[Params, int] | None = None
        self._base: list[Any] = []  # the arrays that the newest weights' base is a copy of
        self._in_session = threading.Lock()

    def set_weights(self, params: Params, version: int) -> None:
        """Take a copy of params, named `version`: the caller may change or donate its own afterwards.

        May be called while a session is at work: its next dispatch uses the new ones, over the keys and values that the
        old ones left. Each token of a `Sample` knows the version that made it.

        Of a model with adapters the base is copied once: as long as `params` hold the same arrays, adapters alone come
        to the sampler's devices.
        """
        base = _base_of(params, self.programs.cfg)
        before = self._weights[0] if self._weights is not None and _same(base, self._base) else None
        self._weights, self._base = (self.programs.prepare(params, before), version), base

    def weights(self) -> tuple[Params, int]:
        """The newest weights, as the programs take them, and their version. RuntimeError before `set_weights`."""
        if self._weights is None:
            raise RuntimeError("set_weights must be called before anything is sampled")
        return self._weights

    @contextlib.contextmanager
    def session(self, on_compile: Callable[[int, int], None] | None = None) -> Iterator[Session]:
        """A session with empty rows, once all is compiled; `on_compile(done, all)` is told.

        A device has memory for one cache: a session that another thread has open is waited for.
        """
        with self._in_session:
            self.programs.compile(on_compile)
            with Session(self.programs, self.weights, self.workers, self.min_ready_fraction) as session:
                yield session
