"""Configs load, refuse what cannot run, name the nearest key, and have no key that nothing reads."""

import ast
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlef_jax import config
from rlef_jax.config import base_config
from rlef_jax.errors import ConfigError
from rlef_jax.model.parameters import count_params
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.model.weights import model_config
from rlef_jax.ppo.settings import LossSettings, OptimizerSettings, PackSettings, PpoSettings, TargetSettings

REPOSITORY = Path(__file__).parent.parent
ALL = [
    "tiny.py",
    "tiny.py:single_turn",
    "tiny.py:random_feedback",
    "tiny.py:paper_iteration",
    "tiny.py:token_values",
    "tiny.py:product_kl",
    "tiny.py:group",
    "tiny.py:repair",
    "tiny_sft.py",
    "tiny_sft.py:habits",
    "tiny_sft.py:successes",
    "tiny_sft.py:repairs",
    "llama30_8b.py",
    "llama31_8b.py",
    "llama31_8b.py:node",
    "llama31_8b.py:64",
    "llama31_8b.py:lora",
    "llama31_8b_sft.py",
    "llama31_8b_sft.py:repair",
    "smollm2_135m_sft.py",
    "llama31_70b.py",
    "llama32_1b.py",
    "smollm2_135m.py",
    "smollm2_135m.py:code_contests",
    "smollm2_135m.py:easy",
    "smollm2_135m.py:lora",
]


def load(name, overrides=None):
    return config.load(str(REPOSITORY / "configs" / name), overrides=overrides)


@pytest.mark.parametrize("name", ALL)
def test_every_config_loads_locked_with_the_same_keys(name):
    loaded = load(name)
    assert loaded.is_locked
    assert set(config.leaf_keys(loaded)) == set(config.leaf_keys(base_config()))
    with pytest.raises(AttributeError):
        loaded.ppo.lr = 1.0


def test_every_config_file_is_tested_and_documented():
    files = sorted((REPOSITORY / "configs").glob("*.py"))
    assert {f.name for f in files} == {name.split(":")[0] for name in ALL}
    for file in files:
        docstring = ast.get_docstring(ast.parse(file.read_text()))
        for heading in ("Source:", "Command:", "Expected:"):
            assert heading in docstring, f"{file.name} lacks {heading}"


@pytest.mark.parametrize("name, iterations, devices", [("llama31_8b.py", 3000, 128), ("llama31_70b.py", 2000, 1024)])
def test_the_papers_values(name, iterations, devices):
    """Appendix A.1 of Gehring et al. (2025), written out once more."""
    c = load(name)
    p = c.ppo
    assert (p.rollouts, p.updates, c.train.iterations) == (1024, 4, iterations)
    assert (p.learning_rate, p.weight_decay, p.warmup_steps) == (2e-7, 0.1, 50)
    assert (p.kl_beta, p.clip_eps, p.value_clip, p.importance) == (0.05, 0.2, 0.2, "paper")
    assert p.separate_critic and p.normalize_advantages
    assert (c.sampling.temperature, c.sampling.top_p, c.sampling.top_k) == (1.0, 1.0, 0)
    assert (c.eval.temperature, c.eval.top_p, c.eval.every * p.updates) == (0.2, 0.95, 800)
    assert (c.episode.max_turns, c.episode.feedback, c.reward.invalid_penalty) == (3, "true", -0.2)
    assert (c.execution.python, c.execution.require_python) == ("3.10", True)
    assert (c.execution.wall_s, c.execution.memory_mb) == (10.0, 1024)
    assert (c.execution.clean_exit, c.execution.exact_integers, c.episode.max_text_chars) == (False, False, 0)
    assert c.episode.syntax_errors == "per_test"
    assert c.model.param_dtype == "float32"
    assert c.mesh.data * c.mesh.fsdp * c.mesh.tensor == devices


