"""Which `sampling.tensor` a plan names so that the longest dialogue doesn't outlast an iteration's training."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from rlef_jax.planning.report import Plan
from rlef_jax.planning.schedule import Timeline


class Timed(Plan):
    """A plan of given seconds: a decoding step's, and an iteration's training."""

    def step_seconds(self) -> float:
        return self.resident["step"]

    def seconds(self) -> dict[str, Timeline]:
        return {"all": Timeline(busy=self.resident["training"])}


def planned(step: float, training: float, tensor: int = 1, heads: int = 8) -> Timed:
    others: dict[str, Any] = {field.name: None for field in dataclasses.fields(Plan)}
    cfg = SimpleNamespace(n_layers=32, n_kv_heads=heads)
    assumed = SimpleNamespace(longest=6000, tensor=tensor)
    return Timed(**others | {"resident": {"step": step, "training": training}, "cfg": cfg, "assumed": assumed})


def test_a_step_is_divided_and_pays_for_its_exchanges():
    plan = planned(step=9e-3, training=1e3)
    exchanges = 64 * 10e-6
    assert plan.longest_seconds() == pytest.approx(54.0)
    assert plan.longest_seconds(2) == pytest.approx(6000 * (4.5e-3 + exchanges))
    split = planned(step=4.5e-3 + exchanges, training=1e3, tensor=2)
    assert split.longest_seconds() == pytest.approx(plan.longest_seconds(2))
    assert split.longest_seconds(8) == pytest.approx(plan.longest_seconds(8))


@pytest.mark.parametrize("training, tensor", [(60.0, 1), (54.0, 1), (53.0, 2), (31.0, 2), (30.0, 4), (1.0, 8)])
def test_the_least_that_is_enough_or_the_largest_there_is(training, tensor):
    assert planned(step=9e-3, training=training).tensor_for_longest() == tensor


def test_heads_that_cannot_be_divided_stay_together():
    assert planned(step=9e-3, training=1.0, heads=6).tensor_for_longest() == 2
    assert planned(step=9e-3, training=1.0, heads=1).tensor_for_longest() == 1
