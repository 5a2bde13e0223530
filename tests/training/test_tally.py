"""Counts of what was used and left out: their order, their words, their metrics."""

from __future__ import annotations

import pytest

from rlef_jax.training.tally import REASONS, PassedOver, Tally


def test_what_was_left_out_is_counted_by_reason():
    tally = Tally.of(7, [PassedOver("no_room"), PassedOver("no_program"), PassedOver("no_room")])
    assert list(tally.left_out.items()) == [("no_program", 1), ("no_room", 2)]  # whatever came first
    assert tally.reasons == (
        "1 failures of problems without a right program, 2 failures that leave no room for a response in"
        " config.episode.context"
    )
    assert tally.metrics("x") == {"x/used": 7.0, "x/left_out/no_program": 1.0, "x/left_out/no_room": 2.0}
    assert (Tally.of(7, []).reasons, Tally.of(7, []).metrics("x")) == ("nothing", {"x/used": 7.0})


def test_a_reason_must_be_known():
    assert all(PassedOver(reason).reason == reason for reason in REASONS)
    with pytest.raises(ValueError, match="no reason 'why'; there are not_solved, "):
        PassedOver("why")
