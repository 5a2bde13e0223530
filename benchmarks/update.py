"""The PPO update against plain torch: python benchmarks/update.py [--case tiny ...] [--repeats 5] [--quick] [--memory]

Both sides make the same step (forward, policy and value loss, backward, AdamW; float32, one trunk with a value head) on
the same weights and batch, each in a process of its own, in turns: other work on the machine slows both. Torch is a
`transformers` Llama in the environment of `make bench-env`. Both sides get the allocator settings of the Makefile.

    tiny       the shipped model's sizes, 64 rows of 256 tokens
    smollm2    SmolLM2-135M's sizes, random weights, 8 rows of 512 tokens
    smollm2-lora  the same with adapters of rank 16 in the upper ten layers; torch's are `peft`'s, and full training of
               the same weights (`smollm2`) takes its turn too
    iteration  tiny: old and reference log-probabilities and values of 256 rows, then 4 updates of 64

Prints medians, the ratio of each round's seconds (median), peak memory of the process, and the limit: the products that
the step cannot do without, at the machine's own matmul speed, measured between the rounds. Half of each row's tokens
are actions; only they need the output layer.

--memory instead makes one update of smollm2 and of the case with vocabulary, length or rows doubled, and prints what
the compiled gradients need and the process's peak.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.model.lora import LoraConfig
from rlef_jax.model.parameters import init_adapters, init_params, with_adapters
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.model.value import init_value_head
from rlef_jax.model.weights import load_params, save_params
from rlef_jax.planning.programs import Program, update_programs
from rlef_jax.ppo.pack import empty_arrays
from rlef_jax.ppo.settings import LossSettings, OptimizerSettings
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.update import ForwardSettings, Learner, make_optimizer, prepare_iteration

ROOT = Path(__file__).resolve().parents[1]
TORCH = (str(ROOT / ".bench-env" / "bin" / "python"), str(ROOT / "benchmarks" / "update_torch.py"))
MALLOC = re.search(r"^MALLOC := GLIBC_TUNABLES=(\S+)", (ROOT / "Makefile").read_text(), re.M)[1]
TINY = ModelConfig(vocab_size=1088, d_model=96, n_layers=4, n_heads=4, n_kv_heads=2, d_head=24, d_ff=256)
SMOLLM2 = ModelConfig(
    vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_head=64, d_ff=1536, rope_theta=100_000.0
)
TURNS = 3
SCORED = ("old_logp", "behavior_logp", "advantages", "returns", "old_values")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a batch and what is done with it: `passes` forward passes and one step for each of `updates` batches."""

    model: ModelConfig
    rows: int
    length: int
    forward: dict[str, Any]
    microbatch_rows: int
    updates: int = 1
    passes: int = 0
    beside: str = ""  # another case of the same tokens, which takes its turn in each round

    @property
    def tokens(self) -> int:
        return self.rows * self.length * self.updates

    def flops(self) -> float:
        """Of the products, causal attention counted as the half that it is, the output layer for actions only."""
        m = self.model
        width = m.n_heads * m.d_head
        layer = m.d_model * (2 * width + 2 * m.n_kv_heads * m.d_head + 3 * m.d_ff)
        attention = self.length * width  # two products of T x H over half of the square
        layer, head = layer + attention, m.vocab_size * m.d_model * ACTION_SHARE
        if m.lora is None:
            return 2.0 * (m.n_layers * layer + head) * self.tokens * (3 + self.passes)
        # Below the adapters forwards alone, above and in the output layer no gradients of weights; adapters add little.
        each = m.layers_below * layer + 2 * ((m.n_layers - m.layers_below) * layer + head)
        return 2.0 * each * self.tokens


ACTION_SHARE = 0.5
CASES = {
    "tiny": Case(TINY, 64, 256, {"remat": "none"}, 64),
    "smollm2": Case(SMOLLM2, 8, 512, {"remat": "dots", "unroll": False}, 8),
    "smollm2-lora": Case(
        dataclasses.replace(SMOLLM2, lora=LoraConfig(16, 32.0, layers=10)),
        8,
        512,
        {"remat": "dots", "unroll": False},
        8,
        beside="smollm2",
    ),
    "iteration": Case(TINY, 64, 256, {"remat": "none"}, 64, updates=4, passes=2),
}
_SMOLLM2 = CASES["smollm2"]
_WORDY = dataclasses.replace(SMOLLM2, vocab_size=2 * SMOLLM2.vocab_size)
DOUBLED = {
    "smollm2": _SMOLLM2,
    "vocabulary": dataclasses.replace(_SMOLLM2, model=_WORDY),
    "length": dataclasses.replace(_SMOLLM2, length=1024),
    "rows": dataclasses.replace(_SMOLLM2, rows=16, microbatch_rows=16),
    "vocabulary+rows": dataclasses.replace(_SMOLLM2, model=_WORDY, rows=16, microbatch_rows=16),
}


