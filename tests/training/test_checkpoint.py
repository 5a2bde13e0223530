"""Checkpoints come back exactly, keep the newest, and survive a kill halfway through a save."""

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

from rlef_jax.training.checkpoint import Checkpoints


def make_tree(fill):
    params = {"w": jnp.full((3, 2), fill, jnp.float32), "h": jnp.full((4,), fill / 3, jnp.bfloat16)}
    return {"params": params, "opt": optax.adamw(1e-3).init(params), "step": jnp.int32(fill)}


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_is_exact(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(4, make_tree(0.1), {"iteration": 4, "note": "a", "nested": {"x": [1, 2]}})
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(4, make_tree(9.0))
        assert_equal_trees(restored, make_tree(0.1))
        assert checkpoints.metadata(4) == {"iteration": 4, "note": "a", "nested": {"x": [1, 2]}}


def test_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_tree(float(step)), {})
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.latest == 3
        assert_equal_trees(checkpoints.restore(2, make_tree(0.0)), make_tree(2.0))


def test_saved_values_do_not_follow_donated_buffers(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"w": jnp.zeros((1000,))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        bump(tree)
        np.testing.assert_array_equal(checkpoints.restore(1, {"w": jnp.ones((1000,))})["w"], np.zeros(1000))


def test_refuses_another_shape_and_what_is_not_there(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros((3,))}, {})
        with pytest.raises(ValueError):
            checkpoints.restore(1, {"w": jnp.zeros((4,))})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint 2 .*\[1\]"):
            checkpoints.restore(2, {"w": jnp.zeros((3,))})
        with pytest.raises(ValueError, match="exists"):
            checkpoints.save(1, {"w": jnp.ones((3,))}, {})


def test_a_kill_while_saving_leaves_the_last_good_one(tmp_path):
    """The second save is killed as it reaches its final rename: everything is written, nothing is committed."""
    program = """
        import os, pathlib, signal, sys
        import jax.numpy as jnp
        from rlef_jax.training.checkpoint import Checkpoints

        c = Checkpoints(pathlib.Path(sys.argv[1]))
        c.save(1, {"w": jnp.zeros((64,))}, {"good": True})
        rename = os.rename
        def die(source, target, *args, **kwargs):
            if str(target).rstrip("/").endswith("/2"):
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(source, target, *args, **kwargs)
        os.rename = die
        pathlib.Path.rename = lambda self, target: die(self, target)
        os.replace = die
        c.save(2, {"w": jnp.ones((64,))}, {"good": False})
        """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("2")], "the kill came before anything was written"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.metadata(1) == {"good": True}
        checkpoints.save(2, {"w": jnp.full((64,), 2.0)}, {})
        np.testing.assert_array_equal(checkpoints.restore(2, {"w": jnp.zeros((64,))})["w"], np.full(64, 2.0))