@pytest.mark.parametrize("name, count", [("llama31_8b.py", 8_030_261_248), ("llama31_70b.py", 70_553_706_496)])
def test_the_papers_models_have_as_many_parameters_as_published(name, count):
    c = load(name)
    assert count_params(model_config(c.model, 128_256, c.episode.context)) == count


def test_70b_differs_from_8b_where_it_must(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it finds the file that it builds on from anywhere
    small, large = config.flat(load("llama31_8b.py")), config.flat(load("llama31_70b.py"))
    differing = {key for key in small if small[key] != large[key]}
    sizes = {"model.d_model", "model.n_layers", "model.n_heads", "model.d_ff", "mesh.tensor", "sampling.tensor"}
    cost = {"ppo.microbatch_rows", "sampling.cache_gib", "plan.sampler_devices"}
    assert differing == sizes | cost | {"model.init", "train.iterations"}


def test_single_turn_makes_as_many_responses():
    turns, single = load("tiny.py"), load("tiny.py:single_turn")
    assert single.episode.max_turns == 1
    # RLEF's episodes have 2.0 responses on average (docs/lab/demo.md), so the single-turn ones are twice as many.
    assert single.ppo.rollouts == 2 * turns.ppo.rollouts


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("ppo.lr", "ppo.learning_rate"),
        ("ppo.learning_rat", "ppo.learning_rate"),
        ("ppo.temperature", "sampling.temperature|eval.temperature"),
        ("train.wall_s", "execution.wall_s"),
        ("sampling.topp", "sampling.top_p"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=nearest):
        load("tiny.py", {key: 1})


GROUPED = {"ppo.baseline": "dr_grpo", "ppo.group_size": 4, "ppo.normalize_advantages": False}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"ppo.rollouts": 255}, "ppo.rollouts: must be a multiple of updates=4"),
        ({"model.param_dtype": "bfloat16", "ppo.learning_rate": 2e-7}, "float32"),
        ({"model.n_kv_heads": 3}, "model.n_kv_heads: must divide"),
        ({"model.d_head": 25}, "model.d_head"),
        ({"model.rope_scaling": (4.0, 2.0)}, "model.rope_scaling: four numbers above 0"),
        ({"model.window_layers": (1, 2)}, "model.window_layers: a 1 or a 0 for each layer"),
        ({"model.norms": "below"}, 'model.norms: "before" or "after" or "around"'),
        ({"model.window": -1}, "model.window: 0 or more"),
        ({"episode.max_new_tokens": 256}, "episode.max_new_tokens: must leave room"),
        (
            {"episode.feedback": "random", "ppo.rollouts": 1, "ppo.updates": 1},
            "ppo.rollouts: must be 2 or more with epi",
        ),
        ({"eval.problems": 1}, "eval.problems: must be 2 or more with eval.random_feedback"),
        ({"episode.context": 512}, "ppo.buckets: the longest must hold"),
        ({"ppo.buckets": (256, 128)}, "ppo.buckets: whole numbers above 0 that increase"),
        ({"mesh.data": 3}, "ppo.microbatch_rows: must be a multiple of"),
        ({"mesh.critic": "separate"}, 'mesh.critic: must be "shared" with ppo.separate_critic=False'),
        ({"ppo.group_size": 3}, "ppo.rollouts: must be a multiple of ppo.group_size=3"),
        ({"ppo.baseline": "rloo"}, "ppo.group_size: must be 2 or more with ppo.baseline='rloo'"),
        ({"ppo.baseline": "grpo", "ppo.group_size": 2}, "ppo.normalize_advantages: must be False with ppo.baseline"),
        (GROUPED | {"ppo.value_level": "token"}, 'ppo.value_level: must be "turn", the default, with ppo.baseline'),
        (GROUPED | {"ppo.gae_lambda": 0.9}, "ppo.gae_lambda: must be 1 with ppo.baseline"),
        (
            GROUPED | {"mesh.critic": "separate", "ppo.separate_critic": True},
            'mesh.critic: must be "shared" with ppo.b',
        ),
        (
            {"episode.feedback": "random", "ppo.group_size": 256},
            "ppo.rollouts: must be 2 or more with episode.feedback",
        ),
        ({"ppo.gamma": 1.5}, "ppo.gamma: a share from 0 to 1"),
        ({"mesh.critic": "sampler"}, 'mesh.critic: "shared" or "separate", not \'sampler\''),
        ({"episode.feedback": "some"}, "episode.feedback"),
        ({"ppo.importance": "papre"}, "ppo.importance"),
        ({"sampling.temperature": 0.0}, "sampling.temperature"),
        ({"eval.top_p": 1.5}, "eval.top_p"),
        ({"sft.marked_share": 40.0}, "sft.marked_share"),
        ({"data.exclude": ("several",)}, "data.exclude: of several_answers, files, references_fail; not 'several'"),
        ({"data.exclude": ("files",)}, 'data.exclude: is for data.name="code_contests" only'),
        ({"data.name": "code_contests", "data.families": ("find",)}, "data.families: is for"),
        ({"data.name": "code_contests", "data.even_questions": 0.5}, "data.even_questions: is for"),
        ({"data.even_questions": 1.5}, "data.even_questions: a share from 0 to 1"),
        ({"data.even_questions": 0.5, "data.families": ("find",)}, "data.even_questions: must be 0 where"),
        ({"data.name": "code_contests", "data.max_prompt_tokens": 256}, "data.max_prompt_tokens: must leave room"),
        ({"train.checkpoint_every": 0}, "train.checkpoint_every"),
        ({"ppo.rollouts": "many"}, "ppo.rollouts' takes a value of type int"),
    ],
)
def test_what_cannot_run_is_refused_with_the_key(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load("tiny.py", overrides)


def test_float32_masters_allow_the_papers_learning_rate():
    assert load("tiny.py", {"ppo.learning_rate": 2e-7}).ppo.learning_rate == 2e-7
    assert load("tiny.py", {"model.param_dtype": "bfloat16"}).model.param_dtype == "bfloat16"


def test_a_config_file_with_a_misspelt_key_names_the_nearest(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rlef_jax.config import base_config\n"
        "def get_config(variant=''):\n    c = base_config()\n    c.ppo.kl_bta = 0.1\n    return c\n"
    )
    with pytest.raises(ConfigError, match=r"mine.py sets an unknown config key 'kl_bta'.*ppo.kl_beta"):
        config.load(str(file))
    with pytest.raises(ConfigError, match="no config file"):
        config.load(str(tmp_path / "other.py"))
    with pytest.raises(ConfigError, match="unknown variant 'x'.*single_turn"):
        load("tiny.py:x")


def test_a_saved_config_comes_back(tmp_path):
    c = load("tiny.py", {"ppo.buckets": (64, 256), "episode.system_prompt": "é"})
    config.save(c, tmp_path)
    assert config.load_saved(tmp_path).to_dict() == c.to_dict()


def test_renamed_keys_and_values_name_the_new_one_and_old_runs_are_read(tmp_path):
    known = set(config.leaf_keys(config.base_config()))
    for old, new in config.RENAMED.items():
        assert old not in known and new in known
        with pytest.raises(ConfigError, match=re.escape(new)):
            load("tiny.py", {old: 1})
    saved = load("tiny.py", {"sampling.workers": 4, "sampling.cache_lengths": (64,)}).to_dict()
    sampling = saved["sampling"]
    for old, new in config.RENAMED.items():
        sampling[old.rpartition(".")[2]] = sampling.pop(new.rpartition(".")[2])
    saved["mesh"]["critic"] = "own"
    saved["ppo"]["separate_critic"] = True
    (tmp_path / "config.json").write_text(json.dumps(saved))
    again = config.load_saved(tmp_path)
    assert (again.sampling.workers, again.sampling.cache_lengths, again.mesh.critic) == (4, (64,), "separate")


PROGRAM = """
from rlef_jax import command_line
def run(c, workdir):
    print("ran", c.ppo.learning_rate, tuple(c.ppo.buckets), c.train.save_episodes, workdir)
command_line.main(run)
"""


def launch(*arguments):
    # -c: the program stands in for any entry point, which all hand over to command_line.main.
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )


