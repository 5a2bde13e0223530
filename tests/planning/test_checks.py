"""The checks of compiled programs fail on what they are for, and pass what is right."""

import re

from rlef_jax.planning import checks
from rlef_jax.planning.hlo import parse
from tests.helpers.hlo_texts import saved

AXES = ("data", "fsdp", "tensor")


def test_an_update_that_reduces_in_its_loops_fails():
    """The 8B's gradients on 16 x 8 cards as they were at commit 5a25f71."""
    found = checks.exchanged(parse(saved("gradients_5a25f71")), (16, 8, 1), AXES)
    gathered = checks.gathers_faults(found, most=2 * 2.1 * 32.1e9, dtype="bf16")
    assert sum("are gathered as f32, not bf16" in fault for fault in gathered) == 11
    assert gathered[-1] == "148.0 GB are gathered, more than 134.8"
    reduced = checks.reduces_faults(found)
    assert len(reduced) == 21 and reduced[-1] == "nothing is reduced and scattered"
    assert "117 MB of bf16 are all-reduced over data+fsdp 32 times" in reduced[0]
    assert checks.axis_faults(found, "data", most=18e9) == ["64.2 GB travel along data, more than 18.0"]


def test_an_update_that_scatters_passes():
    found = checks.exchanged(parse(saved("fsdp")), (2, 8, 1), AXES)
    layer = 1024 * 4096 * 2
    assert checks.gathers_faults(found, most=8 * layer, dtype="bf16") == []
    # Of this one the author let each layer's gradients travel over `data` in the loop.
    [fault] = checks.reduces_faults(found)
    assert "all-reduced over data 3 times" in fault and checks.reduces_faults(found, least=2**25) == []
    assert len(checks.axis_faults(found, "data", most=1e6)) == 1 and checks.axis_faults(found, "data", most=1e9) == []
    assert checks.gathers_faults(found, most=7 * layer, dtype="bf16") == ["0.1 GB are gathered, more than 0.1"]
    assert len(checks.gathers_faults(found, most=8 * layer, dtype="f32")) == 3


def test_a_row_put_in_its_place_passes_and_a_copy_does_not():
    module = parse(saved("put"))
    cache = checks.cache_arrays(module)
    assert cache == {("bf16", 64 * 8 * 1024 * 128)}
    assert checks.cache_faults(module, cache) == [] and checks.donation_faults(module) == []
    kept = re.sub("input_output_alias=.*", "", saved("put"), count=1)
    assert checks.cache_faults(parse(kept), checks.cache_arrays(parse(kept))) == [
        "no array of the cache's is taken over"
    ]
    assert checks.donation_faults(parse(kept)) == ["parameter 0, bf16[64,8,1024,128], is not donated to a result"]


def test_decoding_that_reads_a_whole_cache_fails():
    """A layer of the 8B's decoding as it was at commit 5a25f71: products with all 8,704 slots of 64 rows."""
    module = parse(saved("decode_5a25f71"))
    faults = checks.cache_faults(module, {("bf16", 64 * 8 * 8704 * 128)})
    assert faults and all("reads" in fault or "copies" in fault for fault in faults)
    assert checks.kernel_faults(module, "__cudnn$fmha", "__gpu$") == ["no kernel __cudnn$fmha", "no kernel __gpu$"]
    assert checks.kernel_faults(parse(saved("cudnn")), "__cudnn$fmhaSoftmaxBackward") == []
