"""Examples in batches: the layout changes no loss and no gradient, and epochs give each example once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import ModelConfig, forward, unembed
from rlef_jax.ppo.settings import Likelihood, PackSettings
from rlef_jax.ppo.update import Learner
from rlef_jax.supervised.authors import batches_of
from rlef_jax.supervised.examples import Example, ExampleSet, Place, last_response, pack_examples, spans
from rlef_jax.training.tally import Tally

pytestmark = pytest.mark.usefixtures("quick_compilation")
CFG = ModelConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_head=8, d_ff=32, max_positions=64)
RNG = np.random.default_rng(0)


def example(length):
    learned = RNG.random(length) < 0.5
    learned[-1] = True
    return Example(RNG.integers(1, 40, length).astype(np.int32), learned)


EXAMPLES = [example(length) for length in (5, 12, 20, 9, 3)]
LAYOUTS = {
    "alone": PackSettings(microbatch_rows=1, buckets=(32,)),
    "by length": PackSettings(microbatch_rows=2, buckets=(16, 32)),
    "packed": PackSettings(microbatch_rows=3, buckets=(32,), row_episodes=4),
}


def alone(one):
    """A row of 32 tokens with one example, and which of them are learned: its first token is nobody's target."""
    tokens, segments, learned = (np.zeros(32, np.int32) for _ in range(3))
    tokens[: len(one.ids)], segments[: len(one.ids)], learned[1 : len(one.ids)] = one.ids, 1, one.learned[1:]
    return tokens, segments, learned


def reference_loss(policy):
    """The mean over learned tokens, each example in a row of its own, from all logits."""
    tokens, segments, learned = (jnp.asarray(np.stack(rows)) for rows in zip(*map(alone, EXAMPLES), strict=True))
    positions = jnp.broadcast_to(jnp.arange(32, dtype=jnp.int32)[None], tokens.shape)
    logp = jax.nn.log_softmax(unembed(policy, CFG, forward(policy, CFG, tokens, positions, segments)), axis=-1)
    chosen = jnp.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(chosen * learned[:, 1:]) / jnp.sum(learned[:, 1:])


@pytest.fixture(scope="module")
def learner():
    return Learner(CFG, optax.sgd(1.0), loss=Likelihood(), critic=False, separate_critic=False)


@pytest.fixture(scope="module")
def policy():
    return init_params(jax.random.PRNGKey(0), CFG)


@pytest.fixture(scope="module")
def expected(policy):
    return jax.jit(jax.value_and_grad(reference_loss))(policy)


@pytest.mark.parametrize("name", LAYOUTS)
def test_loss_and_gradients_are_those_of_examples_alone(learner, policy, expected, name):
    batches, index = pack_examples(EXAMPLES, LAYOUTS[name])
    held = sorted(n for rows in index for row in rows for n in row if n >= 0)
    assert held == list(range(len(EXAMPLES)))
    state = learner.init(jax.random.PRNGKey(1), policy)
    after, metrics = learner.update(state, batches)
    np.testing.assert_allclose(metrics["loss"], expected[0], rtol=1e-5)
    assert metrics["action_tokens"] == sum(int(e.learned[1:].sum()) for e in EXAMPLES) and metrics["values"] == 0
    assert not {"approx_kl", "ratio_mean", "ratio_q50", "value_loss"} & metrics.keys()
    stepped = jax.tree.map(lambda before, now: before - now, policy, after.params["policy"])  # by SGD at rate 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), stepped, expected[1])


def test_a_critic_has_no_place_in_it():
    with pytest.raises(ValueError, match="supervised training .* has no critic"):
        Learner(CFG, optax.sgd(1.0), loss=Likelihood())


def test_an_example_longer_than_every_bucket_is_refused():
    with pytest.raises(ValueError, match="episode 1 has 33 tokens but the largest bucket holds 32"):
        pack_examples([EXAMPLES[0], example(33)], LAYOUTS["packed"])


def test_responses_are_runs_of_learned_tokens():
    learned = np.array([0, 1, 1, 0, 0, 1, 0, 1], bool)
    assert spans(learned) == [(1, 3), (5, 6), (7, 8)]
    assert last_response(learned).tolist() == [False] * 7 + [True]
    assert spans(np.zeros(3, bool)) == [] and not last_response(np.zeros(3, bool)).any()


@pytest.fixture(scope="module")
def examples():
    return ExampleSet.of([example(3 + n % 5) for n in range(23)], [n // 2 for n in range(23)])


def same(a, b):
    return a.ids.tolist() == b.ids.tolist() and a.learned.tolist() == b.learned.tolist()


def test_an_epoch_gives_each_example_once_and_goes_on_from_any_place(examples):
    whole = list(examples.batches(4, 2, 7, Place()))
    assert len(whole) == examples.steps(4, 2) == 10
    assert [place.step for place, _ in whole] == list(range(1, 11))
    for epoch in (whole[:5], whole[5:]):
        seen = [one.ids.tobytes() + one.learned.tobytes() for _, batch in epoch for one in batch]
        known = [one.ids.tobytes() + one.learned.tobytes() for one in examples.some(range(23))]
        assert len(seen) == 20 and all(seen.count(one) <= known.count(one) for one in seen)
    assert [e.ids.tolist() for e in whole[0][1]] != [e.ids.tolist() for e in whole[5][1]]
    for stopped, (place, _) in enumerate(whole):
        rest = list(examples.batches(4, 2, 7, place))
        assert [p for p, _ in rest] == [p for p, _ in whole[stopped + 1 :]]
        assert all(same(a, b) for (_, x), (_, y) in zip(rest, whole[stopped + 1 :], strict=True) for a, b in zip(x, y))


def test_held_out_are_all_examples_of_some_problems(examples):
    learned, held = examples.split(0.4, seed=1)
    assert len(learned) + len(held) == 23 and 0 < len(held) < 23
    assert not set(learned.problems) & set(held.problems)
    everything, nothing = examples.split(0.0, seed=1)
    assert len(everything) == 23 and len(nothing) == 0
    assert all(same(everything[n], examples[n]) for n in range(23))


def test_a_set_is_read_back_as_it_was_written(examples, tmp_path):
    arrays = [field.name for field in dataclasses.fields(ExampleSet) if field.name != "left_out"]
    for left_out in ({}, {"no_program": 3, "too_long": 12}):
        written = dataclasses.replace(examples, left_out=left_out)
        written.save(tmp_path / "set.npz")
        read = ExampleSet.load(tmp_path / "set.npz")
        for name in arrays:
            a, b = getattr(read, name), getattr(examples, name)
            assert a.dtype == b.dtype and a.tolist() == b.tolist()
        assert read.tally == Tally(23, left_out)
    np.savez(tmp_path / "set.npz", **{name: getattr(examples, name) for name in arrays})  # of an earlier version
    assert ExampleSet.load(tmp_path / "set.npz").tally == Tally(23, {})
    (tmp_path / "set.npz").write_bytes(b"no")
    with pytest.raises(ConfigError, match="set.npz cannot be read as examples"):
        ExampleSet.load(tmp_path / "set.npz")


def test_batches_of_similar_length_hold_each_example_at_most_once(examples):
    made = batches_of(examples.some(range(23)), 4, np.random.default_rng(0))
    assert [len(batch) for batch in made] == [4] * 5
    lengths = sorted((min(len(e.ids) for e in batch), max(len(e.ids) for e in batch)) for batch in made)
    assert all(high <= low for (_, high), (low, _) in zip(lengths, lengths[1:]))
    assert len({id(e) for batch in made for e in batch}) == 20
