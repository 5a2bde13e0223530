"""Checks of `gpu_check.py` that compare numbers: parity, mismatch and mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_report import Report
from gpu_subject import FLOAT32, HALF, Subject, build_sampler
from update import Case, make_batch

from rlef_jax.model.logp import token_logp
from rlef_jax.model.paged_attention import kernel_fits, merge, paged_attention, slow_paged_attention
from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import Params, forward
from rlef_jax.ppo.pack import empty_arrays
from rlef_jax.ppo.settings import OptimizerSettings
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.update import ForwardSettings, Learner, make_optimizer
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.build import build_learner
from rlef_jax.training.processes import all_gather, on_this_process


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products in float32: a GPU's default is TF32. For all threads, which the context manager isn't."""
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def check_kernel(report: Report, s: Subject) -> None:
    """Attention over pages: rows of one, some and all tokens of scattered pages, one of them with a window."""
    cfg, rows, pages, slots = s.cfg, 8, 32, 64
    if not kernel_fits(cfg.d_head, slots):
        report.skip("kernel over pages", f"there is none for heads of {cfg.d_head}")
        return
    rng = np.random.default_rng(0)
    interpret = jax.local_devices()[0].platform == "cpu"
    if interpret:
        pages, slots = 3, 16
    k, q, h = cfg.n_kv_heads, cfg.queries_per_kv, cfg.d_head
    tables = rng.permutation(rows * pages).reshape(rows, pages).astype(np.int32)
    lengths = np.array([1, slots, slots + 1, *rng.integers(1, pages * slots, rows - 4), pages * slots], np.int32)
    starts = np.where(np.arange(rows) == rows - 1, lengths // 2, 0).astype(np.int32)
    for dtype, bound in ((FLOAT32, 1e-5), (HALF, 0.03)):
        queries = jnp.asarray(rng.normal(size=(rows, k, q, h)) / math.sqrt(h), dtype)
        pools = [jnp.asarray(rng.normal(size=(rows * pages, k, slots, h)), dtype) for _ in range(2)]
        given = (queries, *pools, tables, starts, lengths)
        expected = merge([jax.jit(slow_paged_attention)(*given)])
        run = jax.jit(lambda *a: paged_attention(*a, interpret=interpret))
        found = merge([run(s.spoiled("parity", queries), *given[1:])])
        how = "in its interpreter" if interpret else "compiled"
        report.at_most(f"kernel over pages {how}, {dtype}: largest gap", _gap(found, expected), bound)


def _gap(one: Any, other: Any) -> float:
    return float(np.max(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32))))


def check_forward(report: Report, s: Subject) -> None:
    """Log-probabilities of random tokens, by each attention that the configuration may run, against the host's."""
    length = min(256, s.cfg.max_positions)
    tokens = np.random.default_rng(0).integers(1, s.cfg.vocab_size, (2, length)).astype(np.int32)
    params, host = s.params(FLOAT32), jax.local_devices(backend="cpu")[0]
    positions, segments = np.tile(np.arange(length, dtype=np.int32), (2, 1)), np.ones_like(tokens)

    def logp(params: Params, dtype: Any, attention: str) -> np.ndarray:
        def run(params: Params) -> jax.Array:
            hidden = forward(params, s.cfg, jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(segments),
                             compute_dtype=dtype, unroll=False, attention=attention)  # fmt: skip
            return token_logp(params, s.cfg, hidden, jnp.asarray(tokens))

        return np.asarray(jax.jit(run)(params))

    with jax.default_device(host):
        expected = logp(jax.device_put(params, host), FLOAT32, "dot_product")
    params = s.spoiled("parity", params)
    report.at_most("log p, float32: largest gap", _gap(logp(params, FLOAT32, "blocks"), expected), 1e-4)
    library = "dot_product" if jax.local_devices()[0].platform == "cpu" else "cudnn"
    for attention in ("blocks", library):
        gap = np.abs(logp(params, HALF, attention) - expected)
        report.at_most(f"log p, bfloat16, {attention}: mean gap", float(gap.mean()), 0.05)
        report.tell(f"log p, bfloat16, {attention}: largest gap", float(gap.max()))


