"""The schedule's walk, by hand: what an exchange is hidden behind, and what waits for it."""

import pytest

from rlef_jax.planning.hlo import parse
from rlef_jax.planning.schedule import Speeds, Timeline, overlaps, timeline
from rlef_jax.planning.target import Card

AXES = ("data", "fsdp", "tensor")
# An operation or byte a second, whatever it is; a link of half the speed.
SPEEDS = Speeds(Card(flops=1.0, memory=0, memory_bandwidth=1.0, link=0.5, network=0.25, node=2), 1.0, 1.0)
TEXT = """\
HloModule m, is_scheduled=true

%body () -> () {
  %t = (f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=0
  %start = ((f32[8]{0}), f32[16]{0}) all-gather-start(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
  %a = f32[8]{0} negate(%x)
  %done = f32[16]{0} all-gather-done(%start)
  %now = f32[16]{0} all-reduce(%done), replica_groups={{0,2},{1,3}}
  ROOT %r = (f32[8]{0}) tuple(%x)
}

%condition () -> () {
  ROOT %k = pred[] constant(false)
}

ENTRY %main () -> (f32[8]) {
  %p = f32[8]{0} parameter(0)
  %init = (f32[8]{0}) tuple(%p)
  ROOT %loop = (f32[8]{0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_what_is_between_start_and_end_hides_an_exchange():
    """A gather sends 32 bytes in 64 s while 64 bytes are read and written in as many; then 64 bytes travel twice half
    way over the network in 256 s, which nothing hides."""
    [o] = overlaps(parse(TEXT), (2, 2, 1), AXES, SPEEDS)
    assert (o.exchange.kind, o.over, o.seconds, o.between) == ("all-gather", ("a",), 64, 64)
    assert timeline(parse(TEXT), (2, 2, 1), AXES, SPEEDS) == Timeline(5 * 64, 5 * (64 + 256), 5 * 256)


def test_arithmetic_that_is_too_short_waits_for_the_rest():
    faster = Speeds(Card(1.0, 0, 4.0, 0.5, 0.25, 2), 1.0, 1.0)
    assert timeline(parse(TEXT), (2, 2, 1), AXES, faster).exposed == pytest.approx(5 * (48 + 256))


def test_an_exchange_that_is_waited_for_at_once_is_exposed():
    moved = TEXT.replace("  %a = f32[8]{0} negate(%x)\n", "").replace("  %now", "  %a = f32[8]{0} negate(%x)\n  %now")
    assert timeline(parse(moved), (2, 2, 1), AXES, SPEEDS) == Timeline(5 * 64, 5 * 320, 5 * 320)
