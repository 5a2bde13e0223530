"""The critic on devices of its own: scores, gradients and updates are those of one mesh, and so is what is refused."""

import pytest

from tests.helpers.eight_devices import told_by

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return told_by("tests.ppo.critic_script", "numbers", tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def told_more(tmp_path_factory):
    return told_by("tests.ppo.critic_script", "checkpoints", tmp_path_factory.mktemp("checkpoints"))


def test_each_part_lies_with_its_moments(told):
    first, last = [0, 1, 2, 3], [4, 5]
    assert told["places"]["shared"] == {"policy": first, "critic": first, "counts": first}
    assert told["places"]["apart"] == {"policy": first, "critic": last, "counts": first}


def test_scores_gradients_and_weights_are_those_of_one_mesh(told):
    """After a step whose gradient was clipped by the norm of both parts: the limit is below each part's norm, so that
    by its own norm each would be clipped less. The last gap is of the metrics, the gradient's norm among them."""
    assert told["gradient_size"] > 1e-2 and told["moved"] > 1e-3
    assert told["clip"] < 0.6 * min(told["norms"]["policy"], told["norms"]["critic"])
    assert told["norms"]["policy"] < 0.5 * told["norms"]["both"]
    *gaps, metric_gap = told["gaps"]["apart"]
    assert max(gaps) < 1e-5 and metric_gap < 1e-5 * told["norms"]["both"]


def test_a_gradient_is_refused_on_both_meshes_or_on_none(told):
    kept = {"applied": 0.0, "moved": 0.0, "step": 1}
    assert told["refused"]["over"] == kept  # each part's own norm is under the limit
    assert told["refused"]["critic not finite"] == kept
    assert told["refused"]["nothing"]["applied"] == 1.0 and told["refused"]["nothing"]["moved"] > 1e-3


@pytest.mark.slow
def test_checkpoints_are_restored_on_one_mesh_and_on_two(told_more):
    for way, found in told_more["restored"].items():
        assert found["gap"] == 0.0 and found["same_places"], way
        source, target = way.split(" to ")
        assert found["gap_further"] <= (0.0 if source == target else 1e-5), way


@pytest.mark.slow
def test_one_mesh_runs_one_program_for_each_step(told_more):
    """Two groups of micro-batches; only two meshes need to be told each other's norm."""
    assert told_more["programs"]["shared"] == {"_gradients_fn": 2, "_sum": 1, "_added_up": 1, "_apply_fn": 1}
    assert told_more["programs"]["apart"] == {
        "_gradients_fn": 4, "_sum": 2, "_added_up": 2, "_squared_norm": 2, "_apply_fn": 2,
    }  # fmt: skip


def test_meshes_that_cannot_be_are_refused(told):
    shares, trunk = told["refusals"]
    assert "have none of its devices" in shares and "a critic without a trunk of its own" in trunk