def make_batch(case: Case, seed: int = 0) -> TokenBatch:
    """Full rows of one episode: three turns, as many sampled tokens as prompted ones; scores as a run has them."""
    rng = np.random.default_rng(seed)
    rows, length = case.rows, case.length
    arrays = empty_arrays(rows, length, TURNS)
    arrays["tokens"] = rng.integers(1, case.model.vocab_size, (rows, length), dtype=np.int32)
    arrays["positions"] += np.arange(length, dtype=np.int32)
    arrays["segment_ids"] += 1
    span = length // (2 * TURNS)
    for turn in range(TURNS):
        start = (2 * turn + 1) * span
        arrays["action_mask"][:, start : start + span] = 1.0
        arrays["turn_index"][:, start : start + span] = turn
        arrays["turn_positions"][:, turn] = start - 1
    arrays["turn_mask"] += 1.0
    arrays["turn_episode"] += 1
    arrays["episode_index"] += np.arange(rows, dtype=np.int32)[:, None]
    arrays["weight"] += 1.0
    guess = -np.log(case.model.vocab_size) + 0.1 * rng.standard_normal((rows, length))
    arrays["old_logp"] = (guess * arrays["action_mask"]).astype(np.float32)
    arrays["behavior_logp"] = arrays["old_logp"]
    per_turn = rng.standard_normal((rows, TURNS)).astype(np.float32)
    arrays["advantages"] = np.take_along_axis(per_turn, arrays["turn_index"], 1) * arrays["action_mask"]
    arrays["returns"] = per_turn
    return TokenBatch(**arrays)


