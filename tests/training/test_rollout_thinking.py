"""Models that think: later turns see earlier thinking, or begin a context without it, and train on what was seen."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax import config
from rlef_jax.dialog.chat import ChatFormat, Mark
from rlef_jax.dialog.derive import derive
from rlef_jax.dialog.fast_tokenizer import FastTokenizer
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.prompts import problem_prompt
from rlef_jax.dialog.template import user_says
from rlef_jax.errors import ConfigError
from rlef_jax.model.logp import token_logp
from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig, forward
from rlef_jax.ppo.pack import pack
from rlef_jax.sampling.programs import Programs, Shapes
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.episode_io import read_episodes, write_episodes
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.types import Problem, TestCase
from tests.helpers.chat_templates import MODELS, tokenizer_of
from tests.helpers.scripted_sampler import ScriptedSampler
from tests.helpers.tiny_tokenizer import tiny_tokenizer

PROBLEM = Problem("p", "Say 2.", (TestCase("1", "2"),), (TestCase("3", "4"),))
BEGIN, END = Mark("<think>"), Mark("</think>")
CODE = "Well:\n\n```python\nprint(1)\n```"


@functools.cache
def chat_of(name):
    tokenizer = FastTokenizer(tokenizer_of(name))
    style, notes = derive(MODELS[name].rendered(), list(tokenizer.marks))
    return ChatFormat(tokenizer, style, notes=notes)


def settings_of(chat, **changes):
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=chat.stop_ids, max_new_tokens=120)
    return dataclasses.replace(RolloutSettings(sampling, context=3000, cut_thinking=True), **changes)


def rollout(pool, name, script, **changes):
    chat = chat_of(name)
    sampler = ScriptedSampler(chat, lambda _, turn: script[turn])
    [episode] = collect(sampler, chat, pool, [PROBLEM], seed=0, step=0, settings=settings_of(chat, **changes))
    assert list(episode.token_ids) == sampler.streams[0]
    return chat, episode


@pytest.mark.parametrize(
    "name, before", [("qwen3", [BEGIN]), ("qwen3_thinking", []), ("r1_distill", [])], ids=lambda v: str(v)[:15]
)
def test_contexts_are_what_the_models_template_writes(name, before, pool):
    thought = [*before, "\nA thought.\n", END, "\n\n" + CODE]
    chat, episode = rollout(pool, name, [thought] * 3)
    assert [turn.restart for turn in episode.turns] == [False, True, True]
    texts = [problem_prompt(PROBLEM.description)]
    for before_it, turn in zip(episode.turns, episode.turns[1:], strict=False):
        texts += ["".join(thought), feedback_message(PROBLEM, before_it.verdict)]
        rendered = MODELS[name].rendered().render(user_says(*texts))
        if name == "r1_distill":  # its template leaves the newlines behind </think>, which others cut: so do we
            rendered = rendered.replace("\n\nWell:", "Well:")
        assert list(turn.prompt_delta_ids) == chat.tokenizer.whole.encode(rendered, add_special_tokens=False).ids
        assert "A thought" not in rendered
    kept, whole = rollout(pool, name, [thought] * 3, cut_thinking=False)[1], episode
    assert kept.stretches == (len(kept.token_ids),) and len(whole.stretches) == 3
    assert kept.turns[0].prompt_delta_ids == whole.turns[0].prompt_delta_ids


def test_what_is_cut():
    chat = chat_of("qwen3_thinking")
    encode, stop = chat.tokenizer.encode_pieces, chat.stop_ids[0]
    prompt = chat.first_prompt("Hi")
    head = prompt[: -len(encode([BEGIN, "\n"]))]
    for response, seen in (
        (["a", END, "\n\nb"], ["b"]),
        (["a", END, "b", END, "c"], ["c"]),
        (["a", END], []),
        (["never ends"], []),
    ):
        ids = encode(response)
        assert chat.without_thinking(prompt, [*ids, stop]) == [*head, *encode(seen), stop]
        assert chat.without_thinking(prompt, ids) == [*head, *encode(seen)]  # cut by length
    plain = chat_of("qwen3")
    assert plain.without_thinking(plain.first_prompt("Hi"), [*encode(["b"]), stop]) is None
    assert plain.without_thinking([1], [*encode([BEGIN, "a"]), stop]) == [1, stop]
    closed = chat_of("qwen3 without thinking")  # opens responses with an empty thought
    assert closed.without_thinking(closed.first_prompt("Hi"), [*encode(["b"]), stop]) == [*head, *encode(["b"]), stop]


def test_what_it_is_not_for(pool):
    tiny = ChatFormat(tiny_tokenizer())
    sampler = ScriptedSampler(tiny, lambda index, turn: CODE)
    with pytest.raises(ConfigError, match=r'config\.episode\.thinking: "cut" is for models that think'):
        collect(sampler, tiny, pool, [PROBLEM], seed=0, step=0, settings=settings_of(tiny))
    chat, begun = chat_of("qwen3"), dataclasses.replace(PROBLEM, start="def f():")
    with pytest.raises(ConfigError, match="'p' begins the response"):
        collect(ScriptedSampler(chat, lambda *_: CODE), chat, pool, [begun], seed=0, step=0, settings=settings_of(chat))
    for keys, message in (
        ({"ppo.buckets": (256,)}, "ppo.buckets.*a context for each of its 3 turns"),
        ({"ppo.buckets": (768,), "model.attention": "dot_product"}, 'model.attention: must be "blocks"'),
    ):
        with pytest.raises(ConfigError, match=message):
            config.load("configs/tiny.py", overrides={"episode.thinking": "cut", **keys})


def test_an_episode_that_no_longer_fits_its_context_ends(pool):
    long = [BEGIN, "word " * 60, END, "\n" + CODE]
    _, episode = rollout(pool, "qwen3", [long] * 3)
    most = max(episode.stretches)
    assert len(episode.turns) == 3 and most < len(episode.token_ids)
    assert rollout(pool, "qwen3", [long] * 3, context=most)[1].token_ids == episode.token_ids
    for changes in ({"cut_thinking": False, "context": most}, {"context": most - 200}):
        assert rollout(pool, "qwen3", [long] * 3, **changes)[1].end == "context"


def test_trainer_agrees_with_the_sampler_on_contexts_that_begin_anew(pool, tmp_path, quick_compilation):
    """Log-probabilities of every sampled token in packed rows are the sampler's."""
    chat, context = chat_of("qwen3_thinking"), 640
    cfg = ModelConfig(
        vocab_size=chat.tokenizer.vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_head=8, d_ff=32
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(init_params, cfg=cfg), jax.random.PRNGKey(0))
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.3, a.shape), a.dtype), shapes)
    programs = Shapes(
        rows=2, max_len=context, cache_lengths=(), prefill_chunks=(64,), prefill_tokens=128, decode_steps=4
    )
    sampler = Sampler(Programs(cfg, programs, make_mesh()), workers=1)
    sampler.set_weights(params, version=0)
    settings = settings_of(chat, context=context)
    settings = dataclasses.replace(settings, sampling=dataclasses.replace(settings.sampling, max_new_tokens=12))
    problems = [dataclasses.replace(PROBLEM, name=f"p{i}", description="sum " * i) for i in range(3)]
    episodes = collect(sampler, chat, pool, problems, seed=0, step=0, settings=settings)
    assert all(len(e.stretches) == len(e.turns) == 3 for e in episodes)
    write_episodes(tmp_path / "e.jsonl.gz", episodes)
    assert read_episodes(tmp_path / "e.jsonl.gz") == episodes
    [batch], _ = pack(episodes, buckets=(3 * context,), rows=3, max_turns=3)

    @jax.jit
    def trained_logp(tokens, positions, segments):
        return token_logp(params, cfg, forward(params, cfg, tokens, positions, segments), tokens)

    logp = trained_logp(batch.tokens, batch.positions, batch.segment_ids)
    acts = batch.action_mask > 0
    np.testing.assert_allclose(np.asarray(logp)[acts], batch.behavior_logp[acts], atol=1e-4)
    assert acts.sum() == sum(len(t.response_ids) for e in episodes for t in e.turns)
