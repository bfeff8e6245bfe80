"""The contract that every problem obeys, and proofs that each of its checks can fail."""

from functools import cache
from itertools import product
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot.models import (
    attention,
    attention_classifier,
    decoder,
    emb_mlp,
    linear,
    linear_attention,
    multilayer,
    trilinear,
    two_layer,
)

RTOL = 1e-6
ROWS = 81
ATTENTION_LAWS = {"embedding": attention.embedding_balance, "query-key": attention.query_key_balance}
CLASSIFIER_LAWS = {
    "query-key": attention_classifier.query_key_balance,
    "value": attention_classifier.value_balance,
}
LINEAR_LAWS = {"balancedness": linear.balancedness}
EMB_LAWS = {"balancedness": emb_mlp.balancedness}


class Case(NamedTuple):
    """A problem, a start, and a time by which its first descents are over."""

    problem: td.Problem
    params0: Any
    t1: float


def chain(transition):
    transition = jnp.asarray(transition)
    return {"stationary": td.data.stationary_law(np.asarray(transition)), "transition": transition}


def persistent_attention():
    law = jnp.array([0.6, 0.3, 0.1])
    params0 = td.inits.attention_params(3, 3, 2, 0.1, key=jr.key(0))
    return Case(
        td.Problem(attention.population_loss, chain(td.data.persistent_chain(law, 0.5)), ATTENTION_LAWS), params0, 60.0
    )


def non_reversible_attention():
    """A random chain that turns 0 → 1 → 2 → 0 more often than back."""
    weights = np.random.default_rng(3).uniform(0.5, 1.0, (3, 3)) * [6, 2, 1] + 3 * np.eye(3)[[1, 2, 0]]
    data = chain(weights / weights.sum(axis=1, keepdims=True))
    flux = data["stationary"][:, None] * data["transition"]
    assert float(jnp.max(jnp.abs(flux - flux.T))) > 0.05
    params0 = td.inits.attention_params(3, 3, 2, 0.1, key=jr.key(1))
    return Case(td.Problem(attention.population_loss, data, ATTENTION_LAWS), params0, 60.0)


def sampled_attention():
    transition = td.data.persistent_chain([0.6, 0.3, 0.1], 0.5)
    sequences, targets = td.data.sample_sequences(transition, 24, 10, key=jr.key(0))
    params0 = td.inits.attention_params(3, 3, 2, 0.1, key=jr.key(2))
    return Case(
        td.Problem(attention.sampled_loss, attention.count_data(sequences, targets, 3), ATTENTION_LAWS), params0, 30.0
    )


def classifying_attention():
    data = td.data.labeled_sequences(7, 3, 3, 2.0, key=jr.key(0))
    params0 = td.inits.attention_classifier_params(3, 0.3, key=jr.key(6))
    return Case(td.Problem(attention_classifier.loss_fn(jnp.tanh), data, CLASSIFIER_LAWS), params0, 15.0)


def deep_linear(num_layers):
    target = td.data.orthogonal_target(jnp.array([2.0, 0.7]), 2, key=jr.key(0))
    params0 = td.inits.deep_linear((2,) * (num_layers + 1), 0.1 ** (2 / num_layers), key=jr.key(4))
    return Case(td.Problem(linear.factorization_loss, {"target": target}, LINEAR_LAWS), params0, 15.0)


def completion():
    """A rank-one matrix from five of its nine entries."""
    target = td.data.orthogonal_target(jnp.array([2.0]), 3, key=jr.key(2))
    observed = td.data.observed_entries(3, 5, key=jr.key(1))
    params0 = td.inits.deep_linear((3,) * 3, 0.1, key=jr.key(4))
    return Case(
        td.Problem(linear.completion_loss, {"target": target, "observed": observed}, LINEAR_LAWS), params0, 15.0
    )


def linear_classifier():
    x = jnp.array([[1.0, 0.2], [-0.3, 0.9], [-0.8, -0.5]])
    params0 = td.inits.deep_linear((2, 2, 1), 0.3, key=jr.key(3))
    data = {"x": x, "y": jnp.array([1.0, 1.0, -1.0])}
    return Case(td.Problem(linear.exponential_loss, data, LINEAR_LAWS), params0, 10.0)


