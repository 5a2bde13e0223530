"""Plans: the effect of doubling length, batch or devices on each number."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plans():
    script = pathlib.Path(__file__).with_name("plan_script.py")
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900, cwd=ROOT
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def test_twice_the_rows_are_twice_the_work(plans):
    base, rows = plans["base"], plans["rows"]
    assert rows["flops"] == pytest.approx(2 * base["flops"], rel=0.02)
    assert rows["moved"] == pytest.approx(2 * base["moved"], rel=0.1)
    assert rows["weights"] == base["weights"] and rows["optimizer"] == base["optimizer"]
    assert rows["optimizer_moves"] == base["optimizer_moves"]
    assert 1.5 < rows["temporary"] / base["temporary"] < 2.1


def test_twice_the_length_is_more_than_twice_the_work(plans):
    base, length = plans["base"], plans["length"]
    assert 2.0 < length["flops"] / base["flops"] < 2.6  # attention grows with the square
    assert 1.9 < length["moved"] / base["moved"] < 2.6
    assert length["weights"] == base["weights"]


def test_twice_the_devices_share_rows_along_data_and_weights_along_fsdp(plans):
    base, devices, fsdp = plans["base"], plans["devices"], plans["fsdp"]
    assert devices["flops"] == pytest.approx(base["flops"] / 2, rel=0.05)
    assert 0.45 < devices["moved"] / base["moved"] < 0.65
    assert devices["weights"] == base["weights"]
    assert fsdp["weights"] == pytest.approx(base["weights"] / 2, rel=0.02)
    assert fsdp["optimizer"] == pytest.approx(base["optimizer"] / 2, rel=0.02)
    assert fsdp["optimizer_moves"] == pytest.approx(base["optimizer_moves"] / 2, rel=0.05)


def test_weights_travel_and_activations_do_not(plans):
    """Along fsdp, weights are gathered, so the bytes sent mustn't depend on the number of rows."""
    base, rows = plans["base"]["sent"], plans["rows"]["sent"]
    assert sum(rows.values()) < 1.1 * sum(base.values())
    assert base["fsdp all-gather"] > 0


def test_the_table_names_what_was_assumed(plans):
    for part in ("optimizer", "all-gather", "by XLA, which counts a loop once", "assumed:", "compiled for CPUs"):
        assert part in plans["table"]
