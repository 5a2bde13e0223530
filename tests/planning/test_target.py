"""Described hardware: every file is whole, and names that don't exist are refused."""

import re

import pytest

from rlef_jax import config_checks
from rlef_jax.planning import target


@pytest.mark.parametrize("name", target.names())
def test_every_target_is_described_with_its_source(name):
    found = target.read(name)
    text = (target.FOLDER / f"{name}.toml").read_text()
    assert text.startswith("# ") and found.platform in ("cuda", "tpu")
    card = found.card
    assert 1e14 < card.flops < 1e16 and 1e12 < card.memory_bandwidth < 1e13
    assert card.network < card.link < card.memory_bandwidth and 0.9 < card.usable <= 1
    if found.platform == "cuda":
        described = (target.FOLDER / f"{name}.txtpb").read_text()
        assert "openxla/xla" in described.split("gpu_device_info")[0]
        [memory] = re.findall(r"device_memory_size: (\d+)", described)
        [bandwidth] = re.findall(r"memory_bandwidth: (\d+)", described)
        assert int(memory) == card.memory and float(bandwidth) == pytest.approx(card.memory_bandwidth, rel=0.01)
    else:
        assert found.topology


def test_an_h100_leaves_what_launch_leaves():
    assert target.card("h100").limit / 2**30 == pytest.approx(72.8, abs=0.05)


def test_a_configuration_may_name_each_target():
    assert set(config_checks.CHOICES["plan.target"]) == {*target.names(), target.CPU}
    with pytest.raises(KeyError):
        target.read("h1000")


@pytest.mark.parametrize(
    "count, axes, sizes",
    [(1, 3, (1, 2, 2)), (8, 3, (2, 2, 2)), (128, 3, (4, 4, 8)), (100, 3, (4, 4, 8)), (8, 2, (2, 4)), (64, 2, (8, 8))],
)
def test_a_slice_holds_its_chips_in_nearly_equal_sides(count, axes, sizes):
    assert target.torus(count, axes) == sizes
