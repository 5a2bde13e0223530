"""Failed first responses of another run, which a repairer's episodes begin behind (appendix B.4).

A run of `rlef_jax.train` keeps its episodes. Those whose first response failed the public tests are dialogues that a
repair model is trained on: the problem, the failed response and its feedback are the first prompt, and the repairer's
own response is all that is sampled, rewarded and trained. The failed response's tokens are taken over as they were
sampled; of its verdict only the results on public tests are used.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rlef_jax import episode as machine
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.context import whole_prompt
from rlef_jax.dialog.load import load_chat
from rlef_jax.dialog.same_format import check_same_format
from rlef_jax.errors import ConfigError
from rlef_jax.training.actor import RolloutRequest, Starts
from rlef_jax.training.episode_io import episodes_path, read_episodes, saved_steps
from rlef_jax.training.rollout import RolloutSettings, message_of
from rlef_jax.training.tally import PassedOver, Tally
from rlef_jax.types import Episode, Problem, Status

_FILES, _ROWS = 0xFA11ED, 0xFA11EE  # keep these draws apart from any other use of (seed, step)
type _Start = tuple[Problem, list[int]]  # a problem and the first prompt about it
_GZIP_END = 8  # bytes at the end of a gzip file: the checksum and the length of what it holds


def failed_first(episode: Episode) -> Episode | None:
    """The episode up to its first response, if that failed the public tests; None where it didn't, or who knows."""
    verdict = episode.turns[0].verdict if episode.turns else None
    if verdict is None or verdict.status is Status.INFRA_ERROR or verdict.public_passed:
        return None
    return dataclasses.replace(episode, turns=episode.turns[:1], end="")


def repair_prompt(failed: Episode, chat: ChatFormat, settings: RolloutSettings) -> list[int] | None:
    """The tokens that a repair of an episode's one response sees; None where they leave no room for any.

    The episode is of this chat format (`dialog.same_format`).
    """
    message = message_of(failed.problem, machine.last_verdict(failed), settings, kind=settings.feedback)
    prompt = whole_prompt(failed, message, chat, cut_thinking=settings.cut_thinking)
    return prompt if machine.room(failed, len(prompt), settings.context, restart=True) >= 1 else None


@dataclasses.dataclass(frozen=True)
class FailedResponses:
    """Finds what a repairer's iterations begin with: a function of the request's seed, step, count and indexes.

    An iteration takes failures of one of the run's iterations; each of these comes once before any comes again. Within
    it they are drawn without repetition while they last. Dialogues that leave no room for a response are passed over
    and counted.

    Attributes:
      workdir: of the run that failed.
      steps: its iterations whose episodes are used.
      chat: the names of tokenizer, template and template's options, as `config.model` has them.
    """

    workdir: Path
    steps: tuple[int, ...]
    chat: tuple[str, str, str]

    @classmethod
    def of(cls, config: ConfigDict) -> FailedResponses:
        """All saved iterations of the run that `config.data.failures` names. Raises ConfigError for none."""
        workdir, model = Path(config.data.failures), config.model
        steps = tuple(saved_steps(workdir))
        if not steps:
            raise ConfigError(
                f"config.data.failures: no episodes in {workdir}: give the --workdir of a run of rlef_jax.train that"
                " has train.save_episodes=True"
            )
        return cls(workdir, steps, (model.tokenizer, model.chat, model.chat_options))

    def identity(self) -> list[str]:
        """What the files hold, as far as another content would be told from it."""
        digest = hashlib.sha256()
        for step in self.steps:
            path = episodes_path(self.workdir, step)
            with open(path, "rb") as file:
                file.seek(-_GZIP_END, os.SEEK_END)
                digest.update(path.name.encode() + file.read())
        return [f"episodes of {len(self.steps)} iterations", f"hash {digest.hexdigest()[:16]}"]

    def __call__(self, request: RolloutRequest) -> Starts:
        """The problems and first prompts of a request's episodes, and how its whole iteration came by them.

        Raises ConfigError for files that can't be read or are of another chat format, or without a failure to use.
        """
        chosen, tally = self._chosen(request)
        pairs = [chosen[i // request.group_size] for i in request.indexes]
        return Starts([problem for problem, _ in pairs], prompts=[prompt for _, prompt in pairs], tally=tally)

    def _chosen(self, request: RolloutRequest) -> tuple[list[_Start], Tally]:
        """What each group of an iteration's episodes begins with; and how many were drawn of the failures that were
        read for it."""
        count = request.count // request.group_size
        passed_over: list[PassedOver] = []
        for path in self._files(request.seed, request.step):
            found = list(self._found(path, request.settings))
            usable = [one for one in found if not isinstance(one, PassedOver)]
            passed_over += [one for one in found if isinstance(one, PassedOver)]
            if usable:
                rng = np.random.default_rng([_ROWS, request.seed, request.step])
                rounds = -(-count // len(usable))
                order = np.concatenate([rng.permutation(len(usable)) for _ in range(rounds)])
                drawn = min(count, len(usable))
                passed_over += [PassedOver("not_drawn")] * (len(usable) - drawn)
                return [usable[i] for i in order[:count]], Tally.of(drawn, passed_over)
        raise ConfigError(
            f"config.data.failures: {self.workdir} has no first response that failed its public tests and leaves room"
            f" for a repair in config.episode.context={request.settings.context}; left out:"
            f" {Tally.of(0, passed_over).reasons}"
        )

    def _files(self, seed: int, step: int) -> Iterator[Path]:
        """The file of an iteration, and the others, in the order in which they are tried where it has no failure."""
        passes, place = divmod(step, len(self.steps))
        order = np.random.default_rng([_FILES, seed, passes]).permutation(len(self.steps))
        for i in np.roll(order, -place):
            yield episodes_path(self.workdir, self.steps[i])

    def _found(self, path: Path, settings: RolloutSettings) -> Iterator[_Start | PassedOver]:
        chat = _loaded(*self.chat)
        try:
            episodes = read_episodes(path)
        except ConfigError as error:
            raise ConfigError(f"config.data.failures: {error}") from error
        for failed in map(failed_first, episodes):
            if failed is None:
                yield PassedOver("no_failure")
                continue
            check_same_format(failed, chat, settings.system_prompt, f"config.data.failures: {path}")
            prompt = repair_prompt(failed, chat, settings)
            yield PassedOver("no_room") if prompt is None else (failed.problem, prompt)


@functools.cache
def _loaded(tokenizer: str, template: str, options: str) -> ChatFormat:
    return load_chat(tokenizer, template, options)
