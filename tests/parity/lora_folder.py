"""A small model, adapters as rlef_jax writes them, and logits: python -m tests.parity.lora_folder OUTPUT

For `reference.py --adapters OUTPUT`, which reads them with `peft`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from rlef_jax.model.lora import LoraConfig, split
from rlef_jax.model.parameters import init_adapters, with_adapters
from rlef_jax.model.peft_folder import write_adapters
from rlef_jax.model.pretrained import HFFolder, load_pretrained
from rlef_jax.model.transformer import forward, unembed
from tests.helpers.hf_folder import write_folder
from tests.parity import cases


def main(output: Path) -> None:
    weights = HFFolder(write_folder(output / "base", cases.LLAMA))
    cfg = dataclasses.replace(weights.cfg, lora=LoraConfig(3, 4.0, layers=1))
    adapters = init_adapters(jax.random.PRNGKey(0), cfg)
    params = with_adapters(load_pretrained(weights, weights.cfg), {n: a + 0.1 for n, a in adapters.items()})
    assert len(split(params["layers"])[1]) == 14
    (output / "adapters").mkdir()
    write_adapters(output / "adapters", params, cfg, str(output / "base"))
    tokens = cases.tokens()
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    hidden = forward(params, cfg, tokens, positions, np.ones_like(positions))
    np.save(output / "logits.npy", np.asarray(unembed(params, cfg, hidden))[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
