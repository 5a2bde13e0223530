"""Token sequences with the tokens that are learned marked, and how they become batches. Host side, NumPy arrays."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rlef_jax.errors import ConfigError
from rlef_jax.files import replacing
from rlef_jax.ppo.pack import PADDING, empty_arrays
from rlef_jax.ppo.rows import rows_by_bucket
from rlef_jax.ppo.settings import PackSettings
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.training.tally import PassedOver, Tally

_SHUFFLE, _HOLD_OUT = 0x5F7, 0x5F8  # keep these draws apart from each other, and from any other use of a seed


@dataclasses.dataclass(frozen=True)
class Example:
    """A sequence of tokens: `ids` [T] int32, and `learned` [T] bool, True where the loss counts the token."""

    ids: np.ndarray
    learned: np.ndarray


def spans(learned: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of each run of learned tokens: the responses."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(learned, np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def last_response(learned: np.ndarray) -> np.ndarray:
    """The last run of learned tokens alone."""
    alone = np.zeros_like(learned)
    if found := spans(learned):
        alone[slice(*found[-1])] = True
    return alone


def pack_examples(examples: Sequence[Example], settings: PackSettings) -> tuple[list[TokenBatch], list[np.ndarray]]:
    """Lays examples out as `ppo.pack.pack` does episodes: (batches, index), see there. Each example is a segment.

    The first token of an example is nobody's target: it isn't learned. Raises ValueError for one that is longer than
    the largest bucket.
    """
    lengths, rows, shared = [len(e.ids) for e in examples], settings.microbatch_rows, settings.row_episodes
    batches, index = [], []
    for bucket, members in rows_by_bucket(lengths, [True] * len(lengths), sorted(set(settings.buckets)), rows, shared):
        for first in range(0, len(members), rows):
            arrays = empty_arrays(rows, bucket, shared, "none")
            places = np.full((rows, shared), PADDING, np.int32)
            for row, numbers in enumerate(members[first : first + rows]):
                places[row, : len(numbers)] = numbers
                start = 0
                for segment, number in enumerate(numbers, start=1):
                    example, end = examples[number], start + lengths[number]
                    arrays["tokens"][row, start:end] = example.ids
                    arrays["positions"][row, start:end] = np.arange(lengths[number])
                    arrays["segment_ids"][row, start:end] = segment
                    arrays["action_mask"][row, start + 1 : end] = example.learned[1:]
                    start = end
                arrays["weight"][row] = 1.0
            batches.append(TokenBatch(**arrays))
            index.append(places)
    return batches, index


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run stands: `step` steps done, next is batch number `batch` of part `chunk` (of what is written on the
    way, or an epoch); all count from 0."""

    step: int = 0
    chunk: int = 0
    batch: int = 0


@dataclasses.dataclass(frozen=True)
class ExampleSet:
    """Examples one behind the other.

    Attributes:
      ids: [N] int32, the tokens of all of them.
      learned: [N] bool.
      ends: [E] int64, where each example ends in `ids`.
      problems: [E] int64, equal for examples of one problem.
      left_out: what was found beside them and isn't learned, by reason (`training.tally`).
    """

    ids: np.ndarray
    learned: np.ndarray
    ends: np.ndarray
    problems: np.ndarray
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, examples: Sequence[Example], problems: Sequence[int], left_out: Mapping[str, int] | None = None
    ) -> ExampleSet:
        """The set of these examples, which are of these problems."""
        return cls(
            np.concatenate([np.zeros(0, np.int32), *(e.ids for e in examples)]).astype(np.int32),
            np.concatenate([np.zeros(0, bool), *(e.learned for e in examples)]).astype(bool),
            np.cumsum([len(e.ids) for e in examples], dtype=np.int64),
            np.asarray(problems, np.int64),
            dict(left_out or {}),
        )

    @property
    def tally(self) -> Tally:
        """How many there are, and how many were left out."""
        return Tally(len(self), self.left_out)

    def __str__(self) -> str:
        problems = len(np.unique(self.problems))
        about = f"{len(self)} examples about {problems} problems, {len(self.ids):,} tokens"
        return f"{about}; left out: {self.tally.reasons}"

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> Example:
        where = slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))
        return Example(self.ids[where], self.learned[where])

    def some(self, numbers: Sequence[int] | np.ndarray) -> list[Example]:
        """The examples with these numbers."""
        return [self[int(number)] for number in numbers]

    def split(self, valid_share: float, seed: int) -> tuple[ExampleSet, ExampleSet]:
        """(to train on, held out): all examples of about `valid_share` of the problems are held out."""
        known, of = np.unique(self.problems, return_inverse=True)
        held = np.random.default_rng([_HOLD_OUT, seed]).random(len(known)) < valid_share
        return self._only(np.flatnonzero(~held[of])), self._only(np.flatnonzero(held[of]))

    def _only(self, numbers: np.ndarray) -> ExampleSet:
        return ExampleSet.of(self.some(numbers), [int(self.problems[number]) for number in numbers])

    def steps(self, batch: int, epochs: int) -> int:
        """Steps of `batch` examples that so many epochs give; what is left of an epoch isn't trained on in it."""
        return epochs * (len(self) // batch)

    def batches(self, batch: int, epochs: int, seed: int, start: Place) -> Generator[tuple[Place, list[Example]]]:
        """All batches from `start` on, and where the run stands after each: each epoch in an order of its own."""
        place, per_epoch = start, len(self) // batch
        for epoch in range(start.chunk, epochs):
            order = np.random.default_rng([_SHUFFLE, seed, epoch]).permutation(len(self))
            for number in range(place.batch if epoch == place.chunk else 0, per_epoch):
                place = Place(place.step + 1, epoch, number + 1)
                yield place, self.some(order[number * batch : (number + 1) * batch])

    def save(self, path: Path) -> None:
        """Writes an .npz file, whole or not at all."""
        names, counts = np.array(list(self.left_out), "U"), np.array(list(self.left_out.values()), np.int64)
        with replacing(path) as file:
            np.savez(
                file, ids=self.ids, learned=self.learned, ends=self.ends, problems=self.problems, left_out=names,
                left_out_counts=counts,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> ExampleSet:
        """What `save` wrote. Raises ConfigError for anything else."""
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:  # np.load leaves bad files open
                left_out = {}
                if "left_out" in file.files:  # files of earlier versions don't say
                    names, counts = file["left_out"].tolist(), file["left_out_counts"].tolist()
                    left_out = {PassedOver(name).reason: int(count) for name, count in zip(names, counts, strict=True)}
                made = cls(file["ids"], file["learned"], file["ends"], file["problems"], left_out)
            if not len(made.ids) == len(made.learned) == (made.ends[-1] if len(made) else 0):
                raise ValueError("its arrays don't fit together")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(f"{path} cannot be read as examples ({error}): delete it, and it is made anew") from error
        return made
