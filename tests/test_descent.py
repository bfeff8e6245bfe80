"""Discrete training against hand-written loops, its clock, its ways to end, and its distance to the flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import thetadot as td
from flows import aligned_layers, linear_problem
from thetadot.descent import OPTIMIZERS

CURVATURES = np.array([1.0, 3.0])


def bowl(params, data):
    return 0.5 * jnp.sum(data * jnp.square(params["x"]))


def position(params, data):
    del data
    return params["x"]


PROBLEM = td.Problem(bowl, CURVATURES)
START = {"x": jnp.array([1.0, -2.0])}
WATCHED = {"x": position}


def train(num_steps=20, learning_rate=0.1, optimizer: object = None, save_every=1, problem=PROBLEM):
    return td.descent(problem, START, num_steps, learning_rate, optimizer, WATCHED, save_every)  # pyright: ignore


# --- against loops in NumPy ---


def gradient_steps(grad, x, rate, num_steps):
    xs = [x]
    for _ in range(num_steps):
        xs.append(xs[-1] - rate * grad(xs[-1]))
    return np.array(xs)


def momentum_steps(grad, x, rate, num_steps, decay=0.9):
    xs, velocity = [x], np.zeros_like(x)
    for _ in range(num_steps):
        velocity = decay * velocity + grad(xs[-1])
        xs.append(xs[-1] - rate * velocity)
    return np.array(xs)


def adam_steps(grad, x, rate, num_steps, weight_decay=0.0):
    xs, mean, square = [x], np.zeros_like(x), np.zeros_like(x)
    for k in range(1, num_steps + 1):
        g = grad(xs[-1])
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        step = mean / (1 - 0.9**k) / (np.sqrt(square / (1 - 0.999**k)) + 1e-8)
        xs.append(xs[-1] - rate * (step + weight_decay * xs[-1]))
    return np.array(xs)


LOOPS = {
    "gradient": gradient_steps,
    "momentum": momentum_steps,
    "adam": adam_steps,
    "adamw": functools.partial(adam_steps, weight_decay=1e-4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_is_that_of_a_loop(name):
    traj = train(optimizer=name)
    xs = LOOPS[name](lambda x: CURVATURES * x, np.asarray(START["x"]), 0.1, 20)
    np.testing.assert_allclose(traj["x"], xs, rtol=1e-10)
    np.testing.assert_allclose(traj.params1["x"], xs[-1], rtol=1e-10)
    np.testing.assert_allclose(traj["loss"], 0.5 * np.sum(CURVATURES * xs**2, axis=1), rtol=1e-9)
    np.testing.assert_allclose(traj["grad_norm"], np.linalg.norm(CURVATURES * xs, axis=1), rtol=1e-9)
    work = np.sum(CURVATURES * xs[:-1] * np.diff(xs, axis=0), axis=1)
    np.testing.assert_allclose(traj["dissipation"], -np.append(0.0, np.cumsum(work)), rtol=1e-9, atol=1e-12)
    assert traj.status == "done" and traj.stats["num_rises"] == np.sum(np.diff(traj["loss"]) > 0)
    assert (traj.stats["num_rises"] > 0) == (name == "momentum")  # it swings past the bottom of the bowl


def test_transformations_of_optax_are_taken_as_they_are():
    decayed = functools.partial(optax.adamw, weight_decay=0.3)
    xs = adam_steps(lambda x: CURVATURES * x, np.asarray(START["x"]), 0.1, 20, weight_decay=0.3)
    np.testing.assert_allclose(train(optimizer=decayed)["x"], xs, rtol=1e-10)
    own_rate = train(optimizer=optax.adamw(0.1, weight_decay=0.3), learning_rate=2.0)
    np.testing.assert_allclose(own_rate["x"], xs, rtol=1e-10)
    assert own_rate.ts[-1] == 40.0  # the clock is what `learning_rate` says
    assert "adamw(weight_decay=0.3)" in repr(train(optimizer=decayed))


def test_float32_parameters_stay_float32():
    with jax.numpy_dtype_promotion("standard"):
        start = {"x": jnp.array([1.0, -2.0], jnp.float32)}
        traj = td.descent(td.Problem(bowl, np.array([1.0, 3.0], np.float32)), start, 3, 0.1, "adamw")
    assert traj.params1["x"].dtype == jnp.float32


# --- the clock and the rows ---


def test_time_is_the_learning_rate_times_the_step():
    every = train(20, 0.1)
    np.testing.assert_allclose(every.ts, 0.1 * np.arange(21), rtol=1e-15)
    some = train(20, 0.1, save_every=6)
    np.testing.assert_allclose(some.ts, 0.1 * np.array([0, 6, 12, 18, 20]), rtol=1e-15)
    np.testing.assert_array_equal(some["x"], every["x"][[0, 6, 12, 18, 20]])


def test_long_training_is_cut_into_chunks_without_a_seam():
    traj = train(700, 0.01)
    expected = gradient_steps(lambda x: CURVATURES * x, np.asarray(START["x"]), 0.01, 700)
    np.testing.assert_allclose(traj["x"], expected, rtol=1e-9)
    assert traj.stats["num_steps"] == 700 and len(traj.ts) == 701


def test_a_trajectory_like_any_other(tmp_path):
    traj = train()
    traj.save(tmp_path / "run.zarr")
    again = td.load(tmp_path / "run.zarr")
    np.testing.assert_array_equal(again["x"], traj["x"])
    assert "learning rate 0.1" in repr(again) and "gradient descent" in repr(again)
    assert traj.to_xarray().sizes["t"] == 21


traces = 0


def counted(params, data):
    global traces
    traces += 1
    return bowl(params, data)


def test_other_rates_data_and_lengths_compile_nothing():
    train(20, 0.1, problem=td.Problem(counted, CURVATURES))
    before = traces
    train(19, 0.05, problem=td.Problem(counted, 2 * CURVATURES))
    assert traces == before > 0


# --- ways to end ---


def test_divergence_is_a_result():
    """Beyond 2/λ₁ = 2/3 the second coordinate doubles with every step until its square overflows."""
    traj = train(5000, 1.0, save_every=100)
    assert traj.status == "diverged" and "Lower `learning_rate`" in traj.result
    assert np.all(np.isfinite(traj["loss"])) and np.all(np.isfinite(traj.params1["x"]))
    # ‖∇L‖² = (2 · 2^k · 3)² overflows at k = 510: the last finite state has a row, and so has every hundredth.
    np.testing.assert_array_equal(traj.ts, [0, 100, 200, 300, 400, 500, traj.stats["num_steps"]])
    assert traj.stats["num_steps"] == traj.stats["num_rises"] == 509


def test_a_loss_that_rises_is_mentioned():
    assert "the loss rose in 20 of them" in train(20, 0.7).result
    assert "rose" not in train(20, 0.1).result


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"num_steps": 0}, r"`descent\(num_steps=\.\.\.\)` must be a whole number, at least 1; got 0"),
        ({"save_every": -2}, r"`descent\(save_every=\.\.\.\)` must be a whole number, at least 1; got -2"),
        ({"learning_rate": -0.1}, r"`descent\(learning_rate=\.\.\.\)` must be a positive, finite number; got -0.1"),
        ({"optimizer": "lion"}, "there is no optimizer called 'lion': choose among gradient, momentum, adam, adamw"),
    ],
)
def test_mistakes(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(**options)


def test_names_that_are_taken():
    with pytest.raises(ValueError, match="`observables` may not be called loss"):
        td.descent(PROBLEM, START, 3, 0.1, observables={"loss": position})
    with pytest.raises(ValueError, match="the loss at `params0` is inf"):
        td.descent(PROBLEM, {"x": jnp.array([1e200, 0.0])}, 3, 0.1)


# --- beside the flow ---


@pytest.mark.slow
def test_distance_to_the_flow_of_a_bowl():
    """Both are known: (1 − ηa)^k against e^{−aηk}. Halving η halves the distance, up to terms in η²."""
    distances = []
    for rate in (0.05, 0.025):
        steps = np.arange(round(2 / rate) + 1)[:, None]
        apart = (1 - rate * CURVATURES) ** steps - np.exp(-rate * steps * CURVATURES)
        expected = np.max(np.linalg.norm(apart * np.asarray(START["x"]), axis=1))
        measured = td.distance_to_flow(PROBLEM, START, round(2 / rate), rate)
        assert measured.value == pytest.approx(expected, rel=1e-5)  # the flow's 1e-8, of a distance of 1e-2
        assert measured.error < 1e-5 * expected
        distances.append(measured.value)
    assert distances[0] / distances[1] == pytest.approx(2, rel=0.05)
    assert td.distance_to_flow(PROBLEM, START, 1000, 3.0).value == np.inf  # beyond 2/λ₁


@pytest.mark.slow
def test_distance_to_the_flow_of_a_staircase_shrinks_linearly():
    """Two modes of a linear network learned one after the other; exponent 1 up to the terms in η²."""
    problem = linear_problem([2.0, 1.0])
    params0 = aligned_layers(problem, [[0.1, 0.05], [0.1, 0.05]])
    rates = np.array([0.02, 0.01, 0.005])
    distances = [td.distance_to_flow(problem, params0, round(6 / r), float(r), round(0.02 / r)) for r in rates]
    assert max(d.error / d.value for d in distances) < 1e-4
    slopes = np.diff(np.log([d.value for d in distances])) / np.diff(np.log(rates))
    assert slopes[1] == pytest.approx(1.0, abs=0.03) and abs(slopes[1] - 1) < abs(slopes[0] - 1)


def test_momentum_is_ahead_of_the_flow():
    """At t/(1 − β) the gap is of order η; at t it is not small at all."""

    def gap(rate, speed):
        traj = train(round(1.5 / rate), rate, "momentum", save_every=round(0.005 / rate))
        flow = np.asarray(START["x"]) * np.exp(-speed * traj.ts[:, None] * CURVATURES)
        return np.max(np.linalg.norm(traj["x"] - flow, axis=1))

    assert gap(2e-4, 10) / gap(1e-4, 10) == pytest.approx(2, rel=0.1)
    assert gap(2e-4, 1) / gap(1e-4, 1) == pytest.approx(1, rel=0.1) and gap(1e-4, 1) > 1


def test_stages_of_descent_are_those_of_the_network():
    """½(2² + 0.5²) = 2.125, then 0.125 from when u' = 2u(2 − u) has passed 2, then nothing."""
    problem = linear_problem([2.0, 0.5])
    params0 = aligned_layers(problem, [[0.01, 0.01], [0.01, 0.01]])
    stages = td.find_stages(td.descent(problem, params0, 3000, 0.01))
    assert [stage.kind for stage in stages] == ["plateau", "descent", "plateau", "descent", "converged"]
    # The second mode has grown to u = 0.0045 where the flow is slowest: 0.125 − 0.5 · 0.0045.
    assert [stages[i].loss for i in (0, 2, 4)] == pytest.approx([2.125, 0.125, 0.0], abs=3e-3)
    half = [np.log(s / 1e-4) / (2 * s) for s in (2.0, 0.5)]  # when u = s/2
    assert all(stages[i].t_start < t < stages[i].t_end for i, t in zip((1, 3), half, strict=True))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_gradient_that_is_not_that_of_the_loss_is_named(factor):
    @jax.custom_vjp
    def bowl(x):
        return 0.5 * jnp.sum(x**2)

    bowl.defvjp(lambda x: (bowl(x), x), lambda x, cotangent: (factor * cotangent * x,))
    traj = td.descent(td.Problem(lambda params, data: bowl(params["x"])), {"x": jnp.array([3.0, 4.0])}, 3, 0.1)
    right = factor == 1
    assert traj.status == "done" and traj.stats["is_gradient"] == right
    told = "The gradient does not belong to the loss: at `params0` the slope of the loss along it is 5, not ‖∇L‖ = 10"
    assert (told in traj.result) != right
