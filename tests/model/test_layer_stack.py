"""A stack of layers whose gradients are added to sums in place, against a loop and JAX's own gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.layer_stack import WithTotals, layer_of, run_stack, stretches
from rlef_jax.model.rope import LayerKind

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


KINDS = [LayerKind(1.0, None, window) for window in (0, 0, 8, 8)]


@pytest.mark.parametrize("last", [4, 3, 1])
def test_a_stack_is_cut_where_kinds_and_parameters_change(last):
    """`extra` is one of the last layers; what is frozen isn't cut, and each layer gets its own."""
    stack = {"w": jnp.arange(4.0)[:, None], "extra": 10 * jnp.arange(1.0, last + 1)[:, None]}

    def one(x, layer):
        return 2 * x + layer["w"] * jnp.sum(layer.get("extra", jnp.ones(1)))

    x = jnp.ones(1)
    for index in range(4):
        layer = layer_of(stack, index)
        assert ("extra" in layer) is (index >= 4 - last)
        x = one(x, layer)
    for frozen in ((), ("w",)):
        cut, found = list(stretches(stack, KINDS, lambda name, frozen=frozen: name in frozen)), jnp.ones(1)
        assert len(cut) == {4: 2, 3: 3, 1: 3}[last] and [kind.window for kind, _ in cut][-1] == 8
        for _, part in cut:
            assert all(array is stack["w"] for array in part.whole.values()) and len(part.whole) == len(frozen)
            found = run_stack(one, found, part)
        np.testing.assert_allclose(found, x)
        both = WithTotals(stack, {"extra": jnp.ones_like(stack["extra"])})

        def through(extra, both=both, frozen=frozen):
            y, layers = jnp.ones(1), {**both.layers, "extra": extra}
            for _, part in stretches(WithTotals(layers, both.totals), KINDS, lambda name: name in frozen):
                y = run_stack(one, y, part)
            return jnp.sum(y)

        def plainly(extra):
            y = jnp.ones(1)
            for index in range(4):
                y = one(y, layer_of({**stack, "extra": extra}, index))
            return jnp.sum(y)

        expected = 1 + jax.grad(plainly)(stack["extra"])
        np.testing.assert_allclose(jax.grad(through)(stack["extra"]), expected)
