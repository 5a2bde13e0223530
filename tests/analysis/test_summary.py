"""The summary's table and gains are exact, and a report draws the plots that the workdir allows."""

import pytest
from matplotlib import image
from matplotlib.figure import Figure

from rlef_jax import config as config_lib
from rlef_jax.analysis import plots
from rlef_jax.analysis.plots import series
from rlef_jax.analysis.report import write_report
from rlef_jax.analysis.summary import gains, read_summary, summary_table, write_summary
from rlef_jax.training.metrics_writer import MetricsWriter, flatten


def evaluation(at_1, at_3, low, high, repaired):
    return {"1@1": at_1, "1@3": at_3, "1@3_ci": [low, high], "repaired_at_2": repaired}


SUMMARY = {
    "warm_start": evaluation(20.0, 42.0, 38.0, 46.0, 15.0),
    "rlef": evaluation(30.5, 82.25, 78.0, 86.0, 61.0),
    "warm_start_random_feedback": evaluation(20.0, 36.0, 32.0, 40.0, 9.0),
    "rlef_random_feedback": evaluation(30.5, 79.25, 75.0, 83.0, 12.0),
    "bounds": {"no_feedback": 55.0, "pass_fail": 72.0, "full": 96.5},
}


def test_gains():
    assert gains(SUMMARY) == {
        "1@3": 40.25,
        "1@3_apart": 1.0,
        "turns": 29.75,
        "repaired_at_2": 46.0,
        "random_drop": 3.0,
        "random_apart": 0.0,
        "random_drop_warm_start": 6.0,
    }
    assert gains({"warm_start": SUMMARY["warm_start"]}) == {}


def test_intervals_are_apart_in_either_order():
    swapped = {"warm_start": SUMMARY["rlef"], "rlef": SUMMARY["warm_start"]}
    assert gains(swapped)["1@3_apart"] == 1.0
    touching = {"warm_start": evaluation(1, 2, 30.0, 40.0, 0), "rlef": evaluation(1, 2, 40.0, 50.0, 0)}
    assert gains(touching)["1@3_apart"] == 0.0


def test_the_table():
    assert summary_table(SUMMARY).splitlines() == [
        "percent of problems                       1@1    1@3   95 % interval   repaired at turn 2",
        "warm start                               20.0   42.0   38.0 to 46.0                  15.0",
        "after RLEF                               30.5   82.2   78.0 to 86.0                  61.0",
        "warm start, random feedback              20.0   36.0   32.0 to 40.0                   9.0",
        "after RLEF, random feedback              30.5   79.2   75.0 to 83.0                  12.0",
        "best 1@3, no feedback, no early stop            55.0",
        "best 1@3, pass or fail known                    72.0",
        "best 1@3, feedback read                         96.5",
        "RLEF: 1@3 +40.2 (intervals apart), 1@3 minus 1@1 +29.8, repaired at turn 2 +46.0",
        "random instead of true feedback: 1@3 -3.0 (intervals overlap); warm start -6.0",
    ]


def test_the_table_names_its_denominator():
    """Once, where the rules of `config.data` left out some problems of the split."""
    left_out = {"of": 165, "kept": 163, "rules": {"with a prompt longer than max_prompt_tokens=4096": 2}}
    some = {
        name: SUMMARY[name] | {"problems": 163, "split_left_out": left_out}
        for name in ("warm_start", "rlef", "rlef_random_feedback")
    }
    lines = summary_table(SUMMARY | some).splitlines()
    assert lines[5] == (
        "percentages are of 163 problems: 163 of 165 problems; left out: 2 with a prompt longer than"
        " max_prompt_tokens=4096"
    )
    assert [line for i, line in enumerate(lines) if i != 5] == summary_table(SUMMARY).splitlines()


def test_a_table_of_less():
    lines = summary_table({"rlef": SUMMARY["rlef"]}).splitlines()
    assert len(lines) == 2 and lines[1].startswith("after RLEF")
    unknown = {"warm_start": SUMMARY["warm_start"], "rlef": {**SUMMARY["rlef"], "1@1": None, "repaired_at_2": None}}
    lines = summary_table(unknown).splitlines()
    assert lines[2].split() == ["after", "RLEF", "-", "82.2", "78.0", "to", "86.0", "-"]
    assert lines[3:] == ["RLEF: 1@3 +40.2 (intervals apart)"]


def test_summary_round_trip(tmp_path):
    with pytest.raises(FileNotFoundError, match="when it ends"):
        read_summary(tmp_path)
    write_summary(tmp_path, SUMMARY)
    assert read_summary(tmp_path) == SUMMARY


def record(step):
    return {
        "solved_turn1": 0.2,
        "solved": 0.5,
        "reward": 0.1 * step,
        "mismatch_max": 0.0,
        "time": {"total": 10.0, "sample": 6.0},
        "turn1": {"PASSED": 0.2, "WRONG_ANSWER": 0.8},
    }


