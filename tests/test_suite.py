"""The suite itself: a module's tests are found by its name, long files start first, old compiled programs make room."""

import os
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import compiled, longest_first

TESTS = Path(__file__).parent
# Of no module: the documentation, launchers, a benchmark, the package's layers, what any input may do, and this file.
OF_ALL = {"test_docs", "test_fuzz", "test_gpu_check", "test_launch", "test_layers", "test_suite"}


def test_a_test_file_is_named_by_its_module():
    """tests/model/test_kv_cache.py or test_kv_cache_ANYTHING.py is of rlef_jax/model/kv_cache.py, or a package."""
    package = TESTS.parent / "rlef_jax"
    modules = {p.with_suffix("") for p in package.rglob("*") if p.suffix == ".py" or p.is_dir()}
    for path in TESTS.rglob("test_*.py"):
        if path.parent.name in ("gpu_compile", "tpu_compile"):  # of whole runs' programs
            continue
        words = path.stem.removeprefix("test_").split("_")
        names = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
        tested = {package / path.parent.relative_to(TESTS) / name for name in names} & modules
        assert tested or path.stem in OF_ALL, (
            f"{path} is of no module: name it test_MODULE.py or test_MODULE_ANYTHING.py"
        )


def test_files_are_ordered_by_their_last_time_and_marked_ones_where_there_is_none():
    def item(node, *marks):
        return types.SimpleNamespace(nodeid=node, get_closest_marker=lambda name: name in marks)

    items = [item("a::1"), item("b::1"), item("b::2"), item("c::1"), item("d::1"), item("d::2", "long")]
    longest_first.order(items, {"a": 3.0, "c": 40.0})
    assert [i.nodeid for i in items] == ["c::1", "d::1", "d::2", "a::1", "b::1", "b::2"]


def test_times_are_kept_from_run_to_run(tmp_path):
    path = tmp_path / "kept" / "seconds.json"
    assert longest_first.timed(path) == {}
    for run in ({"a": 1.0, "b": 2.0}, {"b": 5.0}):
        longest_first.keep(run, path)
    assert longest_first.timed(path) == {"a": 1.0, "b": 5.0}
    path.write_text("{")
    assert longest_first.timed(path) == {}


def test_the_oldest_programs_are_deleted_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).mkdir()
        entry = tmp_path / name / "x-cache"
        entry.write_bytes(bytes(10))
        os.utime(entry, (1e9 - age, 1e9 - age))
    compiled.prune(tmp_path, most=20)
    assert sorted(p.parent.name for p in tmp_path.glob("*/*-cache")) == ["middle", "new"]


def test_a_program_that_another_process_has_half_written_is_compiled():
    def of_this_test_alone(x):
        return jnp.sin(x) * 3.25

    jax.jit(of_this_test_alone)(1.0)
    entries = list(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("jit_of_this_test_alone-*-cache"))
    assert entries
    for path in entries:
        path.write_bytes(path.read_bytes()[:50])
    jax.clear_caches()
    np.testing.assert_allclose(jax.jit(of_this_test_alone)(1.0), 3.25 * np.sin(1.0), rtol=1e-6)
    for path in entries:
        path.unlink()  # nobody replaces it
