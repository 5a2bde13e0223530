"""Metrics reach both files, a resumed run replaces what it repeats, and the progress line shows the numbers."""

import io
import json
import os
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlef_jax.progress import COLUMNS, ProgressDisplay, header_line, iteration_line
from rlef_jax.training.metrics_writer import FILE_NAME, MetricsWriter, read_metrics


def values(records, name):
    return [(r["step"], r[name]) for r in records]


def test_json_lines_and_tensorboard_hold_the_same(tmp_path):
    threads = set(threading.enumerate())
    with MetricsWriter(tmp_path) as writer:
        for step in range(3):
            writer.write(step, {"reward": step / 4, "time": {"total": np.float32(2.5)}, "kl": jnp.float32(0.5)})
    # No thread writes: what a thread can't write the run would hear of too late.
    assert set(threading.enumerate()) <= threads  # those of earlier tests may end meanwhile
    records = read_metrics(tmp_path)
    assert values(records, "reward") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert values(records, "time/total") == [(s, 2.5) for s in range(3)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("reward", "time/total", "kl"):
        assert [(e.step, e.value) for e in events.Scalars(name)] == values(records, name)


def test_non_finite_values_stay_valid_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"loss": float("nan"), "x": float("inf"), "y": 1.0})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / FILE_NAME).read_text(), parse_constant=refuse)
    assert (record["loss"], record["x"], record["y"]) == (None, None, 1.0)


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    for start, stop in ((0, 4), (2, 5)):
        with MetricsWriter(tmp_path, start_step=start) as writer:
            for step in range(start, stop):
                writer.write(step, {"run": float(start)})
    assert values(read_metrics(tmp_path), "run") == [(0, 0.0), (1, 0.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    with MetricsWriter(tmp_path):
        pass
    assert read_metrics(tmp_path) == []


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"a": 1.0})
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write('{"step": 1, "a"')
    assert values(read_metrics(tmp_path), "a") == [(0, 1.0)]
    with MetricsWriter(tmp_path, start_step=1) as writer:
        writer.write(1, {"a": 2.0})
    assert values(read_metrics(tmp_path), "a") == [(0, 1.0), (1, 2.0)]


def test_reading_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="workdir"):
        read_metrics(tmp_path)


METRICS = {
    "solved_turn1": 0.25,
    "solved": 0.5,
    "reward": -0.125,
    "kl_to_ref": 0.0123,
    "mismatch_mean": 2e-6,
    "clip_fraction": 0.031,
    "explained_variance": 0.75,
    "tokens_per_s": 12345.6,
    "time/total": 40.0,
    "time/sample": 30.0,
    "time/update": 9.0,
    "time/save": 0.1,
}


def test_the_line_has_each_number_under_its_heading():
    line = iteration_line(12, METRICS)
    cells = line.split()
    expected = ["12", "25.0", "50.0", "-0.12", "0.0123", "2.0e-06", "3.1", "+0.75", "12,346", "40.0"]
    assert cells == [*expected, "sample", "75%", "update", "22%"]
    for column, cell in zip(COLUMNS, cells[1:]):
        end = header_line().index(column.heading) + len(column.heading)
        assert line[:end].endswith(cell), column


def test_a_missing_number_is_a_dash():
    assert iteration_line(0, {"solved": 0.5}).split() == ["0", "-", "50.0", *["-"] * (len(COLUMNS) - 2)]


def test_the_line_says_what_did_not_count():
    whole = METRICS | {"episodes": 8.0, "infra_episodes": 0.0, "skipped_updates": 0.0}
    assert iteration_line(12, whole) == iteration_line(12, METRICS)
    some = iteration_line(12, whole | {"infra_episodes": 3.0, "skipped_updates": 1.0})
    assert some == iteration_line(12, METRICS) + " | 3 episodes broken by the judge | 1 updates not applied"
    nothing = {"episodes": 0.0, "infra_episodes": 8.0, "skipped_updates": 2.0, "applied": 0.0, "time/total": 1.0}
    line = iteration_line(12, nothing)
    assert line.endswith(" | no episode judged (INFRA_ERROR) | 2 updates not applied")
    assert line.split()[1 : len(COLUMNS)] == ["-"] * (len(COLUMNS) - 1)  # all but the seconds


def test_a_stream_that_is_no_terminal_gets_plain_lines():
    stream = io.StringIO()
    with ProgressDisplay(stream=stream, header_every=2) as display:
        for step in range(3):
            display.stage("sample", step, 3)
            display.iteration(step, METRICS)
    lines = stream.getvalue().splitlines()
    heading, rows = header_line(), [iteration_line(s, METRICS) for s in range(3)]
    assert lines == [heading, rows[0], rows[1], heading, rows[2]]
    assert "\x1b" not in stream.getvalue()


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"run\xff")
    with MetricsWriter(folder) as writer:
        writer.write(0, {"a": 1.0})
    assert values(read_metrics(folder), "a") == [(0, 1.0)] and len(list((folder / "tensorboard").iterdir())) == 1