def in_context(rank):
    """Linear attention on two input directions; merged heads without a rank."""
    shapes = {"v": (2,), "u": (2, 2, 2)} if rank is None else {"v": (2,), "k": (2, rank, 2), "q": (2, rank, 2)}
    params0 = td.inits.gaussian({name: jnp.zeros(shape) for name, shape in shapes.items()}, 0.3, key=jr.key(0))
    loss, law = (linear_attention.merged_loss, linear_attention.merged_balance) if rank is None else (
        linear_attention.separate_loss, linear_attention.separate_balance)  # fmt: skip
    data = {"input_cov": jnp.diag(jnp.array([1.0, 0.5])), "num_examples": jnp.array(10.0)}
    return Case(td.Problem(loss, data, {"balance": law}), params0, 30.0)


def two_layer_tanh():
    """A tanh network has no exact invariant; it learns sin on the line."""
    x = jnp.stack([jnp.linspace(-2, 2, 7), jnp.ones(7)], axis=1)
    params0 = td.inits.two_layer_params(3, 2, 0.3, key=jr.key(5))
    return Case(td.Problem(two_layer.loss_fn(jnp.tanh), {"x": x, "y": jnp.sin(x[:, 0])}), params0, 60.0)


def three_layer_tanh():
    """No exact invariant either; from a start that is not small, so that it leaves it soon."""
    x = jnp.stack([jnp.linspace(-2, 2, 7), jnp.ones(7)], axis=1)
    params0 = td.inits.deep_linear((2, 3, 3, 1), 0.5, key=jr.key(6))
    return Case(td.Problem(multilayer.loss_fn(jnp.tanh), {"x": x, "y": jnp.sin(x[:, 0])}), params0, 30.0)


def effective_three_layers():
    """Followed up to nine tenths of its blow-up time."""
    like = {"a": jnp.zeros(2), "b": jnp.zeros((2, 3)), "c": jnp.zeros(3)}
    problem, params0 = (
        td.Problem(trilinear.loss, None, trilinear.CONSERVED),
        td.inits.gaussian(like, 1.0, key=jr.key(1)),
    )
    return Case(problem, params0, 0.9 * float(td.blow_up(problem, params0).time))


def small_decoder():
    """One layer of two heads learns facts of two and three tokens."""
    tokens = np.random.default_rng(0).integers(0, 4, (6, 3))
    data = {"tokens": tokens, "targets": tokens[:, 0], "lengths": np.array([2, 3, 3, 2, 3, 3])}
    params0 = td.inits.decoder_params(4, 4, 4, 0.4, key=jr.key(6), num_heads=2, seq_len=3)
    laws = {"query-key": decoder.query_key_balance, "value": decoder.value_balance}
    return Case(td.Problem(decoder.loss_fn(jax.nn.gelu), data, laws), params0, 8.0)


def bag_of_words():
    """Two-hop facts with the identity bridge, three entities a set."""
    task = td.data.two_hop_task((3, 3, 3))
    params0 = td.inits.emb_mlp_params(task.vocab_size, 6, 4, 0.3, key=jr.key(6))
    facts = td.data.bag_data(task, td.data.training_facts(task))
    return Case(td.Problem(emb_mlp.loss, facts, EMB_LAWS), params0, 40.0)


CASES = {
    "attention, persistent chain": persistent_attention,
    "attention, non-reversible chain": non_reversible_attention,
    "attention, sampled": sampled_attention,
    "attention that classifies": classifying_attention,
    "bag of words": bag_of_words,
    "deep linear, L=2": lambda: deep_linear(2),
    "deep linear, L=3": lambda: deep_linear(3),
    "deep linear, L=4": lambda: deep_linear(4),
    "three-layer tanh": three_layer_tanh,
    "three layers, effective": effective_three_layers,
    "two-layer tanh": two_layer_tanh,
    "matrix completion": completion,
    "linear classifier, exponential loss": linear_classifier,
    "linear attention, merged": lambda: in_context(None),
    "linear attention, rank 1": lambda: in_context(1),
    "decoder": small_decoder,
}
SOLVERS = {"deflated": td.solvers.DeflatedExponential(8), "tsit5": "tsit5"}  # a fixed rank compiles once
QUICK = {"attention, persistent chain", "attention, non-reversible chain", "deep linear, L=2"}
SLOW = {"deep linear, L=3", "linear attention, merged", "decoder"}  # their kin stand for them
# The contract holds for both solvers on all problems; to save compilations, at most one of them a problem by default.
USUAL = {name: "deflated" if name in QUICK else "tsit5" for name in CASES}


