"""Runs whose judge breaks, and runs whose policy stops being one: what is applied, told, kept, and when they end."""

import concurrent.futures
import contextlib
import io
import json

import numpy as np
import pytest

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError, RunError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.export import export_run
from rlef_jax.train import train
from rlef_jax.training.build import build_policy, build_pool
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.metrics_writer import read_metrics
from rlef_jax.types import Status, TestResult
from tests.helpers.small_run import OVERRIDES

SMALL = OVERRIDES | {"ppo.rollouts": 4, "train.checkpoint_every": 1, "train.keep_checkpoints": 9}


@pytest.fixture(scope="module", autouse=True)
def quickly(quick_compilation):
    """All runs here compile much and compute little; and every response holds a program, or no judge would be asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlef_jax.training.rollout.program_of", lambda problem, text: "print(1)")
        yield


class Judge:
    """The real pool, which gives INFRA_ERROR for every test while `broken(stage)` says so.

    A run asks for `stats()` as an iteration begins and as it ends: stage 2k + 1 is iteration k, stage 2k + 2 the
    validation after it.
    """

    def __init__(self, pool, broken):
        self.pool, self.broken, self.stage = pool, broken, 0

    def stats(self):
        self.stage += 1
        return self.pool.stats()

    def run(self, program, tests, limits, **how):
        if not self.broken(self.stage):
            return self.pool.run(program, tests, limits, **how)
        future = concurrent.futures.Future()
        future.set_result(tuple(TestResult(Status.INFRA_ERROR, error="broken") for _ in tests))
        return future

    def __getattr__(self, name):
        return getattr(self.pool, name)


@pytest.fixture(scope="module")
def pool():
    with build_pool(config_lib.load("configs/tiny.py", overrides={"execution.workers": 1}).execution) as made:
        yield made


def run(workdir, pool, broken, **values):
    """Trains with a judge that is broken at the stages that `broken` names."""
    overrides = SMALL | {name.replace("__", "."): value for name, value in values.items()}
    train(config_lib.load("configs/tiny.py", overrides=overrides), workdir, judge=Judge(pool, broken))


def metadata(workdir, step):
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.metadata(step)


@pytest.fixture(scope="module")
def half_judged(tmp_path_factory, pool):
    """(folder, printed lines) of a run of four iterations: the judge breaks in the second and the fourth, and in the
    validations after the second and the third."""
    folder, printed = tmp_path_factory.mktemp("runs") / "half", io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(folder, pool, lambda stage: stage in (3, 4, 6, 7), train__iterations=4, train__log_every=10, eval__every=1)
    return folder, printed.getvalue().splitlines()


def test_iterations_that_nobody_judged_move_nothing_and_say_so(half_judged):
    folder, lines = half_judged
    hashes = [metadata(folder, step)["hashes"]["policy"] for step in (1, 2, 3, 4)]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]
    for step, record in enumerate(read_metrics(folder)):
        assert None not in record.values()
        empty = step in (1, 3)
        assert (record["infra_episodes"], record["skipped_updates"]) == ((4, 2) if empty else (0, 0))
        assert {"reward", "solved", "loss", "kl_to_ref", "explained_variance"}.isdisjoint(record) is empty
    told = {line.split()[0]: line for line in lines if line.startswith("     ")}
    assert set(told) == {"0", "1", "3"}  # log_every leaves the third out, but none in which updates were skipped
    for step in "13":
        assert told[step].endswith("| no episode judged (INFRA_ERROR) | 2 updates not applied")
        assert "0.00" not in told[step].split("|")[0]
    assert (metadata(folder, 3)["skipped_in_row"], metadata(folder, 4)["skipped_in_row"]) == (0, 2)
    assert metadata(folder, 4)["skipped_updates"] == 4


def test_a_validation_that_nobody_judged_is_none(half_judged):
    """It neither is the best nor ties with it nor counts for patience, and no score is printed."""
    folder, lines = half_judged
    kept = metadata(folder, 3)
    assert (kept["best_iteration"], kept["best_score"], kept["since_best"]) == (1, 0.0, 0)
    assert ["valid/1@3" in record for record in read_metrics(folder)] == [True, False, False, True]
    told = [line for line in lines if line.startswith("valid_")]
    assert "valid_000001: 4 rollouts of 4 problems of valid, 1@1 0.0  1@3 0.0" in told[0]
    broke = "the judge broke on all 4 rollouts (INFRA_ERROR): no score; it counts as no validation"
    assert told[1:3] == [f"valid_00000{n}: {broke}" for n in (2, 3)]
    assert sorted(p.name for p in (folder / "evaluations").iterdir()) == ["valid_000001.json", "valid_000004.json"]


def test_a_run_ends_after_so_many_skipped_updates_and_goes_on_once_it_is_mended(tmp_path, pool):
    """Two updates an iteration: the third in a row is one of the third iteration's, which nothing else would save."""
    values = {"train__max_skipped": 3, "train__checkpoint_every": 9, "train__iterations": 5}
    why = "the judge broke on every episode of the last iteration; saved after 3 iterations"
    with pytest.raises(RunError, match=rf"^4 updates in a row .*\(config\.train\.max_skipped=3\); {why}") as ended:
        run(tmp_path, pool, lambda stage: stage > 2, **values)
    assert len(str(ended.value).splitlines()) == 1
    assert metadata(tmp_path, 3)["skipped_in_row"] == 4 and len(read_metrics(tmp_path)) == 3
    run(tmp_path, pool, lambda stage: False, **values)
    assert metadata(tmp_path, 5)["skipped_in_row"] == 0 and metadata(tmp_path, 5)["skipped_updates"] == 4
    assert [r["skipped_updates"] for r in read_metrics(tmp_path)] == [0, 2, 2, 0, 0]


