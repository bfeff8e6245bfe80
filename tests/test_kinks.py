"""Flows through kinks, against flows that are known, an independent reference and descent by small steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from kinked import KINKED, REFUSED, SMOOTH, W
from relu_reference import solve
from thetadot.kinks.switches import Switches

POINTS = np.array([[-1.0, 1.0], [-0.6, 1.0], [0.1, 1.0], [0.5, 1.0], [0.9, 1.0]])
VALUES = np.array([0.6, -0.4, 0.5, -0.3, 0.8])


@pytest.mark.parametrize("name", KINKED)
def test_the_loss_with_its_switches_given_is_the_loss(name):
    loss, size = KINKED[name]
    switches = Switches(loss, W, None)
    assert switches.size == size
    none, every = jnp.zeros(size, bool), jnp.ones(size, bool)
    followed = jax.jit(jax.value_and_grad(lambda w: switches.loss(w, None, none, every), has_aux=True))
    held = jax.jit(jax.value_and_grad(lambda w, on: switches.loss(w, None, on, none)[0]))
    rng, plain = np.random.default_rng(3), jax.jit(jax.value_and_grad(lambda w: loss(w, None)))
    for _ in range(3):
        w = jnp.asarray(rng.standard_normal(W.shape))
        (value, g), grad = followed(w)
        for found in ((value, grad), held(w, g > 0), held(w, (g > 0).astype(w.dtype))):
            for one, other in zip(found, plain(w), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
        assert not np.allclose(held(w, g < 0)[1], grad)  # with all switches on the wrong sides it is another loss


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_losses_have_no_switches(name):
    assert Switches(SMOOTH[name], W, None).size == 0
    assert "kinks" not in td.gradient_flow(td.Problem(SMOOTH[name]), W, 1e-3).stats


@pytest.mark.parametrize("name", REFUSED)
def test_kinks_that_nobody_knows_are_refused(name):
    loss, word = REFUSED[name]
    with pytest.raises(ValueError, match=word):
        td.gradient_flow(td.Problem(loss), W, 1.0)


def test_kinks_inside_a_solver_are_left_to_it_and_named():
    def loss(w, data):
        _, found = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.abs(c[1]) - 0.1), (0, w))
        return jnp.sum(found**2)

    switches = Switches(lambda w, data: jnp.sum(jnp.abs(w)) + loss(w, data), W, None)
    assert switches.unseen == ["while"] and switches.size == W.size
    assert Switches(loss, W, None).size == 0


def relu_loss(params, data):
    x, y = data
    return 0.5 * jnp.mean((jax.nn.relu(x @ params["w"].T) @ params["a"] - y) ** 2)


def five_points(seed, width=50, scale=0.1):
    rng = np.random.default_rng(seed)
    return POINTS, VALUES, scale * rng.standard_normal((width, 2)), scale * rng.standard_normal(width)


def random_net(number, width, d, num_points):
    rng, scale = np.random.default_rng(number), (1e-1, 1e-2, 1e-3)[(number - 100) % 3]
    x = rng.standard_normal((num_points, d))
    if number % 2:
        x[:, -1] = 1
    y = rng.standard_normal(num_points)
    return x, y, scale * rng.standard_normal((width, d)), scale * rng.standard_normal(width)


def agrees(net, t1, rtol=1e-6, **options):
    """Losses and times up to the first fork as the reference has them; returns both."""
    x, y, w, a = net
    told = solve(x, y, w, a, t1)
    end = min(t1, 0.999 * told.unique_until)
    start = float(relu_loss({"w": w, "a": a}, (x, y)))
    ts, levels = np.linspace(0, end, 9)[1:], [share * start for share in (0.9, 0.5, 0.2, 0.05)]
    exact = solve(x, y, w, a, end, ts, levels)
    crossings = {str(i): ("loss", level) for i, level in enumerate(levels)}
    problem, params0 = (
        td.Problem(relu_loss, (jnp.asarray(x), jnp.asarray(y))),
        {"w": jnp.asarray(w), "a": jnp.asarray(a)},
    )
    traj = td.gradient_flow(
        problem, params0, t1, [*ts, t1][: 9 if end < t1 else 8], crossings=crossings, rtol=rtol, **options
    )
    np.testing.assert_allclose(traj["loss"][:8], exact.losses, rtol=1e-5, atol=1e-5 * start)
    for i, time in enumerate(exact.times):
        if np.isfinite(time):
            np.testing.assert_allclose(traj.crossings[str(i)][0], time, rtol=1e-4)
    return traj, told


@pytest.mark.parametrize("net", [random_net(100, 4, 2, 5), five_points(2)], ids=["no fork", "turn"])
def test_a_relu_network_agrees_with_a_reference_up_to_its_first_fork(net):
    traj, told = agrees(net, 60.0)
    np.testing.assert_allclose(traj.unique_until, told.unique_until, rtol=1e-3)
    assert traj.status == "done" and traj.stats["kinks"]["slides"]


FIVE = {f"five {seed}": five_points(seed, scale=1e-1 if seed < 7 else 1e-2) for seed in range(8)}
SIZES = {  # number -> (width, d, number of points)
    100: (4, 2, 5),
    101: (4, 3, 8),
    102: (6, 2, 10),
    103: (8, 4, 12),
    104: (10, 5, 20),
    105: (10, 3, 10),
    106: (12, 2, 6),
    107: (16, 5, 15),
    108: (20, 3, 20),
    109: (25, 4, 10),
    110: (30, 2, 15),
    111: (30, 5, 8),
}
NETS = FIVE | {f"{number}": random_net(number, *sizes) for number, sizes in SIZES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_twenty_relu_networks_agree_and_fork_where_the_reference_says(name):
    traj, told = agrees(NETS[name], 600.0)
    np.testing.assert_allclose(traj.unique_until, told.unique_until, rtol=5e-3)
    assert traj.status == "done" and traj.stats["kinks"]["stepped_over"] < 1e-5


def test_times_past_a_fork_mean_nothing_and_others_have_errors_that_cover():
    x, y, w, a = five_points(1)  # its first fork is at 3.862
    start = float(relu_loss({"w": w, "a": a}, (x, y)))
    exact = solve(x, y, w, a, 3.8, [3.8], [0.9 * start])
    problem, params0 = (
        td.Problem(relu_loss, (jnp.asarray(x), jnp.asarray(y))),
        {"w": jnp.asarray(w), "a": jnp.asarray(a)},
    )
    times = td.crossing_times(problem, params0, {"early": ("loss", 0.9 * start), "late": ("loss", 0.5 * start)}, 60.0)
    assert abs(times["early"].value - exact.times[0]) <= times["early"].error < 1e-3
    assert times["late"].value > 3.862 and np.isinf(times["late"].error)


def test_a_corner_is_reached_and_called_so():
    """|ab − 1| from a = b = s: a grows like e^t until a = 1, and the flow rests there."""
    for scale in (1e-1, 1e-3, 1e-6):
        corner = td.Problem(lambda p, data: jnp.abs(p["a"] * p["b"] - 1.0))
        traj = td.gradient_flow(corner, {"a": jnp.asarray(scale), "b": jnp.asarray(scale)}, 100.0)
        assert traj.status == "done" and "rest at a kink" in traj.result
        np.testing.assert_allclose(traj.params1["a"], 1.0, rtol=1e-6)
        ((begin, end, name),) = traj.stats["kinks"]["slides"]
        np.testing.assert_allclose(begin, np.log(1 / scale), rtol=1e-6)
        assert end == 100.0 and name.startswith("abs")


def test_a_curved_slide_is_exact():
    """|x² + y² − 1| + y: on the circle θ' = −cos θ, so that tanh(artanh(sin θ)) moves at speed one."""
    problem = td.Problem(lambda p, data: 3 * jnp.abs(p[0] ** 2 + p[1] ** 2 - 1) + p[1])
    traj = td.gradient_flow(problem, jnp.array([0.8, 0.6]), 2.0, observables={"p": lambda p, data: p})
    on = traj.ts > traj.stats["kinks"]["slides"][0][0]
    np.testing.assert_allclose(np.linalg.norm(traj["p"][on], axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(traj["p"][-1, 1], np.tanh(np.arctanh(0.6) - 2.0), rtol=1e-5)


def hinge_loss(params, data):
    x, y = data
    return jnp.mean(jax.nn.relu(1 - y * (jax.nn.relu(x @ params["w"].T + params["b"][None]) @ params["a"])))


def deep_loss(params, data):
    x, y = data
    hidden = jax.nn.relu(x @ params["w"].T + params["b"][None])
    return 0.5 * jnp.mean((jax.nn.relu(hidden @ params["v"].T) @ params["a"] - y) ** 2)


def sparse_loss(params, data):
    x, y = data
    sizes = jnp.sum(jnp.abs(params["w"])) + jnp.sum(jnp.abs(params["a"]))
    return 0.5 * jnp.mean((jnp.tanh(x @ params["w"].T) @ params["a"] - y) ** 2) + 0.01 * sizes


def descent(loss, params, data, t1, rate):
    grad = jax.grad(loss)

    @jax.jit
    def run(params):
        step = lambda i, p: jax.tree.map(lambda x, g: x - rate * g, p, grad(p, data))  # noqa: E731
        return loss(jax.lax.fori_loop(0, round(t1 / rate), step, params), data)

    return float(run(params))


@pytest.mark.parametrize("loss", [hinge_loss, pytest.param(deep_loss, marks=pytest.mark.slow), sparse_loss])
def test_kinks_within_kinks_and_of_penalties_agree_with_small_steps_of_descent(loss):
    rng, start = np.random.default_rng(0), np.random.default_rng(2)
    data = jnp.asarray(rng.standard_normal((12, 3))), jnp.asarray(np.sign(rng.standard_normal(12)))
    params = {"w": (8, 3), "b": (8,), "v": (8, 8), "a": (8,)}
    params = {name: jnp.asarray(0.4 * start.standard_normal(shape)) for name, shape in params.items()}
    traj = td.gradient_flow(td.Problem(loss, data), params, 10.0)
    coarse, fine = (descent(loss, params, data, 10.0, rate) for rate in (1e-3, 2.5e-4))
    assert traj.stats["kinks"]["slides"] and traj.stats["energy_error"] < 1e-4
    assert abs(traj.stats["loss1"] - fine) <= 2 * abs(coarse - fine) + 1e-5


def test_a_loss_that_jumps_is_told():
    problem = td.Problem(lambda p, data: jnp.where(p > 0.5, p, p - 1.0))
    traj = td.gradient_flow(problem, jnp.asarray(1.0), 10.0)
    assert traj.status == "failed" and "jumps" in traj.result and abs(traj.stats["t1"] - 0.5) < 0.5


def test_lanes_with_kinks_go_through_a_scan_in_batches(tmp_path):
    def make(seed):
        x, y, w, a = five_points(seed, width=6)
        return td.Problem(relu_loss, (jnp.asarray(x), jnp.asarray(y))), {"w": jnp.asarray(w), "a": jnp.asarray(a)}

    store = tmp_path / "scan.zarr"
    apart = td.scan(make, {"seed": [0, 1]}, 5.0, {}, errors=False, engine="batches", store=store)
    for seed in (0, 1):
        alone = td.gradient_flow(*make(seed), 5.0)
        np.testing.assert_allclose(apart.loss1.sel(seed=seed), alone.stats["loss1"], rtol=1e-9)