def test_the_command_line_overrides():
    done = launch(
        "--config=configs/tiny.py:single_turn",
        "--workdir=runs/x",
        "--config.ppo.learning_rate=1e-4",
        "--config.ppo.buckets=(64, 256)",
        "--noconfig.train.save_episodes",
    )
    assert (done.returncode, done.stdout) == (0, "ran 0.0001 (64, 256) False runs/x\n"), done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=configs/tiny.py", "--workdir=x", "--config.ppo.lr=1"], "did you mean --config.ppo.learning_rate?"),
        (["--config=configs/tiny.py", "--workdir=x", "--config.ppo.rollouts=255"], "must be a multiple of updates=4"),
        (["--config=configs/tiny.py", "--workdir=x", "--config.ppo=1"], "is a section"),
        (["--config=configs/tiny.py"], "--workdir is needed"),
        (["--config.ppo.rollouts=8", "--workdir=x"], "--config is needed"),
    ],
)
def test_a_bad_command_line_is_one_line_and_exit_code_2(arguments, message):
    done = launch(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line


@functools.cache
def sections_of_keys():
    return {key.split(".")[0] for key in config.leaf_keys(base_config()) if "." in key}


def keys_read(source):
    """Dotted keys that a module reads: `<anything>.section.key`, `section.key`, or through a name bound to a section.

    `p = config.ppo` makes `p` such a name within the module. Assigning to a key is not reading it.
    """
    tree, bound = ast.parse(source), {}
    sections = sections_of_keys()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, value = node.targets[0], node.value
            unpacked = isinstance(targets, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = zip(targets.elts, value.elts) if unpacked else [(targets, value)]
            for target, v in pairs:
                if isinstance(target, ast.Name) and isinstance(v, ast.Attribute) and v.attr in sections:
                    bound.setdefault(target.id, set()).add(v.attr)
    keys = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        parent = node.value
        if isinstance(parent, ast.Attribute):
            keys.add(f"{parent.attr}.{node.attr}")
        elif isinstance(parent, ast.Name):
            if parent.id in ("config", "cfg"):
                keys.add(node.attr)
            keys |= {f"{section}.{node.attr}" for section in {parent.id} | bound.get(parent.id, set())}
    return keys


def test_keys_read_tells_reading_from_writing():
    source = (
        "p, q = c.ppo, c.sft\np.clip_eps\nq.dialogues\nconfig.model.d_ff\neval.split\nconfig.seed\nc.mesh.data = 3\n"
    )
    keys = keys_read(source)
    assert {"ppo.clip_eps", "sft.dialogues", "model.d_ff", "eval.split", "seed"} <= keys
    assert "mesh.data" not in keys and "ppo.dialogues" not in keys


def is_load(node):
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)


def test_every_key_is_read_somewhere():
    sources = [p for p in (REPOSITORY / "rlef_jax").rglob("*.py") if p.name not in ("config.py", "config_checks.py")]
    read = set().union(*(keys_read(p.read_text()) for p in sources))
    read |= {f"model.{field.name}" for field in dataclasses.fields(ModelConfig)}  # by `weights.model_config`
    loaded = {node.attr for p in sources for node in ast.walk(ast.parse(p.read_text())) if is_load(node)}
    for kind in (PpoSettings, PackSettings, TargetSettings, LossSettings, OptimizerSettings):  # by `build.ppo_settings`
        read |= {f"ppo.{field.name}" for field in dataclasses.fields(kind) if field.name in loaded}
    assert [key for key in config.leaf_keys(base_config()) if key not in read] == []
