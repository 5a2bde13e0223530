"""A repairer from end to end (B.4): a single-turn run, a run that repairs its failures, the two evaluated together."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.training.metrics_writer import read_metrics
from tests.helpers.small_run import OVERRIDES, assert_same_run, finish_here

pytestmark = pytest.mark.long
ALONE = {"episode.max_turns": 1, "train.checkpoint_every": 1}


def repairing(single, iterations):
    return ALONE | {"data.failures": str(single), "train.iterations": iterations, "seed": 1}


@pytest.fixture(scope="module")
def single(tmp_path_factory, as_processes_compile):
    folder = tmp_path_factory.mktemp("runs") / "single"
    finish_here(folder, ALONE | {"train.iterations": 2})
    return folder


@pytest.fixture(scope="module")
def repairer(single):
    folder = single.parent / "repairer"
    finish_here(folder, repairing(single, 3))
    return folder


def episodes(folder, name):
    return read_episodes(folder / "episodes" / f"{name}.jsonl.gz")


def test_its_episodes_begin_behind_the_other_runs_failures(single, repairer):
    failed = {e.token_ids: e.problem for step in ("000000", "000001") for e in episodes(single, step)}
    for step in range(3):
        made = episodes(repairer, f"{step:06d}")
        assert len(made) == 8 and len({e.problem.name for e in made}) == 8
        for episode in made:
            [turn] = episode.turns
            [behind] = [ids for ids in failed if turn.prompt_delta_ids[: len(ids)] == ids]
            assert failed[behind] == episode.problem and set(turn.policy_version) == {2 * step}
    first, second, third = ({e.problem.name for e in episodes(repairer, f"{step:06d}")} for step in range(3))
    assert not first & second and third in (first, second)
    for record in read_metrics(repairer):
        counts = [value for name, value in record.items() if name.startswith("failures/")]
        assert record["failures/used"] == 8 and sum(counts) == 8  # all of a file's, each of which failed


@pytest.mark.slow
def test_stopped_and_gone_on_it_is_the_same_run(single, repairer):
    parts = single.parent / "parts"
    for iterations in (1, 3):
        finish_here(parts, repairing(single, iterations))
    assert_same_run(repairer, parts)


def test_other_failures_are_another_run(single, repairer):
    copy, moved = single.parent / "copy", single.parent / "moved"
    shutil.copytree(repairer, copy)
    shutil.copytree(single, moved)
    config = copy / "config.json"
    config.write_text(config.read_text().replace(str(single), str(moved)))
    finish_here(copy, repairing(moved, 3))  # the same failures under another name
    shutil.copy(single / "episodes" / "000000.jsonl.gz", moved / "episodes" / "000001.jsonl.gz")
    with pytest.raises(ConfigError, match=r"other inputs: failed responses \(config\.data\.failures\): hash"):
        finish_here(copy, repairing(moved, 3))


@pytest.fixture(scope="module")
def evaluated(single, repairer):
    def run(name, *flags):
        out = single.parent / name
        asked = [f"--workdir={single}", f"--repairer={repairer}", "--split=valid", "--problems=5", f"--out={out}"]
        results = evaluate(parsed([*asked, *flags]))
        return results, [e for path in sorted((out / "chunks").iterdir()) for e in read_episodes(path)]

    return run


def test_the_pair_is_evaluated_together(evaluated, single):
    results, made = evaluated("pair")
    assert results["problems"] == 5 and results["turns"] == 3.0 and results["1@3"] == 0.0  # random weights
    settings = results["evaluation"]
    assert settings["repairer"] != settings["weights"]
    for episode in made:
        assert [set(t.policy_version) for t in episode.turns] == [{0}, {1}, {1}]  # which model has spoken
        one, two = episode.turns[1:]
        assert one.prompt_delta_ids == two.prompt_delta_ids and one.response_ids != two.response_ids
    _, again = evaluated("chunks", "--chunk=2")
    assert [e.token_ids for e in again] == [e.token_ids for e in made]
    # The policy's first responses are its own: those of its evaluation without a repairer.
    alone = evaluate(parsed([f"--workdir={single}", "--split=valid", "--problems=5", "--turns=1", "--samples=1",
                             f"--out={single.parent / 'alone'}"]))  # fmt: skip
    assert alone["evaluation"]["weights"] == settings["weights"]
    [path] = (single.parent / "alone" / "chunks").iterdir()
    assert [e.turns[0].response_ids for e in read_episodes(path)] == [e.turns[0].response_ids for e in made]


def test_both_models_matter(evaluated):
    """Another checkpoint of the repairer changes repairs alone, another one of the policy everything."""
    made = {
        "last": evaluated("pair")[1],
        "earlier": evaluated("earlier", "--repairer-checkpoint=2")[1],
        "start": evaluated("start", "--warm-start")[1],
    }

    def logps(name, turn):
        return np.array([e.turns[turn].behavior_logp[0] for e in made[name]])

    assert (logps("last", 0) == logps("earlier", 0)).all() and (logps("last", 1) != logps("earlier", 1)).any()
    assert (logps("last", 0) != logps("start", 0)).any()


def test_a_repairer_that_cannot_be_used_is_named(evaluated, single, repairer):
    with pytest.raises(ConfigError, match="--repairer-checkpoint=7: give best, last or one of"):
        evaluated("none", "--repairer-checkpoint=7")
    larger = single.parent / "larger"
    shutil.copytree(repairer, larger)
    config = json.loads((larger / "config.json").read_text())
    config["model"]["d_ff"] *= 2
    (larger / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"--repairer: .*larger has model\.d_ff=64, the policy before it 32"):
        evaluated("larger", f"--repairer={larger}")
    assert OVERRIDES["model.d_ff"] == 32
