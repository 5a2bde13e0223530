"""Trainer, reference and sampler on shared and on disjoint devices of one process: the same run."""

import json
import pathlib
import subprocess
import sys

import pytest

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError
from rlef_jax.training.parts import build_sampler_mesh
from tests.helpers.small_run import OVERRIDES, environment

ROOT = str(pathlib.Path(__file__).parents[2])


@pytest.fixture(scope="module")
def told(compile_cache, tmp_path_factory):
    given = environment(compile_cache, PYTHONPATH=ROOT, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.disjoint_script", str(tmp_path_factory.mktemp("runs"))],
        env=given, capture_output=True, text=True, cwd=ROOT, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_each_part_lies_where_the_config_says(told):
    first, last = [0, 1, 2, 3], [4, 5, 6, 7]
    where = {name: [p["trainer"], p["reference"], p["sampler"]] for name, p in told["places"].items()}
    assert where["alone"] == [[0], [0], [0]]
    assert where["shared"] == [first, first, first]
    assert where["disjoint"] == [first, first, last]
    assert where["reference too"] == [first, last, last]
    # bfloat16 from the trainer's devices on: half of the bytes travel.
    assert told["places"]["disjoint"]["sent"] == [first, ["bfloat16"]]
    assert told["places"]["disjoint"]["version"] == 7


def test_disjoint_devices_make_the_same_run(told):
    """Bit for bit where only the place differs; to rounding where the mesh does too."""
    assert told["disjoint"]["moved"] > 1e-3
    assert told["disjoint"]["gap"] == 0.0 and told["disjoint"]["kl_gap"] == 0.0
    assert told["disjoint"]["same_episodes"] == [True, True]
    assert told["reference too"]["kl_gap"] < 1e-5
    assert all(told["reference too"]["same_episodes"]) and told["alone"]["same_episodes"][0]


def test_devices_that_are_not_there_are_an_error():
    config = config_lib.load("configs/tiny.py", overrides=OVERRIDES | {"sampling.own_devices": True})
    with pytest.raises(ConfigError, match="sampling.data.*1 devices are needed; there are 0 after the trainer's 1"):
        build_sampler_mesh(config)
    with pytest.raises(ConfigError, match="sampling.lanes: must be 1 on several devices"):
        config_lib.load("configs/tiny.py", overrides={"sampling.data": 2})
