"""The sampler against transformers.generate on torch, static batches and re-prefilling: tokens a second.

    make bench-env && .venv/bin/python benchmarks/sampler.py [--quick] [--cases uniform tiny ragged multi-turn]

Cases: `uniform`, the shape of SmolLM2-135M, 32 prompts of 128 tokens and 128 new ones each; `tiny`, a million
parameters, 256 x (96 + 96); `ragged`, 128 requests for 16 to 256 new tokens (log-uniform) through 32 rows, against
ourselves in static batches of 32; `multi-turn`, dialogues of three turns with 60 tokens of feedback, against ourselves
prefilling everything again each turn. The first two run in two workers (one thread
each on two cores), the others in one.
Weights are random, float32, all log-probabilities on; both sides take turns, and medians are shown. The limit is what
the model's own matrix products take at the best speed that this machine reaches on them, NumPy's or XLA's, measured in
the same run; for `ragged` rows that are never idle.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.programs import Programs, Shapes
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.sampling.session import SamplerStats

SMOLLM2 = dict(vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_head=64, d_ff=1536)
TINY = dict(vocab_size=1088, d_model=128, n_layers=5, n_heads=4, n_kv_heads=2, d_head=32, d_ff=352)
BENCH_PYTHON = pathlib.Path(".bench-env/bin/python")
Result = dict[str, Any]


def sampling(new: int, vocabulary: int) -> SamplingConfig:
    """Plain draws that nothing stops."""
    return SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=(vocabulary,), max_new_tokens=new)


def build(sizes: dict[str, int], shapes: Shapes, workers: int = 1) -> Sampler:
    """A compiled sampler with random weights."""
    cfg = ModelConfig(**sizes)
    params: Params = jax.jit(init_params, static_argnums=1)(jax.random.PRNGKey(0), cfg)
    programs = Programs(cfg, shapes, make_mesh(), one_thread=workers >= len(os.sched_getaffinity(0)))
    programs.compile()
    sampler = Sampler(programs, workers=workers)
    sampler.set_weights(params, version=0)
    return sampler


def prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Different random prompts."""
    return np.random.default_rng(0).integers(1, vocabulary, (count, length)).tolist()


def run_requests(
    sampler: Sampler, asked: Sequence[tuple[list[int], int]], together: int | None = None
) -> tuple[float, SamplerStats]:
    """Seconds for (prompt, new tokens) requests: all at once, or in static batches of `together`."""
    vocabulary = sampler.programs.cfg.vocab_size
    with sampler.session() as session:
        began = time.perf_counter()
        for at in range(0, len(asked), together or len(asked)):
            futures = [
                session.respond(
                    session.dialogue(seed=0, step=0, episode=at + i),
                    prompt,
                    sampling(new, vocabulary),
                    turn=0,
                    last=True,
                )
                for i, (prompt, new) in enumerate(asked[at : at + (together or len(asked))])
            ]
            assert all(len(future.result().ids) > 0 for future in futures)
        return time.perf_counter() - began, session.stats()


