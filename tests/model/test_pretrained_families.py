"""Small random models of each family against `transformers` on torch, field by field of their config.json.

The expected logits are golden files (`make golden`), or made on the spot (`make parity` sets RLEF_JAX_REFERENCE).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.pretrained import HFFolder, load_pretrained
from rlef_jax.model.transformer import forward, unembed
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
    params = load_pretrained(weights, weights.cfg)

    @jax.jit
    def run(params, tokens):
        positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
        hidden = forward(params, weights.cfg, tokens, positions, np.ones_like(positions), unroll=False)
        return unembed(params, weights.cfg, hidden)

    return np.asarray(run(params, cases.tokens()))[0, :: cases.STRIDE]


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
