"""PPO's settings and the configuration say the same: every key, its default, its choices."""

import dataclasses
import re

import pytest

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError
from rlef_jax.ppo import settings
from rlef_jax.ppo.settings import LossSettings, OptimizerSettings, PackSettings, PpoSettings, TargetSettings
from rlef_jax.training.build import ppo_settings

PARTS = {"packing": PackSettings, "targets": TargetSettings, "loss": LossSettings, "optimizer": OptimizerSettings}
ELSEWHERE = {"invalid_penalty": "reward.invalid_penalty", "max_turns": "episode.max_turns"}
DERIVED = {"decay_steps": "ppo.decay"}  # with the length of a run


def flat(of: PpoSettings) -> dict[str, object]:
    """{name: value} of all settings."""
    values = {f.name: getattr(of, f.name) for f in dataclasses.fields(of)}
    return {name: value for name, value in values.items() if name not in PARTS} | {
        f.name: getattr(values[part], f.name) for part in PARTS for f in dataclasses.fields(values[part])
    }


def test_each_key_is_one_setting_with_the_same_default():
    config = config_lib.flat(config_lib.base_config())
    keys = {name: (ELSEWHERE | DERIVED).get(name, f"ppo.{name}") for name in flat(PpoSettings())}
    assert {key for key in config if key.startswith("ppo.")} == set(keys.values()) - set(ELSEWHERE.values())
    assert {name: config[key] for name, key in keys.items()} == flat(PpoSettings()) | {"decay_steps": "none"}
    assert flat(PpoSettings())["decay_steps"] == 0
    assert len(keys) == sum(len(dataclasses.fields(kind)) for kind in (PpoSettings, *PARTS.values())) - len(PARTS)


@pytest.mark.parametrize(
    "others",
    [{"ppo.value_level": "token", "ppo.gae_lambda": 0.9, "ppo.detach_critic": True}, {"ppo.baseline": "rloo"}],
    ids=["critic", "no critic"],
)
def test_the_settings_are_the_configurations(others):
    changed = others | {
        "ppo.kl": "product", "ppo.gamma": 0.95, "ppo.group_size": 2,
        "ppo.rollouts": 12, "ppo.updates": 3, "ppo.max_grad_norm": 7.0, "ppo.separate_critic": False,
        "ppo.microbatch_rows": 5, "ppo.buckets": (300,), "ppo.row_episodes": 2, "ppo.kl_beta": 0.25,
        "ppo.normalize_advantages": False, "ppo.clip_eps": 0.3, "ppo.value_clip": 0.4, "ppo.value_coef": 0.5,
        "ppo.importance": "decoupled", "ppo.importance_cap": 3.0, "ppo.importance_mode": "mask",
        "ppo.learning_rate": 1e-3, "ppo.warmup_steps": 9, "ppo.weight_decay": 0.2, "ppo.clip_norm": 2.0,
        "ppo.adam_b1": 0.8, "ppo.adam_b2": 0.95, "reward.invalid_penalty": -0.7, "episode.max_turns": 5,
    }  # fmt: skip
    decay = {"ppo.decay": "linear", "train.iterations": 7}
    found = flat(ppo_settings(config_lib.load("configs/tiny.py", overrides=changed | decay)))
    expected = {key.split(".")[1]: value for key, value in changed.items()} | {"decay_steps": 7 * 3}
    assert found == flat(PpoSettings()) | expected
    unchanged = {name for name, value in flat(PpoSettings()).items() if found[name] == value}
    either = {"value_level", "gae_lambda", "detach_critic", "baseline"}
    assert unchanged == either - {key.split(".")[1] for key in others}  # no other


@pytest.mark.parametrize(
    "kind, name, choices",
    [
        (LossSettings, "importance", "IMPORTANCE"), (LossSettings, "importance_mode", "IMPORTANCE_MODES"),
        (TargetSettings, "kl", "KL"), (TargetSettings, "baseline", "BASELINES"),
        (PpoSettings, "value_level", "VALUE_LEVELS"),
    ],
)  # fmt: skip
def test_the_choices_are_the_configurations(kind, name, choices):
    known = getattr(settings, choices)
    others = {"normalize_advantages": False} if name == "baseline" else {}
    for choice in known:
        assert getattr(kind(**{name: choice}, **others), name) == choice
        grouped = {"ppo.group_size": 2, "ppo.normalize_advantages": False} if others else {}
        config_lib.load("configs/tiny.py", overrides={f"ppo.{name}": choice} | grouped)
    with pytest.raises(ConfigError, match=re.escape(" or ".join(f'"{choice}"' for choice in known) + ", not 'other'")):
        config_lib.load("configs/tiny.py", overrides={f"ppo.{name}": "other"})
    with pytest.raises(ValueError, match=f"ppo.{name} is 'other'; it must be one of {', '.join(known)}"):
        kind(**{name: "other"}, **others)


@pytest.mark.parametrize(
    "name, others",
    [("normalize_advantages", {}), ("gae_lambda", {"normalize_advantages": False, "gae_lambda": 0.5})],
)
def test_what_needs_values_is_refused_without_a_critic(name, others):
    with pytest.raises(ValueError, match=f"ppo.{name} must be .* with ppo.baseline='rloo'"):
        TargetSettings(baseline="rloo", **others)
