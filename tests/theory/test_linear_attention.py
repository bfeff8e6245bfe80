"""Linear attention: the loss against sampled prompts, closed forms, and the checks with flows that are wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from claims import assert_claims_hold, held_by_all, marked
from scipy.integrate import solve_ivp

from thetadot.models import linear_attention as model
from thetadot.theory import linear_attention as theory
from thetadot.theory.linear_attention import flows

BY_NAME: dict[str, Any] = {check.__name__: check for check in theory.CHECKS}


def fewer_examples(data, params0, t1, **options):
    """The flow with three examples less than the prediction is for."""
    fewer = data | {"num_examples": data["num_examples"] - 3}
    return flows.trace(fewer, params0, min(t1, 1e5), **options)  # it never reaches the loss where it may stop


def large_start(data, params0, t1, **options):
    """Everything starts at size one: no saddle is near."""
    size = max(float(jnp.max(jnp.abs(block))) for block in params0.values())
    return flows.trace(data, jax.tree.map(lambda x: x / size, params0), t1, **options)


def cut_short(data, params0, t1, **options):
    """A flow that ends long before what is claimed."""
    return flows.trace(data, params0, t1 / 1000, **options)


def loosely_solved(data, params0, t1, **options):
    """A tolerance at which nothing is conserved."""
    options["rtol"] = 0.1
    return flows.trace(data, params0, t1, **options)


# The wrong flows that between them make every claim of a check fail.
CONTROLS = {
    "check_merged": (fewer_examples, large_start, cut_short, loosely_solved),
    "check_separate": (fewer_examples, large_start, loosely_solved),
    "check_head_times": (large_start,),
    "check_ranks": (large_start,),
}


QUICK = ("check_fixed_points",)


@pytest.mark.parametrize("name", marked(BY_NAME, QUICK))
def test_the_claims_hold(name):
    assert_claims_hold(BY_NAME[name], "arXiv:2501.16265, ")


@pytest.mark.parametrize("name", marked(CONTROLS))
def test_every_claim_fails_on_a_wrong_flow(name):
    assert held_by_all(BY_NAME[name], CONTROLS[name]) == set()


def test_fixed_points_are_those_of_the_right_number_of_examples():
    def other(params, data):
        return model.separate_loss(params, data | {"num_examples": data["num_examples"] - 3})

    (check,) = theory.check_fixed_points(other)
    assert not check.passed and check.measured == 1.0  # the origin
    assert set(CONTROLS) | {"check_fixed_points"} == set(BY_NAME)


# --- the model ---


def naive_answer(x, y, query, value, key_query):
    """The bottom right entry of `Z + (1/N) Σ_h W_V Z Z^T W_KQ Z`, with the whole prompt Z as the paper writes it."""
    num, size = x.shape
    prompt = np.zeros((size + 1, num + 1))
    prompt[:size, :num], prompt[:size, num], prompt[size, :num] = x.T, query, y
    output = prompt.copy()
    for v, u in zip(value, key_query, strict=True):
        w_v, w_kq = np.zeros((2, size + 1, size + 1))
        w_v[size, size], w_kq[:size, :size] = v, u
        output += w_v @ prompt @ prompt.T @ w_kq @ prompt / num
    return output[size, num]


def params_of(rank, seed=0):
    rng = np.random.default_rng(seed)
    v = rng.normal(size=2)
    if rank is None:
        return {"v": jnp.asarray(v), "u": jnp.asarray(rng.normal(size=(2, 3, 3)))}
    return {"v": jnp.asarray(v), **{name: jnp.asarray(rng.normal(size=(2, rank, 3))) for name in ("k", "q")}}


DATA = {
    "input_cov": jnp.array([[1.0, 0.3, 0.0], [0.3, 0.7, -0.2], [0.0, -0.2, 0.4]]),
    "num_examples": jnp.array(5.0),
}


def test_answers_are_those_of_the_whole_prompt():
    rng = np.random.default_rng(3)
    x, y, query = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=3)
    params = params_of(None)
    value, key_query = np.asarray(params["v"]), np.asarray(params["u"])
    reduced = (y @ x / 5) @ np.asarray(model.merged_map(params)) @ query
    assert naive_answer(x, y, query, value, key_query) == pytest.approx(reduced, rel=1e-12)
    separate = params_of(2)
    heads = np.einsum("hri,hrj->hij", separate["k"], separate["q"])
    reduced = (y @ x / 5) @ np.asarray(model.separate_map(separate)) @ query
    assert naive_answer(x, y, query, np.asarray(separate["v"]), heads) == pytest.approx(reduced, rel=1e-12)


def test_population_loss_is_the_mean_over_prompts():
    """100 000 prompts: four standard errors, 4 % of the loss; without the terms 1/N the loss would be far off."""
    rng, num = np.random.default_rng(0), 100_000
    factor = np.linalg.cholesky(np.asarray(DATA["input_cov"]))
    x = rng.normal(size=(num, 6, 3)) @ factor.T
    tasks = rng.normal(size=(num, 3))
    examples, query = x[:, :5], x[:, 5]
    y = np.einsum("sni,si->sn", examples, tasks)
    beta = np.einsum("sn,sni->si", y, examples) / 5
    w = np.array([[0.5, 0.1, 0.0], [-0.2, 0.6, 0.1], [0.0, 0.3, 0.9]])
    errors = np.einsum("si,si->s", tasks, query) - np.einsum("si,ij,sj->s", beta, w, query)
    sampled, spread = np.mean(errors**2) / 2, np.std(errors**2) / 2 / np.sqrt(num)
    loss = float(model.map_loss(jnp.asarray(w), DATA))
    assert abs(sampled - loss) < 4 * spread < 0.04 * loss
    many = float(model.map_loss(jnp.asarray(w), DATA | {"num_examples": jnp.array(1e9)}))
    assert abs(many - loss) > 0.1 * loss


@pytest.mark.parametrize("rank, loss, law", [
    (None, model.merged_loss, model.merged_balance), (1, model.separate_loss, model.separate_balance),
    (2, model.separate_loss, model.separate_balance)])  # fmt: skip
def test_balances_are_conserved(rank, loss, law):
    params = params_of(rank)
    velocity = jax.tree.map(jnp.negative, jax.grad(loss)(params, DATA))
    wrong = velocity | {"v": -velocity["v"]}
    rates = [jnp.max(jnp.abs(jax.jvp(law, (params,), (way,))[1])) for way in (velocity, wrong)]
    assert float(rates[0]) < 1e-12 < 1e-2 < float(rates[1])


# --- closed forms ---


def test_plateau_losses_are_those_of_the_learned_maps():
    values = (0.4, 0.3, 0.2, 0.1)
    data = {"input_cov": jnp.diag(jnp.array(values)), "num_examples": jnp.array(31.0)}
    for m, loss in enumerate(theory.plateau_losses(values, 31.0)):
        learned = theory.learned_map(values, 31.0, np.arange(4) < m)
        assert float(model.map_loss(jnp.asarray(learned), data)) == pytest.approx(float(loss), rel=1e-14)
    whole = jnp.asarray(theory.learned_map(values, 31.0, np.ones(4)))
    assert float(jnp.max(jnp.abs(jax.grad(model.map_loss)(whole, data)))) < 1e-15


def test_head_time_solves_the_scalar_equation():
    flow = solve_ivp(lambda t, v: 0.3**2 * v**2 - 0.3**3 * 1.1 * v**5, (0, 60), [0.2], rtol=1e-12, atol=1e-14)
    assert theory.head_time(float(flow.y[0, -1]), 0.3, 1.1, 0.2) == pytest.approx(60.0, rel=1e-8)
    assert theory.head_time(1.0, 0.3, 1.2, 0.2) != pytest.approx(theory.head_time(1.0, 0.3, 1.1, 0.2), rel=1e-3)


def test_merged_curve_is_logistic():
    root, factor, start = np.sqrt(4), 1 + 5 / 31, 1e-4 / 2
    flow = solve_ivp(lambda t, s: 2 * root * s * (1 - factor * s), (0, 3), [start], rtol=1e-12, atol=1e-16)
    assert float(theory.merged_curve(3.0, 4, 31.0, 1e-2)) == pytest.approx(flow.y[0, -1], rel=1e-9)
    assert float(theory.merged_curve(1e3, 4, 31.0, 1e-2)) == pytest.approx(1 / factor, rel=1e-14)
