"""`crossing_times`: stated errors are put to the test, and what rounding decides is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import thetadot as td
from flows import MODES, NEVER, aligned_layers, balanced_layers, linear_problem, mode_crossings
from thetadot.theory import matrix_factorization as theory


def random_flow(rng, num_layers):
    """A 2×2 target with random modes, strengths and (for two layers) imbalance, and its exact escape times.

    Two layers: each mode is a product ab with a² − b² = q conserved, balanced (q = 0) in one case of three. Three
    layers: balanced. The starts span seven decades, the levels 10 % to 90 % of a mode. The stronger mode starts at
    the larger strength: learned second, it would find a plateau that rotates into it, and rounding decides when.
    """
    values = -np.sort(-rng.uniform(0.3, 3.0, 2))
    levels = rng.uniform(0.1, 0.9, 2) * values
    problem = linear_problem(values, seed=int(rng.integers(1000)))
    if num_layers == 3:
        strengths = values * 10 ** -np.sort(-rng.uniform(-7, -1.5, 2))
        layers = balanced_layers(problem, strengths, 3)
        exact = theory.deep_time(levels, values, strengths, 3)
    else:
        strengths = values * 10 ** -np.sort(-rng.uniform(-8, -1.5, 2))
        imbalance = rng.choice([-1, 0, 1], 2) * 10 ** rng.uniform(-8, 0.5, 2)
        upper = np.sqrt((imbalance + np.hypot(imbalance, 2 * strengths)) / 2)
        upper = np.where(
            imbalance < 0, strengths / np.sqrt((-imbalance + np.hypot(imbalance, 2 * strengths)) / 2), upper
        )
        layers = aligned_layers(problem, [strengths / upper, upper])
        exact = theory.scalar_product_time(levels, values, strengths, imbalance)
    return problem, layers, levels, np.asarray(exact)


def measured_errors(num, num_layers, seed, rtol=1e-6):
    """True and stated errors of the escape times of `num` random flows, two a flow, relative to the times."""
    rng = np.random.default_rng(seed)
    true, stated = [], []
    for _ in range(num):
        problem, layers, levels, exact = random_flow(rng, num_layers)
        crossings = mode_crossings(*levels)
        found = td.crossing_times(problem, layers, crossings, 1.1 * float(exact.max()), MODES, rtol=rtol)
        assert np.isnan(found["loss"].value)
        for name, time in zip(("first", "second"), exact, strict=True):
            true.append(abs(found[name].value - time) / time)
            stated.append(found[name].error / time)
    return np.array(true), np.array(stated)


def test_escape_times_lie_within_their_stated_errors(on_the_host):
    true, stated = measured_errors(4, 2, seed=1)
    assert np.mean(true <= stated) >= 0.75  # 8 times: a coverage of 95 % leaves more than two outside once in 170
    assert np.max(true) < 1e-5 and np.all(stated < 1e-3)
    # The error bars are not simply wide: a hundredth of one would not do.
    assert np.mean(true <= stated / 100) < 0.8


@pytest.mark.slow
def test_stated_errors_cover_the_truth_in_200_random_flows():
    """The true time within the stated error in 95 % of 200 flows, and the median stated error at most 10 × the true."""
    results = [measured_errors(100, num_layers, seed=num_layers) for num_layers in (2, 3)]
    true, stated = (np.concatenate(part) for part in zip(*results, strict=True))
    assert true.size == 400 and np.all(np.isfinite(stated))
    coverage = np.mean(true <= stated)
    print(f"coverage {coverage:.3f}, median stated {np.median(stated):.2e}, median true {np.median(true):.2e}")  # noqa: T201
    assert coverage >= 0.95
    assert np.median(stated) <= 10 * np.median(true)


def test_an_error_falls_with_the_tolerance(on_the_host):
    loose, tight = (measured_errors(2, 2, seed=5, rtol=rtol) for rtol in (1e-4, 1e-7))
    assert np.median(tight[0]) < np.median(loose[0]) / 30
    assert np.median(tight[1]) < np.median(loose[1]) / 30


def test_what_is_never_reached_is_nan():
    problem = linear_problem([2.0, 0.7])
    layers = balanced_layers(problem, [0.1, 0.1], 2)
    found = td.crossing_times(problem, layers, mode_crossings(first=1.0, second=NEVER), 3.0, MODES)
    assert np.isfinite(found["first"].value) and found["first"].error > 0
    assert np.isnan(found["second"].value) and np.isnan(found["second"].error)
    with pytest.raises(ValueError, match="`rtol` must lie in"):
        td.crossing_times(problem, layers, mode_crossings(first=1.0), 3.0, MODES, rtol=-1.0)


# --- rounding ---


def double_well(params, data):
    """½ (x − 1)² + ¼ (z² − 1)² with (x, z) = R θ: a saddle at z = 0."""
    x, z = data @ params
    return 0.5 * (x - 1) ** 2 + 0.25 * (z**2 - 1) ** 2


def well(z0, angle):
    """When the loss has fallen to 0.1, measured and exact: z² / (1 − z²) grows like e^{2t}, and x is long at rest."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    start, problem = rotation.T @ np.array([0.5, z0]), td.Problem(double_well, jnp.array(rotation))
    found = td.crossing_times(problem, jnp.array(start), {"left": ("loss", 0.1)}, 200.0)
    z2 = 1 - np.sqrt(0.4)
    return found["left"], 0.5 * np.log(z2 / (1 - z2)) - np.log(z0)


