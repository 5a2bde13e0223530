"""Run by test_plan: plans of the tiny model, each with one thing doubled, in a process with eight virtual devices.

Only the programs that are compared are compiled.
"""

import json

import jax

from rlef_jax import plan
from rlef_jax.command_line import parse


def planned(devices, *extra, names):
    """A plan with the programs of these names."""
    words = ["--config=configs/tiny.py", f"--devices={devices}", *extra]
    args = parse(plan.parser(), [*SMALL, *words])
    config = plan.configured(args.config, args.overrides, args.devices)
    return plan.make_plan(config, args, names)


def numbers(run_plan):
    """A plan's numbers, per token or in total."""
    gradients = run_plan.training["gradients"]
    return {
        "flops": gradients.work.flops,
        "moved": gradients.work.bytes,
        "optimizer_moves": run_plan.training["apply"].work.bytes,
        "weights": run_plan.resident["weights"],
        "optimizer": run_plan.resident["moments"],
        "temporary": gradients.temporary,
        "sent": sent(gradients.work.collectives),
    }


def sent(collectives):
    """{"AXES KIND": bytes}"""
    totals = {}
    for c in collectives:
        name = "+".join(c.axes) + " " + c.kind
        totals[name] = totals.get(name, 0.0) + c.bytes
    return totals


# One trunk: half as much is compiled.
SMALL = [
    "--config.model.n_layers=2", "--config.model.unroll=False", "--config.mesh.fsdp=2", "--config.ppo.rollouts=64",
    "--config.ppo.separate_critic=False",
]  # fmt: skip


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    base = ["--length=128"]
    doubled = {
        "length": (4, "--length=256"),
        "rows": (4, *base, "--config.ppo.microbatch_rows=32", "--config.ppo.rollouts=128"),
        "devices": (8, *base),
        "fsdp": (4, *base, "--config.mesh.fsdp=4"),
    }
    whole = planned(4, *base, names=("gradients", "apply", "score", "decode"))
    by_case = {name: numbers(planned(*words, names=("gradients", "apply"))) for name, words in doubled.items()}
    print(json.dumps(by_case | {"base": numbers(whole), "table": plan.report.table(whole)}))


main()
