"""The sampler against the trainer's model, and against itself under other schedules."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.logp import token_logp
from rlef_jax.model.transformer import ModelConfig, forward, init_params, unembed
from rlef_jax.sampling.sampler import Sample, Sampler, SamplingConfig

CFG = ModelConfig(vocab_size=24, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=24)
STOP = 3
# Sharp enough that a wrong position or mask moves log-probabilities by far more than 1e-4.
PARAMS = jax.tree.map(
    lambda a: a * 3.0, jax.device_get(jax.jit(init_params, static_argnums=1)(jax.random.PRNGKey(0), CFG))
)


@jax.jit
def trainer_logp(params, tokens, positions, segments):
    return token_logp(params, CFG, forward(params, CFG, tokens, positions, segments), tokens)


@jax.jit
def logits_of(params, tokens):
    hidden = forward(params, CFG, tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens))
    return unembed(params, CFG, hidden)


def make_sampler(rows=3, temperature=1.0, top_p=1.0, top_k=0, max_new=6, max_len=64, multiple=64, params=PARAMS):
    sampling = SamplingConfig(temperature, top_p, top_k, stop_ids=(STOP,), max_new_tokens=max_new)
    sampler = Sampler(CFG, sampling, rows, max_len, prompt_buckets=(8, 16), slot_multiple=multiple)
    sampler.set_weights(params, version=7)
    return sampler


def deltas(turn, episodes, longest=7):
    """Prompt deltas of different lengths, a function of turn and episode alone."""
    rngs = [np.random.default_rng((turn, e)) for e in episodes]
    return [r.integers(4, 24, r.integers(1, longest + 1)).tolist() for r in rngs]


def rollout(sampler, episodes, turns=3, idle=()):
    """{(episode, turn): (delta, sample)} of a group; pairs in `idle` are skipped."""
    state, made = sampler.start_group(), {}
    for turn in range(turns):
        prompts = [[] if (e, turn) in idle else d for e, d in zip(episodes, deltas(turn, episodes), strict=True)]
        state, samples = sampler.generate(state, prompts, seed=1, step=2, episode_indices=episodes, turn=turn)
        made |= {(e, turn): (p, s) for e, p, s in zip(episodes, prompts, samples, strict=True)}
    return made


@pytest.fixture(scope="module")
def sampler():
    return make_sampler()


@pytest.mark.parametrize("idle", [(), ((5, 1),), ((0, 0), (0, 2))])
def test_policy_logp_is_the_trainers_over_three_turns(sampler, idle):
    made = rollout(sampler, episodes=(0, 5, 9), idle=idle)
    rows = np.zeros((3, 64), np.int32)
    lengths, expected = [], []
    for row, episode in enumerate((0, 5, 9)):
        ids, spans = [], []
        for turn in range(3):
            delta, sample = made[episode, turn]
            ids += delta
            spans.append((len(ids), sample))
            ids += sample.ids
        rows[row, : len(ids)] = ids
        lengths.append(len(ids))
        expected.append(spans)
    positions = np.broadcast_to(np.arange(64), (3, 64))
    segments = (positions < np.array(lengths)[:, None]).astype(np.int32)
    logp = np.asarray(trainer_logp(PARAMS, rows, positions, segments))
    assert sum(len(s.ids) for spans in expected for _, s in spans) > 20
    for row, spans in enumerate(expected):
        for start, sample in spans:
            np.testing.assert_allclose(sample.policy_logp, logp[row, start : start + len(sample.ids)], atol=1e-4)
            np.testing.assert_allclose(sample.behavior_logp, sample.policy_logp, atol=1e-5)


def test_responses_end_at_a_stop_id_or_at_the_limit(sampler):
    samples = [s for _, s in rollout(sampler, episodes=(0, 5, 9)).values()]
    samples += [s for _, s in rollout(sampler, episodes=(1, 2, 3)).values()]
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    for s in samples:
        assert STOP not in s.ids[:-1]
        assert (s.ids[-1] == STOP) == (s.finish_reason == "stop")
        assert s.finish_reason == "stop" or len(s.ids) == 6
        assert len(s.ids) == len(s.behavior_logp) == len(s.policy_logp) and s.version == 7


def test_an_episode_does_not_depend_on_slot_neighbours_or_idle_rows(sampler):
    alone = rollout(sampler, episodes=(5, 0, 9))
    assert rollout(sampler, episodes=(5, 0, 9)) == alone
    for neighbours, idle in [((1, 5, 2), ()), ((3, 4, 5), ((3, 0), (4, 2)))]:
        made = rollout(sampler, episodes=neighbours, idle=idle)
        assert all(made[5, turn] == alone[5, turn] for turn in range(3))


def test_seed_step_episode_and_turn_each_change_the_draws(sampler):
    def draw(seed=1, step=2, episodes=(0, 1, 2), turn=0):
        state = sampler.start_group()
        prompts = [[4, 5], [4, 5], [4, 5]]
        return sampler.generate(state, prompts, seed=seed, step=step, episode_indices=episodes, turn=turn)[1]

    first = draw()
    assert draw() == first
    assert len({s.ids for s in first}) == 3
    for changed in (draw(seed=2), draw(step=3), draw(episodes=(7, 8, 9)), draw(turn=1), draw(turn=(1, 1, 1))):
        assert all(a.ids != b.ids for a, b in zip(first, changed, strict=True))
    assert draw(turn=(0, 1, 0))[0] == first[0]


def test_how_the_cache_grows_changes_nothing(sampler):
    a, b = rollout(make_sampler(multiple=24), episodes=(0, 5, 9)), rollout(sampler, episodes=(0, 5, 9))
    for key, (_, sample) in a.items():
        assert sample.ids == b[key][1].ids
        np.testing.assert_allclose(sample.policy_logp, b[key][1].policy_logp, atol=1e-4)


def test_limits_of_rows_and_of_the_context(sampler):
    state = sampler.start_group()
    prompts = [[4], [5], [6]]
    _, samples = sampler.generate(state, prompts, seed=0, step=0, episode_indices=(0, 1, 2), turn=0, max_new=(1, 2, 60))
    assert [len(s.ids) <= n for s, n in zip(samples, (1, 2, 6), strict=True)] == [True] * 3
    assert len(samples[0].ids) == 1
    short = make_sampler(max_len=9, multiple=24)
    state, samples = short.generate(
        short.start_group(), [[4] * 8, [4] * 4, []], seed=0, step=0, episode_indices=(0, 1, 2), turn=0
    )
    assert len(samples[0].ids) == 1 and len(samples[1].ids) <= 5
    assert samples[2] == Sample((), (), (), "", 7)
    assert state.lengths.tolist() == [9, 4 + len(samples[1].ids), 0]
    with pytest.raises(ValueError, match="row 0 has 10 of 9 tokens"):
        short.generate(state, [[4], [], []], seed=0, step=0, episode_indices=(0, 1, 2), turn=1)
    with pytest.raises(ValueError, match="17 tokens is over the largest bucket, 16"):
        sampler.generate(sampler.start_group(), [[4] * 17, [], []], seed=0, step=0, episode_indices=(0,) * 3, turn=0)


def test_the_samplers_weights_are_its_own():
    params = jax.tree.map(jnp.copy, PARAMS)
    sampler = make_sampler(params=params)
    before = rollout(sampler, episodes=(0, 5, 9), turns=1)
    step = jax.jit(lambda p: jax.tree.map(lambda a: a * -2.0, p), donate_argnums=0)
    changed = step(params)
    assert all(a.is_deleted() for a in jax.tree.leaves(params))
    assert rollout(sampler, episodes=(0, 5, 9), turns=1) == before
    sampler.set_weights(changed, version=8)
    after = rollout(sampler, episodes=(0, 5, 9), turns=1)
    assert all(s.version == 8 and s.ids != before[key][1].ids for key, (_, s) in after.items())


def test_weights_that_come_during_a_turn_wait_for_the_next_one():
    """A turn ends with the weights that it began with; the next one goes on over the same cache with the new."""
    other = jax.tree.map(lambda a: a * -2.0, PARAMS)
    quiet, disturbed = make_sampler(), make_sampler()
    before = rollout(quiet, episodes=(0, 5, 9), turns=1)
    read = disturbed._read

    def read_and_publish(*args):
        found = read(*args)
        disturbed.set_weights(other, version=8)  # as another thread would
        return found

    disturbed._read = read_and_publish
    made = rollout(disturbed, episodes=(0, 5, 9), turns=2)
    first, second = ({e: pair for (e, t), pair in made.items() if t == turn} for turn in (0, 1))
    assert first == {e: pair for (e, _), pair in before.items()}
    assert all(s.version == 7 for _, s in first.values()) and all(s.version == 8 for _, s in second.values())


def test_it_works_on_the_device_that_it_is_given():
    """In a process of two devices: weights, cache and samples lie on the second, and are the first's."""
    program = """
        import jax
        from tests.sampling.test_sampler import CFG, PARAMS, STOP, Sampler, SamplingConfig, rollout
        first, second = jax.devices()
        made = []
        for device in (None, second):
            sampler = Sampler(CFG, SamplingConfig(1.0, 1.0, 0, (STOP,), 6), 3, 64, (8, 16), device=device)
            sampler.set_weights(jax.device_put(PARAMS, first), version=7)
            state, _ = sampler.generate(
                sampler.start_group(), [[4, 5], [6], [7]], seed=0, step=0, episode_indices=(0, 1, 2), turn=0)
            assert {d for a in jax.tree.leaves(state.cache) for d in a.devices()} == {device or first}
            made.append(rollout(sampler, (0, 5, 9)))
        assert made[0] == made[1]
        print("same")
        """
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "same\n", done.stderr


