"""Trainer, critic, reference and sampler on shared and on disjoint devices of one process: the same run."""

import time

import pytest

from rlef_jax import config as config_lib
from rlef_jax import plan
from rlef_jax.errors import ConfigError
from rlef_jax.training.build import build_learner, build_sampler_mesh, describe_policy
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.metrics_writer import read_metrics
from tests.helpers.eight_devices import EIGHT, told_by
from tests.helpers.small_run import OVERRIDES, assert_same_run, finish, start, timeless
from tests.training.disjoint_script import LAYOUTS, SHAPE

pytestmark = pytest.mark.long


def test_each_part_lies_where_the_config_says(tmp_path):
    told = told_by("tests.training.disjoint_script", tmp_path)
    first, last = [0, 1, 2, 3], [4, 5, 6, 7]
    where = {name: [p["trainer"], p["reference"], p["sampler"]] for name, p in told["places"].items()}
    assert where["alone"] == [[0], [0], [0]]
    assert where["shared"] == [first, first, first]
    assert where["disjoint"] == [first, first, last]
    assert where["reference too"] == [first, last, last]
    assert where["critic apart"] == [first + last, first, first]
    assert told["places"]["disjoint"]["dtypes"] == ["bfloat16"]
    assert told["places"]["disjoint"]["version"] == 7


@pytest.mark.slow
def test_disjoint_devices_make_the_same_run(tmp_path):
    """Bit for bit where only the place differs, and the same tokens as one device's."""
    told = told_by("tests.training.disjoint_script", tmp_path, "shared", "disjoint")
    assert told["disjoint"]["moved"] > 1e-3
    assert told["disjoint"]["gap"] == 0.0 and told["disjoint"]["kl_gap"] == 0.0
    assert told["disjoint"]["same_episodes"] == [True, True] and told["alone"]["same_episodes"]


def metrics_of(folder):
    """By iteration, without times."""
    return [timeless(record) for record in read_metrics(folder)]


@pytest.mark.slow
def test_a_reference_or_a_critic_on_its_own_devices_makes_the_same_run(tmp_path):
    """To rounding: the mesh is another. Policy on devices 0 to 3, the other on 4 to 7."""
    told = told_by("tests.training.disjoint_script", tmp_path, "shared", "reference too", "critic apart")
    assert told["reference too"]["kl_gap"] < 1e-5 and all(told["reference too"]["same_episodes"])
    runs = tmp_path
    for one, other in zip(metrics_of(runs / "shared"), metrics_of(runs / "critic apart"), strict=True):
        assert one.keys() == other.keys()
        assert {k: v for k, v in other.items() if v != pytest.approx(one[k], rel=1e-5, abs=1e-5)} == {}


@pytest.mark.slow
def test_a_critic_on_its_own_devices_survives_a_kill(tmp_path):
    """Killed once it has saved, and started again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    own = SHAPE | LAYOUTS["critic apart"] | {"train.iterations": 3}
    finish(whole, own, **EIGHT)
    process = start(killed, own, **EIGHT)
    deadline = time.monotonic() + 600
    while not (killed / "checkpoints" / "1").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert len(read_metrics(killed)) < 3
    assert "going on from iteration" in finish(killed, own, **EIGHT)
    assert_same_run(whole, killed)
    with Checkpoints(whole / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]


def test_a_critic_without_devices_and_a_plan_of_one_are_errors():
    own = OVERRIDES | {"mesh.critic": "separate", "ppo.separate_critic": True}
    config = config_lib.load("configs/tiny.py", overrides=own)
    cfg, *_ = describe_policy(config)
    with pytest.raises(ConfigError, match="mesh.critic: .*1 devices are needed; there are 0 after the policy's 1"):
        build_learner(config, cfg)
    asked = {"mesh.critic": "separate", "ppo.separate_critic": True}
    with pytest.raises(ConfigError, match="config.mesh.critic: a plan counts .* add --config.mesh.critic=shared"):
        plan.configured("configs/tiny.py", asked, 2)


def test_devices_that_are_not_there_are_an_error():
    config = config_lib.load("configs/tiny.py", overrides=OVERRIDES | {"sampling.own_devices": True})
    with pytest.raises(ConfigError, match="sampling.data.*1 devices are needed; there are 0 after the trainer's 1"):
        build_sampler_mesh(config)
    with pytest.raises(ConfigError, match="sampling.workers: must be 1 on several devices"):
        config_lib.load("configs/tiny.py", overrides={"sampling.data": 2})
