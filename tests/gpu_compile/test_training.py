"""The 8B's update compiled for 16 nodes of 8 H100s at its longest rows: what is exchanged, donated and held.

    make test-gpu-compile        (in the environment of `make gpu-env`; without its CUDA plugin all of this is skipped)

The full-size programs of the configuration itself. The same checks fail on the programs of commit 5a25f71
(tests/planning/test_checks.py).
"""

from __future__ import annotations

import importlib.util

import pytest

from rlef_jax import plan
from rlef_jax.command_line import parse
from rlef_jax.model.sharding import AXES
from rlef_jax.planning import checks, report

if importlib.util.find_spec("jax_cuda12_plugin") is None:
    pytest.skip("no CUDA plugin to compile with: see `make gpu-env`", allow_module_level=True)

pytestmark = pytest.mark.gpu_compile
GB, GIB = 1e9, 2**30
WEIGHTS = 32.1 * GB  # policy and critic, bfloat16
MICROBATCHES = 2


def planned(path, names=None):
    """The plan of a configuration's programs with these names."""
    args = parse(plan.parser(), [f"--config={path}"])
    return plan.make_plan(plan.configured(path, {}), args, names)


@pytest.fixture(scope="module")
def whole():
    return planned("configs/llama31_8b.py")


def exchanged(program):
    return checks.exchanged(program.module, program.mesh_shape, AXES, open_trips=program.open_trips)


def test_weights_are_gathered_twice_and_gradients_scattered_once(whole):
    """For each micro-batch: in bfloat16, for the forward and the backward pass. Nothing leaves the node."""
    gradients = whole.training["gradients"]
    found = exchanged(gradients)
    assert checks.gathers_faults(found, most=2.1 * WEIGHTS * MICROBATCHES, dtype="bf16") == []
    assert checks.reduces_faults(found) == []
    # Each device keeps an eighth of each gradient, in float32.
    scattered = found.bytes_of("reduce-scatter")
    assert set(scattered) == {"f32"} and scattered["f32"] <= 1.1 * MICROBATCHES * 2 * WEIGHTS / 8
    assert found.along("data") < 1e6  # metrics


def test_what_is_gathered_and_scattered_runs_beside_arithmetic(whole):
    """By the compiler's defaults, which launch/ leaves as they are: two thirds of the exchanges' time at least."""
    gradients = whole.training["gradients"]
    found = exchanged(gradients)
    large = [e for e in found.exchanges if e.kind in ("all-gather", "reduce-scatter") and e.output >= 2**20]
    assert large and all(e.asynchronous for e in large)
    time = whole.once(gradients)
    assert time.exposed < time.exchange / 3


def test_gradients_travel_between_nodes_once_an_update(whole):
    found = exchanged(whole.training["reduce"])
    assert checks.axis_faults(found, "data", most=18 * GB) == []


def test_sums_and_state_are_donated_and_little_is_held_beside(whole):
    gradients, apply = whole.training["gradients"], whole.training["apply"]
    assert gradients.temporary < 14 * GIB and apply.temporary < 0.1 * GIB
    assert gradients.results < 1e6 and apply.results < 1e6
    assert checks.donation_faults(gradients.module) == [] and checks.donation_faults(apply.module) == []


def test_attention_is_cudnns(whole):
    for name in ("gradients", "score", "reference"):
        assert checks.kernel_faults(whole.training[name].module, "__cudnn$fmhaSoftmax") == []
    assert checks.kernel_faults(whole.training["gradients"].module, "__cudnn$fmhaSoftmaxBackward") == []


def test_no_program_of_the_sampler_copies_the_cache(whole):
    for name in ("decode", "prefill", "put"):
        for program in (p for found, p in whole.sampling.items() if found.startswith(name)):
            assert checks.cache_faults(program.module, checks.cache_arrays(program.module)) == [], name


@pytest.mark.parametrize("path", plan.MATRIX)
def test_a_configuration_states_its_plan(path, whole):
    """`Plan:` of its docstring, of the variant's lines where it has some, is the plan's line."""
    found = whole if path == plan.MATRIX[0] else planned(path)
    line = report.line(found)
    assert line.endswith("fits")
    assert f"Plan: {line}" in " ".join(stated(path).split()), line


def stated(path):
    """The docstring of a configuration; of a variant, what follows its name there."""
    name, _, variant = path.partition(":")
    with open(name, encoding="utf-8") as file:
        text = file.read().split('"""')[1]
    head, _, variants = text.partition("Variants")
    return head if not variant else variants.split(f"\n  {variant} ")[1].split("\n\n")[0]