def marked(pairs):
    """Pairs of a problem and a solver; slow, but for the usual solver of a quick problem."""
    is_quick = lambda name, solver: solver == USUAL[name] and name not in SLOW  # noqa: E731
    return [pytest.param(*pair, marks=() if is_quick(*pair) else pytest.mark.slow) for pair in pairs]


every_problem = pytest.mark.parametrize("name, solver", marked(product(CASES, SOLVERS)))
every_problem_once = pytest.mark.parametrize("name, solver", marked(USUAL.items()))
make = cache(lambda name: CASES[name]())


def weight_norms(params, data):
    """An observable that no symmetry fixes: the norm of every array."""
    del data
    return jnp.stack([jnp.sqrt(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(params)])


@cache
def flow(name, solver="deflated", rtol=RTOL):
    case = make(name)
    return solve(case.problem, case.params0, case.t1, solver, rtol)


def solve(problem, params0, t1, solver="deflated", rtol=RTOL):
    """One compiled configuration a problem and solver."""
    options: dict[str, Any] = {"ts": np.linspace(0, t1, ROWS), "observables": {"norms": weight_norms}}
    return td.gradient_flow(problem, params0, t1, **options, solver=SOLVERS[solver], rtol=rtol, max_steps=2_000)


# --- the checks: each returns a number that must be small ---


def largest_rise(traj):
    """By how much the loss rises between rows, relative to how much it falls in all."""
    return float(np.max(np.diff(traj["loss"]))) / (traj["loss"][0] - np.min(traj["loss"]))


def energy_gap(traj):
    """Largest |L(0) − L(t) − ∫‖∇L‖²| along the rows, relative to the loss lost in all."""
    lost = traj["loss"][0] - traj["loss"]
    return float(np.max(np.abs(lost - traj["dissipation"]))) / float(np.max(np.abs(lost)))


def worst_drift(traj):
    return max(traj.stats["conservation"].values(), default=0.0)


def shifts(loose, tight):
    """Largest change of each series between two tolerances, relative to its range."""
    names = ("loss", "grad_norm", "norms")
    return {name: float(np.max(np.abs(loose[name] - tight[name])) / np.ptp(tight[name])) for name in names}


def descent_gaps(problem, params0, t1, params1):
    """Distance of gradient descent from the flow's end at two learning rates, one half of the other."""
    gaps = []
    for num_steps in (2000, 4000):
        end = td.descent(problem, params0, num_steps, t1 / num_steps, save_every=num_steps).params1
        squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), end, params1)
        gaps.append(float(np.sqrt(sum(jax.tree.leaves(squares)))))
    return gaps


def gradient_gap(problem, params):
    """Difference of Problem.grad from a central difference along a fixed direction, relative to its size."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    direction = jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves])
    shift = lambda size: jax.tree.map(lambda x, v: x + size * v, params, direction)  # noqa: E731
    loss = eqx.filter_jit(problem.loss)
    slope = (float(loss(shift(1e-5))) - float(loss(shift(-1e-5)))) / 2e-5
    grad = jax.tree.leaves(eqx.filter_jit(problem.grad)(params))
    along = sum(float(jnp.vdot(g, v)) for g, v in zip(grad, jax.tree.leaves(direction), strict=True))
    return abs(along - slope) / max(abs(slope), 1e-3)


# --- the contract ---


@every_problem
def test_loss_never_increases(name, solver):
    traj = flow(name, solver)
    assert traj.status == "done" and traj["loss"][-1] < 0.95 * traj["loss"][0]
    assert largest_rise(traj) <= 1e-12


@every_problem
def test_energy_identity(name, solver):
    """∫‖∇L‖² is one more state of the flow: it closes as well as the flow is solved."""
    traj = flow(name, solver)
    assert energy_gap(traj) < 1e-5
    assert traj.stats["energy_error"] < 1e-5


@every_problem
def test_conservation_laws(name, solver):
    laws = make(name).problem.conserved
    assert set(flow(name, solver).stats["conservation"]) == {law for law, _ in laws}
    assert bool(laws) == ("tanh" not in name)
    assert worst_drift(flow(name, solver)) < 1e-6
    assert worst_drift(flow(name, solver, 1e-4)) < 1e-4


@every_problem
def test_tightening_the_tolerance_moves_nothing_by_more_than_it_says(name, solver):
    """`rtol` bounds each step's error by its displacement; a saddle may magnify that, by less than thirty here."""
    loose, middle, tight = (flow(name, solver, rtol) for rtol in (1e-4, 1e-5, 1e-6))
    for series, shift in shifts(middle, tight).items():
        assert shift < 30 * 1e-5, series
    for series, shift in shifts(loose, middle).items():
        assert shift < 30 * 1e-4, series


