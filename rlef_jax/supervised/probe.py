"""What a model says of held-out examples: their loss, and which responses it would write word for word."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.data.dialogues import dialogues
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.model.transformer import ModelConfig, Params, forward, unembed
from rlef_jax.ppo.objective import ForwardSettings
from rlef_jax.ppo.pack import PADDING
from rlef_jax.ppo.settings import PackSettings
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.supervised.authors import example_of
from rlef_jax.supervised.examples import Example, pack_examples, spans


class Probe:
    """Scores examples by a policy. It owns compiled code and the examples, no weights."""

    def __init__(
        self, cfg: ModelConfig, examples: Sequence[Example], packing: PackSettings, forward_settings: ForwardSettings
    ) -> None:
        self.examples = list(examples)
        self._batches, self._index = pack_examples(self.examples, dataclasses.replace(packing, row_episodes=1))
        self._read = jax.jit(lambda params, batch: read_tokens(params, cfg, batch, forward_settings))

    def __call__(self, params: Params) -> tuple[float, list[list[bool]]]:
        """(mean negative log-likelihood of a learned token; of each example, which of its responses it would write).

        Teacher forcing makes the second exactly greedy decoding, token by token.
        """
        losses, tokens = 0.0, 0
        exact: list[list[bool]] = [[] for _ in self.examples]
        for batch, index in zip(self._batches, self._index, strict=True):
            logp, hits = map(np.asarray, self._read(params, batch))
            losses -= float((logp * batch.action_mask).sum())
            tokens += int(batch.action_mask.sum())
            for row, (number,) in enumerate(index):
                if number != PADDING:
                    exact[number] = [bool(hits[row, a:b].all()) for a, b in spans(self.examples[number].learned)]
        return losses / max(tokens, 1), exact


def read_tokens(
    params: Params, cfg: ModelConfig, batch: TokenBatch, settings: ForwardSettings
) -> tuple[jax.Array, jax.Array]:
    """(log-probability [B, T], float32, of each token given those before it; whether it is the likeliest one, bool).

    The first token has 0 and False. `settings.logit_tokens` tokens have logits at a time.
    """
    hidden = forward(
        params, cfg, batch.tokens, batch.positions, batch.segment_ids, compute_dtype=settings.compute_dtype,
        unroll=settings.unroll, attention=settings.attention,
    )  # fmt: skip
    rows, length = batch.tokens.shape
    chunk = min(max(settings.logit_tokens // rows, 1), max(length - 1, 1))
    padding = -(length - 1) % chunk

    def chunks(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, -1, chunk, *array.shape[2:]), 1, 0)

    def of(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = unembed(params, cfg, part[0])
        chosen = jnp.take_along_axis(logits, part[1][..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1), chosen >= jnp.max(logits, axis=-1)

    def whole(array: jax.Array) -> jax.Array:
        return jnp.pad(jnp.moveaxis(array, 0, 1).reshape(rows, -1)[:, : length - 1], ((0, 0), (1, 0)))

    logp, hits = jax.lax.map(of, (chunks(hidden[:, :-1]), chunks(batch.tokens[:, 1:])))
    return whole(logp), whole(hits)


class ReadingProbe:
    """Does the model read the feedback? What it would write of a careful author's held-out dialogues.

    That author's repairs are right, so exact repairs are the share of right repairs (a lower bound: other programs may
    be right too).
    """

    def __init__(
        self, cfg: ModelConfig, chat: ChatFormat, seed: int, settings: dict[str, Any], packing: PackSettings,
        forward_settings: ForwardSettings, problems: int,
    ) -> None:  # fmt: skip
        careful = {**settings, "marked_share": 1.0}
        self.dialogues = dialogues(seed, 0, chat, split="valid", problems=problems, per_problem=2, **careful)
        self._probe = Probe(cfg, [example_of(d) for d in self.dialogues], packing, forward_settings)

    def __call__(self, params: Params) -> dict[str, float]:
        """Percent of exact first responses to closed problems, of exact repairs, and of repairs per question."""
        exact: dict[str, list[bool]] = {}
        for dialogue, responses in zip(self.dialogues, self._probe(params)[1], strict=True):
            tags = dialogue.problem.tags
            for turn, hit in enumerate(responses):
                if turn == 0 and not (not tags["open"] and dialogue.passed[0]):
                    continue
                names = ["first"] if turn == 0 else ["repair", f"repair/{tags['question'] or 'closed'}"]
                for name in names:
                    exact.setdefault(name, []).append(hit)
        return {name: 100 * float(np.mean(values)) for name, values in sorted(exact.items())}


class HeldOutProbe:
    """The loss of held-out examples, and the percent of their learned responses that the model would write."""

    def __init__(
        self, cfg: ModelConfig, examples: Sequence[Example], packing: PackSettings, forward_settings: ForwardSettings
    ) -> None:
        self._probe = Probe(cfg, examples, packing, forward_settings)

    def __call__(self, params: Params) -> dict[str, float]:
        """{"valid/loss", "valid/exact"}; {} where nothing is held out."""
        if not self._probe.examples:
            return {}
        loss, exact = self._probe(params)
        return {"valid/loss": loss, "valid/exact": 100 * float(np.mean([hit for hits in exact for hit in hits]))}