def test_modified_distribution_gives_behaviour_and_unmodified_gives_policy():
    sampler = make_sampler(temperature=0.5, top_p=0.9, top_k=5)
    for delta, sample in rollout(sampler, episodes=(0, 5, 9), turns=1).values():
        ids = np.zeros((1, 16), np.int32)  # the tokens behind the response change nothing before them
        ids[0, : len(delta) + len(sample.ids)] = [*delta, *sample.ids]
        rows = np.asarray(logits_of(PARAMS, ids))[0]
        for i, (token, behavior, policy) in enumerate(
            zip(sample.ids, sample.behavior_logp, sample.policy_logp, strict=True)
        ):
            logits = rows[len(delta) - 1 + i].astype(np.float64)
            full = np.exp(logits - logits.max())
            sharp = full**2
            kept = np.argsort(-sharp)[:5]
            shares = sharp[kept] / sharp[kept].sum()
            kept = kept[: int(np.searchsorted(np.cumsum(shares), 0.9)) + 1]
            assert token in kept
            np.testing.assert_allclose(policy, np.log(full[token] / full.sum()), atol=1e-4)
            np.testing.assert_allclose(behavior, np.log(sharp[token] / sharp[kept].sum()), atol=1e-4)


def test_generate_before_set_weights_is_an_error():
    sampler = Sampler(CFG, SamplingConfig(1.0, 1.0, 0, (STOP,), 4), 1, 32, (8,))
    with pytest.raises(RuntimeError, match="set_weights"):
        sampler.generate(sampler.start_group(), [[4]], seed=0, step=0, episode_indices=(0,), turn=0)
