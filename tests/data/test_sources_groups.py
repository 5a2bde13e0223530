"""The problems of an iteration whose rollouts come in groups."""

import pytest

from rlef_jax.data.sources import training_problems


def test_each_problem_stands_as_often_as_its_group_has_rollouts():
    """Over iterations and processes the stream is that of fewer, single problems."""
    whole = [p for step in range(3) for p in training_problems("mini_contests", "train", 5, step, 12, group_size=4)]
    single = [p for step in range(3) for p in training_problems("mini_contests", "train", 5, step, 3)]
    assert whole == [p for p in single for _ in range(4)]
    shares = [
        p for share in (range(5), range(5, 12)) for p in training_problems("mini_contests", "train", 5, 1, 12, share, 4)
    ]
    assert shares == whole[12:24]


def test_groups_must_divide_the_iteration():
    with pytest.raises(ValueError, match="10 episodes can't be split into groups of 4"):
        training_problems("mini_contests", "train", 0, 0, 10, group_size=4)
