"""A stack of layers whose gradients are added to sums in place, against a loop and JAX's own gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.layer_stack import WithTotals, run_stack

LAYERS, WIDTH = 3, 4


def run(x, layer):
    return x + jnp.tanh(x @ layer["w"]) * layer["scale"][None, :]


@pytest.fixture
def stack():
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    return {
        "w": jax.random.normal(keys[0], (LAYERS, WIDTH, WIDTH)),
        "scale": jax.random.normal(keys[1], (LAYERS, WIDTH)),
    }


X = np.linspace(-1, 1, 2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)


def loss(stack, x):
    return jnp.sum(run_stack(run, x, stack) ** 2)


def test_the_layers_run_in_order(stack):
    x = jnp.asarray(X)
    for index in range(LAYERS):
        x = run(x, {name: array[index] for name, array in stack.items()})
    np.testing.assert_allclose(run_stack(run, jnp.asarray(X), stack), x, rtol=1e-6)
    totals = jax.tree.map(jnp.zeros_like, stack)
    np.testing.assert_allclose(run_stack(run, jnp.asarray(X), WithTotals(stack, totals)), x, rtol=1e-6)


@pytest.mark.parametrize("trained", [("w", "scale"), ("w",)])
def test_the_gradient_is_the_totals_and_the_gradient(stack, trained):
    x = jnp.asarray(X)
    totals = {name: jnp.arange(stack[name].size, dtype=jnp.float32).reshape(stack[name].shape) for name in trained}
    d_stack, d_x = jax.grad(loss, (0, 1))(stack, x)

    @jax.jit
    def with_totals(own, totals, x):
        return jax.grad(lambda own, x: loss(WithTotals({**stack, **own}, totals), x), (0, 1))(own, x)

    added, added_x = with_totals({name: stack[name] for name in trained}, totals, x)
    np.testing.assert_allclose(added_x, d_x, rtol=1e-5, atol=1e-6)
    for name in trained:
        assert float(jnp.abs(d_stack[name]).max()) > 0.1
        np.testing.assert_allclose(added[name], totals[name] + d_stack[name], rtol=1e-5, atol=1e-5)