@pytest.mark.parametrize("z0", [1e-8, 1e-13, 1e-18, 1e-25])
def test_an_escape_from_less_than_rounding_is_called_a_lower_bound(z0):
    """In turned coordinates x and z share their digits: z has none below 1e-16."""
    left, exact = well(z0, angle=0.6)
    assert (left.error == np.inf) == (z0 < 1e-16)
    assert abs(left.value - exact) <= left.error and left.value < exact + 3
    assert left.error == np.inf or left.error < 0.01 * exact


@pytest.mark.parametrize("z0", [1e-8, 1e-25, 1e-60])
def test_a_coordinate_of_its_own_has_digits_at_any_size(z0):
    left, exact = well(z0, angle=0.0)
    assert abs(left.value - exact) <= left.error < 1e-3 * exact


def test_modes_of_a_diagonal_network_from_1e_20():
    """½ Σ (sᵢ − aᵢ bᵢ)², balanced: aᵢ² obeys the logistic equation; two modes wait below the rounding of the first."""
    target, scale = np.array([3.0, 2.0, 0.5]), np.array([1e-3, 1e-20, 1e-20])
    problem = td.Problem(lambda p, data: 0.5 * jnp.sum((data - p["a"] * p["b"]) ** 2), jnp.array(target))
    watched = {f"{i}": lambda p, data, i=i: p["a"][i] * p["b"][i] for i in range(3)}
    start = {"a": jnp.array(scale), "b": jnp.array(scale)}
    crossings = {f"{i}": (f"{i}", target[i] / 2) for i in range(3)}
    found = td.crossing_times(problem, start, crossings, 200.0, watched)
    for time, exact in zip(found.values(), np.log(target / scale**2 - 1) / (2 * target), strict=True):
        assert abs(time.value - exact) <= time.error < 1e-4 * exact


def completion(ws, data):
    """½ ((W₁₂ − 1)² + (W₂₁ − 1)² + W₂₂²), W = W₂ W₁; W₁₁ is not observed."""
    del data
    w = ws[1] @ ws[0]
    return 0.5 * ((w[0, 1] - 1) ** 2 + (w[1, 0] - 1) ** 2 + w[1, 1] ** 2)


