"""The places of a mixed stream: shares of a block are exact, and every source's own stream is whole."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlef_jax.data.mixing import BLOCK, counts, member_at
from tests.helpers.examples import examples

weights = st.lists(st.floats(0.05, 20), min_size=1, max_size=5)


@given(weights)
def test_counts_are_the_shares_to_less_than_a_place(chosen):
    found = counts(chosen)
    assert sum(found) == BLOCK
    assert all(abs(n - BLOCK * w / sum(chosen)) < 1 for n, w in zip(found, chosen, strict=True))


@settings(max_examples=examples(80))
@given(weights, st.integers(0, 2**31 - 1))
def test_each_source_has_its_share_and_none_of_its_problems_is_left_out(chosen, seed):
    drawn = [member_at(chosen, seed, place) for place in range(2 * BLOCK)]
    for member, count in enumerate(counts(chosen)):
        assert [place for number, place in drawn if number == member] == list(range(2 * count))
    first = collections.Counter(number for number, _ in drawn[:BLOCK])
    assert [first[member] for member in range(len(chosen))] == counts(chosen)


def test_orders_differ_by_seed_and_block():
    def order(seed, block):
        return [member_at((1.0, 1.0), seed, BLOCK * block + i)[0] for i in range(BLOCK)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0) and order(0, 0) != order(0, 1)
    assert 400 < sum(order(0, 0)[:500]) * 2 < 600  # no source comes first


@pytest.mark.parametrize("wrong", [(), (1.0, 0.0), (1.0, -1.0), (1.0, 5000.0)])
def test_weights_that_give_a_source_no_place(wrong):
    with pytest.raises(ValueError, match="weight"):
        counts(wrong)
