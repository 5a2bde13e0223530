"""RLEF in JAX: reinforcement learning of code models from execution feedback (Gehring et al., ICML 2025).

Start with `rlef_jax.types` (the vocabulary), then follow a rollout: `data`, `dialog`, `episode`, `reward`, `ppo`,
`model`; below them `execution`, `sampling`, `training`, `evaluation`, `analysis` own processes, devices and files.
"""

__version__ = "0.1.0"