def serve_ours(name: str, folder: Path) -> None:
    """The worker of our side: a step for each line on stdin."""
    case = (CASES | DOUBLED)[name]
    learner = Learner(
        case.model, make_optimizer(case.model, OptimizerSettings(1e-4, warmup_steps=1)), loss=LossSettings(),
        separate_critic=False,
        forward_settings=ForwardSettings(**case.forward),
    )  # fmt: skip
    policy = load_params(folder / "weights.npz", case.model.base)
    if case.model.lora is not None:
        policy = with_adapters(policy, init_adapters(jax.random.PRNGKey(2), case.model, jnp.float32))
    state = learner.init(jax.random.PRNGKey(1), policy)
    reference = learner.place_policy(policy) if case.passes else None
    del policy
    batch = make_batch(case)
    count = case.rows // case.microbatch_rows
    split = [jax.tree.map(lambda array, i=i: np.split(np.asarray(array), count)[i], batch) for i in range(count)]
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        updates = [split] * case.updates
        if reference is not None:
            updates, _ = prepare_iteration(learner, state.params, reference, updates)
        for microbatches in updates:
            state, metrics = learner.update(state, microbatches)
        measured = {"loss": metrics["loss"], "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        print(json.dumps({**measured, "peak_gib": peak_gib()}), flush=True)


def peak_gib() -> float:
    """The most memory that this process has held."""
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


class Worker:
    """A side's process."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "GLIBC_TUNABLES": MALLOC, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def ask(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: said below
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._process.args}: ended")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def matmul_gflops(case: Case) -> float:
    """The machine's speed on the feed-forward layer's products of this case: the best of three."""
    tokens, m = case.rows * case.length, case.model
    a, b = jnp.ones((tokens, m.d_model)), jnp.ones((m.d_model, m.d_ff))
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, b))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready([product(a, b) for _ in range(4)])
        times.append((time.perf_counter() - began) / 4)
    return 2e-9 * tokens * m.d_model * m.d_ff / min(times)


def prepare(case: Case, folder: Path) -> None:
    """Writes what both sides start from."""
    params = init_params(jax.random.PRNGKey(0), case.model.base)
    save_params(folder / "weights.npz", params)
    head = init_value_head(jax.random.PRNGKey(1), case.model)
    np.savez(folder / "head.npz", **{name: np.asarray(leaf) for name, leaf in head.items()})
    (folder / "model.json").write_text(json.dumps(dataclasses.asdict(case.model)))
    batch = make_batch(case)
    arrays = {name: np.asarray(value) for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    np.savez(folder / "batch.npz", **arrays)


def torch_seconds(worker: Worker, case: Case) -> dict[str, float]:
    """What torch takes for the case: its forward passes and steps."""
    asked = [worker.ask("forward") for _ in range(case.passes * case.updates)]
    asked += [worker.ask("step") for _ in range(case.updates)]
    total = {name: sum(a[name] for a in asked) for name in ("seconds", "cpu")}
    return {**asked[-1], **total}


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Rounds of both sides and of the machine's speed, in turns."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        prepare(case, Path(folder))
        ours = Worker(sys.executable, __file__, "--serve", name, folder)
        torch = Worker(*TORCH, folder)
        beside = Worker(sys.executable, __file__, "--serve", case.beside, folder) if case.beside else None
        rounds: dict[str, list[Any]] = {"ours": [], "torch": [], "gflops": [], "beside": []}
        for number in range(repeats + 1):
            one, other = ours.ask("step"), torch_seconds(torch, case)
            more = beside.ask("step") if beside else {}
            if number == 0:  # it compiles, and warms caches up; here both losses are of the same weights
                first = (one["loss"], other["loss"])
                continue
            rounds["ours"].append(one)
            rounds["torch"].append(other)
            rounds["gflops"].append(matmul_gflops(case))
            rounds["beside"].append(more)
            told = f", {case.beside} {more['seconds']:.2f} s" if more else ""
            print(
                f"  {name} round {number}: ours {one['seconds']:.2f} s, torch {other['seconds']:.2f} s{told}",
                flush=True,
            )
        for worker in (ours, torch, beside):
            if worker is not None:
                worker.close()
    limit = case.flops() / max(rounds["gflops"]) / 1e9

    def median(side: str, key: str) -> float:
        return statistics.median(r[key] for r in rounds[side])

    compared: dict[str, Any] = {}
    if case.beside:
        compared = {
            "beside": case.beside,
            "beside_ratio": statistics.median(
                b["seconds"] / o["seconds"] for o, b in zip(rounds["ours"], rounds["beside"])
            ),
            "beside_peak_gib": median("beside", "peak_gib"),
        }
    return compared | {
        "case": name,
        "ours": case.tokens / median("ours", "seconds"),
        "baseline": case.tokens / median("torch", "seconds"),
        "ratio": statistics.median(t["seconds"] / o["seconds"] for o, t in zip(rounds["ours"], rounds["torch"])),
        "limit_share": limit / median("ours", "seconds"),
        "unit": "tokens/s",
        "cpu_ratio": median("torch", "cpu") / median("ours", "cpu"),
        "limit": case.tokens / limit,
        "gflops": max(rounds["gflops"]),
        "peak_gib": [median("ours", "peak_gib"), median("torch", "peak_gib")],
        "first_loss": first,
    }


def programs_of(case: Case) -> dict[str, Program]:
    """The compiled programs of the case's update."""
    learner = Learner(
        case.model,
        make_optimizer(case.model, OptimizerSettings(1e-4, warmup_steps=1)),
        separate_critic=False,
        forward_settings=ForwardSettings(**case.forward),
    )
    return update_programs(
        learner, jnp.float32, microbatches=case.rows // case.microbatch_rows, rows=case.microbatch_rows,
        length=case.length, turns=TURNS, action_share=ACTION_SHARE,
    )  # fmt: skip


def measure_memory() -> None:
    """One update of smollm2 as each of its sizes doubles: what the compiled gradients need beside their arguments and
    results, and the process's peak. Peaks don't add up: what one step leaves in the heap decides what the next can use.
    """
    temporary = {}
    for name, case in DOUBLED.items():
        temporary[name] = programs_of(case)["gradients"].temporary / 2**30
        with tempfile.TemporaryDirectory() as folder:
            prepare(case, Path(folder))
            worker = Worker(sys.executable, __file__, "--serve", name, folder)
            peak = worker.ask("step")["peak_gib"]
            worker.close()
        logits = case.tokens * case.model.vocab_size * 4 / 2**30
        print(f"{name:<17}{temporary[name]:>7.2f} GiB{peak:>7.2f} in all; all logits {logits:.2f}", flush=True)
    both = temporary["vocabulary+rows"] - temporary["vocabulary"] - temporary["rows"] + temporary["smollm2"]
    print(f"of the first, what grows with vocabulary times rows: {both:.4f} GiB")


def main() -> None:
    """Runs the cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of the tiny case")
    parser.add_argument("--memory", action="store_true", help="peaks as sizes double")
    parser.add_argument("--serve", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve_ours(args.serve[0], Path(args.serve[1]))
        return
    if args.memory:
        measure_memory()
        return
    if not Path(TORCH[0]).exists():
        raise SystemExit("the baseline needs torch: make bench-env")
    names, repeats = (["tiny"], 2) if args.quick else (args.case, args.repeats)
    results = [measure(name, repeats) for name in names]
    print(
        f"{'':<11}{'ours':>9}{'torch':>9}{'ratio':>8}{'by CPU time':>13}{'limit':>9}{'of it':>7}{'GiB':>7}{'torch':>7}"
    )
    for r in results:
        print(
            f"{r['case']:<11}{r['ours']:>9,.0f}{r['baseline']:>9,.0f}{r['ratio']:>7.2f}x{r['cpu_ratio']:>12.2f}x"
            f"{r['limit']:>9,.0f}{r['limit_share']:>7.0%}{r['peak_gib'][0]:>7.2f}{r['peak_gib'][1]:>7.2f}"
        )
        if "beside" in r:
            print(f"{'':<11}{r['beside_ratio']:.2f}x {r['beside']}, which holds {r['beside_peak_gib']:.2f} GiB")
    print(json.dumps({"benchmark": "update", "results": results}))


if __name__ == "__main__":
    main()