def best_gflops(m: int, k: int, n: int) -> float:
    """The best speed of a product [m, k] x [k, n] over matrices that aren't in the caches, in GFLOP/s."""
    copies = max(2, min(16, (64 << 20) // (4 * k * n)))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(m, k)).astype(np.float32)
    matrices = [rng.normal(size=(n, k)).astype(np.float32) for _ in range(copies)]
    ours = jax.jit(lambda x, ws: [jnp.einsum("nk,mk->nm", w, x) for w in ws])
    other = jax.jit(lambda x, ws: [jnp.einsum("mk,nk->mn", x, w) for w in ws])
    on_device = jax.device_put((x, matrices))
    ways: list[Callable[[], Any]] = [
        lambda: [x @ w.T for w in matrices],
        lambda: jax.block_until_ready(ours(*on_device)),
        lambda: jax.block_until_ready(other(*on_device)),
    ]
    seconds = []
    for way in ways:
        way()
        for _ in range(5):
            began = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - began)
    return 2e-9 * m * k * n * copies / min(seconds)


def limit_seconds(sizes: dict[str, int], rows: int, prompt_tokens: int, steps: float) -> float:
    """Seconds of the matrix products alone: prefilling in large products, then decoding `rows` rows for `steps`."""
    s = ModelConfig(**sizes)
    heads = s.n_kv_heads * (s.queries_per_kv + 2) * s.d_head
    layer = [(s.d_model, heads), (s.n_heads * s.d_head, s.d_model), (s.d_model, s.d_ff), (s.d_ff, s.d_model)]
    times = [1, 1, 2, 1]

    def seconds(m: int, shapes: Sequence[tuple[int, int]], repeats: Sequence[int]) -> float:
        return sum(2e-9 * m * k * n * r / best_gflops(m, k, n) for (k, n), r in zip(shapes, repeats, strict=True))

    step = s.n_layers * seconds(rows, layer, times) + seconds(rows, [(s.d_model, s.vocab_size)], [1])
    chunk = 2048
    prefill = prompt_tokens / chunk * s.n_layers * seconds(chunk, layer, times)
    return prefill + steps * step


class Torch:
    """transformers.generate in a process of its own."""

    def __init__(self) -> None:
        script = pathlib.Path(__file__).with_name("torch_generate.py")
        self._process = subprocess.Popen(
            [BENCH_PYTHON, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, sizes: dict[str, int], rows: int, prompt: int, new: int) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"model": sizes, "rows": rows, "prompt": prompt, "new": new}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())["seconds"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def against_torch(
    case: str, sizes: dict[str, int], shapes: Shapes, workers: int, new: int, repeats: int, torch: Torch
) -> Result:
    """`rows` equal requests, ours and torch's in turn."""
    rows, prompt = shapes.rows * workers, shapes.max_len - new
    sampler = build(sizes, shapes, workers)
    asked = [(p, new) for p in prompts(rows, prompt, sizes["vocab_size"])]
    torch.seconds(sizes, rows, prompt, 2)  # warm
    run_requests(sampler, [(p, shapes.decode_steps) for p, _ in asked])
    ours, baseline = [], []
    for _ in range(repeats):
        ours.append(run_requests(sampler, asked)[0])
        baseline.append(torch.seconds(sizes, rows, prompt, new))
    limit = rows * new / limit_seconds(sizes, rows, rows * prompt, new)
    return result(case, rows * new, ours, baseline, limit)


def ragged(repeats: int, count: int) -> Result:
    """Requests of very different lengths through 32 rows, as they come and in static batches."""
    rng = np.random.default_rng(1)
    new = np.exp(rng.uniform(np.log(16), np.log(256), count)).astype(int)
    shapes = Shapes(
        rows=32,
        max_len=320,
        cache_lengths=(96, 128, 160, 192, 256),
        prefill_chunks=(64,),
        prefill_tokens=256,
        decode_steps=8,
    )
    sampler = build(TINY, shapes)
    asked = list(zip(prompts(count, 64, TINY["vocab_size"]), new.tolist(), strict=True))
    run_requests(sampler, asked[:32])
    ours, baseline, idle = [], [], []
    for _ in range(repeats):
        seconds, stats = run_requests(sampler, asked)
        ours.append(seconds)
        idle.append(stats.idle_rows)
        baseline.append(run_requests(sampler, asked, together=32)[0])
    static = sum(int(new[at : at + 32].max()) for at in range(0, count, 32))
    bound = 32 * static / int(new.sum())
    print(f"ragged: scheduling bound {bound:.2f}x; rows idle {statistics.median(idle):.0%}")
    tokens = int(new.sum())
    return result("ragged", tokens, ours, baseline, bound * tokens / statistics.median(baseline))


def multi_turn(repeats: int, count: int) -> list[Result]:
    """Three turns with feedback in between: keys and values kept, or everything prefilled again."""
    new, feedback, first = 64, 60, 128
    shapes = Shapes(
        rows=32, max_len=512, cache_lengths=(256,), prefill_chunks=(64, 128), prefill_tokens=512, decode_steps=8
    )
    sampler = build(TINY, shapes)
    vocabulary = TINY["vocab_size"]
    settings = sampling(new, vocabulary)
    opening, messages = prompts(count, first, vocabulary), prompts(count, feedback, vocabulary)

    def dialogues(keep: bool) -> tuple[float, SamplerStats]:
        with sampler.session() as session:
            began = time.perf_counter()
            handles = [session.dialogue(seed=0, step=0, episode=i) for i in range(count)]
            ids = [list(p) for p in opening]
            for turn in range(3):
                fresh = opening if turn == 0 else messages
                if not keep:
                    handles = [session.dialogue(seed=0, step=0, episode=i) for i in range(count)]
                prompt_ids = fresh if keep else ids
                last = turn == 2 or not keep
                futures = [
                    session.respond(d, p, settings, turn=turn, last=last)
                    for d, p in zip(handles, prompt_ids, strict=True)
                ]
                for i, future in enumerate(futures):
                    ids[i] += [*future.result().ids, *messages[i]]
            return time.perf_counter() - began, session.stats()

    dialogues(True)
    cached, recomputed = [dialogues(True) for _ in range(repeats)], [dialogues(False) for _ in range(repeats)]
    new_tokens = count * (first - 1 + 2 * (feedback + 1 - 1))
    counted = [runs[0][1].prefilled_tokens for runs in (cached, recomputed)]
    print(
        f"multi-turn: {counted[0]} tokens prefilled of {new_tokens} new ones; {counted[1]} where all is prefilled again"
    )
    assert cached[0][1].prefilled_tokens == new_tokens
    return [result("multi-turn", 3 * new * count, [s for s, _ in cached], [s for s, _ in recomputed], None)]


def result(case: str, tokens: int, ours: list[float], baseline: list[float], limit: float | None) -> Result:
    """A row of the table. `limit`: tokens a second."""
    mine, theirs = tokens / statistics.median(ours), tokens / statistics.median(baseline)
    share = None if limit is None else round(mine / limit, 3)
    row = {"case": case, "ours": round(mine, 1), "baseline": round(theirs, 1), "ratio": round(mine / theirs, 2)}
    print(f"{case:>12}{mine:>12,.0f}{theirs:>12,.0f}{mine / theirs:>8.2f}x{'' if share is None else f'{share:>8.0%}'}")
    return row | {"limit_share": share, "unit": "tokens/s"}


CASES = ("uniform", "tiny", "ragged", "multi-turn")


def main() -> None:
    """Runs the cases and prints the table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, once, to see that it runs")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    quick, repeats = args.quick, 1 if args.quick else args.repeats
    if not BENCH_PYTHON.exists() and {"uniform", "tiny"} & set(args.cases):
        parser.exit(2, f"error: {BENCH_PYTHON} isn't there: run `make bench-env` first\n")
    print(f"{'case':>12}{'tokens/s':>12}{'baseline':>12}{'ratio':>9}{'of limit':>8}")
    results: list[Result] = []
    if {"uniform", "tiny"} & set(args.cases):
        torch = Torch()
        if "uniform" in args.cases:
            new = 8 if quick else 128
            shapes = Shapes(
                rows=16,
                max_len=128 + new,
                cache_lengths=(128, 160, 192, 224),
                prefill_chunks=(128,),
                prefill_tokens=1024,
                decode_steps=32,
            )
            results.append(against_torch("uniform", SMOLLM2, shapes, 2, new, repeats, torch))
        if "tiny" in args.cases:
            new = 16 if quick else 96
            shapes = Shapes(
                rows=128,
                max_len=96 + new,
                cache_lengths=(96, 128, 160),
                prefill_chunks=(96,),
                prefill_tokens=768,
                decode_steps=32,
            )
            results.append(against_torch("tiny", TINY, shapes, 2, new, 3 * repeats, torch))
        torch.close()
    if "ragged" in args.cases:
        results.append(ragged(repeats, 64 if quick else 128))
    if "multi-turn" in args.cases:
        results += multi_turn(repeats, 32)
    print(json.dumps({"benchmark": "sampler", "results": results}))


if __name__ == "__main__":
    main()
