"""A small update compiled for TPU v5p, and the exchanges of its text.

make test-tpu-compile        (in the environment of `make tpu-env`; without libtpu all of this is skipped)
"""

from __future__ import annotations

import importlib.util

import pytest

from rlef_jax import plan
from rlef_jax.command_line import parse
from rlef_jax.model.sharding import AXES
from rlef_jax.planning import checks

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("no libtpu to compile with: see `make tpu-env`", allow_module_level=True)

pytestmark = pytest.mark.tpu_compile
SMALL = [
    "--config.model.n_layers=2", "--config.model.d_model=1024", "--config.model.d_ff=4096",
    "--config.model.n_heads=8", "--config.model.vocab_size=32768", "--config.ppo.microbatch_rows=8",
    "--config.ppo.rollouts=32", "--config.mesh.data=2", "--config.mesh.fsdp=4", "--length=512",
]  # fmt: skip


@pytest.fixture(scope="module", params=["tpu-v5p", "tpu-v6e"])
def small(request):
    args = parse(plan.parser(), ["--config=configs/llama31_8b.py", *SMALL])
    config = plan.configured(args.config, args.overrides, 0, request.param)
    return plan.make_plan(config, args, ("gradients", "reduce", "apply", "score"))


def test_what_an_update_exchanges_is_read(small):
    """The compiler may replace a reduce-scatter by its own form of it, and gathers by steps around a ring."""
    gradients = small.training["gradients"]
    found = checks.exchanged(gradients.module, gradients.mesh_shape, AXES, open_trips=gradients.open_trips)
    assert found.exchanges and found.along("fsdp") > 100 * found.along("data")
    assert gradients.work.flops > 0 and gradients.temporary > 0


def test_state_is_donated(small):
    apply = small.training["apply"]
    assert apply.aliased > 0.99 * (small.resident["weights"] + small.resident["moments"]) and apply.results < 1e6
