"""An interpreter named by its path, with the packages that are installed for it."""

import subprocess
import sys

import pytest

from rlef_jax.execution.interpreter import InterpreterNotFoundError, find_python
from rlef_jax.execution.isolation import Level
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.worker_factory import trial
from rlef_jax.types import Limits, Status, TestCase

LIMITS = Limits(wall_s=30.0)


@pytest.fixture(scope="module")
def environment(tmp_path_factory, interpreter):
    """A virtual environment of the judge's Python with a package in it."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([interpreter.path, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "adder").mkdir()
    (packages / "adder" / "__init__.py").write_text("from adder.parts import add\n")
    (packages / "adder" / "parts.py").write_text("def add(a, b):\n    return a + b\n")
    return folder


@pytest.mark.parametrize("level", list(Level))
def test_programs_may_import_its_packages(environment, level):
    named = find_python(str(environment / "bin" / "python"))
    if isinstance(reason := trial(level, named), str):
        pytest.skip(f"level {level} is not available here: {reason}")
    program = "import adder\nprint(adder.add(*map(int, input().split())))"
    with ExecutionPool(1, named, level=level.value) as pool:
        (result,) = pool.run(program, [TestCase("3 4\n", "7\n")], LIMITS).result(60)
        assert result.status is Status.PASSED, result
        spoiling = "import adder, os\nopen(os.path.dirname(adder.__file__) + '/parts.py', 'a')"
        (result,) = pool.run(spoiling, [TestCase("", "")], LIMITS).result(60)
        assert result.status is Status.RUNTIME_ERROR


def test_a_version_has_the_standard_library_only(environment, pool):
    assert find_python("3.10").packages == ()
    (result,) = pool.run("import adder", [TestCase("", "")], LIMITS).result(60)
    assert "ModuleNotFoundError: No module named 'adder'" in result.error


@pytest.mark.parametrize("path", ["/no/such/python", "/bin/true", "~/no/such/python"])
def test_a_path_that_is_no_python_is_refused_by_name(path):
    with pytest.raises(
        InterpreterNotFoundError, match="execution.python: .*(no/such/python|/bin/true) is not a Python"
    ):
        find_python(path)


@pytest.mark.slow
def test_numpy(tmp_path, interpreter):
    """The real NumPy, from the package index: imported once per program, with random numbers seeded by the input."""
    subprocess.run([interpreter.path, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "numpy"]
    if (process := subprocess.run(pip, capture_output=True, text=True)).returncode:
        pytest.skip(f"no numpy for {sys.executable}'s judge here: {process.stderr[-200:]}")
    program = (
        "import numpy as np\nn = np.array(list(map(int, input().split())))\nx = np.random.rand(50, 50)\n"
        "assert np.allclose(np.linalg.inv(x) @ x, np.eye(50), atol=1e-6)\nprint(n.sum(), x[0, 0])"
    )
    with ExecutionPool(2, find_python(str(python))) as pool:
        tests = [TestCase("3 4\n", ""), TestCase("3 5\n", ""), TestCase("3 4\n", "")]
        first, other, again = (r.stdout for r in pool.run(program, tests, LIMITS).result(60))
    assert first == again != other and first.startswith("7 ") and other.startswith("8 ")
