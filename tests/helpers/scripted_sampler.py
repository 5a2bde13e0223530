"""A sampler whose responses are written in advance, and which records every token that it was given or gave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rlef_jax.dialog.chat import ChatFormat


@dataclasses.dataclass(frozen=True)
class ScriptedSample:
    ids: tuple[int, ...]
    behavior_logp: tuple[float, ...]
    finish_reason: str
    version: int


class ScriptedSampler:
    """`script(index, turn)` is the text of a response; texts longer than the limit are cut, as sampled ones are.

    Responses are spelled letter by letter: the tokenizer would never encode their text so, as with sampled ids.

    Attributes:
      streams: per episode index, all tokens in the order in which they entered the row's context.
      calls: (episode indices with a prompt, turn) of each call of `generate`.
    """

    def __init__(self, chat: ChatFormat, script: Callable[[int, int], str], batch_size: int = 4) -> None:
        self.batch_size = batch_size
        self.streams: dict[int, list[int]] = {}
        self.calls: list[tuple[tuple[int, ...], int]] = []
        self._chat = chat
        self._script = script

    def start_group(self) -> int:
        return 0

    def generate(
        self,
        state: int,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        step: int,
        episode_indices: Sequence[int],
        turn: int,
        max_new: Sequence[int],
    ) -> tuple[int, list[ScriptedSample]]:
        assert len(prompts) == len(episode_indices) == len(max_new) == self.batch_size
        assert state == turn  # each group comes back with its own state
        samples = []
        for prompt, index, limit in zip(prompts, episode_indices, max_new):
            if not prompt:
                samples.append(ScriptedSample((), (), "stop", 7))
                continue
            letters = [i for letter in self._script(index, turn) for i in self._chat.tokenizer.encode(letter)]
            ids = [*letters, *self._chat.stop_ids][:limit]
            finish = "stop" if ids[-1] in self._chat.stop_ids else "length"
            self.streams.setdefault(index, []).extend([*prompt, *ids])
            samples.append(ScriptedSample(tuple(ids), tuple(-0.5 * i for i in range(len(ids))), finish, 7))
        self.calls.append((tuple(i for i, prompt in zip(episode_indices, prompts) if prompt), turn))
        return state + 1, samples