@pytest.mark.parametrize("iterations, finished", [(1, False), (5, True)])
def test_a_report_draws_what_there_is(tmp_path, iterations, finished):
    """Warnings are errors in tests: a curve without points or a log axis without positive values would fail."""
    config_lib.save(config_lib.base_config(), tmp_path)
    with MetricsWriter(tmp_path) as writer:
        for step in range(iterations):
            writer.write(step, record(step))
    if finished:
        write_summary(tmp_path, SUMMARY)
    report = write_report(tmp_path)
    assert ("after RLEF" in report, "no table yet: the run evaluates when it ends" in report) == (
        finished,
        not finished,
    )
    names = {"learning", "drift", "error_kinds"} | ({"summary"} if finished else set())
    assert {p.stem for p in (tmp_path / "plots").iterdir()} == names
    for name in names:
        picture = image.imread(tmp_path / "plots" / f"{name}.png")
        assert picture.std() > 0.05, f"{name} is blank"


def test_a_run_without_evaluations_says_so(tmp_path):
    config_lib.save(config_lib.load("configs/tiny.py:single_turn"), tmp_path)
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, record(0))
    first = write_report(tmp_path).splitlines()[0]
    assert first.startswith("no table: this run evaluates nothing") and f"--workdir={tmp_path}" in first


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a plot and returns its figure instead of writing a file."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: saved.append(figure))

    def draw(plot, records):
        plot(records, tmp_path / "plot.png")
        return saved.pop()

    return draw


def flat(step, **more):
    return {"step": step, **dict(flatten(record(step)))} | more


def test_a_slow_first_iteration_does_not_squeeze_the_others(drawn):
    seconds = [90.0, 10.0, 12.0, 11.0, 18.0]
    axes = drawn(plots.plot_learning, [flat(i, **{"time/total": s}) for i, s in enumerate(seconds)]).axes
    assert len(axes) == 8 and axes[7].get_ylim()[1] == pytest.approx(1.6 * 11.5)
    assert [text.get_text() for text in axes[7].texts] == ["90"]


def test_actor_and_learner_have_a_panel_where_the_records_tell_of_them(drawn):
    fields = {"staleness_mean": 0.5, "idle/learner": 0.25, "idle/actor": 0.125}
    axes = drawn(plots.plot_learning, [flat(i, **fields) for i in range(3)]).axes
    assert len(axes) == 10  # the ninth panel has two scales
    assert [list(line.get_ydata()) for axis in axes[8:] for line in axis.get_lines()] == [
        [0.5] * 3,
        [0.25] * 3,
        [0.125] * 3,
    ]


def test_drift_has_a_panel_for_each_of_its_signs(drawn):
    def fields(i):
        kl = {f"kl_to_ref{q}": v * i for q, v in {"": 0.02, "_q50": 0.01, "_q95": 0.1, "_max": 0.5}.items()}
        ratios = {
            f"ratio_q{q}": 1 + i * v for q, v in {"01": -0.3, "05": -0.1, "50": 0.0, "95": 0.1, "99": 0.2}.items()
        }
        rest = {"entropy": 0.5 - 0.1 * i, "grad_norm": 20.0**i, "response_tokens": 30.0 + i}
        return kl | ratios | rest | {"turn1/invalid": 0.1 * i, "turn2/invalid": 0.2 * i}

    axes = drawn(plots.plot_drift, [flat(i, **fields(i)) for i in range(3)]).axes
    last = [[float(line.get_ydata()[-1]) for line in axis.get_lines()] for axis in axes]
    assert last == [
        pytest.approx([1.0, 0.2, 0.04, 0.02]),  # largest, 95 %, mean, median
        pytest.approx([1.4, 1.2, 1.0, 0.8, 0.4]),
        pytest.approx([0.3]),
        pytest.approx([400.0]),
        pytest.approx([0.2, 0.4]),
        pytest.approx([32.0]),
    ]
    assert [text.get_text() for text in axes[4].get_legend().get_texts()] == ["turn 1", "turn 2"]
    assert axes[3].get_yscale() == "log" and axes[2].get_legend() is None


def test_statuses_that_cannot_be_seen_have_no_name_in_the_legend(drawn):
    kinds = {"turn1/PASSED": 0.5, "turn1/WRONG_ANSWER": 0.492, "turn1/TIME_LIMIT": 0.004, "turn1/NO_CODE": 0.004}
    records = [{"step": 0, "turn1/PASSED": 0.1, "turn1/WRONG_ANSWER": 0.9}] + [{"step": i, **kinds} for i in (1, 2)]
    figure = drawn(plots.plot_error_kinds, records)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["passed", "wrong answer", "others, each below 0.5%"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["turn 1, first iteration", "turn 1, last 2 iterations"]
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].patches]
    assert max(ends) == pytest.approx(1.0)


def test_series_leaves_out_what_a_record_lacks():
    assert series([{"step": 0, "a": 1.0}, {"step": 1}, {"step": 2, "a": None}, {"step": 3, "a": 0.0}], "a") == (
        [0, 3],
        [1.0, 0.0],
    )
