"""Packing: what is in a row is the episode, token for token, and every episode is in exactly one place."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rlef_jax.ppo.pack import PADDING, pack
from rlef_jax.reward import turn_rewards
from rlef_jax.types import Status


def test_golden_row(make_episode):
    episode = make_episode(
        [([5, 6, 7], [8, 9], Status.NO_CODE), ([1, 2], [3], Status.PASSED)],
        end="public_passed",
        behavior=[(-0.5, -0.25), (-1.5,)],
    )
    [batch], [index] = pack([episode], buckets=(10,), rows=2, max_turns=3)
    assert index.tolist() == [[0], [PADDING]]
    absent = ("value_kind", "below")
    row = {name: np.asarray(getattr(batch, name))[0].tolist() for name in vars(batch) if name not in absent}
    assert row["tokens"] == [5, 6, 7, 8, 9, 1, 2, 3, 0, 0]
    assert row["positions"] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 0]
    assert row["segment_ids"] == [1] * 8 + [0] * 2
    assert row["action_mask"] == [0, 0, 0, 1, 1, 0, 0, 1, 0, 0]
    assert row["turn_index"] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert row["behavior_logp"] == [0, 0, 0, -0.5, -0.25, 0, 0, -1.5, 0, 0]
    assert row["turn_positions"] == [2, 6, 0]  # last token of each turn's prompt
    assert row["turn_mask"] == [1, 1, 0]
    np.testing.assert_allclose(row["turn_rewards"], [-0.2, 1.0, 0.0])
    assert batch.weight.tolist() == [1, 0]
    assert not batch.action_mask[1].any() and not batch.turn_mask[1].any()


@hypothesis.given(
    count=st.integers(0, 23),
    rows=st.integers(1, 6),
    seed=st.integers(0, 99),
    buckets=st.sets(st.integers(4, 17)),
    row_episodes=st.integers(1, 4),
    restarts=st.booleans(),
)
def test_every_episode_is_in_one_place(make_episodes, count, rows, seed, buckets, row_episodes, restarts):
    episodes = make_episodes(count, seed=seed, restarts=restarts)
    shape = dict(buckets=(*buckets, 18), rows=rows, max_turns=3, row_episodes=row_episodes)
    batches, index = pack(episodes, **shape)
    seen = []
    for batch, places in zip(batches, index, strict=True):
        assert batch.tokens.shape[0] == rows and places.shape == (rows, row_episodes)
        assert batch.turn_mask.shape == (rows, 3 * row_episodes)
        for row, numbers in enumerate(places):
            held = [int(n) for n in numbers if n != PADDING]
            stretches = [length for n in held for length in episodes[n].stretches]
            assert set(batch.segment_ids[row]) - {0} == set(range(1, len(stretches) + 1))
            assert np.bincount(batch.segment_ids[row])[1:].tolist() == stretches
            assert len({episodes[n].end == "infra" for n in held}) <= 1
            seen += held
            first_turn = 0
            segment, start = 0, 0
            for place, number in enumerate(held, start=1):
                episode, here = episodes[number], np.zeros(batch.tokens.shape[1], bool)
                here[start : (start := start + len(episode.token_ids))] = True
                turns = slice(first_turn, first_turn := first_turn + len(episode.turns))
                assert tuple(batch.tokens[row][here]) == episode.token_ids
                assert batch.positions[row][here].tolist() == [i for n in episode.stretches for i in range(n)]
                acts = here & (batch.action_mask[row] > 0)
                assert batch.tokens[row][acts].tolist() == [i for turn in episode.turns for i in turn.response_ids]
                assert set(batch.turn_index[row][acts]) == set(range(turns.start, turns.stop))
                own = [segment := segment + (turn.restart or i == 0) for i, turn in enumerate(episode.turns)]
                assert batch.segment_ids[row][batch.turn_positions[row][turns]].tolist() == own
                assert (batch.turn_episode[row][turns] == place).all()
                assert batch.weight[row] == (episode.end != "infra")
                np.testing.assert_allclose(batch.turn_rewards[row][turns], turn_rewards(episode), rtol=1e-6)
            assert batch.turn_mask[row].sum() == first_turn
            assert held or (batch.weight[row] == 0 and not batch.segment_ids[row].any())
    assert sorted(seen) == list(range(count))
    again, _ = pack(episodes, **shape)
    for one, other in zip(batches, again, strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))
    alone, _ = pack(episodes, **{**shape, "row_episodes": 1})
    assert sum(b.tokens.size for b in batches) <= sum(b.tokens.size for b in alone)


def test_episodes_share_a_row_only_where_that_wastes_less(make_episode):
    short = make_episode([([1], [2], Status.PASSED)])
    middle = make_episode([([1] * 5, [2], Status.PASSED)])

    def places(episodes):
        return [p.tolist() for p in pack(episodes, buckets=(2, 8), rows=2, max_turns=1, row_episodes=3)[1]]

    # A row each takes 4 + 16 slots, shared rows 16: the longest first, into the fullest row with room.
    assert places([short, middle, short, middle]) == [[[0, 1, PADDING], [2, 3, PADDING]]]
    # Here a row each takes 4 slots, and a shared one would need the longer bucket.
    assert places([short, short]) == [[[0, PADDING, PADDING], [1, PADDING, PADDING]]]
    broken = make_episode([([1], [2], Status.PASSED)], end="infra")
    assert places([middle, broken]) == [[[0, PADDING, PADDING], [1, PADDING, PADDING]]]


def test_leftovers_move_up_only_into_free_rows(make_episode):
    short = make_episode([([1], [2], Status.PASSED)])
    long = make_episode([([1] * 6, [2], Status.PASSED)])

    def shapes(episodes):
        return [b.tokens.shape for b in pack(episodes, buckets=(4, 8), rows=4, max_turns=1)[0]]

    assert shapes([short] * 5 + [long] * 3) == [(4, 4), (4, 8)]
    assert shapes([short] * 5 + [long] * 4) == [(4, 4), (4, 4), (4, 8)]
    assert shapes([short] * 5) == [(4, 4), (4, 4)]


def test_errors_name_the_cause(make_episode):
    episode = make_episode([([1, 2], [3], Status.PASSED)] * 3)
    with pytest.raises(ValueError, match="has 9 tokens but the largest bucket holds 8"):
        pack([episode], buckets=(4, 8), rows=1, max_turns=3)
    with pytest.raises(ValueError, match="more than max_turns=2"):
        pack([episode], buckets=(16,), rows=1, max_turns=2)
    with pytest.raises(ValueError, match="a sampled token"):
        pack([make_episode([([1], [], Status.PASSED)])], buckets=(16,), rows=1, max_turns=2)
