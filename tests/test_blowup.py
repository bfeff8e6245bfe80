"""Blow-up times, exponents and directions against flows that are known, and what is said where there is none."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import thetadot as td
from flows import BOWL, DRIFT, HILL, QUARTIC, at, scalar_flows
from thetadot import fate
from thetadot.models import trilinear

EFFECTIVE = td.Problem(trilinear.loss, None, trilinear.CONSERVED)


def exponential(params, data):
    del data
    return -jnp.sum(jnp.exp(params["x"]))


def draw(d, seed):
    like = {"a": jnp.zeros(d), "b": jnp.zeros((d, d)), "c": jnp.zeros(d)}
    return td.inits.gaussian(like, 1.0, key=jr.key(seed))


def on_one_axis(b):
    """a = c = |b|, B = b in one entry, zeros elsewhere."""
    axis = jnp.zeros(5).at[0].set(abs(b))
    return {"a": axis, "b": jnp.zeros((5, 5)).at[0, 0].set(b), "c": axis}


def energy_seen(params, data):
    return trilinear.energy(params, data)


# --- exact ---

SQUARE, TANGENT = {3: -1 / 3}, {3: -1 / 3, 1: -1.0}
EXACT = {  # a problem, x_0, T*, the exponent
    "x' = x²": (scalar_flows(SQUARE, BOWL), 2.0, 0.5, -1.0),
    "x' = 4x³": (scalar_flows(HILL, BOWL), 2.0, 1 / 32, -0.5),
    "x' = 1 + x², through zero": (scalar_flows(TANGENT, BOWL), -1.0, 0.75 * np.pi, -1.0),
    "x' = 1 + x², from zero": (scalar_flows(TANGENT, BOWL), 0.0, 0.5 * np.pi, -1.0),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("rtol", [1e-6, 1e-10])
def test_scalar_blow_ups(name, rtol):
    problem, x0, exact, exponent = EXACT[name]
    found = td.blow_up(problem, at(x0, 0.5), rtol=rtol)
    assert bool(found.blew_up) and "T* = " in found.result
    assert abs(float(found.time) - exact) <= float(found.error) + 1e-15
    assert float(found.error) < 100 * rtol * exact
    assert float(found.exponent) == pytest.approx(exponent, abs=100 * rtol)
    np.testing.assert_allclose(found.direction["x"], [1.0, 0.0], atol=10 * rtol**0.5)  # the other coordinate stays


def test_the_error_falls_with_the_tolerance():
    problem, x0, exact, _ = EXACT["x' = 1 + x², through zero"]
    errors = [abs(float(td.blow_up(problem, at(x0, 0.5), rtol=rtol).time) - exact) for rtol in (1e-4, 1e-7, 1e-10)]
    assert errors[1] < errors[0] / 10 and errors[2] < 1e-9 * exact


def test_an_exponential_loss_is_left_like_a_logarithm():
    """x' = e^x is infinite at T* = e^-x_0, though x itself grows to some twenty only; p → 0 like 1/log."""
    found = td.blow_up(td.Problem(exponential), at(-1.0), rtol=1e-10)
    assert bool(found.blew_up) and abs(float(found.time) - np.e) <= float(found.error) < 1e-6
    assert -0.1 < float(found.exponent) < 0


def test_a_balanced_rank_one_start():
    """da/dt = a² along the ray: T* = 1/r_0, direction and exponent known."""
    u, w = (x / jnp.linalg.norm(x) for x in (jr.normal(jr.key(1), (5,)), jr.normal(jr.key(2), (5,))))
    params0 = {"a": 0.7 * u, "b": 0.7 * jnp.outer(u, w), "c": 0.7 * w}
    found = td.blow_up(EFFECTIVE, params0, rtol=1e-10)
    assert float(found.time) == pytest.approx(1 / 0.7, rel=1e-9)
    assert float(found.exponent) == pytest.approx(-1.0, abs=1e-8)
    np.testing.assert_allclose(found.direction["b"], jnp.outer(u, w) / np.sqrt(3), atol=1e-9)


# --- beside parameters that do not grow ---


