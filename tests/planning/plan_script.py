"""Run by test_plan: plans of the tiny model, each with one thing doubled, in a process with eight pretend devices.

Of those, only the programs that are compared are compiled.
"""

import json

import jax

from rlef_jax import plan
from rlef_jax.command_line import parse


def made(devices, *extra, names):
    """A plan with the programs of these names."""
    words = ["--config=configs/tiny.py", f"--devices={devices}", *extra]
    args = parse(plan.parser(), [*SMALL, *words])
    config = plan.configured(args.config, args.overrides, args.devices)
    return plan.make_plan(config, args, names)


def numbers(made):
    """What a plan says, for each token or in all."""
    gradients = made.programs["gradients"]
    return {
        "flops": gradients.work.flops,
        "moved": gradients.work.bytes,
        "optimizer_moves": made.programs["apply"].work.bytes,
        "weights": made.memory()["weights"],
        "optimizer": made.memory()["optimizer"],
        "temporary": made.memory()["activations and other temporary memory"],
        "sent": {"+".join(c.axes) + " " + c.kind: c.bytes for c in gradients.work.collectives},
    }


SMALL = ["--config.model.n_layers=2", "--config.model.unroll=False", "--config.mesh.fsdp=2", "--config.ppo.rollouts=64"]


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    base = ["--length=128"]
    doubled = {
        "length": (4, "--length=256"),
        "rows": (4, *base, "--config.ppo.microbatch_rows=32", "--config.ppo.rollouts=128"),
        "devices": (8, *base),
        "fsdp": (4, *base, "--config.mesh.fsdp=4"),
    }
    whole = made(4, *base, names=plan.PROGRAMS)
    told = {name: numbers(made(*words, names=("gradients", "apply"))) for name, words in doubled.items()}
    print(json.dumps(told | {"base": numbers(whole), "table": plan.report.table(whole)}))


main()
