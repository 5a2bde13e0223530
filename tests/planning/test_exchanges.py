"""Exchanges of compiled programs: asynchronous ones, wrapped ones, and the devices that take part."""

import pytest

from rlef_jax.planning.exchanges import first_group, read_exchanges
from rlef_jax.planning.hlo import parse
from tests.helpers.hlo_texts import saved

AXES = ("data", "fsdp", "tensor")
WRAPPED = """\
HloModule m

%add () -> () {
  ROOT %s = f32[] add(%a, %b)
}

%wrapped () -> () {
  %w = f32[64]{0} parameter(0)
  ROOT %r = f32[8]{0} reduce-scatter(%w), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, to_apply=%add
}

ENTRY %main () -> f32[8] {
  %p = f32[64]{0} parameter(0)
  %start = ((f32[64]{0}), f32[8]{0}, u32[]) async-start(%p), calls=%wrapped
  %later = ((f32[64]{0}), f32[8]{0}, u32[]) async-update(%start)
  ROOT %done = f32[8]{0} async-done(%later)
}
"""


def test_a_wrapped_exchange_counts_once_with_what_its_end_gives():
    [e] = read_exchanges(parse(WRAPPED), (1, 8, 1), AXES)
    assert (e.kind, e.axes, e.output, e.bytes, e.asynchronous) == ("reduce-scatter", ("fsdp",), 32, 7 * 32, True)


def test_a_start_counts_what_it_gives_not_what_it_takes():
    found = {e.name: e for e in read_exchanges(parse(saved("fsdp")), (2, 8, 1), AXES)}
    start = found["reduce-scatter-start"]
    assert (start.output, start.dtype, start.loops, start.asynchronous) == (128 * 4096 * 2, "bf16", (3.0,), True)
    assert not found["all_gather.4.2"].asynchronous


@pytest.mark.parametrize(
    "text, members",
    [
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}, x", [0, 4]),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", list(range(8))),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups={{0,3},{1,2}}", [0, 3]),
        ("replica_groups={}", list(range(8))),
        ("source_target_pairs={{0,0},{1,2},{2,1}}", [1, 2]),
    ],
)
def test_groups_are_read_in_every_spelling(text, members):
    assert first_group(text, 8) == members


def test_a_spelling_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="aren't understood: replica_groups=mesh"):
        first_group("replica_groups=mesh['a'=8] {'a':(1)2}", 8)
