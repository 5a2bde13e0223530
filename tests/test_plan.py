"""Plans: the effect of doubling length, batch or devices on each number; what is refused."""

import json
import pathlib
import subprocess
import sys

import pytest

from rlef_jax import plan
from rlef_jax.planning import environment
from tests.helpers import small_run

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plans():
    script = pathlib.Path(__file__).with_name("plan_script.py")
    process = subprocess.run(
        [sys.executable, str(script)],
        env=small_run.environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
def test_twice_the_rows_are_twice_the_work(plans):
    base, rows = plans["base"], plans["rows"]
    assert rows["flops"] == pytest.approx(2 * base["flops"], rel=0.02)
    assert rows["moved"] == pytest.approx(2 * base["moved"], rel=0.1)
    assert rows["weights"] == base["weights"] and rows["optimizer"] == base["optimizer"]
    assert rows["optimizer_moves"] == base["optimizer_moves"]
    assert 1.5 < rows["temporary"] / base["temporary"] < 2.1


@pytest.mark.slow
def test_twice_the_length_is_more_than_twice_the_work(plans):
    base, length = plans["base"], plans["length"]
    assert 2.0 < length["flops"] / base["flops"] < 2.6  # attention grows with the square
    assert 1.9 < length["moved"] / base["moved"] < 2.6
    assert length["weights"] == base["weights"]


@pytest.mark.slow
def test_twice_the_devices_share_rows_along_data_and_weights_along_fsdp(plans):
    base, devices, fsdp = plans["base"], plans["devices"], plans["fsdp"]
    assert devices["flops"] == pytest.approx(base["flops"] / 2, rel=0.05)
    assert 0.45 < devices["moved"] / base["moved"] < 0.65
    assert devices["weights"] == base["weights"]
    assert fsdp["weights"] == pytest.approx(base["weights"] / 2, rel=0.02)
    assert fsdp["optimizer"] == pytest.approx(base["optimizer"] / 2, rel=0.02)
    assert fsdp["optimizer_moves"] == pytest.approx(base["optimizer_moves"] / 2, rel=0.05)


@pytest.mark.slow
def test_weights_travel_and_activations_do_not(plans):
    """Along fsdp weights are gathered and their gradients scattered: bytes that don't depend on the number of rows.

    But for the tokens' embeddings: each device looks them up in its share of the width, and sends them on.
    """
    base, rows = plans["base"]["sent"], plans["rows"]["sent"]
    for kind in ("fsdp all-gather", "fsdp reduce-scatter"):
        assert 0 < rows[kind] < 1.01 * base[kind]
    assert rows["fsdp all-to-all"] == 2 * base["fsdp all-to-all"]


@pytest.mark.slow
def test_the_table_names_programs_and_what_was_assumed(plans):
    for part in ("decode 256 plain", "new weights arrive", "all-gather", "exposed", "assumed:", "compiled for CPUs"):
        assert part in plans["table"]


@pytest.mark.parametrize(
    "words, line",
    [
        (["--devices=1"], "error: --config is needed, e.g. --config=configs/llama31_8b.py; or --all"),
        (
            ["--config=configs/llama31_8b.py", "--devices=9"],
            "error: --devices=9 must be a multiple of mesh.fsdp * mesh.tensor = 8",
        ),
        (["--config=configs/llama31_8b.py"], "make gpu-env"),
        (["--config=configs/tiny.py", "--target=tpu-v5p"], "make tpu-env"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, line, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "_has_plugin", lambda _: False)
    monkeypatch.setattr(sys, "argv", ["plan", *words])
    with pytest.raises(SystemExit) as stop:
        plan.main()
    assert stop.value.code == 2
    [told] = capsys.readouterr().err.splitlines()
    assert line in told
