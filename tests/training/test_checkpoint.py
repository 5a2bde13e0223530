"""Checkpoints come back exactly, keep the newest, and survive a kill halfway through a save."""

import logging
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.training.checkpoint import Checkpoints, DamagedCheckpointError


def make_tree(fill):
    params = {"w": jnp.full((3, 2), fill, jnp.float32), "h": jnp.full((4,), fill / 3, jnp.bfloat16)}
    return {"params": params, "opt": optax.adamw(1e-3).init(params), "step": jnp.int32(fill)}


def save(checkpoints, step, tree, metadata, **kwargs):
    checkpoints.save(step, {"tree": tree}, metadata, **kwargs)
    checkpoints.wait()


def restore(checkpoints, step, like):
    return checkpoints.restore(step, {"tree": like})["tree"]


def stored(checkpoints, step):
    return {k: v for k, v in checkpoints.metadata(step).items() if k not in ("shapes", "hashes")}


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_is_exact(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest is None
        save(checkpoints, 4, make_tree(0.1), {"iteration": 4, "note": "a", "nested": {"x": [1, 2]}})
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = restore(checkpoints, 4, make_tree(9.0))
        assert_equal_trees(restored, make_tree(0.1))
        assert stored(checkpoints, 4) == {"iteration": 4, "note": "a", "nested": {"x": [1, 2]}}


def test_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step, make_tree(float(step)), {})
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.latest == 3
        assert_equal_trees(restore(checkpoints, 2, make_tree(0.0)), make_tree(2.0))


def test_saved_values_do_not_follow_donated_buffers(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"w": jnp.zeros((1000_000,))}
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(5):
            checkpoints.save(step, {"tree": tree}, {})  # no wait: it is being written while the buffers are reused
            saved, tree = tree, bump(tree)
            assert saved["w"].is_deleted()  # a save that held on to the buffers would make every update copy
            tree = bump(tree)
            checkpoints.wait()
            kept = restore(checkpoints, step, {"w": jnp.ones((1000_000,))})["w"]
            np.testing.assert_array_equal(kept, np.full(1000_000, 2.0 * step))


def test_refuses_another_shape_and_what_is_not_there(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, {"w": jnp.zeros((3,))}, {})
        with pytest.raises(ConfigError, match=r"another model: tree\['w'\] is float32\[3\] there, float32\[4\]"):
            restore(checkpoints, 1, {"w": jnp.zeros((4,))})
        with pytest.raises(ConfigError, match=r"\['v'\] is absent there"):
            restore(checkpoints, 1, {"w": jnp.zeros((3,)), "v": jnp.zeros((3,))})
        with pytest.raises(ConfigError, match="int32"):
            restore(checkpoints, 1, {"w": jnp.zeros((3,), jnp.int32)})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint 2 .*\[1\]"):
            restore(checkpoints, 2, {"w": jnp.zeros((3,))})
        with pytest.raises(ValueError, match="exists"):
            save(checkpoints, 1, {"w": jnp.ones((3,))}, {})


def test_keeps_the_best_beside_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, score in ((1, 20.0), (2, 50.0), (3, 50.0), (4, None), (5, 10.0), (6, None), (7, None)):
            save(checkpoints, step, make_tree(float(step)), {}, score=score)
        assert checkpoints.steps() == [3, 6, 7]  # of equals the later is the best


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("seed", range(12))
def test_a_changed_byte_never_comes_back_as_weights(tmp_path, seed):
    """Whichever file of a checkpoint is cut, emptied, removed or changed in a byte: the right weights or an error."""
    tree = {"w": jax.random.normal(jax.random.PRNGKey(0), (64, 33)), "n": jnp.int32(3)}
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, tree, {"iteration": 1})
    rng = np.random.default_rng(seed)
    files = sorted(p for p in (tmp_path / "1").rglob("*") if p.is_file() and p.stat().st_size)
    for path in files[seed % 4 :: 4]:
        good = path.read_bytes()
        at = int(rng.integers(len(good)))
        flipped = good[:at] + bytes([good[at] ^ (1 << int(rng.integers(8)))]) + good[at + 1 :]
        for bad in (flipped, good[:at], b"", None):
            path.unlink() if bad is None else path.write_bytes(bad)
            with Checkpoints(tmp_path, read_only=True) as checkpoints:
                try:
                    assert_equal_trees(restore(checkpoints, 1, tree), tree)
                except (DamagedCheckpointError, FileNotFoundError, ConfigError):
                    pass
            path.write_bytes(good)


def test_reading_leaves_a_save_under_way_alone(tmp_path):
    """An evaluation may look at a run's checkpoints while the run writes one."""
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, {"w": jnp.zeros((3,))}, {})
        unfinished.mkdir()
        with Checkpoints(tmp_path, read_only=True) as reader:
            assert reader.steps() == [1]
        assert unfinished.is_dir()


def test_a_full_disk_is_one_line_and_keeps_the_last_good_one(tmp_path):
    """RLIMIT_FSIZE stands in for a full disk: writes past it fail in the same place."""
    program = """
        import pathlib, resource, signal, sys
        import jax.numpy as jnp, jax
        from rlef_jax.errors import RunError
        from rlef_jax.training.checkpoint import Checkpoints

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        c = Checkpoints(pathlib.Path(sys.argv[1]))
        c.save(1, {"tree": {"w": jnp.zeros((64,))}}, {"good": True})
        c.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            c.save(2, {"tree": {"w": jax.random.normal(jax.random.PRNGKey(0), (1_000_000,))}}, {})
            c.wait()
        except RunError as error:
            print(error)
            sys.exit(7)
        """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    assert "could not be written" in done.stdout and "the last good checkpoint is 1" in done.stdout
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1] and stored(checkpoints, 1) == {"good": True}


def test_a_kill_while_saving_leaves_the_last_good_one(tmp_path):
    """The second save is killed as it reaches its final rename: everything is written, nothing is committed."""
    program = """
        import os, pathlib, signal, sys
        import jax.numpy as jnp
        from rlef_jax.training.checkpoint import Checkpoints

        c = Checkpoints(pathlib.Path(sys.argv[1]))
        c.save(1, {"tree": {"w": jnp.zeros((64,))}}, {"good": True})
        c.wait()
        rename = os.rename
        def die(source, target, *args, **kwargs):
            if str(target).rstrip("/").endswith("/2"):
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(source, target, *args, **kwargs)
        os.rename = die
        pathlib.Path.rename = lambda self, target: die(self, target)
        os.replace = die
        c.save(2, {"tree": {"w": jnp.ones((64,))}}, {"good": False})
        c.wait()
        """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("2")], "the kill came before anything was written"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert stored(checkpoints, 1) == {"good": True}
        save(checkpoints, 2, {"w": jnp.full((64,), 2.0)}, {})
        np.testing.assert_array_equal(restore(checkpoints, 2, {"w": jnp.zeros((64,))})["w"], np.full(64, 2.0))


def test_later_failures_of_a_save_are_silent_and_other_errors_are_not(tmp_path, caplog):
    def log_both():
        for said in ("Task exception was never retrieved", "something else"):
            logging.getLogger("asyncio").error("%s\nfuture: ...", said)
        told = [record.getMessage().partition("\n")[0] for record in caplog.records]
        caplog.clear()
        return told

    with Checkpoints(tmp_path / "checkpoints"):
        assert log_both() == ["something else"]
    assert log_both() == ["Task exception was never retrieved", "something else"]
