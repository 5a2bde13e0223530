"""Supervised fine-tuning as users run it, and the shipped warm start, whose recipe gives the recorded first losses."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rlef_jax import config as config_lib
from rlef_jax import sft, train
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.load import load_chat
from rlef_jax.dialog.tokenizer import Tokenizer
from rlef_jax.errors import ConfigError, RunError, StoppedError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.export import export_run
from rlef_jax.model.parameters import init_params
from rlef_jax.model.weights import load_params, model_config, resolve, save_params
from rlef_jax.supervised.authors import Authors
from rlef_jax.supervised.examples import Example, Place
from rlef_jax.supervised.probe import ReadingProbe
from rlef_jax.training.build import forward_settings, ppo_settings
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.metrics_writer import read_metrics
from rlef_jax.training.tally import PassedOver
from tests.helpers.byte_bpe import TEMPLATES, write_tokenizer
from tests.helpers.hf_folder import write_folder
from tests.helpers.small_run import environment, group_members, wait_until_gone
from tests.parity import cases

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def recipe():
    config = config_lib.load("configs/tiny_sft.py")
    chat = ChatFormat(Tokenizer.load(resolve(config.model.tokenizer, ".model", "model.tokenizer")))
    return config, chat, model_config(config.model, chat.tokenizer.vocab_size, config.episode.context)


def reading_probe(recipe, problems=48):
    config, chat, cfg = recipe
    settings = {"marked_share": 1.0, "right_repairs": 0.15, "context": config.episode.context}
    packing = ppo_settings(config).packing
    return ReadingProbe(cfg, chat, config.seed + 1, settings, packing, forward_settings(config), problems)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_first_steps_of_the_recipe(tmp_path):
    record = json.loads(resolve("package:warm_start", ".json", "model.init").read_text())
    config = config_lib.load("configs/tiny_sft.py", overrides={"sft.steps": 2, "sft.log_every": 1})
    sft.train(config, tmp_path)
    rows = read_metrics(tmp_path)
    assert [r["step"] for r in rows] == [1, 2]
    np.testing.assert_allclose([r["loss"] for r in rows], record["first_losses"][:2], rtol=1e-3)
    assert "repair" in rows[1] and (tmp_path / "policy.npz").exists()


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


def test_authors_need_a_chat_template_with_a_system_message(tmp_path):
    template = TEMPLATES["chatml"].replace("in messages %}", "in messages if message['role'] != 'system' %}")
    folder = write_tokenizer(tmp_path / "tokenizer", template)
    config = config_lib.load("configs/tiny_sft.py", overrides=SMALL | {"model.tokenizer": str(folder)})
    with pytest.raises(ConfigError, match='config.sft.source: "authors" write dialogues with a system message, which'):
        sft.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shipped_weights_are_the_recorded_ones(recipe):
    _, _, cfg = recipe
    path = resolve("package:warm_start", ".npz", "model.init")
    assert path.stat().st_size <= 4 << 20
    record = json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]
    params = load_params(path, cfg)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 510_816


@pytest.mark.usefixtures("quick_compilation")
def test_the_shipped_model_writes_reference_programs_word_for_word(recipe):
    """On held-out problems, for the careful author: first programs where the statement says all, and repairs."""
    params = load_params(resolve("package:warm_start", ".npz", "model.init"), recipe[2])
    percent = reading_probe(recipe)(params)
    assert percent["first"] > 75 and percent["repair"] > 65  # percent; 88.9 and 78.6
    assert percent["repair/separator"] > 90 > 20 > percent["repair/order"]  # it reads some questions and not others


def test_a_model_of_another_shape_is_refused(tmp_path, recipe):
    _, _, cfg = recipe
    other = model_config(config_lib.load("configs/tiny_sft.py", overrides={"model.d_ff": 32}).model, 64, 256)
    save_params(tmp_path / "other.npz", init_params(jax.random.PRNGKey(0), other))
    with pytest.raises(ConfigError, match=r"other.npz: \S+ is \("):
        load_params(tmp_path / "other.npz", cfg)


SMALL = {"model.n_layers": 1, "model.d_model": 16, "model.n_heads": 2, "model.n_kv_heads": 1, "model.d_head": 8,
         "ppo.buckets": (256,), "sft.dialogues": 1024, "sft.batch_rows": 256, "sft.warmup_steps": 1,
         "sft.log_every": 1}  # fmt: skip
ONES = [Example(np.ones(32, np.int32), np.ones(32, bool))] * 64


def without_a_probe(monkeypatch):
    monkeypatch.setattr(sft, "ReadingProbe", lambda *_: lambda _: {})  # it measures, and takes longer than the rest


def trained(folder, monkeypatch, batches, **overrides):
    """What metrics.jsonl says of steps on these batches."""

    def given(*_):
        yield from ((Place(step, 0, step), batch) for step, batch in enumerate(batches, 1))

    without_a_probe(monkeypatch)
    monkeypatch.setattr(Authors, "batches", given)
    values = SMALL | {"sft.batch_rows": 64} | {f"sft.{k}": v for k, v in overrides.items()}
    config = config_lib.load("configs/tiny_sft.py", overrides={"sft.steps": len(batches)} | values)
    sft.train(config, folder)
    return read_metrics(folder)


@pytest.mark.usefixtures("quick_compilation")
def test_a_batch_without_a_learned_token_moves_nothing(tmp_path, monkeypatch):
    """Nor does a loss of nothing enter the mean."""
    prompts = [Example(ONES[0].ids, np.arange(32) == 0)] * 64  # the first token is nobody's target
    rows = trained(tmp_path / "a", monkeypatch, [ONES, ONES, prompts])
    assert ["loss" in row for row in rows] == [True, True, False]
    trained(tmp_path / "b", monkeypatch, [ONES, ONES])
    assert_same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.usefixtures("quick_compilation")
def test_a_loss_that_is_not_finite_ends_it(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"the (loss|gradient's norm) is (nan|inf) at step [23]: lower config.sft.learn"):
        trained(tmp_path, monkeypatch, [ONES] * 3, learning_rate=1e38, warmup_steps=0)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text() and not (tmp_path / "policy.npz").exists()


@pytest.mark.usefixtures("quick_compilation")
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(tmp_path, monkeypatch, capsys):
    """Stopped by a signal in its first chunk of two batches."""

    def run(folder, steps):
        sft.train(config_lib.load("configs/tiny_sft.py", overrides=SMALL | {"sft.steps": steps}), folder)

    def batches_and_signal(authors, batch, start, real=Authors.batches):
        with contextlib.closing(real(authors, batch, start)) as batches:
            for place, examples in batches:
                if place.step == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield place, examples

    without_a_probe(monkeypatch)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, 3)
    with monkeypatch.context() as patched:
        patched.setattr(Authors, "batches", batches_and_signal)
        with pytest.raises(StoppedError, match="SIGTERM, saved after 1 steps; the same command goes on from there"):
            run(parts, 3)
    run(parts, 3)
    assert capsys.readouterr().out.count("going on from step 1") == 1
    assert_same(whole, parts, [1, 2, 3])
    with pytest.raises(ConfigError, match=r"(?s)another config.*sft.learning_rate"):
        other = config_lib.load("configs/tiny_sft.py", overrides=SMALL | {"sft.learning_rate": 1e-2})
        sft.train(other, parts)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("quick_compilation", "abandoned_reads")
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_used(tmp_path, monkeypatch, capsys):
    """As by rlef_jax.train. Where none can be read it never starts afresh in silence."""

    def given(_, batch, start):
        yield from ((Place(step, 0, step), ONES) for step in range(start.step + 1, 5))

    without_a_probe(monkeypatch)
    monkeypatch.setattr(Authors, "batches", given)
    values = SMALL | {"sft.batch_rows": 64, "sft.checkpoint_every": 2, "sft.steps": 4}
    config = config_lib.load("configs/tiny_sft.py", overrides=values)
    sft.train(config, tmp_path / "whole")
    folder = shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    damage(folder, 4)
    sft.train(config, folder)
    out = capsys.readouterr().out
    assert "checkpoint 4" in out and "is damaged" in out and "trying the one before it" in out
    assert "going on from step 2" in out and (folder / "damaged_checkpoints" / "4").is_dir()
    assert_same(tmp_path / "whole", folder, [1, 2, 3, 4])
    for step in (2, 4):
        damage(folder, step)
    with pytest.raises(RunError, match="records of 4 steps and no checkpoint that can be read; start again with anoth"):
        sft.train(config, folder)
    with pytest.raises(ConfigError, match="holds a run of rlef_jax.sft, and this is rlef_jax.train: give it another"):
        train.train(config_lib.load("configs/tiny.py"), folder)
    with pytest.raises(ConfigError, match=r"--checkpoint=best: .* \(config.sft.valid_share\)"):
        export_run(tmp_path / "whole", tmp_path / "exported", checkpoint="best")


def damage(folder, step):
    for path in (folder / "checkpoints" / str(step) / "policy").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_same(one, other, steps):
    for folder in (one, other):
        assert [record["step"] for record in read_metrics(folder)] == steps
    for a, b in zip(read_metrics(one), read_metrics(other), strict=True):
        assert {k: v for k, v in a.items() if k not in ("time", "tokens_per_s")} == {
            k: v for k, v in b.items() if k not in ("time", "tokens_per_s")
        }
    assert_same_weights(one, other)


def assert_same_weights(one, other):
    with np.load(one / "policy.npz") as a, np.load(other / "policy.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


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


FROM_FILE = {k: v for k, v in SMALL.items() if k != "sft.dialogues"} | {
    "sft.batch_rows": 2, "sft.source": "messages", "sft.epochs": 2, "sft.valid_share": 0.3, "sft.warmup_steps": 1,
    "sft.checkpoint_every": 2, "ppo.microbatch_rows": 4, "ppo.row_episodes": 2,
}  # fmt: skip


def test_solutions_are_read_from_the_files_that_the_configuration_names(tmp_path, recipe):
    problem = {"name": "p", "description": "Print 1.", "public_tests": [{"input": "", "output": "1"}],
               "private_tests": [{"input": "2", "output": "1"}], "solutions": ["print(1)", "print(2)"]}  # fmt: skip
    (tmp_path / "own.jsonl").write_text(json.dumps(problem))
    values = FROM_FILE | {"sft.source": "solutions", "sft.data": (str(tmp_path / "own.jsonl"),)}
    config = config_lib.load("configs/tiny_sft.py", overrides=values)
    wrong, (example, name) = sft._found(config, recipe[1], lambda *_: None)
    assert name == "p" and wrong == PassedOver("wrong")
    assert recipe[1].response_text(example.ids[example.learned].tolist()) == "```python\nprint(1)\n```"


@pytest.mark.usefixtures("quick_compilation")
def test_messages_are_learned_and_the_run_is_evaluated_as_any_other(tmp_path, capsys):
    """Stopped at a number of steps and gone on with, though its file has gone meanwhile."""
    path = tmp_path / "dialogues.jsonl"
    spoken = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "print('it')"}]
    longer = [*spoken, {"role": "user", "content": "Say it. " * 200}, spoken[1]]
    path.write_text("".join(json.dumps({"messages": spoken, "problem": str(n)}) + "\n" for n in range(12))
                    + json.dumps({"messages": longer}))  # fmt: skip

    def run(name, steps=0):
        values = FROM_FILE | {"sft.data": (str(path),), "sft.steps": steps}
        sft.train(config_lib.load("configs/tiny_sft.py", overrides=values), tmp_path / name)

    for fault in ({"sft.warmup_steps": 100}, {"sft.valid_share": 1.0}):
        with pytest.raises(ConfigError, match="config.sft"):
            values = FROM_FILE | {"sft.data": (str(path),)} | fault
            sft.train(config_lib.load("configs/tiny_sft.py", overrides=values), tmp_path / "whole")
        assert not (tmp_path / "whole").exists()
    run("whole")
    run("parts", 3)
    path.unlink()
    kept = tmp_path / "parts" / "examples.npz"
    whole = kept.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + b"?" + whole[201:], b"no"):
        kept.write_bytes(damaged)
        with pytest.raises(ConfigError, match="examples.npz cannot be read as examples .*: delete it"):
            run("parts")
    kept.write_bytes(whole)
    run("parts")
    rows = read_metrics(tmp_path / "whole")
    assert len(rows) == 8 and rows[-1]["loss"] < rows[0]["loss"]
    assert rows[1]["valid/loss"] > rows[-1]["valid/loss"] and rows[-1]["valid/exact"] in (0.0, 100.0)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    for name in ("whole", "parts"):
        first, *others = read_metrics(tmp_path / name)
        assert first["examples/used"] == 12 and first["examples/left_out/too_long"] == 1
        assert not any("examples" in key for row in others for key in row)
    asked = [f"--workdir={tmp_path / 'whole'}", "--split=valid", "--problems=2", "--turns=1", "--samples=1",
             f"--out={tmp_path / 'out'}", "--checkpoint=best"]  # fmt: skip
    assert evaluate(parsed(asked))["problems"] == 2
    export_run(tmp_path / "whole", tmp_path / "exported", checkpoint="8")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "fine-tuned by rlef_jax" in card and "after step 8." in card and "reinforcement" not in card
    out = capsys.readouterr().out
    told = r"12 examples about 12 problems, \d+ tokens; left out: 1 examples longer than the longest of config"
    assert len(re.findall(told, out)) == 5 and len(re.findall(f"of {kept}: {told}", out)) == 1  # once in each start


@pytest.mark.usefixtures("quick_compilation")
def test_adapters_are_learned_beside_a_base_that_stays(tmp_path, monkeypatch):
    """`policy.npz` has them merged, the checkpoint has them alone."""
    adapters = {"model.lora_rank": 2, "model.lora_targets": ("down_proj",), "model.init": str(tmp_path / "base.npz")}
    config = config_lib.load("configs/tiny_sft.py", overrides=SMALL)
    base = init_params(jax.random.PRNGKey(0), model_config(config.model, 1088, 256))
    save_params(tmp_path / "base.npz", base)
    without_a_probe(monkeypatch)
    values = SMALL | adapters | {"sft.batch_rows": 64, "sft.steps": 3}
    monkeypatch.setattr(Authors, "batches", lambda *_: ((Place(n, 0, n), ONES) for n in (1, 2, 3)))
    config = config_lib.load("configs/tiny_sft.py", overrides=values)
    sft.train(config, tmp_path / "run")
    with np.load(tmp_path / "base.npz") as before, np.load(tmp_path / "run" / "policy.npz") as after:
        assert set(before.files) == set(after.files)
        assert [n for n in before.files if not np.array_equal(before[n], after[n])] == ["layers/down"]
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert list(checkpoints.metadata(3)["shapes"]["policy"]) == [
            "['layers']['down_proj_a']",
            "['layers']['down_proj_b']",
        ]
    save_params(tmp_path / "base.npz", jax.tree.map(lambda a: a + 1, base))
    with pytest.raises(ConfigError, match="checkpoint 3 .* began with other weights than config.model.init"):
        sft.train(config, tmp_path / "run")


@pytest.mark.usefixtures("quick_compilation")
def test_authors_write_in_the_format_of_the_first_weights(tmp_path, monkeypatch):
    """A folder's own tokenizer and chat template, and only the families of the configuration."""
    llama = cases.LLAMA | {"vocab_size": 640, "max_position_embeddings": 4096}
    folder = write_tokenizer(write_folder(tmp_path / "model", llama), TEMPLATES["chatml"])
    learned = []

    def one_batch(authors, batch, start, real=Authors.batches):
        with contextlib.closing(real(authors, batch, start)) as batches:
            place, examples = next(batches)
            learned.extend(examples)
            yield place, examples

    without_a_probe(monkeypatch)
    monkeypatch.setattr(Authors, "batches", one_batch)
    values = {"model.init": str(folder), "episode.context": 768, "ppo.buckets": (768,), "sft.dialogues": 512,
              "sft.batch_rows": 4, "sft.warmup_steps": 1, "sft.steps": 1, "data.families": ("counts",)}  # fmt: skip
    sft.train(config_lib.load("configs/tiny_sft.py", overrides=values), tmp_path / "run")
    tokenizer = load_chat(str(folder)).tokenizer
    for example in learned:
        text = tokenizer.show(example.ids.tolist())
        assert text.startswith("<|im_start|>") and "```python" in text
    with pytest.raises(ConfigError, match="config.data.families: no family 'count'"):
        config = config_lib.load("configs/tiny_sft.py", overrides=values | {"data.families": ("count",)})
        sft.train(config, tmp_path / "other")
