"""A small model's sampler for tests: its programs, weights and prompts, and a way to ask for whole dialogues."""

import jax
import numpy as np

from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.sampling.programs import Shapes
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler

CFG = ModelConfig(vocab_size=24, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=24)
STOP = 3
# Sharp enough that a wrong position or mask moves log-probabilities by far more than 1e-4.
PARAMS = jax.tree.map(
    lambda a: a * 2.5, jax.device_get(jax.jit(init_params, static_argnums=1)(jax.random.PRNGKey(0), CFG))
)
SHAPES = Shapes(
    rows=3,
    max_len=64,
    cache_lengths=(),
    prefill_chunks=(4, 8),
    prefill_tokens=16,
    decode_steps=4,
    stop_ids=2,
    page_slots=8,
)
HOW = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=(STOP,), max_new_tokens=6)
WAIT_S = 120.0


def make_sampler(programs, params=PARAMS, **kwargs):
    sampler = Sampler(programs, **kwargs)
    sampler.set_weights(params, version=7)
    return sampler


def prompt_of(turn, episode, longest=14):
    """Prompts of different lengths, a function of turn and episode alone."""
    rng = np.random.default_rng((turn, episode))
    return rng.integers(4, 24, rng.integers(1, longest + 1)).tolist()


def at_once(sampler, episodes, turns=3, how=HOW, prompt=prompt_of, step=2):
    """{(episode, turn): (prompt, sample)}, each turn of all episodes asked for at once; and the session's counts."""
    made = {}
    with sampler.session() as session:
        dialogues = {e: session.dialogue(seed=1, step=step, episode=e) for e in episodes}
        for turn in range(turns):
            futures = {
                e: session.respond(d, prompt(turn, e), how, turn=turn, last=turn == turns - 1)
                for e, d in dialogues.items()
            }
            made |= {(e, turn): (prompt(turn, e), f.result(WAIT_S)) for e, f in futures.items()}
        return made, session.stats()
