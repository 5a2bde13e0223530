"""Saved episodes come back equal in every field, whatever a program printed."""

import dataclasses
import gzip
import json
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rlef_jax.errors import ConfigError, RunError
from rlef_jax.training.episode_io import episodes_path, read_episodes, saved_steps, write_episodes
from rlef_jax.types import Episode, FunctionTest, Problem, Status, TestCase, TestResult, Turn, Verdict

TEXT = st.text(alphabet=st.characters(), max_size=20)  # lone surrogates included: programs print any bytes
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | FLOATS
    | TEXT
    | st.binary(max_size=4)
    | st.sets(st.integers(), max_size=1),
    lambda inner: (
        st.lists(inner, max_size=2) | st.tuples(inner, inner) | st.dictionaries(st.integers(), inner, max_size=1)
    ),
    max_leaves=3,
)
FUNCTION_TESTS = st.builds(
    FunctionTest,
    entry_point=TEXT,
    calls=st.lists(st.tuples(VALUES, VALUES), max_size=2).map(tuple),
    expected=st.lists(VALUES, max_size=2).map(tuple),
    atol=FLOATS,
    compare=TEXT,
    text=TEXT,
    check=st.just(()) | st.tuples(TEXT, TEXT),
)
TESTS = st.lists(st.builds(TestCase, input=TEXT, output=TEXT) | FUNCTION_TESTS, max_size=2).map(tuple)
RESULTS = st.lists(
    st.builds(
        TestResult,
        status=st.sampled_from(Status),
        stdout=TEXT,
        error=TEXT,
        exit_code=st.none() | st.integers(-64, 255),
        cpu_s=FLOATS,
        wall_s=FLOATS,
        memory_bytes=st.integers(0, 2**40),
    ),
    max_size=2,
).map(tuple)
VERDICTS = st.none() | st.builds(Verdict, status=st.sampled_from(Status), public=RESULTS, hidden=RESULTS)
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
TURNS = st.builds(
    Turn,
    prompt_delta_ids=IDS,
    response_ids=IDS,
    behavior_logp=st.lists(FLOATS, max_size=4).map(tuple),
    policy_version=IDS,
    finish_reason=st.sampled_from(["stop", "length"]),
    verdict=VERDICTS,
    restart=st.booleans(),
)
PROBLEMS = st.builds(
    Problem,
    name=TEXT,
    description=TEXT,
    public_tests=TESTS,
    private_tests=TESTS,
    generated_tests=TESTS,
    solutions=st.lists(TEXT, max_size=2).map(tuple),
    incorrect_solutions=st.lists(TEXT, max_size=2).map(tuple),
    time_limit_s=st.none() | FLOATS,
    memory_limit_bytes=st.none() | st.integers(0, 2**40),
    style=TEXT,
    start=TEXT,
    shown_tests=st.lists(TEXT, max_size=2).map(tuple),
    frame=st.just(()) | st.tuples(TEXT, TEXT),
    tags=st.dictionaries(TEXT, TEXT | st.integers() | st.lists(st.integers(), max_size=2).map(tuple), max_size=2),
)
EPISODES = st.builds(
    Episode,
    problem=PROBLEMS,
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**6),
    index=st.integers(0, 10**6),
    turns=st.lists(TURNS, max_size=2).map(tuple),
    end=st.sampled_from(["", "public_passed", "turn_limit", "context", "infra"]),
)


@hypothesis.given(st.lists(EPISODES, max_size=2))
@hypothesis.settings(max_examples=60)
def test_round_trip_is_exact(tmp_path_factory, episodes):
    path = tmp_path_factory.mktemp("episodes") / "e.jsonl.gz"
    write_episodes(path, episodes)
    back = read_episodes(path)
    assert back == episodes
    # Equality holds between an enum and its string, and between 1 and 1.0: the types must match too.
    assert repr(back) == repr(list(episodes))


def test_strategies_cover_every_field():
    """A field added to the vocabulary must be added to this test, or it would not be known to come back."""
    for strategy, cls in ((EPISODES, Episode), (PROBLEMS, Problem), (TURNS, Turn), (FUNCTION_TESTS, FunctionTest)):
        assert set(strategy.wrapped_strategy.kwargs) == {f.name for f in dataclasses.fields(cls)}


def simple_episode(logp):
    problem = Problem("p", "d", (TestCase("1", "2"),), ())
    return Episode(problem, 0, 1, 2, (Turn((1,), (2,), (logp,), (0,), "stop"),), "turn_limit")


def test_numpy_numbers_come_back_as_equal_numbers(tmp_path):
    write_episodes(tmp_path / "e.gz", [simple_episode(np.float32(-0.1))])
    (value,) = read_episodes(tmp_path / "e.gz")[0].turns[0].behavior_logp
    assert type(value) is float and np.float32(value) == np.float32(-0.1)
    assert value != -0.1  # the float32, not a rounded print of it


def test_equal_episodes_make_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_episodes(tmp_path / name, [simple_episode(-math.pi)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = episodes_path(tmp_path, 7)
    write_episodes(path, [simple_episode(-1.0)])

    def broken():
        yield simple_episode(-2.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_episodes(path, broken())
    assert read_episodes(path) == [simple_episode(-1.0)]
    assert saved_steps(tmp_path) == [7]


def test_episodes_of_earlier_versions_can_be_read(tmp_path):
    """They know no function problems."""
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, [simple_episode(-1.0)])
    row = json.loads(gzip.decompress(path.read_bytes()))
    for name in ("style", "start", "shown_tests"):
        del row["problem"][name]
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert read_episodes(path) == [simple_episode(-1.0)]
    del row["problem"]["name"]
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    with pytest.raises(ConfigError, match="not the fields of Problem"):
        read_episodes(path)


def test_episodes_of_a_problem_share_it(tmp_path):
    write_episodes(tmp_path / "e.gz", [simple_episode(-1.0), simple_episode(-2.0)])
    one, other = read_episodes(tmp_path / "e.gz")
    assert one.problem is other.problem


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
@pytest.mark.parametrize("where", ["logp", "seconds", "problem"])
def test_what_is_no_number_is_not_written(tmp_path, value, where):
    """JSON has no NaN: in a token's log-probability, a judge's measurement, a problem's tag."""
    result = TestResult(Status.PASSED, wall_s=value if where == "seconds" else 1.0)
    turn = Turn((1,), (2,), (value if where == "logp" else -1.0,), (0,), "stop", Verdict(Status.PASSED, (result,)))
    problem = Problem("p", "", (), (), tags={"rating": value} if where == "problem" else {})
    good, path = simple_episode(-1.0), tmp_path / "x.jsonl.gz"
    write_episodes(path, [good])
    with pytest.raises(RunError, match=r"x\.jsonl\.gz was not written: Out of range float values"):
        write_episodes(path, [good, Episode(problem, 0, 0, 1, (turn,), "turn_limit")])
    assert read_episodes(path) == [good] and [p.name for p in tmp_path.iterdir()] == ["x.jsonl.gz"]
