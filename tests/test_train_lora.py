"""A run that trains adapters: it stops and goes on, its policy is evaluated, exported and taken over by another run."""

import json

import jax
import numpy as np
import pytest

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.export import export_run
from rlef_jax.model.lora import merge, split
from rlef_jax.model.peft_folder import CONFIG, TENSORS, read_adapters
from rlef_jax.model.pretrained import HFFolder, load_pretrained
from rlef_jax.training.build import build_policy
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.metrics_writer import read_metrics
from rlef_jax.training.workdir import check_first_weights, saved_policy
from tests.helpers.small_run import OVERRIDES, assert_same_run, finish_here

pytestmark = pytest.mark.long

LORA = OVERRIDES | {
    "model.lora_rank": 2, "model.lora_alpha": 4.0, "model.lora_targets": ("q_proj", "o_proj", "down_proj"),
    "ppo.separate_critic": True, "ppo.learning_rate": 3e-2, "ppo.decay": "none", "train.iterations": 2,
    "train.checkpoint_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quick_compilation):
    """One run of two iterations, and one that ended after the first and went on."""
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("never", "stopped")]
    finish_here(folders[0], LORA)
    finish_here(folders[1], LORA | {"train.iterations": 1})
    finish_here(folders[1], LORA)
    return folders


def policies(run):
    """(the weights that it began with, its last ones)."""
    policy = build_policy(config_lib.load_saved(run))
    return policy.cfg, policy.params, saved_policy(run, "last", policy.params, lambda: policy.params)


def test_a_run_that_stopped_ends_as_one_that_never_did(runs):
    assert_same_run(*runs)
    records = read_metrics(runs[0])
    assert all(r["mismatch_max"] < 1e-4 and r["skipped_updates"] == 0 for r in records)
    # The reference has the first adapters: the second iteration is off it, the first isn't.
    assert abs(records[0]["kl_to_ref"]) < 1e-5 < 1e-4 < abs(records[1]["kl_to_ref"])


def test_the_base_stays_and_the_checkpoint_has_none(runs):
    cfg, first, last = policies(runs[0])
    base, adapters = split(first["layers"])
    for name, array in split(last["layers"])[0].items():
        np.testing.assert_array_equal(array, base[name])
    assert all(not np.array_equal(array, adapters[name]) for name, array in split(last["layers"])[1].items())
    with Checkpoints(runs[0] / "checkpoints", read_only=True) as checkpoints:
        metadata = checkpoints.metadata(2)
    names = {name.strip("[']").split("']['")[-1] for name in metadata["shapes"]["policy"]}
    assert names == set(adapters) and "policy/layers/qkv" in metadata["frozen"]
    with np.load(runs[0] / "policy.npz") as merged:  # a model without adapters
        for name, array in merge(last, cfg.lora)["layers"].items():
            np.testing.assert_allclose(merged[f"layers/{name}"], array, atol=1e-6)


def test_a_checkpoint_is_evaluated(runs, tmp_path):
    """The same as the merged policy that the run left."""
    asked = ["--problems=2", "--samples=2", "--turns=2", "--benchmark=mini_contests/valid", "--temperature=0"]
    of_run = evaluate(parsed([f"--workdir={runs[0]}", *asked, f"--out={tmp_path / 'run'}"]))
    plain = [f"--config.{key}={value}" for key, value in OVERRIDES.items() if not key.startswith("eval.split")]
    plain += [f"--config.model.init={runs[0] / 'policy.npz'}", "--config=configs/tiny.py"]
    of_merged = evaluate(parsed([*plain, *asked, f"--out={tmp_path / 'merged'}"]))
    assert of_run["rollouts"] == of_merged["rollouts"] == 2
    assert of_run["evaluation"]["weights"] != of_merged["evaluation"]["weights"]
    # Of another seed are the tokens that are drawn, not the base, nor the adapters that were trained beside it.
    elsewhere = [f"--workdir={runs[0]}", *asked[:-1], "--config.seed=7", f"--out={tmp_path / 'seed'}"]
    of_seed = evaluate(parsed([*elsewhere, f"--repairer={runs[1]}"]))["evaluation"]
    assert (of_seed["seed"], of_seed["weights"]) == (7, of_run["evaluation"]["weights"]) == (7, of_seed["repairer"])
    assert {k: v for k, v in of_run.items() if k not in ("folder", "evaluation")} == {
        k: v for k, v in of_merged.items() if k not in ("folder", "evaluation")
    }


def test_adapters_are_exported_alone_and_merged(runs, tmp_path):
    cfg, _, last = policies(runs[0])
    export_run(runs[0], tmp_path / "peft", adapters=True)
    assert {CONFIG, TENSORS, "README.md", "tokenizer.model"} <= {path.name for path in (tmp_path / "peft").iterdir()}
    assert not list((tmp_path / "peft").glob("model*.safetensors"))
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["target_modules"] == ["q_proj", "o_proj", "down_proj"]
    card = (tmp_path / "peft" / "README.md").read_text()
    assert "library_name: peft" in card and "beside, which were drawn at random, aren't taken from" in card
    for name, array in read_adapters(tmp_path / "peft", cfg).items():
        np.testing.assert_array_equal(array, last["layers"][name])
    export_run(runs[0], tmp_path / "merged")
    found = load_pretrained(folder := HFFolder(tmp_path / "merged"), folder.cfg)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, merge(last, cfg.lora))
    export_run(runs[0], tmp_path / "base", base=True)
    found = load_pretrained(folder := HFFolder(tmp_path / "base"), folder.cfg)
    jax.tree.map(np.testing.assert_array_equal, found, {**last, "layers": split(last["layers"])[0]})
    assert "Random weights, converted by rlef_jax." in (tmp_path / "base" / "README.md").read_text()
    check_first_weights(runs[0], policies(runs[0])[1])
    with pytest.raises(ConfigError, match="beside other weights than config.model.init"):
        check_first_weights(runs[0], jax.tree.map(lambda a: a + 1, policies(runs[0])[1]))
    # Another run may begin with them: its reference has them too.
    config = config_lib.load("configs/tiny.py", overrides=LORA | {"model.lora_init": str(tmp_path / "peft")})
    jax.tree.map(np.testing.assert_array_equal, build_policy(config).params, last)
    config.model.lora_alpha = 5.0
    with pytest.raises(ConfigError, match="lora_alpha: 5.0 is set, the adapters in .* have 4.0"):
        build_policy(config)


def test_what_is_no_run_of_adapters_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="is of another model|another config"):
        finish_here(runs[0], LORA | {"model.lora_rank": 3})
    for values, words in (
        ({"model.lora_layers": 1}, "lora_layers: needs adapters: set model.lora_rank too"),
        ({"model.lora_rank": 1, "model.lora_keep_below": True}, "lora_keep_below: needs layers below adapters: set"),
        ({"model.lora_rank": 1, "model.lora_targets": ("qkv",)}, "lora_targets: of q_proj, .*; not 'qkv'"),
        ({"model.lora_rank": -1}, "lora_rank: 0 or more"),
        ({"model.lora_rank": 1, "model.lora_alpha": 0.0}, "lora_alpha: above 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            config_lib.load("configs/tiny.py", overrides=values)
    # Adapters are float32 whatever the base is in: no learning rate is too low for them.
    config_lib.load("configs/tiny.py", overrides={"model.lora_rank": 1, "model.param_dtype": "bfloat16",
                                                  "ppo.learning_rate": 1e-6})  # fmt: skip
