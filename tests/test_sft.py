"""The warm start that ships was made by its recipe: the recipe's first steps give the recorded losses."""

import collections
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rlef_jax import config as config_lib
from rlef_jax import sft
from rlef_jax.data.dialogues import dialogues
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.tokenizer import Tokenizer
from rlef_jax.errors import ConfigError, RunError, StoppedError
from rlef_jax.model.parameters import init_params
from rlef_jax.model.weights import load_params, model_config, resolve, save_params
from rlef_jax.training import dialogue_batches
from rlef_jax.training.metrics_writer import read_metrics
from tests.helpers.small_run import environment, group_members, wait_until_gone

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def recipe():
    config = config_lib.load("configs/tiny_sft.py")
    chat = ChatFormat(Tokenizer.load(resolve(config.model.tokenizer, ".model", "model.tokenizer")))
    return config, chat, model_config(config.model, chat.tokenizer.vocab_size, config.episode.context)


@pytest.mark.usefixtures("quick_compilation")
def test_first_steps_of_the_recipe(tmp_path, recipe):
    record = json.loads(resolve("package:warm_start", ".json", "model.init").read_text())
    config = config_lib.load("configs/tiny_sft.py", overrides={"sft.steps": 3, "sft.log_every": 1})
    sft.train(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3]
    np.testing.assert_allclose([r["loss"] for r in rows], record["first_losses"], rtol=1e-3)
    assert (tmp_path / "warm_start.npz").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {"sft.dialogues": 512, "sft.steps": 1},
            "sft.warmup_steps: below 8 steps, all that .*dialogues=512 gives; it is 100",
        ),
        ({"sft.dialogues": 511}, "sft.dialogues: at least one chunk of 512; it is 511"),
        ({"sft.batch_rows": 513}, "sft.batch_rows: at most a chunk of 512; it is 513"),
        ({"sft.warmup_steps": 2496}, "sft.warmup_steps: below 2496 steps"),
        ({"sft.steps": 2497}, "sft.steps: at most 2496 steps"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_in_a_line(tmp_path, overrides, message):
    config = config_lib.load("configs/tiny_sft.py", overrides=overrides)
    with pytest.raises(ConfigError, match=message) as raised:
        sft.train(config, tmp_path / "run")
    assert len(str(raised.value).splitlines()) == 1 and not (tmp_path / "run").exists()


def test_shipped_weights_are_the_recorded_ones(recipe):
    config, _, cfg = recipe
    path = resolve("package:warm_start", ".npz", "model.init")
    assert path.stat().st_size <= 4 << 20
    record = json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]
    params = load_params(path, cfg)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 510_816


@pytest.mark.usefixtures("quick_compilation")
def test_the_shipped_model_writes_reference_programs_word_for_word(recipe):
    """On held-out problems, for the careful author: first programs where the statement says all, and repairs."""
    config, chat, cfg = recipe
    params = load_params(resolve("package:warm_start", ".npz", "model.init"), cfg)
    settings = {"marked_share": 1.0, "right_repairs": 0.15, "context": config.episode.context}
    percent = sft.ReadingProbe(cfg, chat, config.seed + 1, settings, problems=48)(params)
    assert percent["first"] > 75 and percent["repair"] > 65  # percent; 88.9 and 78.6
    assert percent["repair/separator"] > 90 > 20 > percent["repair/order"]  # it reads some questions and not others


def test_a_model_of_another_shape_is_refused(tmp_path, recipe):
    _, _, cfg = recipe
    other = model_config(config_lib.load("configs/tiny_sft.py", overrides={"model.d_ff": 32}).model, 64, 256)
    save_params(tmp_path / "other.npz", init_params(jax.random.PRNGKey(0), other))
    with pytest.raises(ConfigError, match=r"other.npz: \S+ is \("):
        load_params(tmp_path / "other.npz", cfg)


def test_batches_hold_each_dialogue_once(recipe):
    _, chat, _ = recipe
    examples = dialogues(1, 0, chat, problems=8, per_problem=4)
    batches = dialogue_batches.batches(examples, 8, np.random.default_rng(0))
    rows = [tuple(row[seg > 0].tolist()) for b in batches for row, seg in zip(b["tokens"], b["segments"], strict=True)]
    counts = collections.Counter(d.ids for d in examples)
    counts.subtract(rows)
    assert min(counts.values()) >= 0
    assert counts.total() == len(examples) % 8
    for b in batches:
        assert b["tokens"].shape[1] % 32 == 0
        assert not (b["mask"] * (1 - b["segments"])).any()


