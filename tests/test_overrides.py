"""One list of overrides through every command that takes them: the same values, or the same line."""

import pytest

from rlef_jax import command_line, config, evaluate, overrides, plan
from rlef_jax.errors import ConfigError

FITTING = [
    (["execution.python=3.10"], {"execution.python": "3.10"}),
    (["execution.python", "3.11"], {"execution.python": "3.11"}),
    (["data.dir=2024"], {"data.dir": "2024"}),
    (["data.dir=[1]"], {"data.dir": "[1]"}),
    (["eval.split="], {"eval.split": ""}),
    (["episode.system_prompt=a=b 'c'\n"], {"episode.system_prompt": "a=b 'c'\n"}),
    (["execution.clean_exit=false"], {"execution.clean_exit": False}),
    (["execution.clean_exit=True"], {"execution.clean_exit": True}),
    (["execution.clean_exit=0"], {"execution.clean_exit": False}),
    (["execution.clean_exit"], {"execution.clean_exit": True}),
    (["execution.clean_exit", "false"], {"execution.clean_exit": False}),
    (["execution.clean_exit", "--config.seed", "3"], {"execution.clean_exit": True, "seed": 3}),
    (["-no", "execution.clean_exit"], {"execution.clean_exit": False}),
    (["seed=0x10"], {"seed": 16}),
    (["ppo.rollouts=8", "--config.ppo.rollouts=16"], {"ppo.rollouts": 16}),
    (["reward.invalid_penalty=-0.5"], {"reward.invalid_penalty": -0.5}),
    (["reward.invalid_penalty", "-0.5"], {"reward.invalid_penalty": -0.5}),
    (["eval.temperature=0"], {"eval.temperature": 0.0}),
    (["ppo.learning_rate=1e-4"], {"ppo.learning_rate": 1e-4}),
    (["ppo.buckets=1280"], {"ppo.buckets": (1280,)}),
    (["ppo.buckets=(1280)"], {"ppo.buckets": (1280,)}),
    (["ppo.buckets=(1280,)"], {"ppo.buckets": (1280,)}),
    (["ppo.buckets=1280,2560"], {"ppo.buckets": (1280, 2560)}),
    (["ppo.buckets=[1280, 2560]"], {"ppo.buckets": (1280, 2560)}),
    (["ppo.buckets=1280", "--config.ppo.buckets=2560"], {"ppo.buckets": (2560,)}),  # not (1280, 2560)
    (["model.rope_scaling=8.0,1,4,8192"], {"model.rope_scaling": (8.0, 1, 4, 8192)}),
    (["sampling.cache_lengths=()"], {"sampling.cache_lengths": ()}),
    (["sampling.cache_lengths=[]"], {"sampling.cache_lengths": ()}),
    (["sampling.cache_lengths="], {"sampling.cache_lengths": ()}),
    (["data.exclude=references_fail"], {"data.exclude": ("references_fail",)}),
    (["data.exclude=files,references_fail"], {"data.exclude": ("files", "references_fail")}),
    (["data.exclude=('files', \"references_fail\",)"], {"data.exclude": ("files", "references_fail")}),
    (["data.exclude=(files)"], {"data.exclude": ("files",)}),
    (["data.families=2024,3.10"], {"data.families": ("2024", "3.10")}),
]

UNFIT = [
    ("model.init=None", "config.model.init takes text, not 'None'; write --config.model.init=package:warm_start"),
    ("seed=None", "config.seed takes a whole number, not 'None'; write --config.seed=0"),
    ("seed=1.5", "config.seed takes a whole number, not '1.5'"),
    ("seed=", "config.seed takes a whole number, not ''"),
    ("seed=true", "config.seed takes a whole number, not 'true'"),
    (
        "eval.temperature=warm",
        "config.eval.temperature takes a number, not 'warm'; write --config.eval.temperature=0.2",
    ),
    ("execution.clean_exit=2", "config.execution.clean_exit takes true or false, not '2'"),
    ("execution.clean_exit=None", "config.execution.clean_exit takes true or false, not 'None'"),
    ("ppo.buckets=long", "config.ppo.buckets takes numbers, separated by commas, not 'long'; write"),
    ("ppo.buckets=1,,2", "config.ppo.buckets takes numbers, separated by commas, not '1,,2'"),
    ("ppo.buckets=(1,2", "config.ppo.buckets takes numbers, separated by commas, not '(1,2'"),
    ("ppo.buckets=None", "config.ppo.buckets takes numbers, separated by commas, not 'None'"),
    ("data.exclude=('files'", "config.data.exclude takes texts, separated by commas, not"),
    ("ppo.updates", "config.ppo.updates takes a whole number; write --config.ppo.updates=4"),
    ("ppo.lr=1", "unknown key 'ppo.lr'; did you mean --config.ppo.learning_rate?"),
    ("ppo=1", "'ppo' is a section; set one of its keys, as --config.ppo.KEY=VALUE"),
    ("=1", "unknown key ''; did you mean --config."),
]

PARSERS = {  # sft's is train's, without the flags that name a job
    "train": (command_line.config_parser, ["--config=configs/tiny.py", "--workdir=x"]),
    "evaluate": (evaluate.parser, ["--config=configs/tiny.py", "--few-shot=x"]),
    "plan": (plan.parser, ["--config=configs/tiny.py", "--devices=1"]),
}


def words(override):
    first = f"--noconfig.{override[1]}" if override[0] == "-no" else f"--config.{override[0]}"
    return [first, *override[2 if override[0] == "-no" else 1 :]]


@pytest.mark.parametrize("command", PARSERS)
def test_every_command_gives_a_value_the_same_meaning(command):
    make, others = PARSERS[command]
    for override, expected in FITTING:
        for line in ([*others, *words(override)], [*words(override), *others]):
            values = command_line.parse(make(), line).overrides
            assert repr(values) == repr(expected), line


@pytest.mark.parametrize("command", PARSERS)
def test_what_does_not_fit_is_one_line_that_shows_the_spelling(command):
    make, others = PARSERS[command]
    for override, line in UNFIT:
        with pytest.raises(ConfigError) as refused:
            command_line.parse(make(), [*others, f"--config.{override}"])
        assert line in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["seed", "execution.clean_exit=true", "ppo"])
def test_no_is_for_what_is_true_or_false(text):
    with pytest.raises(ConfigError, match="noconfig|is a section"):
        overrides.extract([f"--noconfig.{text}"])


def test_what_follows_two_dashes_is_no_override():
    assert overrides.extract(["--config.seed=1", "--", "--config.seed=2"]) == ({"seed": 1}, ["--", "--config.seed=2"])


def test_each_default_can_be_written_as_python_prints_it():
    """As scripts do that build a command line from values: --config.{key}={value}."""
    values = config.flat(config.base_config())
    assert overrides.extract([f"--config.{key}={value}" for key, value in values.items()]) == (values, [])


def test_tuples_of_texts_are_known_by_name():
    defaults = config.flat(config.base_config())
    assert all(type(defaults[key]) is tuple for key in config.TEXT_TUPLES)
    holding_texts = {k for k, v in defaults.items() if type(v) is tuple and any(isinstance(e, str) for e in v)}
    assert holding_texts <= set(config.TEXT_TUPLES)
