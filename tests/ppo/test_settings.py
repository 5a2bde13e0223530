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


def flat(of: PpoSettings) -> dict[str, object]:
    """{name: value} of all settings."""
    values = {f.name: getattr(of, f.name) for f in dataclasses.fields(of)}
    return {name: value for name, value in values.items() if name not in PARTS} | {
        f.name: getattr(values[part], f.name) for part in PARTS for f in dataclasses.fields(values[part])
    }


def test_each_key_is_one_setting_with_the_same_default():
    config = config_lib.flat(config_lib.base_config())
    keys = {name: ELSEWHERE.get(name, f"ppo.{name}") for name in flat(PpoSettings())}
    assert {key for key in config if key.startswith("ppo.")} == set(keys.values()) - set(ELSEWHERE.values())
    assert {name: config[key] for name, key in keys.items()} == flat(PpoSettings())
    assert len(keys) == sum(len(dataclasses.fields(kind)) for kind in (PpoSettings, *PARTS.values())) - len(PARTS)


def test_the_settings_are_the_configurations():
    changed = {
        "ppo.rollouts": 12, "ppo.updates": 3, "ppo.max_grad_norm": 7.0, "ppo.separate_critic": False,
        "ppo.microbatch_rows": 5, "ppo.buckets": (300,), "ppo.row_episodes": 2, "ppo.kl_beta": 0.25,
        "ppo.normalize_advantages": False, "ppo.clip_eps": 0.3, "ppo.value_clip": 0.4, "ppo.value_coef": 0.5,
        "ppo.importance": "decoupled", "ppo.importance_cap": 3.0, "ppo.importance_mode": "mask",
        "ppo.learning_rate": 1e-3, "ppo.warmup_steps": 9, "ppo.weight_decay": 0.2, "ppo.clip_norm": 2.0,
        "ppo.adam_b1": 0.8, "ppo.adam_b2": 0.95, "reward.invalid_penalty": -0.7, "episode.max_turns": 5,
    }  # fmt: skip
    found = flat(ppo_settings(config_lib.load("configs/tiny.py", overrides=changed)))
    assert found == {key.split(".")[1]: value for key, value in changed.items()}
    assert not {name for name, value in flat(PpoSettings()).items() if found[name] == value}  # each was changed


@pytest.mark.parametrize("name, choices", [("importance", "IMPORTANCE"), ("importance_mode", "IMPORTANCE_MODES")])
def test_the_choices_are_the_configurations(name, choices):
    known = getattr(settings, choices)
    for choice in known:
        assert getattr(LossSettings(**{name: choice}), name) == choice
        config_lib.load("configs/tiny.py", overrides={f"ppo.{name}": choice})
    with pytest.raises(ConfigError, match=re.escape(" or ".join(f'"{choice}"' for choice in known) + ", not 'other'")):
        config_lib.load("configs/tiny.py", overrides={f"ppo.{name}": "other"})
    with pytest.raises(ValueError, match=f"ppo.{name} is 'other'; it must be one of {', '.join(known)}"):
        LossSettings(**{name: "other"})
