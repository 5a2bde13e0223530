"""The sampler on several devices, in a process that has them."""

import subprocess
import sys
import textwrap

import pytest

from tests.helpers.eight_devices import EIGHT
from tests.helpers.small_run import environment

pytestmark = pytest.mark.long


def test_any_mesh_samples_what_one_device_does():
    """On eight pretend devices, rows split over data and fsdp, heads over tensor: the same ids, log p to 1e-4."""
    program = """
        import numpy as np
        from rlef_jax.model.sharding import make_mesh
        from rlef_jax.sampling.programs import Programs, Shapes
        from tests.sampling.test_sampler import CFG, at_once, jax, make_sampler
        from rlef_jax.model.kv_cache import Where
        shapes = Shapes(
            rows=4, max_len=64, cache_lengths=(32,), prefill_chunks=(8,), prefill_tokens=32, decode_steps=4,
            page_slots=8, pages=12, kinds=("plain",),
        )
        fourth = jax.devices()[3]
        sampler = make_sampler(Programs(CFG, shapes, make_mesh(devices=[fourth])))
        held = jax.tree.leaves((sampler.weights()[0], sampler.programs.new_cache()))
        assert {d for a in held for d in a.devices()} == {fourth}
        alone = at_once(sampler, range(12))[0]
        for data, fsdp, tensor, kernel in ((2, 1, 1, False), (1, 2, 2, True)):
            mesh = make_mesh(data, fsdp, tensor)
            programs = Programs(CFG, shapes, mesh, where=Where(mesh, kernel=kernel, interpret=True))
            made, stats = at_once(make_sampler(programs), range(12))
            assert stats.saved  # the pools are too small for all
            for key, (_, sample) in alone.items():
                assert made[key][1].ids == sample.ids, (data, fsdp, tensor, kernel, key)
                np.testing.assert_allclose(made[key][1].policy_logp, sample.policy_logp, atol=1e-4)
        slots = programs.new_cache().layers[0][0]
        assert len(slots.sharding.device_set) == 4 and slots.addressable_shards[0].data.shape[1] == 1
        print("same")
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=environment(**EIGHT)
    )
    assert done.stdout == "same\n", done.stderr