def beside(params, data):
    """x' = x^k, beside z that decays at the rate c, or stays."""
    x, z = params["x"]
    return -(x ** (data["k"] + 1)) / (data["k"] + 1) + 0.5 * data["c"] * z**2


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("degree", [2.0, 20.0])
@pytest.mark.parametrize("size", [1e2, 1e7])
def test_the_exponent_is_that_of_what_grows(degree, size, decay):
    """T* = 1/(k - 1) from 1, like (T* - t)^-T*; with k = 20 a double gets no farther than x = 300."""
    found = td.blow_up(td.Problem(beside, {"k": jnp.array(degree), "c": jnp.array(decay)}), at(1.0, size))
    exact = 1 / (degree - 1)
    assert bool(found.blew_up) and abs(float(found.time) - exact) <= float(found.error) < 1e-6 * exact
    assert float(found.exponent) == pytest.approx(-exact, rel=1e-6)


@pytest.mark.parametrize("start, max_steps", [(1e-3, 4096), pytest.param(1e-5, 32768, marks=pytest.mark.slow)])
def test_what_still_grows_is_not_at_rest_beside_what_has_decayed(start, max_steps):
    """½x² - y³/3: x is at rest at t = 21, y is infinite at 1/y_0."""
    found = td.blow_up(scalar_flows(BOWL, SQUARE), at(1.0, start), max_steps=max_steps)
    assert bool(found.blew_up) and abs(float(found.time) - 1 / start) <= float(found.error) < 1e-6 / start
    assert float(found.exponent) == pytest.approx(-1.0, rel=1e-6)


@pytest.mark.parametrize("start", [1e-5, 1e-12, -1e-5, 0.0])
def test_no_rest_is_claimed_while_something_grows(start):
    """From y_0 ≤ 0 the flow never blows up; with a slow decay, y = -1/t, it does not come to rest soon either."""
    found = td.blow_up(scalar_flows(BOWL, SQUARE), at(1.0, start), max_steps=200)
    expected = fate.Outcome.RESTED if start == 0 else fate.Outcome.UNDECIDED
    assert found.outcome == expected, found.result
    assert start != 0 or float(found.t) < 50


def turn(params, data):
    """x' = x² - d x³: at rest at x = 1/d, where the loss is -1/(12 d³)."""
    x = params["x"][0]
    return -(x**3) / 3 + data * x**4 / 4


@pytest.mark.parametrize("strength", [1e-5, 1e-7, 1e-9, 1e-12])
def test_a_turn_far_out_is_seen(strength):
    """The time to x = 1/d is 1 - d (1 + log((1/d - 1)/(1 - dx))): SciPy agrees where it is stiff to 1e-5 already."""
    found = td.blow_up(td.Problem(turn, jnp.array(strength)), at(1.0))
    assert found.outcome == fate.Outcome.RESTED and np.isnan(found.time), found.result
    assert float(found.params["x"][0]) == pytest.approx(1 / strength, rel=1e-6)
    field = lambda t, x: x**2 - strength * x**3  # noqa: E731
    jacobian = lambda t, x: [[2 * x[0] - 3 * strength * x[0] ** 2]]  # noqa: E731
    there = solve_ivp(field, (0, 1.01), [1.0], "Radau", rtol=1e-8, atol=1e-10, jac=jacobian)
    assert there.y[0, -1] == pytest.approx(1 / strength, rel=1e-5)


def test_beyond_what_was_followed_nothing_is_claimed():
    """With d = 1e-50 the flow turns at 1e50, and the sentence says that it was followed to 1e20."""
    found = td.blow_up(td.Problem(turn, jnp.array(1e-50)), at(1.0))
    assert bool(found.blew_up) and float(found.time) == pytest.approx(1.0, rel=1e-7)
    size = float(found.params["x"][0])
    assert 1e20 < size < 1e24 and f"if it goes on beyond ‖θ‖ = {size:.0e} as up to there" in found.result


ANGLE = 0.7


def turned(params, data):
    """-u³/3 in coordinates that are turned by an angle."""
    x, y = params["x"]
    return -((data[0] * x - data[1] * y) ** 3) / 3


@pytest.mark.parametrize("seed, decided", [(1e-3, False), (1e-20, True)])
def test_rounding_that_decides_is_named(seed, decided):
    """u(0) = seed beside 1: T* = 1/seed, but of 1e-20 nothing is left in the turned coordinates."""
    cos, sin = np.cos(ANGLE), np.sin(ANGLE)
    start = at(cos * seed + sin, -sin * seed + cos)
    found = td.blow_up(td.Problem(turned, jnp.array([cos, sin])), start)
    assert bool(found.blew_up) != decided and ("Rounding decides" in found.result) == decided
    if decided:
        assert np.isinf(found.error) and not float(found.time) > 1 / seed
    else:
        assert abs(float(found.time) - 1 / seed) <= float(found.error) < 1e-6 / seed


