"""Loading a Hugging Face folder to eight devices: time and host memory beside `safetensors.numpy.load_file`.

    .venv/bin/python benchmarks/loading.py [--quick] [--repeats 3] [--folder FOLDER]

A folder of Llama 3.2 3B's shape is made of random bfloat16 tensors, in shards with an index (6.4 GB, in a temporary
folder). Then each side reads it in a process of its own, by turns: ours (`rlef_jax.model.pretrained`, bfloat16
parameters) to 8 pretend CPU devices, 4 by `fsdp` and 2 by `tensor`, with every tensor checked to be finite and its
axes in our order; the baseline into NumPy arrays, as they lie in the files. Files are in the page cache for both.
Reading config.json and the headers isn't counted: importing `transformers` takes 5 s, whatever the model.

Memory is the process's own (RssAnon, watched every 2 ms), so pages of mapped files, which the kernel takes back when it
wants, don't count; on the CPU the devices' memory does. `beyond` is the highest that it rose while loading, less the
bytes of the parameters. The goal is at most 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SHAPE = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192, "hidden_act": "silu",
    "tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16",
}  # fmt: skip
SMALL = SHAPE | {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 16,
                 "num_attention_heads": 8, "head_dim": 64}  # fmt: skip
DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
_MIB = 1 << 20


def make_folder(folder: Path, config: dict[str, Any], shard_bytes: int) -> int:
    """Writes the folder; returns the bytes of its tensors. Values are between 2^-7 and 2^-5, of either sign."""
    from rlef_jax.model.hf_config import parse_config
    from rlef_jax.model.hf_export import write_tensors
    from rlef_jax.model.parameters import tensor_shapes

    shapes = tensor_shapes(parse_config(config))
    rng = np.random.default_rng(0)

    def tensor(name: str) -> np.ndarray:
        bits = np.frombuffer(rng.bytes(2 * math.prod(shapes[name])), np.uint16)
        return ((bits & 0x80FF) | 0x3C00).view(ml_dtypes.bfloat16).reshape(shapes[name])

    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, {name: ("BF16", shape) for name, shape in shapes.items()}, tensor, shard_bytes)
    (folder / "config.json").write_text(json.dumps(config))
    return 2 * sum(map(math.prod, shapes.values()))


def ours(folder: Path) -> Callable[[], Any]:
    """Loads the parameters, split over all devices."""
    import jax
    import jax.numpy as jnp

    from rlef_jax.model.pretrained import HFFolder, load_pretrained
    from rlef_jax.model.sharding import make_mesh, param_shardings

    mesh, weights = make_mesh(1, 4, 2), HFFolder(folder)
    shardings = param_shardings(mesh, weights.cfg)
    jax.block_until_ready(jax.device_put(jnp.zeros(8), jax.devices()[-1]))
    return lambda: jax.block_until_ready(load_pretrained(weights, weights.cfg, jnp.bfloat16, shardings))


def baseline(folder: Path) -> Callable[[], Any]:
    """Loads every file into NumPy arrays."""
    from safetensors.numpy import load_file

    return lambda: [load_file(path) for path in sorted(folder.glob("*.safetensors"))]


SIDES = {"ours": ours, "baseline": baseline}


def own_memory() -> float:
    """This process's memory without pages of files, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure(side: str, folder: Path) -> dict[str, float]:
    """Loads once in this process: seconds, and the rise of its own memory in MiB."""
    load = SIDES[side](folder)
    before, peak, done = own_memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    params = load()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    rise = max(peak[0], own_memory()) - before
    del params
    return {"seconds": seconds, "rise": rise}


def ask(side: str, folder: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--serve", side, "--folder", str(folder)]
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        command, env=os.environ | DEVICES | {"PYTHONPATH": root}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, size: int, repeats: int) -> list[dict[str, Any]]:
    """Rounds of both, in turns: medians of the seconds, the most memory beyond `size` bytes."""
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(repeats):
        for side, measured in rounds.items():
            measured.append(ask(side, folder))
            beyond = measured[-1]["rise"] - size / _MIB
            print(
                f"  round {number + 1}: {side:<9}{measured[-1]['seconds']:7.2f} s, {beyond:8,.0f} MiB beyond",
                flush=True,
            )
    seconds = {side: statistics.median(r["seconds"] for r in measured) for side, measured in rounds.items()}
    beyond = {side: max(r["rise"] for r in measured) - size / _MIB for side, measured in rounds.items()}
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(*rounds.values(), strict=True))
    return [
        {"case": "time", **seconds, "ratio": ratio, "limit_share": None, "unit": "s"},
        {"case": "beyond", **beyond, "ratio": None, "limit_share": None, "unit": "MiB"},
    ]


def main() -> None:
    """Makes the folder, runs both sides and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="85 million parameters, one round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made, if not in a temporary folder; they stay")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        print(json.dumps(measure(args.serve, args.folder)))
        return
    config, shard, repeats = (SMALL, 50 * _MIB, 1) if args.quick else (SHAPE, 2 * 10**9, args.repeats)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        size = make_folder(folder, config, shard)
        print(f"{size / _MIB:,.0f} MiB of tensors in {len(list(folder.glob('*.safetensors')))} files")
        results = compare(folder, size, repeats)
    time_, memory = results
    print(f"{'':<10}{'seconds':>9}{'MiB beyond the parameters':>28}")
    for side in SIDES:
        print(f"{side:<10}{time_[side]:>9.2f}{memory[side]:>28,.0f}")
    print(f"ours takes {time_['ratio']:.2f} times as long")
    print(json.dumps({"benchmark": "loading", "size_mib": size / _MIB, "results": results}))


if __name__ == "__main__":
    main()
