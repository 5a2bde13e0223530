"""What is asked of the sampler, and what it answers."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import numpy as np

PLAIN, CUT = KINDS = ("plain", "cut")
"""Kinds of distribution: the model's own at some temperature, or a greedy one or one without the unlikeliest tokens."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 keep every token. A response ends with the first of `stop_ids`
    (which is part of it) or after `max_new_tokens`. Raises ValueError for values that mean nothing.
    """

    temperature: float
    top_p: float
    top_k: int
    stop_ids: tuple[int, ...]
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"need temperature >= 0, 0 < top_p <= 1 and top_k >= 0, not {self}")
        if not self.stop_ids or self.max_new_tokens < 1:
            raise ValueError(f"need at least one stop id and max_new_tokens >= 1, not {self}")

    @property
    def kind(self) -> str:
        """Its kind of distribution, one of KINDS."""
        return PLAIN if self.temperature > 0 and self.top_k == 0 and self.top_p >= 1.0 else CUT


@dataclasses.dataclass(frozen=True)
class Sample:
    """One response. Per token: `behavior_logp` under the distribution that it was drawn from, `policy_logp` under
    the unmodified one (temperature 1), `versions` the weights that made it. `finish_reason` is "stop" or "length"."""

    ids: tuple[int, ...]
    behavior_logp: tuple[float, ...]
    policy_logp: tuple[float, ...]
    finish_reason: str
    versions: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Dialogue:
    """A dialogue's name, and where its keys and values are. Only its worker's thread changes what isn't its name.

    Attributes:
      seed, step, episode: its name.
      worker: the worker that it belongs to.
      length: tokens of it that were run; one more, `pending`, follows where it is not None.
      pages: numbers of the pages of `shard` that hold their keys and values; or `saved` [L, 2, M, K, S, H] holds what
        was in its M pages.
      row: in which it is decoded, -1 where in none.
    """

    seed: int
    step: int
    episode: int
    worker: int
    length: int = 0
    pending: int | None = None
    shard: int = 0
    pages: list[int] = dataclasses.field(default_factory=list)
    row: int = -1
    saved: np.ndarray | None = None


@dataclasses.dataclass(eq=False)
class Job:
    """One response in the making.

    Attributes:
      tokens: what is prefilled, and behind it the token that decoding begins with.
      last: the dialogue ends with it, and gives its pages up.
      arrived: its place in the order in which the worker received jobs; `seated_before`: how many
        had been given rows by then.
      opens: it is its dialogue's first.
      leads: others wait for what this job's prompt leaves in the cache.
      chunks: (tokens, length of chunk) that are still to be prefilled; `filled` tokens have been.
    """

    dialogue: Dialogue
    turn: int
    prompt: tuple[int, ...]
    max_new: int
    sampling: SamplingConfig
    last: bool
    future: Future[Sample]
    arrived: int = 0
    seated_before: int = 0
    opens: bool = False
    tokens: list[int] = dataclasses.field(default_factory=list)
    leads: bool = False
    chunks: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    filled: int = 0
    ids: list[int] = dataclasses.field(default_factory=list)
    behavior_logp: list[float] = dataclasses.field(default_factory=list)
    policy_logp: list[float] = dataclasses.field(default_factory=list)
    versions: list[int] = dataclasses.field(default_factory=list)

    def sample(self, stopped: bool) -> Sample:
        """The response, complete."""
        return Sample(
            ids=tuple(self.ids),
            behavior_logp=tuple(self.behavior_logp),
            policy_logp=tuple(self.policy_logp),
            finish_reason="stop" if stopped else "length",
            versions=tuple(self.versions),
        )
