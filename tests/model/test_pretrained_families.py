"""Small random models of each family against `transformers` on torch, field by field of their config.json.

The expected logits are golden files (`make golden`), or made on the spot (`make parity` sets RLEF_JAX_REFERENCE).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.hf_config import parse_config
from rlef_jax.model.pretrained import HFFolder, load_pretrained
from rlef_jax.model.rope import rope_frequencies, rope_tables
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig, forward, unembed
from rlef_jax.sampling.programs import Programs, Shapes
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from tests.helpers.hf_folder import write_folder
from tests.parity import cases

REFERENCE = Path(os.environ.get("RLEF_JAX_REFERENCE", Path(__file__).parents[1] / "golden"))
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected():
    with np.load(REFERENCE / "families.npz") as stored:
        return dict(stored)


def logits(folder):
    """Ours, of the reference's row: [LENGTH / STRIDE, V]."""
    weights = HFFolder(folder)
    return logits_of(weights.cfg, load_pretrained(weights, weights.cfg))


def logits_of(cfg, params):
    return all_logits(cfg, params, cases.tokens())[:: cases.STRIDE]


def all_logits(cfg, params, tokens):
    """[T, V] of tokens [1, T], operation by operation: models of one shape share what is compiled."""
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    hidden = forward(params, cfg, tokens, positions, np.ones_like(positions))
    return np.asarray(unembed(params, cfg, hidden))[0]


@pytest.mark.parametrize("name", cases.FAMILIES)
def test_logits_are_the_references(name, expected, tmp_path, quick_compilation):
    folder = write_folder(tmp_path / "model", cases.FAMILIES[name])
    np.testing.assert_allclose(logits(folder), expected[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("field", cases.LLAMA_FIELDS)
def test_a_dropped_field_of_a_llama_config_shows(field, expected, tmp_path, quick_compilation):
    """With the base's value in place of the field's (as if it were not read), tensors or logits are wrong."""
    changed = cases.FAMILIES[f"llama {field}"]
    outer, _, inner = field.partition(".")
    if inner:
        dropped = changed | {outer: changed[outer] | {inner: cases.SCALING[inner]}}
    else:
        dropped = {key: value for key, value in {**changed, **cases.LLAMA, outer: cases.LLAMA.get(outer)}.items()}
    folder = write_folder(tmp_path / "model", dropped, shapes_of=changed)
    try:
        wrong = np.abs(logits(folder) - expected[f"llama {field}"]).max()
    except ConfigError as error:
        assert "tensors" in str(error)
    else:
        assert wrong > 100 * TOLERANCE


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, quick_compilation):
    """(config, parameters) of a small model, by its name."""

    @functools.cache
    def load(name):
        weights = HFFolder(write_folder(tmp_path_factory.mktemp("model"), cases.FAMILIES[name]))
        return weights.cfg, load_pretrained(weights, weights.cfg)

    return load


@pytest.mark.parametrize("name, field", cases.FIELDS)
def test_a_dropped_field_of_a_model_shows(name, field, expected, loaded):
    """With the default in place of the field's value, parameters are missing or logits are wrong."""
    cfg, params = loaded(name)
    default = ModelConfig.__dict__[field]
    assert getattr(cfg, field) != default
    dropped = dataclasses.replace(cfg, family="", **{field: default})
    assert np.abs(logits_of(dropped, params) - expected[name]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", cases.ROPES)
def test_rotary_frequencies_are_the_references(name, expected):
    """They, and what rotated queries and keys are multiplied by: cosine at position 0."""
    kind = parse_config({**cases.ROPE_BASE, "rope_scaling": cases.ROPES[name]}).layer_kinds[0]
    cosines, _ = rope_tables(kind, cases.ROPE_BASE["head_dim"], np.zeros((1, 1), np.int32))
    frequencies = rope_frequencies(kind, cases.ROPE_BASE["head_dim"])
    np.testing.assert_allclose(frequencies, expected[f"rope {name}"][:-1], rtol=1e-5)
    np.testing.assert_allclose(np.ravel(cosines), expected[f"rope {name}"][-1], rtol=1e-6)


# The least and the most of what a layer may have; the others in `make test-slow` and `make parity`.
QUICK = ("llama", "gemma3_text")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in cases.GREEDY])
def test_greedy_tokens_are_the_references(name, expected, tmp_path, quick_compilation):
    """From the sampler that training uses. Their log-probabilities are those of training."""
    weights = HFFolder(write_folder(tmp_path / "model", cases.GREEDY[name]))
    shapes = Shapes(
        rows=1, max_len=cases.PROMPT + cases.NEW, cache_lengths=(), prefill_chunks=(16,), prefill_tokens=16,
        decode_steps=8, kinds=("cut",),
    )  # fmt: skip
    sampler = Sampler(Programs(weights.cfg, shapes, make_mesh()))
    params = load_pretrained(weights, weights.cfg)
    sampler.set_weights(params, version=0)
    sampling = SamplingConfig(
        temperature=0.0, top_p=1.0, top_k=0, stop_ids=(weights.cfg.vocab_size,), max_new_tokens=cases.NEW
    )
    with sampler.session() as session:
        dialogue = session.dialogue(seed=0, step=0, episode=0)
        prompt = cases.tokens()[0, : cases.PROMPT].tolist()
        response = session.respond(dialogue, prompt, sampling, turn=0, last=True).result()
    np.testing.assert_array_equal(response.ids, expected[f"{name} greedy"])
    row = np.array([[*prompt, *response.ids]], np.int32)
    logp = jax.nn.log_softmax(all_logits(weights.cfg, params, row)[cases.PROMPT - 1 : -1])
    np.testing.assert_allclose(
        response.policy_logp, np.take_along_axis(logp, row[0, cases.PROMPT :, None], axis=1)[:, 0], atol=TOLERANCE
    )


def test_both_spellings_of_the_rotary_keys_are_one(expected, tmp_path, quick_compilation):
    """transformers 5 writes rope_parameters."""
    config = dict(cases.FAMILIES["llama rope_scaling"])
    rope = {"rope_theta": config.pop("rope_theta"), **config.pop("rope_scaling")}
    folder = write_folder(tmp_path / "model", config | {"rope_parameters": rope})
    np.testing.assert_allclose(logits(folder), expected["llama rope_scaling"], atol=TOLERANCE, rtol=0)


def test_heads_of_unset_width_share_the_models(expected, tmp_path, quick_compilation):
    config = {key: value for key, value in cases.LLAMA.items() if key != "head_dim"}
    folder = write_folder(tmp_path / "model", config)
    assert json.loads((folder / "config.json").read_text()).get("head_dim") is None
    np.testing.assert_allclose(logits(folder), expected["llama"], atol=TOLERANCE, rtol=0)
