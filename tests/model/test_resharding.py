"""Weights go from the trainer's devices to the sampler's shard by shard."""

from tests.helpers.eight_devices import told_by


def test_shards_arrive_where_they_belong():
    result = told_by("tests.model.resharding_script", "")
    assert result.pop("shard") == [2, 6, 4]  # no device holds more than its shard
    assert result.pop("refused") == "weights on 4 devices can't be handed over in 8 shards"
    assert len(result) == 5
    for name, case in result.items():
        assert case == {"right": True, "placed": True}, name
