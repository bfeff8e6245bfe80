"""Programs as few kernels: the same numbers, nothing lost where a kernel cannot hold an operation."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from thetadot.driver import kernels, programs
from thetadot.driver.kernels import fits, in_few_kernels, is_supported
from thetadot.driver.programs import compiled

supported = pytest.mark.skipif(not is_supported(), reason="for XLA's compiler for CPUs in jaxlib 0.10 only")
X = jnp.sin(jnp.arange(12.0) ** 2).reshape(4, 3)


def straight(x):
    """Elementwise, a product, reductions, shapes."""
    y = jnp.tanh(x @ x.T) + jnp.arange(4.0)[None]
    return jax.nn.softmax(y) @ x, jnp.sum(y**2, axis=0), y > 0


def looped(x):
    """A loop of known and one of unknown length, with a branch, that hold nothing but arithmetic."""
    x = jax.lax.fori_loop(0, 3, lambda i, x: x + i * jnp.cos(x), x)
    x = jax.lax.while_loop(lambda x: jnp.sum(x**2) > 1, lambda x: 0.7 * x, x)
    return jax.lax.cond(x[0, 0] > 0, jnp.sin, lambda x: x + 1, x)


def with_lapack(x):
    """Decompositions inside a loop, a branch and a call."""

    def body(carry):
        i, x = carry
        q, r = jnp.linalg.qr(x)
        x = jax.lax.cond(i % 2 == 0, lambda x: x + jnp.linalg.svd(x)[1][None], lambda x: x - 1, q * jnp.sum(r))
        return i + 1, jnp.sort(x, axis=0)

    values, vectors = jax.lax.while_loop(lambda carry: carry[0] < 4, body, (0, x))
    return values, vectors, jax.jit(lambda x: jnp.linalg.eigvalsh(x.T @ x) + 1)(x)


def scanned(x):
    """A loop over rows that scatters, in both directions."""

    def step(carry, row):
        carry = carry.at[jnp.argmax(row)].add(jnp.sum(row))
        return carry, jnp.exp(carry) + 1

    carry, rows = jax.lax.scan(step, x[0], x)
    return carry, rows, jax.lax.scan(step, carry, x, reverse=True)[1]


def with_constants(x):
    """Arguments of a run that are constants, one of no consequence, and some used twice."""
    table, none = jnp.asarray(np.arange(36.0).reshape(3, 12)), jnp.zeros(())

    def body(i, x):
        x = jnp.sort(x + none * i, axis=1) + table[i % 3].reshape(4, 3) * 1e-2
        return x * jnp.cos(x) + x

    return jax.lax.fori_loop(0, 5, body, x), none, 2.0


def of_other_dtypes(x):
    """Integers, booleans, single precision and random keys."""
    bits = (x > 0).astype(jnp.int32) * 3 + jax.random.randint(jax.random.key(0), x.shape, 0, 5, jnp.int32)
    return bits, jnp.any(bits > 3, axis=0), (x.astype(jnp.float32) * 2).sum(), jnp.zeros((0, 3)) + x[:0]


def lanes(x):
    """Loops of different lengths under one `vmap`."""
    return jax.vmap(lambda row: jax.lax.while_loop(lambda r: r[0] < 5, lambda r: jnp.sort(r * r + 1.1), row))(x)


def products(x):
    """Every order of the axes, in a loop, in batches and with vectors."""

    def body(i, x):
        y = x @ x.T @ x + (x.T @ x) @ x[:3].T @ jnp.ones((3, 3)) * i if x.shape[0] == 3 else x
        z = jnp.einsum("ij,kj->ik", y, y) @ y + jnp.einsum("ij,j->i", x, x[0])[:, None]
        batches = jnp.stack([x, y, z])
        return 0.1 * (z + jnp.einsum("bij,bkj,bkl->il", batches, batches, batches))

    return jax.lax.fori_loop(0, 3, body, x), jnp.einsum("ij,ij->", x, x), jnp.einsum("ij,kl->ijkl", x, x)


FUNCTIONS = [straight, products, looped, with_lapack, scanned, with_constants, of_other_dtypes, lanes]


def compile_few(fn, *args):
    """As the loops are compiled."""
    options = {**programs._QUICKLY, **programs._OWN_PRODUCTS}
    return jax.jit(in_few_kernels(fn), compiler_options=options).lower(*args).compile()


def num_marked(program):
    """Calls in a compiled program that are one kernel, made by us."""
    return sum(" call(" in line and "inlineable" in line for line in program.as_text().splitlines())


@supported
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_nothing_changes_but_the_number_of_kernels(fn):
    expected, program = jax.jit(fn)(X), compile_few(fn, X)
    assert num_marked(program) > 0
    for found, right in zip(jax.tree.leaves(program(X)), jax.tree.leaves(expected), strict=True):
        assert (found.shape, found.dtype) == (right.shape, right.dtype)
        rtol = 1e-5 if found.dtype == jnp.float32 else 1e-12  # sums in another order
        np.testing.assert_allclose(found, right, rtol=rtol, atol=1e-13)


@supported
def test_a_step_of_a_flow_is_a_dozen_kernels(monkeypatch):
    """The loop around an eigendecomposition: thunks in its body, with and without marks."""

    def steps(x):
        def body(i, x):
            vectors = jnp.linalg.eigh(x @ x.T)[1]
            for _ in range(20):
                vectors = jnp.tanh(vectors @ vectors) + jnp.mean(vectors, axis=0, keepdims=True)
            return x + 1e-3 * vectors @ x

        return jax.lax.fori_loop(0, 7, body, x)

    def kernels_in_body(program):
        text = program.as_text()
        body = next(part for part in text.split("\n\n") if "lapack_dsyevd" in part)
        return sum(any(f" {op}(" in line for op in ("fusion", "dot", "call", "reduce")) for line in body.splitlines())

    few = kernels_in_body(compile_few(steps, X))
    monkeypatch.setattr(kernels, "_FEWEST", 10_000)
    many = kernels_in_body(compile_few(steps, X))
    assert few <= 6 < 40 <= many


def test_what_a_kernel_cannot_hold():
    """Sorting, LAPACK and scattering, wherever they are; large arrays and large products; keys."""

    def fit(fn, *args):
        return all(fits(equation) for equation in jax.make_jaxpr(fn)(*args).jaxpr.eqns)

    assert fit(jnp.sin, X) and fit(lambda x: x @ x.T, X) and fit(looped, X)
    assert not fit(jax.lax.sort, X)
    assert not fit(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 0, jax.lax.sort, x), X)
    assert not fit(jax.lax.linalg.cholesky, jnp.eye(3))
    assert not fit(lambda x: x.at[0].add(1.0), X)
    assert not fit(jnp.sin, jnp.zeros(2**17)) and not fit(jnp.sin, jnp.zeros(0))
    assert not fit(lambda x: x @ x, jnp.eye(32)) and fit(lambda x: x @ x, jnp.eye(8))
    assert fit(lambda x: x @ x[0], jnp.eye(64))
    assert not fit(jnp.sin, X.astype(complex))


def test_what_happens_in_an_order_stays_in_it():
    seen = []

    def fn(x):
        jax.debug.callback(lambda x: seen.append(float(x)), x[0, 0], ordered=True)
        jax.debug.callback(lambda x: seen.append(float(x)), x[0, 1], ordered=True)
        return x + 1

    jax.block_until_ready(jax.jit(in_few_kernels(fn))(X))
    jax.effects_barrier()
    assert seen == [float(X[0, 0]), float(X[0, 1])]


def test_what_is_no_array_passes_through():
    class Settings(eqx.Module):
        factor: float = eqx.field(static=True)
        offset: jax.Array

    def fn(settings, x, name="sum"):
        return {"x": settings.factor * x + settings.offset, "name": name}, settings

    out, settings = in_few_kernels(fn)(Settings(2.0, jnp.array(1.0)), X, name="mean")
    assert out["name"] == "mean" and settings.factor == 2.0
    np.testing.assert_array_equal(out["x"], 2 * X + 1)


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "off")
    assert not is_supported()
    assert compiled.__wrapped__(straight, small=True, loops=True).__wrapped__ is straight


def test_another_version_of_xla_is_left_alone(monkeypatch):
    monkeypatch.setattr(kernels, "version", lambda name: "0.11.0")
    assert not is_supported()


@supported
def test_what_xla_refuses_is_compiled_as_it_is(monkeypatch):
    """Once, and then never tried again; another function is."""
    tried = []

    def refuse(fn):
        def call(problem, x):
            tried.append(problem.loss_fn)
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: a kernel of this")

        return call

    monkeypatch.setattr(programs, "in_few_kernels", refuse)
    program = compiled.__wrapped__(lambda problem, x: problem.loss(x), small=True, loops=True)
    one, two = (td.Problem(lambda x, data, i=i: i * jnp.sum(x)) for i in (1.0, 2.0))
    for problem in (one, one, two):
        np.testing.assert_allclose(program(problem, X), problem.loss(X), rtol=1e-12)
    assert tried == [one.loss_fn, two.loss_fn]


@supported
def test_a_loss_whose_parts_xla_would_share_among_threads():
    """A long polynomial of a thousand numbers: worth two threads to XLA, which a kernel cannot use."""

    def loss(params, data):
        x = params * data
        for _ in range(60):
            x = 0.5 * x * (1 - x) + 0.25 * params
        return jnp.sum(x**2)

    problem = td.Problem(loss, jnp.linspace(0.5, 1, 1000))
    params0 = jnp.full(1000, 0.1)
    traj = td.gradient_flow(problem, params0, t1=0.1, rtol=1e-4)
    same = td.gradient_flow(problem, params0, t1=0.1, rtol=1e-4, solver="tsit5")
    assert traj.status == same.status == "done"
    np.testing.assert_allclose(traj.params1, same.params1, rtol=1e-4)


WITH_TABLES = """
import jax
import jax.numpy as jnp
import thetadot as td
from thetadot.driver import kernels
jax.config.update("jax_enable_x64", True)
{change}
def loss(x, curvature):
    return 0.5 * x @ (curvature * x)
problem = td.Problem(loss, jnp.array([1.0, -0.5]))
print(td.gradient_flow(problem, jnp.array([1.0, 1e-3]), 3.0, solver="stabilized", rtol=1e-4).status)
"""
CHANGES = {
    "nothing": "",
    "no barrier": "kernels.jax.lax.optimization_barrier = lambda args: args",
}


@supported
@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_why_a_barrier_is_needed(change):
    """Negative control: without it the tables of RKC2 take the place of arguments, and XLA ends the process."""
    script = WITH_TABLES.format(change=CHANGES[change])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0 and done.stdout == "done\n") == (change == "nothing")