# --- any start; many at once ---


def test_starts_of_either_sign_blow_up_and_only_the_true_bound_holds():
    """E_0 < 0: the flow climbs to E = 0 first. E_0 > 0: T* ≤ E_0^(-1/3)."""
    signs = set()
    for seed in range(6):
        params0 = draw(5, seed)
        found, e0 = td.blow_up(EFFECTIVE, params0), float(trilinear.energy(params0))
        assert bool(found.blew_up) and float(found.exponent) == pytest.approx(-1.0, abs=1e-6)
        assert e0 < 0 or float(found.time) < e0 ** (-1 / 3)
        signs.add(np.sign(e0))
    assert signs == {-1.0, 1.0}


def test_draws_under_vmap_are_those_alone():
    batch = [draw(5, seed) for seed in range(6)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)
    together = jax.vmap(lambda params0: td.blow_up(EFFECTIVE, params0))(stacked)
    alone = [float(td.blow_up(EFFECTIVE, params0).time) for params0 in batch]
    np.testing.assert_allclose(together.time, alone, rtol=1e-9)  # rtol is 1e-8; the order of sums differs
    assert together.result == "6 of 6 flows blow up."


def test_observables_are_recorded_on_the_way():
    params0 = draw(5, 0)
    found = td.blow_up(EFFECTIVE, params0, observables={"energy": energy_seen})
    assert found.ts[0] == 0 and np.all(np.diff(found.ts) >= 0) and found.ts[-1] < float(found.time)
    energies = found.series["energy"]
    assert energies[0] == pytest.approx(float(trilinear.energy(params0)))
    assert np.all(np.diff(energies) > 0) and float(energy_seen(found.params, None)) > energies[-1]


def test_scales_do_not_matter():
    """θ → rθ and t → t/r: the same steps."""
    params0 = draw(5, 0)
    one, tiny = (td.blow_up(EFFECTIVE, jax.tree.map(lambda x, r=r: r * x, params0)) for r in (1.0, 1e-8))
    assert float(tiny.time) == pytest.approx(1e8 * float(one.time), rel=1e-8)


# --- no blow-up ---


@pytest.mark.parametrize(
    ("problem", "params0", "sentence"),
    [
        (scalar_flows(BOWL, BOWL), at(1.0, 2.0), "comes to rest"),
        (scalar_flows(QUARTIC, BOWL), at(1.0, 2.0), "comes to rest|No blow-up within"),
        (scalar_flows({2: -0.5}, BOWL), at(1.0, 1.0), "exponentially or slower"),
        (scalar_flows(DRIFT, DRIFT), at(1.0, 2.0), "exponentially or slower"),
        (EFFECTIVE, on_one_axis(0.0), "comes to rest at t = 0"),
        (EFFECTIVE, on_one_axis(-1.0), "comes to rest|No blow-up within"),
        (scalar_flows(DRIFT, BOWL, wall=1.0), at(0.1, 1.0), "no step is small enough"),
    ],
    ids=["a bowl", "slow decay", "exponential", "linear", "critical point", "dies out", "wall"],
)
def test_no_blow_up_is_a_result_too(problem, params0, sentence):
    found = td.blow_up(problem, params0)
    assert not bool(found.blew_up) and np.isnan(found.time) and np.isnan(found.exponent)
    assert any(part in found.result for part in sentence.split("|")), found.result


def barrier(params, data):
    """x' = x² - c/(5 - x): at rest just below x = 5. Beyond it the loss is NaN, and its gradient is not."""
    return -(params["x"][0] ** 3) / 3 - data * jnp.log(5.0 - params["x"][0])


@pytest.mark.parametrize("strength", [1e-9, 1e-6, 1e-2])
def test_no_step_goes_over_a_barrier_behind_which_there_is_no_loss(strength):
    found = td.blow_up(td.Problem(barrier, jnp.array(strength)), at(0.5))
    assert found.outcome in (fate.Outcome.UNDECIDED, fate.Outcome.RESTED), found.result
    rest = 5 - strength / 25
    assert float(found.params["x"][0]) == pytest.approx(rest, abs=1e-3 * strength**0.5) and found.params["x"][0] < 5


def test_without_a_barrier_the_same_flow_blows_up():
    found = td.blow_up(td.Problem(barrier, jnp.array(0.0)), at(0.5))  # 0 log(5 - x) is NaN beyond 5
    assert "no step is small enough" in found.result and float(found.t) == pytest.approx(1 / 0.5 - 1 / 5, rel=1e-7)
    found = td.blow_up(scalar_flows(SQUARE, BOWL), at(0.5, 0.0))
    assert float(found.time) == pytest.approx(1 / 0.5, rel=1e-7)