def test_loss_counts_the_authors_tokens_only(recipe):
    """Changing a prompt token's target weight changes nothing; the loss is the mean over masked tokens."""
    _, _, cfg = recipe
    small = model_config(config_lib.load("configs/tiny_sft.py", overrides={"model.n_layers": 1}).model, 64, 64)
    params = init_params(jax.random.PRNGKey(0), small)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (2, 16)).astype(np.int32)
    mask = np.zeros((2, 16), np.int32)
    mask[0, 5], mask[1, 9] = 1, 1
    segments = np.ones((2, 16), np.int32)
    both, _ = sft.loss_and_hits(params, small, {"tokens": tokens, "mask": mask, "segments": segments})
    single = []
    for row, t in ((0, 5), (1, 9)):
        only = np.zeros_like(mask)
        only[row, t] = 1
        single.append(sft.loss_and_hits(params, small, {"tokens": tokens, "mask": only, "segments": segments})[0])
    np.testing.assert_allclose(both, np.mean(single), rtol=1e-6)
    cut = tokens.copy()
    cut[0, 6:] = 1  # what comes after the counted token cannot matter
    np.testing.assert_allclose(
        sft.loss_and_hits(params, small, {"tokens": cut, "mask": mask, "segments": segments})[0], both, rtol=1e-6
    )


ONES = {name: np.ones((64, 32), np.int32) for name in ("tokens", "segments", "mask")}


def trained(folder, monkeypatch, batches, **overrides):
    """What metrics.jsonl says of steps on these batches; one layer, and no probe of what the model reads."""

    def stream(*_):
        yield from ((dialogue_batches.Place(step, 0, step), batch) for step, batch in enumerate(batches, 1))

    monkeypatch.setattr(sft, "stream", stream)
    values = {"sft.log_every": 1, "model.n_layers": 1} | {f"sft.{k}": v for k, v in overrides.items()}
    sft.train(config_lib.load("configs/tiny_sft.py", overrides=values), folder)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("quick_compilation")
def test_a_batch_without_a_counted_token_moves_nothing(tmp_path, monkeypatch):
    """Nor does a loss of nothing enter the mean."""
    prompts = ONES | {"mask": np.eye(1, 32, dtype=np.int32).repeat(64, 0)}  # the first token is nobody's target
    rows = trained(tmp_path / "a", monkeypatch, [ONES, ONES, prompts])
    assert ["loss" in row for row in rows] == [True, True, False]
    trained(tmp_path / "b", monkeypatch, [ONES, ONES])
    with np.load(tmp_path / "a" / "warm_start.npz") as a, np.load(tmp_path / "b" / "warm_start.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.usefixtures("quick_compilation")
def test_a_loss_that_is_not_finite_ends_it(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step [23]: lower config.sft.learning_rate"):
        trained(tmp_path, monkeypatch, [ONES] * 3, learning_rate=1e38, warmup_steps=0)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text() and not (tmp_path / "warm_start.npz").exists()


SMALL = {"model.n_layers": 1, "model.d_model": 16, "model.n_heads": 2, "model.n_kv_heads": 1, "model.d_head": 8,
         "sft.dialogues": 1024, "sft.batch_rows": 256, "sft.warmup_steps": 1, "sft.log_every": 1}  # fmt: skip


@pytest.mark.usefixtures("quick_compilation")
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(tmp_path, monkeypatch, capsys):
    """Stopped by a signal in its first chunk of two batches, and at a number of steps in its second."""

    def run(folder, steps):
        sft.train(config_lib.load("configs/tiny_sft.py", overrides=SMALL | {"sft.steps": steps}), folder)

    def stream_and_signal(*args, real=sft.stream):
        for place, batch in real(*args):
            if place.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield place, batch

    monkeypatch.setattr(sft, "ReadingProbe", lambda *_: lambda _: {})  # it measures, and takes longer than the rest
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, 3)
    with monkeypatch.context() as patched:
        patched.setattr(sft, "stream", stream_and_signal)
        with pytest.raises(StoppedError, match="SIGTERM, saved after 1 steps; the same command goes on from there"):
            run(parts, 3)
    run(parts, 2)
    run(parts, 3)
    assert capsys.readouterr().out.count("going on from step") == 2
    for folder in (whole, parts):
        assert [record["step"] for record in read_metrics(folder)] == [1, 2, 3]
    for one, other in zip(read_metrics(whole), read_metrics(parts), strict=True):
        assert one["loss"] == other["loss"]
    with np.load(whole / "warm_start.npz") as a, np.load(parts / "warm_start.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    with pytest.raises(ConfigError, match=r"(?s)another config.*sft.learning_rate"):
        other = config_lib.load("configs/tiny_sft.py", overrides=SMALL | {"sft.learning_rate": 1e-2})
        sft.train(other, parts)


def test_a_killed_run_leaves_no_process(tmp_path):
    """The one that writes dialogues ends with it. Killed after its first step."""
    options = [f"--config.{key}={value}" for key, value in SMALL.items()]
    command = [sys.executable, "-m", "rlef_jax.sft", "--config=configs/tiny_sft.py", f"--workdir={tmp_path}", *options]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not ((path := tmp_path / "metrics.jsonl").exists() and path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert len(group_members(process.pid)) >= 3  # multiprocessing has a process of its own too
    process.kill()
    process.wait()
    assert wait_until_gone(process.pid, 60.0)
