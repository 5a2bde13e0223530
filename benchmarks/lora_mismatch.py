"""Log-probabilities of a sampler that keeps adapters apart from their base, and of one that has them merged.

    .venv/bin/python benchmarks/lora_mismatch.py [--quick] [--config=configs/smollm2_135m.py]

The trainer never merges: x W + (alpha / r) (x A) B, in the dtype that it computes in. Both samplers draw from the same
model, each W with adapters of rank 16 whose product is a given share of W (Frobenius norms), and the distance of their
log-probabilities of what they drew from the trainer's is measured. `ours` keeps apart, as runs do, `baseline` merges in
float32 and rounds to the dtype. Less is better; below 1e-4 in float32 is what must hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax import config as config_lib
from rlef_jax.model.logp import token_logp
from rlef_jax.model.lora import PROJECTIONS, merge, names_of, split
from rlef_jax.model.parameters import with_adapters
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig, Params, forward
from rlef_jax.sampling.programs import Programs, Shapes
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.build import build_policy, with_model_shape

PROMPT, NEW = 32, 32


def adapted(params: Params, cfg: ModelConfig, share: float) -> Params:
    """The base with adapters whose product is `share` of each matrix."""
    assert cfg.lora is not None
    base, adapters = split(params["layers"])
    keys = iter(jax.random.split(jax.random.PRNGKey(0), 99))
    for name, targets in PROJECTIONS.items():
        for target in targets:
            a, b = names_of(target)
            random = jax.random.normal(next(keys), adapters[b].shape)
            one = {**adapters, b: random}
            plain = merge(with_adapters(params, {n: one[n] for n in (a, b)} | _zeros(adapters, a, b)), cfg.lora)
            norms = (_norms(plain["layers"][name] - base[name]), _norms(base[name]) / len(targets) ** 0.5)
            adapters[b] = random * jnp.reshape(share * norms[1] / norms[0], (-1, *(1,) * (random.ndim - 1)))
    return with_adapters(params, adapters)


def _zeros(adapters: Params, *but: str) -> Params:
    return {name: jnp.zeros_like(array) for name, array in adapters.items() if name not in but}


def _norms(stack: jax.Array) -> jax.Array:
    """Of each layer's matrix."""
    return jnp.sqrt(jnp.sum(stack.astype(jnp.float32) ** 2, axis=tuple(range(1, stack.ndim))))


def distances(params: Params, cfg: ModelConfig, dtype: str, rows: int, *, merged: bool) -> np.ndarray:
    """|log-probability in the sampler - in the trainer| of each drawn token."""
    assert cfg.lora is not None
    shapes = Shapes(
        rows=rows, max_len=PROMPT + NEW, cache_lengths=(), prefill_chunks=(PROMPT,), prefill_tokens=PROMPT * rows,
        decode_steps=8, stop_ids=1, page_slots=16, kinds=("plain",),
    )  # fmt: skip
    sampler = Sampler(Programs(cfg.base if merged else cfg, shapes, make_mesh(), dtype=jnp.dtype(dtype)))
    sampler.set_weights(merge(params, cfg.lora) if merged else params, 0)
    how = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=(-2,), max_new_tokens=NEW)
    prompts = np.random.default_rng(0).integers(0, cfg.vocab_size, (rows, PROMPT))
    with sampler.session() as session:
        dialogues = [session.dialogue(seed=0, step=0, episode=row) for row in range(rows)]
        futures = [session.respond(d, p.tolist(), how, turn=0, last=True) for d, p in zip(dialogues, prompts)]
        samples = [future.result() for future in futures]
    tokens = np.array([[*p, *s.ids] for p, s in zip(prompts, samples)], np.int32)
    trainer = np.asarray(_trainer_logp(params, tokens, cfg, dtype))[:, PROMPT:]
    return np.abs(trainer - np.array([s.policy_logp for s in samples]))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _trainer_logp(params: Params, tokens: jax.Array, cfg: ModelConfig, dtype: str) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    hidden = forward(params, cfg, tokens, positions, jnp.ones_like(tokens), compute_dtype=jnp.dtype(dtype))
    return token_logp(params, cfg, hidden, tokens)


def main() -> None:
    """Prints the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny.py")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    lora = {"model.lora_rank": 16, "model.lora_alpha": 32.0}
    rows, results = 4 if args.quick else 32, []
    print(f"{'case':<44}{'apart: mean':>12}{'largest':>10}{'merged: mean':>14}{'largest':>10}")
    for dtype in ("float32", "bfloat16"):
        overrides = lora | {"model.param_dtype": dtype, "model.compute_dtype": dtype}
        policy = build_policy(with_model_shape(config_lib.load(args.config, overrides=overrides)))
        cfg = dataclasses.replace(policy.cfg, max_positions=max(policy.cfg.max_positions, PROMPT + NEW))
        for share in (0.01, 0.001):
            params = adapted(policy.params, cfg, share)
            apart, merged = (distances(params, cfg, dtype, rows, merged=m) for m in (False, True))
            case = f"{dtype}, adapters of {share:.1%} of the weights"
            print(f"{case:<44}{apart.mean():>12.2e}{apart.max():>10.2e}{merged.mean():>14.2e}{merged.max():>10.2e}")
            for what, ours, other in (
                ("mean", apart.mean(), merged.mean()),
                ("largest", apart.max(), merged.max()),
            ):
                results.append({
                    "case": f"{case}: {what}", "ours": float(ours), "baseline": float(other),
                    "ratio": float(ours / other), "limit_share": None, "unit": "nats",
                })  # fmt: skip
    print(json.dumps({"benchmark": "lora_mismatch", "results": results}))


if __name__ == "__main__":
    main()