def completion_times(levels):
    """From 0.3 I the flow stays at W₁ = W₂ᵀ: dW/dt = −(E W + W E), det W > 0 for ever. In (W₁₁, W₁₂, det W)."""

    def matrix(q):
        return np.array([[q[0], q[1]], [q[1], (q[2] + q[1] ** 2) / q[0]]])

    def field(t, q):
        w = matrix(q)
        e = np.array([[0, w[0, 1] - 1], [w[0, 1] - 1, w[1, 1]]])
        d = -(e @ w + w @ e)
        return [d[0, 0], d[0, 1], -2 * w[1, 1] * q[2]]

    def passes(level):
        return lambda t, q: (q[1] - 1) ** 2 + 0.5 * matrix(q)[1, 1] ** 2 - level

    events = [passes(level) for level in levels]
    found = solve_ivp(field, (0, 1e4), [0.09, 0, 0.0081], "LSODA", rtol=1e-11, atol=1e-16, events=events)
    return [float(times[0]) for times in found.t_events]


def test_a_flow_that_rounding_drives_off_its_manifold_is_told():
    levels = (0.03, 0.01, 0.003, 0.001)
    crossings = {f"{level:g}": ("loss", level) for level in levels}
    start = [jnp.array(0.3 * np.eye(2))] * 2
    found = td.crossing_times(td.Problem(completion), start, crossings, 1e4)
    for (name, time), exact in zip(found.items(), completion_times(levels), strict=True):
        assert abs(time.value - exact) <= time.error, name
    assert [time.error == np.inf for time in found.values()] == [False, False, True, True]


def equal_neurons(params, data):
    """½ ‖Σⱼ aⱼ wⱼᵀ − M‖²; two neurons that are equal stay equal and learn the first mode only."""
    return 0.5 * jnp.sum((jnp.sum(params["a"][:, :, None] * params["w"][:, None], axis=0) - data) ** 2)


def test_what_the_flow_keeps_equal_is_disturbed_alike():
    """A crossing after the time at which rounding would have parted the neurons is told with a finite error."""
    target = jnp.diag(jnp.array([3.0, 1.0]))
    one = np.array([0.3, 1e-4]), np.array([0.2, -1e-4])
    start = {"a": jnp.array([one[0], one[0]]), "w": jnp.array([one[1], one[1]])}
    crossings = {"first": ("loss", 1.0), "late": ("loss", 0.5 + 1e-9)}
    kept = td.crossing_times(td.Problem(equal_neurons, target), start, crossings, 400.0)
    assert all(0 < time.error < 1e-3 * time.value for time in kept.values())


def over_an_offset(params, data):
    """½ (ab − s)² + 1: the loss has few digits left where the mode is learned."""
    return 0.5 * (params["a"] * params["b"] - data) ** 2 + 1.0


@pytest.mark.parametrize("s", [1e-2, 1e-5, 1e-6])
def test_the_rounding_of_the_loss_is_a_part_of_the_error(s):
    """At s = 1e-6 the last digit of the loss is worth hundreds of units of time."""
    strength, level = 1e-6 * s, 1 + 0.125 * s * s
    start = {"a": jnp.sqrt(strength), "b": jnp.sqrt(strength)}
    found = td.crossing_times(td.Problem(over_an_offset, jnp.array(s)), start, {"x": ("loss", level)}, 40 / s)["x"]
    mode = s - np.sqrt(2 * (level - 1))  # of the level as it is represented
    exact = (np.log(mode / (s - mode)) - np.log(strength / (s - strength))) / (2 * s)
    assert abs(found.value - exact) <= found.error < 1e-2 * exact


def test_times_that_mean_nothing_have_infinite_errors():
    """A gradient of half the size, and steps that are used up."""

    @jax.custom_vjp
    def half(p):
        return 0.5 * jnp.sum(p**2)

    half.defvjp(lambda p: (half(p), p), lambda p, g: (0.5 * g * p,))
    start, crossings = jnp.array([1.0, 2.0]), {"low": ("loss", 0.5)}
    found = td.crossing_times(td.Problem(lambda p, data: half(p)), start, crossings, 3.0, solver="tsit5")["low"]
    assert found.error == np.inf
    right = td.Problem(lambda p, data: 0.5 * jnp.sum(p**2))
    cut = td.crossing_times(right, start, crossings, 3.0, solver="tsit5", max_steps=3)["low"]
    assert np.isnan(cut.value) and cut.error == np.inf
    assert td.crossing_times(right, start, crossings, 3.0, solver="tsit5")["low"].error < 1e-5
