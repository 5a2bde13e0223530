"""Programs that attack the judge: as root at the best level of isolation here, and as an ordinary user.

Each runs in a pool of its own. Then the test checks that its verdict came in time, that the next program's verdict is
correct, and that canary files, listeners and processes are as before. See `tests/helpers/hostile_programs.py`.
"""

import json
import os
import subprocess
import sys

import pytest

from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.isolation import Level
from rlef_jax.execution.worker_factory import trial
from tests.helpers.hostile_programs import ATTEMPTS, BOMBS, LIARS
from tests.helpers.hostile_run import Range

NAMES = (*ATTEMPTS, *BOMBS, *LIARS)
NOBODY = 65534


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    range_ = Range(tmp_path_factory.mktemp("hostile"), "")
    yield range_
    range_.close()


def test_there_are_enough_of_them():
    assert len(NAMES) >= 60 and len(set(NAMES)) == len(ATTEMPTS) + len(BOMBS) + len(LIARS)


@pytest.mark.parametrize("name", NAMES)
def test_does_no_harm(place, name):
    assert place.try_program(name) == ""


def run_suite(level, uid):
    """Runs the whole suite in a process of user `uid`. Returns {program: problems}."""
    command = [sys.executable, "-m", "tests.helpers.hostile_run", level]
    if uid:
        command = [sys.executable, "-m", "tests.helpers.as_user", str(uid), *command]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_does_no_harm_as_an_ordinary_user():
    wrong = run_suite("", NOBODY)
    assert set(wrong) == set(NAMES)
    assert not {name: case for name, case in wrong.items() if case}


LOWER = [("namespaces", 0), ("user", 0), ("process", 0), ("user", NOBODY), ("process", NOBODY)]


def skip_unless_available(level):
    if os.geteuid() != 0:
        pytest.skip("takes root")
    if isinstance(reason := trial(Level(level), find_python("3.10")), str):
        pytest.skip(f"level {level} is not available here: {reason}")


@pytest.mark.slow
@pytest.mark.parametrize(("level", "uid"), LOWER)
def test_does_no_harm_at_lower_levels(level, uid):
    skip_unless_available(level)
    assert not {name: case for name, case in run_suite(level, uid).items() if case}


@pytest.mark.slow
@pytest.mark.parametrize(("level", "uid"), LOWER)
def test_honest_programs_run_at_lower_levels(level, uid):
    """Runs test_program.py at that level and as that user."""
    skip_unless_available(level)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/execution/test_program.py"]
    if uid:
        command = [sys.executable, "-m", "tests.helpers.as_user", str(uid), *command]
    environment = os.environ | {"RLEF_TEST_LEVEL": level}
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert process.returncode == 0, process.stdout[-3000:]
