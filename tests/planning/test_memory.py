"""What lies on a card in each program, added up by hand."""

from rlef_jax.planning.hlo import Module
from rlef_jax.planning.memory import NEW_WEIGHTS, peak, sampler_parts, sampling_moments, training_moments
from rlef_jax.planning.programs import Program
from rlef_jax.planning.work import Work


def program(arguments, results=0, temporary=0, aliased=0):
    return Program(
        Module({}, "", ""), Work(0, 0, ()), (1, 1, 1), arguments, results, temporary, aliased, xla_flops=0, seconds=0
    )


RESIDENT = {"weights": 8.0, "moments": 16.0, "reference": 4.0}
SAMPLER = {"decode 64 plain": program(30, temporary=1, aliased=20), "take": program(20, results=2)}


def test_a_training_card_holds_everything_and_what_a_program_adds():
    """Gradients come with sums (8) and a batch (1) beside the weights; the optimizer's step with gradients (8)."""
    programs = {
        "gradients": program(17, temporary=5, aliased=8), "reduce": program(8, results=8), "apply": program(32),
        "reference": program(5, temporary=3), "prepare": program(3, results=1),
    }  # fmt: skip
    moments = {m.program: m.total for m in training_moments(programs, RESIDENT, 2, {})}
    assert moments == {
        "gradients": 28 + 9 + 5,
        "reduce": 28 + 8 + 8,
        "apply": 28 + 8,
        "reference": 28 + 1 + 3,
        "prepare": 29,
    }
    shared = training_moments(programs, RESIDENT, 2, sampler_parts(SAMPLER))
    assert peak(shared).program == "reduce" and peak(shared).total == 44 + 30


def test_a_sampling_card_holds_old_and_new_weights_for_a_while():
    assert sampler_parts(SAMPLER) == {"sampler's weights": 10, "cache": 20}
    moments = {m.program: m.total for m in sampling_moments(SAMPLER, {}, in_turn=False)}
    assert moments == {NEW_WEIGHTS: 40, "decode 64 plain": 31, "take": 32}
    assert peak(sampling_moments(SAMPLER, RESIDENT, in_turn=False)).total == 68
    in_turn = sampling_moments(SAMPLER, RESIDENT, in_turn=True)
    assert in_turn[0].total == 28 + 20 and peak(in_turn).program == "take"