@every_problem
def test_gradient_descent_approaches_the_flow_at_first_order(name, solver):
    case, traj = make(name), flow(name, solver)
    coarse, fine = descent_gaps(case.problem, case.params0, case.t1, traj.params1)
    assert coarse / fine == pytest.approx(2, rel=0.1)


@every_problem_once
def test_gradient_is_the_finite_difference(name, solver):
    case, traj = make(name), flow(name, solver)
    assert gradient_gap(case.problem, case.params0) < 1e-6
    assert gradient_gap(case.problem, traj.params1) < 1e-6


# --- negative controls ---


def with_wrong_gradient(loss_fn, scales):
    """The same loss with each block of its gradient multiplied by a number."""

    @jax.custom_jvp
    def wrong(params, data):
        return loss_fn(params, data)

    @wrong.defjvp
    def _(primals, tangents):
        (params, data), (dparams, _) = primals, tangents
        scaled = jax.tree.map(lambda s, t: s * t, scales, dparams)
        return jax.jvp(lambda p: loss_fn(p, data), (params,), (scaled,))

    return wrong


@cache
def wrong_flow(scales):
    case = make("deep linear, L=2")
    problem = td.Problem(with_wrong_gradient(case.problem.loss_fn, list(scales)), case.problem.data, LINEAR_LAWS)
    return problem, solve(problem, case.params0, case.t1, "tsit5")


def test_a_scaled_gradient_breaks_the_energy_identity_and_the_differences():
    """A factor 1.1 on the whole gradient keeps the curve and the invariants; time and dissipation are wrong."""
    problem, traj = wrong_flow((1.1, 1.1))
    case = make("deep linear, L=2")
    assert worst_drift(traj) < 1e-6 and largest_rise(traj) <= 1e-12
    assert energy_gap(traj) == pytest.approx(0.1, rel=0.01)  # ∫ |1.1 g|² dt = 1.1 × the drop
    assert gradient_gap(problem, case.params0) == pytest.approx(0.1, rel=0.01)
    coarse, fine = descent_gaps(case.problem, case.params0, 2.0, solve(problem, case.params0, 2.0, "tsit5").params1)
    assert coarse / fine < 1.5  # not the flow of this loss


def test_a_scaled_block_breaks_the_conservation_law():
    _, traj = wrong_flow((1.0, 1.2))
    assert worst_drift(traj) > 1e-2 and energy_gap(traj) > 1e-2


def test_a_block_of_the_wrong_sign_is_caught():
    """Downhill in one layer and uphill in the other: the loss does rise, and the driver refuses to go on."""
    problem, traj = wrong_flow((1.0, -1.0))
    assert traj.status != "done" or energy_gap(traj) > 1e-2
    assert gradient_gap(problem, make("deep linear, L=2").params0) > 0.1


def test_a_loose_tolerance_is_seen():
    """What the tight tolerances pass is not passed by everything."""
    name, solver = "deep linear, L=3", "tsit5"
    assert max(shifts(flow(name, solver, 1e-1), flow(name, solver)).values()) > 30 * 1e-5
    wrong_law = {"not conserved": weight_norms}
    case = make("two-layer tanh")
    traj = solve(td.Problem(case.problem.loss_fn, case.problem.data, wrong_law), case.params0, case.t1, solver)
    assert worst_drift(traj) > 1e-2
