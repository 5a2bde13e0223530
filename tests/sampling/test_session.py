"""Sessions of a sampler: who shares its lanes and its memory, how they end, and what ends them."""

import dataclasses
import gc
import threading

import jax
import jax.numpy as jnp
import pytest

from rlef_jax.errors import RunError, StoppedError
from rlef_jax.model.sharding import make_mesh
from rlef_jax.sampling.programs import Programs
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.sampling.session import Session
from tests.helpers.toy_sampler import CFG, HOW, PARAMS, SHAPES, WAIT_S, at_once, make_sampler

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("quick_compilation")]

GREEDY = dataclasses.replace(HOW, temperature=0.0)
CUT = dataclasses.replace(HOW, top_p=0.9, top_k=5)


@pytest.fixture(scope="module")
def programs(quick_compilation):
    made = Programs(CFG, SHAPES, make_mesh())
    made.compile()
    return made


def test_dialogues_of_one_response_are_dealt_to_all_lanes(programs):
    """They count until the response is there, not until it is asked for."""
    weights = make_sampler(programs).weights
    session = Session(programs, weights, workers=3, min_ready_fraction=0.0)  # no answers before its threads begin
    dialogues = [session.dialogue(seed=1, step=2, episode=e) for e in range(2)]
    asked = [session.respond(d, [4, 5], HOW, turn=0, last=True) for d in dialogues]
    dialogues += [session.dialogue(seed=1, step=2, episode=e) for e in range(2, 6)]
    assert [d.worker for d in dialogues] == [0, 1, 2, 0, 1, 2]
    with session:
        for future in asked:
            future.result(WAIT_S)
    assert [session.dialogue(seed=1, step=3, episode=e).worker for e in range(2)] == [0, 1]


def test_programs_of_one_kind_of_distribution(programs):
    """ "cut" ones draw from plain distributions too; "plain" ones say that they can't do the other."""
    cut, plain = (Programs(CFG, dataclasses.replace(SHAPES, kinds=(kind,)), make_mesh()) for kind in ("cut", "plain"))
    assert [HOW.kind, GREEDY.kind, CUT.kind, dataclasses.replace(HOW, top_k=2).kind] == ["plain", "cut", "cut", "cut"]
    for how in (HOW, CUT):
        expected, _ = at_once(make_sampler(programs), range(3), how=how)
        drawn, _ = at_once(make_sampler(cut), range(3), how=how)
        for name, (_, sample) in expected.items():
            assert drawn[name][1].ids == sample.ids
            assert drawn[name][1].behavior_logp == pytest.approx(sample.behavior_logp, abs=1e-5)
    assert cut.compiled == programs.compiled - 1
    with make_sampler(plain).session() as session:
        asked = session.respond(session.dialogue(seed=0, step=0, episode=0), [4, 5], CUT, turn=0)
        assert "Shapes.kinds" in str(asked.exception(WAIT_S))


def test_what_breaks_in_a_lane_reaches_everyone(programs):
    broken = Programs(CFG, SHAPES, make_mesh())
    broken.compile()

    def fail(*_):
        raise ZeroDivisionError("the worker broke")

    broken.decode = fail
    with make_sampler(broken, workers=2).session() as session:
        futures = [session.respond(session.dialogue(seed=0, step=0, episode=e), [4, 5], HOW, turn=0) for e in range(8)]
        for future in futures:
            assert isinstance(future.exception(WAIT_S), (ZeroDivisionError, StoppedError))
        late = session.respond(session.dialogue(seed=0, step=0, episode=9), [4], HOW, turn=0)
        assert isinstance(late.exception(WAIT_S), ZeroDivisionError)


def test_a_session_that_ends_leaves_nobody_waiting(programs):
    with make_sampler(programs).session() as session:
        futures = [
            session.respond(session.dialogue(seed=0, step=0, episode=e), [4] * 20, HOW, turn=0) for e in range(200)
        ]
    assert all(future.done() for future in futures)
    unfinished = [future for future in futures if future.exception() is not None]
    assert unfinished and all(isinstance(future.exception(), StoppedError) for future in unfinished)


def caches(programs):
    """The caches on devices: arrays with the shape of a page pool."""
    shape = jax.tree.leaves(programs._abstract_cache())[0].shape
    return [a for a in jax.live_arrays() if a.shape == shape]


def test_a_session_that_ended_leaves_no_cache_and_no_weights(programs):
    """At once, not when the garbage collector comes by: a trainer may need the memory next."""
    sampler = make_sampler(programs)
    gc.collect()
    before = len(jax.live_arrays())
    gc.disable()
    try:
        with sampler.session() as session:
            dialogue = session.dialogue(seed=0, step=0, episode=0)
            session.respond(dialogue, [4, 5], HOW, turn=0, last=True).result(WAIT_S)
            assert caches(programs)
            sampler.set_weights(PARAMS, version=8)
        assert not caches(programs)
        assert len(jax.live_arrays()) == before
    finally:
        gc.enable()


def test_sessions_take_turns_with_the_cache(programs):
    """An evaluation that begins while another thread samples waits for its end."""
    sampler, order = make_sampler(programs), []
    started = threading.Event()

    def evaluate():
        started.set()
        with sampler.session() as session:
            order.append(("second", len(caches(programs)) // per_session))
            session.respond(session.dialogue(seed=0, step=0, episode=1), [4], HOW, turn=0, last=True).result(WAIT_S)

    with sampler.session() as session:
        per_session = len(caches(programs))
        thread = threading.Thread(target=evaluate)
        thread.start()
        started.wait(WAIT_S)
        for episode in range(20):
            dialogue = session.dialogue(seed=0, step=0, episode=episode)
            session.respond(dialogue, [4, 5], HOW, turn=0, last=True).result(WAIT_S)
        order.append(("first", len(caches(programs)) // per_session))
    thread.join(WAIT_S)
    assert order == [("first", 1), ("second", 1)]


def test_nothing_is_sampled_without_weights(programs):
    with pytest.raises(RuntimeError, match="set_weights"), Sampler(programs).session():
        pass


@pytest.mark.parametrize("how", [HOW, GREEDY, CUT], ids=["plain", "greedy", "cut"])
@pytest.mark.parametrize("what", ["one nan", "one inf", "all -inf", "overflow"])
def test_a_policy_that_is_not_finite_ends_the_session(programs, how, what):
    """One entry of the embedding of a token that no prompt holds, a norm, weights that overflow in the layers."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    if what == "one nan":
        params["embed"] = params["embed"].at[2, 3].set(jnp.nan)
    elif what == "one inf":
        params["embed"] = params["embed"].at[2, 3].set(jnp.inf)
    elif what == "all -inf":
        params["final_norm"] = jnp.full_like(params["final_norm"], -jnp.inf)
    else:
        params["layers"]["up"] = params["layers"]["up"] * 1e30
        params["layers"]["down"] = params["layers"]["down"] * 1e30
    sampler = make_sampler(programs, params)
    message = r"log-probabilities are not finite \(weights of version 7, episode [012], turn 1\)"
    with pytest.raises(RunError, match=message) as ended:
        at_once(sampler, range(3), how=how)
    assert len(str(ended.value).splitlines()) == 1
    sampler.set_weights(PARAMS, version=8)  # what was left in caches and rows matters to nobody
    at_once(sampler, range(3), how=how)