def check_mismatch(report: Report, s: Subject, dtype: Any) -> None:
    """Dialogues of three turns by the run's sampler; the same ids scored by its learner."""
    config = s.config.copy_and_resolve_references()
    config.model.param_dtype, config.model.compute_dtype = "float32", dtype.name
    if dtype == FLOAT32:
        config.model.attention = "blocks"  # cuDNN's is for half precision
    prompt, new, feedback = (min(n, 128) for n in s.lengths)
    config.episode.context = length = 3 * (prompt + new + feedback)
    each = 4 * config.sampling.data
    config.sampling.rows, config.sampling.cache_gib = each, 0.0
    config.ppo.separate_critic = False
    learner = build_learner(config, s.cfg)
    params = learner.init(jax.random.PRNGKey(1), s.params(FLOAT32, learner.param_shardings["policy"])).params
    weights = s.spoiled("mismatch", on_this_process(params["policy"], learner.mesh))
    sampler = build_sampler(config, s.cfg, weights)
    found = [row for part in all_gather(_dialogues(sampler, each, prompt, new, feedback)) for row in part]
    arrays = empty_arrays(len(found), length, 3)
    sampled = np.zeros((len(found), length), np.float32)
    for row, (ids, mask, logp) in enumerate(found):
        arrays["tokens"][row, : len(ids)], arrays["positions"][row, : len(ids)] = ids, np.arange(len(ids))
        arrays["segment_ids"][row, : len(ids)] = 1
        arrays["action_mask"][row, : len(ids)], sampled[row, : len(ids)] = mask, logp
    scored, _ = jax.device_get(learner.score(params, TokenBatch(**arrays)))
    gap = np.abs(scored - sampled)[arrays["action_mask"] > 0]
    what = f"sampler and trainer, {dtype}, {gap.size} tokens"
    if dtype == FLOAT32:
        report.at_most(f"{what}: largest gap", float(gap.max()), 1e-4)
    else:
        report.at_most(f"{what}: mean gap", float(gap.mean()), 0.05)
        report.tell(f"{what}: largest gap", float(gap.max()))
    where = sampler.programs.where
    used = " and ".join(name for name, there in (("cuDNN", where.cudnn), ("the kernel", where.kernel)) if there)
    report.tell(f"sampler, {dtype}: attention by {used or 'plain JAX'}")


def _dialogues(sampler: Sampler, count: int, prompt: int, new: int, feedback: int) -> list[tuple[Any, Any, Any]]:
    """(ids, mask of the sampled ones, their log-probabilities) of dialogues of three turns."""
    rng, vocabulary = np.random.default_rng(jax.process_index()), sampler.programs.cfg.vocab_size
    rows: list[tuple[list[int], list[float], list[float]]] = [([], [], []) for _ in range(count)]
    with sampler.session() as session:
        handles = [session.dialogue(seed=0, step=0, episode=jax.process_index() * count + i) for i in range(count)]
        for turn in range(3):
            given = rng.integers(1, vocabulary, (count, feedback if turn else prompt)).tolist()
            asked = SamplingConfig(1.0, 1.0, 0, (vocabulary,), new)
            futures = [
                session.respond(d, g, asked, turn=turn, last=turn == 2) for d, g in zip(handles, given, strict=True)
            ]
            for (ids, mask, logp), g, future in zip(rows, given, futures, strict=True):
                sample = future.result()
                ids += [*g, *sample.ids]
                mask += [0.0] * len(g) + [1.0] * len(sample.ids)
                logp += [0.0] * len(g) + list(sample.policy_logp)
    return rows


def check_mesh(report: Report, s: Subject) -> None:
    """Gradients of two layers of the model on the mesh of all devices, and on one."""
    devices = jax.device_count()
    if devices == 1:
        report.skip("gradients on a mesh", "one device, nothing to compare")
        return
    cfg = dataclasses.replace(s.cfg, n_layers=2)
    policy = jax.device_get(jax.jit(init_params, static_argnums=1)(jax.random.PRNGKey(0), cfg))
    batch = make_batch(Case(cfg, 2 * devices, min(192, cfg.max_positions), {}, 2 * devices))
    shape = (s.config.mesh.data, s.config.mesh.fsdp, 1)
    found = []
    for mesh in (make_mesh(devices=jax.local_devices()), make_mesh(*shape)):
        learner = Learner(
            cfg, make_optimizer(cfg, OptimizerSettings(1e-4, warmup_steps=1)), separate_critic=False, mesh=mesh,
            forward_settings=ForwardSettings(remat="full", unroll=False),
        )  # fmt: skip
        spoiled = s.spoiled("mesh", policy) if mesh.size > 1 else policy
        gradients = learner.gradients(learner.init(jax.random.PRNGKey(1), spoiled).params, [batch])
        found.append(jax.device_get(on_this_process(gradients, mesh) if mesh.size > 1 else gradients))
    alone, together = (jax.tree.leaves(f) for f in found)
    largest = max(float(np.abs(a).max()) for a in alone)
    gap = max(_gap(a, b) for a, b in zip(alone, together, strict=True)) / largest
    what = f"gradients on {' x '.join(map(str, shape))}, float32: gap / largest"
    report.at_most(what, gap, 1e-5)
