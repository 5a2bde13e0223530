"""Shapes that the sampler's programs can have."""

import pytest

from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.sampling.programs import Programs, Shapes

CFG = ModelConfig(vocab_size=24, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=24)


def test_shapes_that_cannot_be_are_refused():
    good = dict(rows=4, max_len=64, cache_lengths=(32,), prefill_chunks=(8,), prefill_tokens=16, decode_steps=4)
    for bad in (
        {"rows": 0},
        {"decode_steps": 0},
        {"prefill_chunks": ()},
        {"prefill_chunks": (8, 4)},
        {"cache_lengths": (0, 4)},
        {"kinds": ("sharp",)},
        {"kinds": ()},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Shapes(**(good | bad))
    with pytest.raises(ValueError, match="max_positions"):
        Programs(CFG, Shapes(**(good | {"max_len": 10_000})), make_mesh())