def logarithm(params, data):
    return data * jnp.log(1.0 - params["x"][0])


def pole(params, data):
    return -data / (1.0 - params["x"][0])


def cliff(params, data):
    return jnp.where(params["x"][0] < 1.0, -data * params["x"][0], jnp.nan)


WALLS = {  # a loss, and when its flow from x_0 comes to x = 1
    "x' = 1/(1-x)": (logarithm, lambda x0: (1 - x0) ** 2 / 2),
    "x' = 1/(1-x)²": (pole, lambda x0: (1 - x0) ** 3 / 3),
    "x' = 1, and then NaN": (cliff, lambda x0: 1 - x0),
}


@pytest.mark.parametrize("x0", [0.05, 1e-6])
@pytest.mark.parametrize("name", WALLS)
def test_a_wall_is_no_blow_up(name, x0):
    """Met in finite time, two of them at infinite speed and with an infinite fall of the loss; but |θ| stays at 1."""
    loss, time = WALLS[name]
    found = td.blow_up(td.Problem(loss, jnp.array(1.0)), at(x0))
    assert found.outcome == fate.Outcome.FAILED and "no step is small enough" in found.result
    assert float(found.t) == pytest.approx(time(x0), rel=1e-3) and np.isnan(found.time)


def power(params, data):
    return -(params["x"][0] ** (data + 1)) / (data + 1)


@pytest.mark.parametrize("degree", [1.05, 1.1, 1.5, 3.0, 20.0, 40.0])
def test_exponents_that_can_be_recognized(degree):
    """x' = x^k from 1 is infinite at T* = 1/(k - 1), like (T* - t)^-T*."""
    found = td.blow_up(td.Problem(power, jnp.array(degree)), at(1.0))
    exact = 1 / (degree - 1)
    assert bool(found.blew_up) and abs(float(found.time) - exact) <= float(found.error) < 1e-6 * exact
    assert float(found.exponent) == pytest.approx(-exact, rel=1e-6)


@pytest.mark.parametrize("degree", [1.0, 1.02])
def test_exponents_that_cannot_be_recognized_are_no_verdict(degree):
    """x' = x has no T*; x' = x^1.02, infinite at T* = 50, is e^300 before it is near."""
    found = td.blow_up(td.Problem(power, jnp.array(degree)), at(1.0))
    assert found.outcome == fate.Outcome.OVERFLOWED and "or like (T* - t)^-p with p above 20" in found.result


# --- plain flows ---


@pytest.mark.parametrize("solver", ["auto", pytest.param("tsit5", marks=pytest.mark.slow)])
def test_a_plain_flow_names_the_time_and_points_here(solver):
    params0 = draw(5, 0)
    traj = td.gradient_flow(EFFECTIVE, params0, 10.0, solver=solver)
    assert traj.status == "blew up" and "`blow_up`" in traj.result
    assert f"T* ≈ {float(td.blow_up(EFFECTIVE, params0).time):.6f}" in traj.result
    assert traj.stats["wall_s"] < 60  # compilation included, on a busy machine


# --- what is refused ---


def test_bad_input_gets_one_sentence():
    problem = scalar_flows(HILL, BOWL)
    for changes, sentence in [
        ({"params0": at(1.0, np.nan)}, "NaN or infinity"),
        ({"rtol": 0.0}, r"`rtol` must lie in"),
        ({"rtol": 1e-15}, "below what float64"),
        ({"max_steps": 0}, r"`blow_up\(max_steps=\.\.\.\)` must be a whole number, at least 1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            td.blow_up(problem, **{"params0": at(1.0, 1.0), **changes})


def test_a_gradient_that_is_not_that_of_the_loss_is_refused():
    @jax.custom_vjp
    def cube(x):
        return -jnp.sum(x**3) / 3

    cube.defvjp(lambda x: (cube(x), x), lambda x, cotangent: (-2 * cotangent * x**2,))
    with pytest.raises(ValueError, match=r"does not belong to the loss: at `params0` the slope .* is 1, not ‖∇L‖ = 2"):
        td.blow_up(td.Problem(lambda params, data: cube(params["x"])), at(1.0))


def test_too_few_steps_are_a_result():
    found = td.blow_up(EFFECTIVE, draw(5, 0), max_steps=5)
    assert not bool(found.blew_up) and "within 5 steps" in found.result
