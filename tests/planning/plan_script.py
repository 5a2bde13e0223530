"""Run by test_plan: plans of the tiny model, each with one thing doubled, in a process with eight pretend devices."""

import json

import jax

from rlef_jax import plan
from rlef_jax.command_line import parse


def numbers(devices, *extra):
    """What a plan says, for each token or in all."""
    words = ["--config=configs/tiny.py", f"--devices={devices}", *extra]
    args = parse(plan.parser(), [*SMALL, *words])
    config = plan.configured(args.config, args.overrides, args.devices)
    made = plan.make_plan(config, args)
    gradients = made.programs["gradients"]
    return {
        "flops": gradients.work.flops,
        "moved": gradients.work.bytes,
        "optimizer_moves": made.programs["apply"].work.bytes,
        "weights": made.memory()["weights"],
        "optimizer": made.memory()["optimizer"],
        "temporary": made.memory()["activations and other temporary memory"],
        "sent": {"+".join(c.axes) + " " + c.kind: c.bytes for c in gradients.work.collectives},
        "cache": made.sampler_memory(),
        "lines": plan.report.table(made).splitlines(),
    }


SMALL = ["--config.model.n_layers=2", "--config.model.unroll=False", "--config.mesh.fsdp=2", "--config.ppo.rollouts=64"]


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    base = ["--length=128"]
    told = {
        "base": numbers(4, *base),
        "length": numbers(4, "--length=256"),
        "rows": numbers(4, *base, "--config.ppo.microbatch_rows=32", "--config.ppo.rollouts=128"),
        "devices": numbers(8, *base),
        "fsdp": numbers(4, *base, "--config.mesh.fsdp=4"),
    }
    print(json.dumps(told))


main()