def test_bad_updates_count_too(tmp_path, pool):
    """A gradient above the limit of every update; the iteration's validation is left out."""
    values = {"ppo__max_grad_norm": 1e-9, "train__bad_update": "skip", "eval__every": 1, "train__max_skipped": 1}
    with pytest.raises(RunError, match=r"2 updates in a row .*max_skipped=1\); saved after 1 iterations"):
        run(tmp_path, pool, lambda stage: False, **values)
    assert not (tmp_path / "evaluations").exists() and len(list((tmp_path / "bad_updates").iterdir())) == 2


def test_a_warm_start_that_nobody_judged_ends_the_run_before_it_trains(tmp_path, pool):
    with pytest.raises(RunError, match=r"warm_start: the judge broke on all 4 rollouts \(INFRA_ERROR\): no score"):
        run(tmp_path, pool, lambda stage: True, eval__split="valid")
    assert not (tmp_path / "summary.json").exists() and not read_metrics(tmp_path)


def test_an_evaluation_that_nobody_judged_has_no_score(tmp_path, pool, monkeypatch):
    def broken_pool(_):
        return contextlib.nullcontext(Judge(pool, lambda stage: True))

    monkeypatch.setattr("rlef_jax.evaluation.job.build_pool", broken_pool)
    asked = ["--config=configs/tiny.py", "--benchmark=mini_contests/valid", "--problems=2", f"--out={tmp_path / 'x'}"]
    overrides = [f"--config.{key}={value}" for key, value in OVERRIDES.items() if key != "eval.split"]
    with pytest.raises(RunError, match="none of 2 problems has 1 judged rollouts: the judge broke on .*another --out"):
        evaluate(parsed([*asked, *overrides]))
    assert not (tmp_path / "x" / "results.json").exists()


def test_a_policy_that_stops_being_finite_ends_the_run(tmp_path, pool):
    """A weight decay too strong for float32: the first update's gradient is finite, what it makes of the weights isn't.

    The checkpoint after it is refused where the run would go on."""
    values = {"ppo__learning_rate": 3e38, "ppo__weight_decay": 1e3, "ppo__warmup_steps": 0, "ppo__updates": 1}
    message = r"log-probabilities are not finite \(weights of version 1, episode \d, turn 1\)"
    with pytest.raises(RunError, match=message):
        run(tmp_path, pool, lambda stage: False, **values)
    assert len(read_metrics(tmp_path)) == 1
    assert [p.name for p in (tmp_path / "episodes").iterdir()] == ["000000.jsonl.gz"]
    with pytest.raises(ConfigError, match=r"checkpoint 1 in .* holds NaN or infinity: weights must be finite"):
        run(tmp_path, pool, lambda stage: False, **values)


def test_an_evaluation_of_a_checkpoint_that_is_not_finite_is_refused(tmp_path):
    config = config_lib.load("configs/tiny.py", overrides=SMALL)
    config_lib.save(config, tmp_path)
    policy = build_policy(config).params
    policy["final_norm"] = policy["final_norm"].at[0].set(np.nan)
    with Checkpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        checkpoints.save(2, {"policy": policy}, {"best_iteration": None})
    message = r"checkpoint 2 in .*: \['policy'\]\['final_norm'\] holds NaN or infinity"
    with pytest.raises(ConfigError, match=message):
        evaluate(parsed([f"--workdir={tmp_path}", "--problems=2", "--split=valid", f"--out={tmp_path / 'x'}"]))
    with pytest.raises(ConfigError, match=message):
        export_run(tmp_path, tmp_path / "export")
    assert not (tmp_path / "export").exists() and not (tmp_path / "x").exists()
    assert json.loads((tmp_path / "config.json").read_text())["train"]["max_skipped"] == 20
