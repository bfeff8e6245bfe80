"""Programs as few kernels: the same numbers, nothing lost where a kernel cannot hold an operation."""

import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thetadot.compile import compiled, kernels
from thetadot.compile.elsewhere import compile_elsewhere
from thetadot.compile.kernels import fits, in_few_kernels, is_supported
from thetadot.compile.options import OWN_PRODUCTS, SMALL
from thetadot.compile.process import Refused
from thetadot.solvers.stabilized import chebyshev_step

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
    return compile_elsewhere(jax.jit(in_few_kernels(fn)).lower(*args), SMALL | OWN_PRODUCTS)


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
    program = compiled.__wrapped__(straight, small=True, loops=True)
    assert not program._in_few
    assert num_marked(compile_elsewhere(jax.jit(straight).lower(X), {})) == 0


def test_another_version_of_xla_is_left_alone(monkeypatch):
    monkeypatch.setattr(kernels, "version", lambda name: "0.11.0")
    assert not is_supported()


@supported
def test_a_loss_whose_parts_xla_would_share_among_threads():
    """A long polynomial of a thousand numbers: worth two threads to XLA, which a kernel cannot use."""

    def loss(params, data):
        x = params * data
        for _ in range(60):
            x = 0.5 * x * (1 - x) + 0.25 * params
        return jnp.sum(x**2)

    def descend(x, data):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sort(x - 0.1 * jax.grad(loss)(x, data)), x)

    args = jnp.full(1000, 0.1), jnp.linspace(0.5, 1, 1000)
    program = compile_few(descend, *args)
    assert num_marked(program) > 0
    np.testing.assert_allclose(program(*args), jax.jit(descend)(*args), rtol=1e-12)


def curvatures(loss):
    """The eigenvalues of a Hessian, column by column: what a flow asks of a loss before it chooses a rank."""

    def fn(x, data):
        columns = jax.lax.map(lambda v: jax.jvp(jax.grad(lambda x: loss(x, data)), (x,), (v,))[1], jnp.eye(x.size))
        return jnp.linalg.eigvalsh(columns)

    return fn


def switched_off(x, data):
    return 0.5 * jnp.sum((jnp.outer(x, x) - data["target"]) ** 2) + jnp.where(False, data["weight"], 0.0) * jnp.sum(
        x**2
    )


@supported
def test_xla_may_die_of_a_program(caplog, capfd):
    """A regularizer that is switched off: XLA drops an argument, and would end this process without a word."""
    program = compiled.__wrapped__(curvatures(switched_off), small=True, loops=True)
    x, data = jnp.arange(1.0, 4.0), {"target": jnp.eye(3), "weight": jnp.array(0.1)}
    with caplog.at_level("INFO", "thetadot"):
        found = program(x, data)
        np.testing.assert_array_equal(program(x, data), found)
    hessian = jax.hessian(lambda x: switched_off(x, data))(x)
    np.testing.assert_allclose(found, jnp.linalg.eigvalsh(hessian), rtol=1e-12)
    assert len(caplog.records) <= 1  # a later XLA may do it; this one dies, once
    assert capfd.readouterr() == ("", "")


CAMPAIGN = Path(__file__).parents[1] / "benchmarks"
ONE_BY_ONE = """
import json, sys, kernels
for name in sys.argv[1:]:
    print(json.dumps(kernels.one(name)), flush=True)
"""
NATURAL = (
    "switched_off switched_by_where index_of_one slice_of_all unsigned_mask",
    "degree_zero unused_data one_hot broadcast_one empty_slice",
    "stop_gradient scan_layers row_of_one power_zero conv",
    "clip_wide mean_of_one cumulative two_norms softmax",
)


@supported
@pytest.mark.slow
@pytest.mark.parametrize("names", NATURAL)
def test_ordinary_losses_do_not_end_the_process(names):
    """In a process of their own, with kernels and without; the first that has no row has ended it."""
    command = [sys.executable, "-c", ONE_BY_ONE, *names.split()]
    done = subprocess.run(command, cwd=CAMPAIGN, capture_output=True, text=True, timeout=600)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (rows, done.stderr)
    assert [row["name"] for row in rows if row["difference"] < 1e-8] == names.split()


@supported
def test_why_a_barrier_is_needed(monkeypatch):
    """Negative control: without it the tables of RKC2 take the place of arguments, and XLA dies of it."""

    def steps(y):
        def body(i, y):
            def field(c, u):
                return -jnp.array([1.0, -0.5]) * (y + u) + 0 * c

            h, bound = 0.1 + 0.01 * y[0] ** 2, 9.0 + y[1]
            return jnp.sort(y + chebyshev_step(field, field(0, 0.0), h, bound, 50)[0]) + i

        return jax.lax.fori_loop(0, 3, body, y)

    assert num_marked(compile_few(steps, X[0, :2])) > 0
    monkeypatch.setattr(kernels.jax.lax, "optimization_barrier", lambda args: args)
    with pytest.raises(Refused, match="XLA died"):
        compile_few(steps, X[0, :2])
