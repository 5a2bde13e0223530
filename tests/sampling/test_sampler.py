"""The sampler against the trainer's model, and against itself under other schedules."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from rlef_jax.model.logp import token_logp
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import forward, unembed
from rlef_jax.sampling.programs import Programs, Shapes
from rlef_jax.sampling.request import SamplingConfig
from tests.helpers.toy_sampler import CFG, HOW, PARAMS, SHAPES, STOP, WAIT_S, at_once, make_sampler, prompt_of

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("quick_compilation")]


@jax.jit
def trainer_logp(params, tokens, positions, segments):
    return token_logp(params, CFG, forward(params, CFG, tokens, positions, segments), tokens)


@jax.jit
def logits_of(params, tokens):
    hidden = forward(params, CFG, tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens))
    return unembed(params, CFG, hidden)


@pytest.fixture(scope="module")
def programs(quick_compilation):
    made = Programs(CFG, SHAPES, make_mesh())
    made.compile()
    return made


def one_by_one(sampler, episodes, turns=3):
    """The same, with one request under way at a time, in another order."""
    made = {}
    with sampler.session() as session:
        for e in reversed(episodes):
            dialogue = session.dialogue(seed=1, step=2, episode=e)
            for turn in range(turns):
                asked = session.respond(dialogue, prompt_of(turn, e), HOW, turn=turn)
                made[e, turn] = (prompt_of(turn, e), asked.result(WAIT_S))
            session.end(dialogue)
    return made


def test_policy_logp_is_the_trainers_over_three_turns(programs):
    episodes = range(9)
    made, _ = at_once(make_sampler(programs), episodes)
    rows = np.zeros((9, 64), np.int32)
    lengths, expected = [], []
    for row, episode in enumerate(episodes):
        ids, spans = [], []
        for turn in range(3):
            prompt, sample = made[episode, turn]
            ids += prompt
            spans.append((len(ids), sample))
            ids += sample.ids
        rows[row, : len(ids)] = ids
        lengths.append(len(ids))
        expected.append(spans)
    positions = np.broadcast_to(np.arange(64), rows.shape)
    segments = (positions < np.array(lengths)[:, None]).astype(np.int32)
    logp = np.asarray(trainer_logp(PARAMS, rows, positions, segments))
    assert sum(len(s.ids) for spans in expected for _, s in spans) > 60
    for row, spans in enumerate(expected):
        for start, sample in spans:
            np.testing.assert_allclose(sample.policy_logp, logp[row, start : start + len(sample.ids)], atol=1e-4)
            np.testing.assert_allclose(sample.behavior_logp, sample.policy_logp, atol=1e-5)


def test_responses_end_at_a_stop_id_or_at_the_limit(programs):
    samples = [s for _, s in at_once(make_sampler(programs), range(9))[0].values()]
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    for s in samples:
        assert STOP not in s.ids[:-1]
        assert (s.ids[-1] == STOP) == (s.finish_reason == "stop")
        assert s.finish_reason == "stop" or len(s.ids) == 6
        assert len(s.ids) == len(s.behavior_logp) == len(s.policy_logp)
        assert s.versions == (7,) * len(s.ids)


def test_arrival_order_neighbours_and_pages_that_are_given_up_change_nothing(programs):
    """Twenty dialogues in three rows and their pages, most moved to the host and back: as alone, bit for bit."""
    episodes = range(20)
    crowded, stats = at_once(make_sampler(programs), episodes)
    assert stats.saved > 10
    assert one_by_one(make_sampler(programs), episodes) == crowded
    for kwargs in ({"workers": 2}, {"workers": 3, "min_ready_fraction": 0.7}, {"min_ready_fraction": 1.0}):
        assert at_once(make_sampler(programs, **kwargs), episodes)[0] == crowded
    # Memory for hardly more than the longest dialogue: those that are decoded are moved out and back too.
    tight = Programs(CFG, dataclasses.replace(SHAPES, pages=9, kinds=("plain",)), make_mesh())
    moved, tight_stats = at_once(make_sampler(tight), episodes)
    assert moved == crowded and tight_stats.saved > stats.saved
    few, stats = at_once(make_sampler(programs), (4, 11))
    assert stats.saved == 0
    assert all(crowded[key] == found for key, found in few.items())


def test_programs_of_one_thread_round_the_same_in_any_lane(programs):
    one_thread = Programs(CFG, dataclasses.replace(SHAPES, kinds=("plain",)), make_mesh(), one_thread=True)
    crowded, _ = at_once(make_sampler(one_thread, workers=2), range(9))
    assert crowded == one_by_one(make_sampler(one_thread), range(9))
    first = {key: sample.policy_logp[0] for key, (_, sample) in crowded.items() if key[1] == 0}
    for key, (_, sample) in at_once(make_sampler(programs), range(9), turns=1)[0].items():
        assert abs(sample.policy_logp[0] - first[key]) < 1e-4  # the same but for rounding


def test_only_new_tokens_are_prefilled(programs):
    """Of each prompt all but the last token, which decoding runs; and the token that a response ended with."""
    made, stats = at_once(make_sampler(programs), range(3))
    fresh = sum(len(prompt) - 1 + (turn > 0) for (_, turn), (prompt, _) in made.items())
    assert stats.prefilled_tokens == fresh and stats.saved == 0
    assert stats.tokens == sum(len(sample.ids) for _, sample in made.values())
    crowded, stats = at_once(make_sampler(programs), range(12))
    assert stats.saved > 0
    assert stats.prefilled_tokens == sum(len(p) - 1 + (turn > 0) for (_, turn), (p, _) in crowded.items())


def test_a_prompt_that_several_begin_with_is_prefilled_once(programs):
    def prompt(turn, episode):
        return list(range(4, 17)) if turn == 0 else prompt_of(turn, episode)

    def all_different(turn, episode):
        return [*prompt(turn, episode)] if episode == 5 or turn else [4 + episode, *prompt(turn, episode)]

    for workers in (1, 2):
        sampler = make_sampler(programs, workers=workers)
        shared, stats = at_once(sampler, range(10), prompt=prompt, turns=2)
        second = sum(len(prompt(1, e)) for e in range(10))
        assert (stats.prefilled_tokens, stats.shared_tokens) == (12 + second, 9 * 12)
        alone, stats = at_once(sampler, range(10), prompt=all_different, turns=2)
        assert stats.shared_tokens == 0
        assert shared[5, 0] == alone[5, 0] and shared[5, 1] == alone[5, 1]


def test_seed_step_episode_and_turn_each_change_the_draws(programs):
    def draw(seed=1, step=2, episode=0, turn=0):
        with make_sampler(programs).session() as session:
            dialogue = session.dialogue(seed=seed, step=step, episode=episode)
            return session.respond(dialogue, [4, 5], HOW, turn=turn).result(WAIT_S)

    first = draw()
    assert draw() == first
    assert all(draw(**{name: 9}).ids != first.ids for name in ("seed", "step", "episode", "turn"))


def test_a_shorter_look_at_the_cache_changes_rounding_at_most(programs):
    shapes = Shapes(
        rows=3, max_len=64, cache_lengths=(16, 32), prefill_chunks=(4, 8), prefill_tokens=16, decode_steps=4,
        kinds=("plain",),
    )  # fmt: skip
    looked, _ = at_once(make_sampler(Programs(CFG, shapes, make_mesh())), range(9))
    whole, _ = at_once(make_sampler(programs), range(9))
    for key, (_, sample) in whole.items():
        assert looked[key][1].ids == sample.ids
        np.testing.assert_allclose(looked[key][1].policy_logp, sample.policy_logp, atol=1e-4)


def test_limits_of_responses_and_of_rows(programs):
    with make_sampler(programs).session() as session:

        def ask(length, **kwargs):
            return session.respond(session.dialogue(seed=0, step=0, episode=1), [4] * length, HOW, turn=0, **kwargs)

        assert len(ask(1, max_new=1).result(WAIT_S).ids) == 1
        assert len(ask(1, max_new=60).result(WAIT_S).ids) <= 6
        assert len(ask(63).result(WAIT_S).ids) == 1  # fills its row
        for length in (64, 80):
            with pytest.raises(ValueError, match=f"has {length} of 64 tokens with its prompt"):
                ask(length)
        with pytest.raises(ValueError, match="no room for a response"):
            ask(1, max_new=0)
        with pytest.raises(ValueError, match="prompt of 0"):
            ask(0)
        many = SamplingConfig(1.0, 1.0, 0, (1, 2, 3), 4)
        with pytest.raises(ValueError, match="3 stop ids, compiled for 2"):
            session.respond(session.dialogue(seed=0, step=0, episode=1), [4], many, turn=0)


def test_requests_have_settings_of_their_own(programs):
    """Side by side in one dispatch: sharp, greedy and plain ones, with other stop ids."""
    sharp = SamplingConfig(temperature=0.5, top_p=0.9, top_k=5, stop_ids=(STOP,), max_new_tokens=6)
    greedy = SamplingConfig(temperature=0.0, top_p=1.0, top_k=0, stop_ids=(5, STOP), max_new_tokens=9)
    with make_sampler(programs).session() as session:
        asked = {
            (how, e): session.respond(session.dialogue(seed=1, step=2, episode=e), prompt_of(0, e), how, turn=0)
            for e in range(6)
            for how in (HOW, sharp, greedy)
        }
        made = {key: future.result(WAIT_S) for key, future in asked.items()}
    for (how, e), sample in made.items():
        prompt = prompt_of(0, e)
        ids = np.zeros((1, 32), np.int32)  # the tokens behind the response change nothing before them
        ids[0, : len(prompt) + len(sample.ids)] = [*prompt, *sample.ids]
        rows = np.asarray(logits_of(PARAMS, ids))[0]
        for i, token in enumerate(sample.ids):
            logits = rows[len(prompt) - 1 + i].astype(np.float64)
            full = np.exp(logits - logits.max())
            np.testing.assert_allclose(sample.policy_logp[i], np.log(full[token] / full.sum()), atol=1e-4)
            if how == greedy:
                assert token == logits.argmax() and sample.behavior_logp[i] == 0.0
            elif how == sharp:
                kept = np.argsort(-full)[:5]
                shares = full[kept] ** 2 / (full[kept] ** 2).sum()
                kept = kept[: int(np.searchsorted(np.cumsum(shares), 0.9)) + 1]
                assert token in kept
                expected = np.log(full[token] ** 2 / (full[kept] ** 2).sum())
                np.testing.assert_allclose(sample.behavior_logp[i], expected, atol=1e-4)
        assert not set(sample.ids[:-1]) & set(how.stop_ids)
    assert any(made[greedy, e].ids[-1] == 5 for e in range(6)) or any(len(made[greedy, e].ids) > 6 for e in range(6))


def test_the_samplers_weights_are_its_own(programs):
    params = jax.tree.map(jnp.copy, PARAMS)
    sampler = make_sampler(programs, params=params)
    before, _ = at_once(sampler, range(3), turns=1)
    step = jax.jit(lambda p: jax.tree.map(lambda a: a * -2.0, p), donate_argnums=0)
    changed = step(params)
    assert all(a.is_deleted() for a in jax.tree.leaves(params))
    assert at_once(sampler, range(3), turns=1)[0] == before
    sampler.set_weights(changed, version=8)
    after, _ = at_once(sampler, range(3), turns=1)
    assert all(set(s.versions) == {8} and s.ids != before[key][1].ids for key, (_, s) in after.items())


def test_weights_that_come_during_a_response_are_taken_between_dispatches():
    """No work is dropped, every token knows its weights, and its log-probability is theirs."""
    shapes = dataclasses.replace(SHAPES, rows=2, prefill_chunks=(8,), decode_steps=2, kinds=("plain",))
    other = jax.tree.map(lambda a: a * 0.9, PARAMS)
    how = SamplingConfig(1.0, 1.0, 0, (23,), 12)
    sampler = make_sampler(Programs(CFG, shapes, make_mesh()))
    quiet, _ = at_once(sampler, (0, 5), turns=2, how=how)
    decode, dispatches = sampler.programs.decode, []

    def decode_and_publish(*args):
        found = decode(*args)
        dispatches.append(None)
        if len(dispatches) == 2:
            sampler.set_weights(other, version=8)  # as another thread would
        return found

    sampler.programs.decode = decode_and_publish
    made, _ = at_once(sampler, (0, 5), turns=2, how=how)
    for e in (0, 5):
        first, second = made[e, 0][1], made[e, 1][1]
        before = first.versions.count(7)  # two tokens for each of two dispatches, fewer if it was asked for after one
        assert first.versions == (7,) * before + (8,) * (len(first.versions) - before)
        assert before <= 4 and (before % 2 == 0 or before == len(first.versions))
        assert first.ids[:before] == quiet[e, 0][1].ids[:before]
        assert set(second.versions) == {8}
    both = [made[e, 0][1].versions for e in (0, 5)]
    assert any(7 in versions for versions in both) and any(8 in versions for versions in both)


def test_nothing_is_compiled_after_the_start(programs):
    """However requests come and go, in number, length, kind or version of the weights."""
    sampler = make_sampler(programs)
    at_once(sampler, range(2), turns=1)
    compiled = programs.compiled
    seen = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            seen.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 3.25)(jnp.ones(3))
        assert seen  # the listener hears
        seen.clear()
        for how in (HOW, SamplingConfig(0.5, 0.9, 2, (STOP,), 5)):
            at_once(sampler, range(15), how=how)
        sampler.set_weights(PARAMS, version=9)
        at_once(sampler, (0,), turns=1)
        assert not seen and programs.compiled == compiled
    finally:
        monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("seed", range(3))
def test_any_schedule_gives_every_response_once(programs, seed):
    """Dialogues that begin, go on, wait and end at random, in two crowded workers."""
    rng = random.Random(seed)
    sampler = make_sampler(programs, workers=2, min_ready_fraction=rng.choice([0.0, 0.5]))
    expected, _ = at_once(sampler, range(12))
    made = {}
    with sampler.session() as session:
        waiting = {e: (session.dialogue(seed=1, step=2, episode=e), 0) for e in range(12)}
        asked = {}
        while waiting or asked:
            for e in rng.sample(sorted(waiting), rng.randint(0, len(waiting))):
                dialogue, turn = waiting.pop(e)
                asked[e, turn] = dialogue, session.respond(dialogue, prompt_of(turn, e), HOW, turn=turn)
            for e, turn in rng.sample(sorted(asked), rng.randint(0, len(asked))):
                dialogue, future = asked[e, turn]
                if waiting and not future.done():
                    continue
                if not waiting and len(asked) > 1 and not future.done():
                    continue
                made[e, turn] = (prompt_of(turn, e), future.result(WAIT_S))
                del asked[e, turn]
                if turn < 2:
                    waiting[e] = dialogue, turn + 1
                else:
                    session.end(dialogue)
    assert made == expected
