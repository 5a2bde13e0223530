"""A sampler whose responses are written in advance, and which records every token that it was given or gave."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.sampling.request import Sample, SamplingConfig
from rlef_jax.sampling.session import SamplerStats


@dataclasses.dataclass(eq=False)
class ScriptedDialogue:
    index: int
    turns: int = 0
    over: bool = False


class ScriptedSampler:
    """`script(index, turn)` is the text of a response; texts longer than the limit are cut, as sampled ones are.

    Responses are spelled letter by letter: the tokenizer would never encode their text so, as with sampled ids. What
    is given as marks and texts is encoded as usual.
    It is its own session.

    Attributes:
      streams: per episode index, all tokens in the order in which they entered the row's context.
      calls: (episode index, turn) of each response, in the order in which they were asked for.
      dialogues: by episode index.
    """

    def __init__(self, chat: ChatFormat, script: Callable[[int, int], str | Sequence[str]]) -> None:
        self.streams: dict[int, list[int]] = {}
        self.calls: list[tuple[int, int]] = []
        self.dialogues: dict[int, ScriptedDialogue] = {}
        self._chat = chat
        self._script = script
        self._began = time.perf_counter()
        self._tokens = 0

    def set_weights(self, params: Any, version: int) -> None:
        """Nothing that it writes depends on weights."""

    def session(self, on_compile: Callable[[int, int], None] | None = None) -> ScriptedSampler:
        return self

    def __enter__(self) -> ScriptedSampler:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def dialogue(self, *, seed: int, step: int, episode: int) -> ScriptedDialogue:
        before = self.dialogues.get(episode)
        assert before is None or before.over  # an episode's context may begin anew
        self.dialogues[episode] = ScriptedDialogue(episode, before.turns if before else 0)
        return self.dialogues[episode]

    def respond(
        self,
        dialogue: ScriptedDialogue,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        *,
        turn: int,
        max_new: int,
        last: bool,
    ) -> Future[Sample]:
        index = dialogue.index
        assert prompt and turn == dialogue.turns and not dialogue.over
        dialogue.turns, dialogue.over = turn + 1, last
        written, tokenizer = self._script(index, turn), self._chat.tokenizer
        spelled = isinstance(written, str)
        letters = [i for a in written for i in tokenizer.encode(a)] if spelled else tokenizer.encode_pieces(written)
        ids = [*letters, *self._chat.stop_ids][: min(max_new, sampling.max_new_tokens)]
        finish = "stop" if ids[-1] in self._chat.stop_ids else "length"
        self.streams.setdefault(index, []).extend([*prompt, *ids])
        self.calls.append((index, turn))
        self._tokens += len(ids)
        logp = tuple(-0.5 * i for i in range(len(ids)))
        future: Future[Sample] = Future()
        future.set_result(Sample(tuple(ids), logp, logp, finish, (7,) * len(ids)))
        return future

    def end(self, dialogue: ScriptedDialogue) -> None:
        assert not dialogue.over
        dialogue.over = True

    def stats(self) -> SamplerStats:
        wall_s = time.perf_counter() - self._began
        return SamplerStats(self._tokens, self._tokens, 0, 0, 0, 0, 0, busy_s=0.0, wall_s=wall_s)
