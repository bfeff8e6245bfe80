import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from thetadot import data as td_data
from thetadot import inits
from thetadot.models import attention, linear, multilayer, trilinear, two_layer

SIZES = [(2, 1, 1), (4, 6, 3), (7, 3, 5)]


population_value_and_grad = jax.jit(jax.value_and_grad(attention.population_loss))
sampled_value_and_grad = jax.jit(jax.value_and_grad(attention.sampled_loss))
sample = jax.jit(td_data.sample_sequences, static_argnums=(1, 2))
count = jax.jit(attention.count_data, static_argnums=2)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def normal_like(tree, seed=4):
    return jax.tree.map(lambda x: normal(seed, *x.shape), tree)


def attention_problem(d, m, h, scale=0.7, seed=0):
    weights = np.exp(2.0 * np.random.default_rng(seed).normal(size=(d, d)))
    transition = weights / weights.sum(axis=1, keepdims=True)
    shapes = {"w_0": (d, m), "w_1": (m, d), "w_q": (m, h), "w_k": (m, h)}
    params = {name: scale * normal(seed + 10 + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    return params, {"stationary": td_data.stationary_law(transition), "transition": jnp.asarray(transition)}


def random_contexts(num, length, d=4):
    tokens = np.random.default_rng(num).integers(0, d, size=(num, length + 1))
    return jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, -1])


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def naive_softmax(x):
    return np.exp(x) / np.exp(x).sum()


def naive_population_loss(params, data):
    p, (pi, transition) = as_numpy(params), (np.asarray(data["stationary"]), np.asarray(data["transition"]))
    phi = p["w_0"] @ p["w_q"] @ p["w_k"].T @ p["w_0"].T
    m = p["w_0"] @ p["w_1"]
    loss = 0.0
    for i in range(len(pi)):
        weights = np.array([pi[j] * np.exp(phi[i, j]) for j in range(len(pi))])
        probabilities = naive_softmax(weights / weights.sum() @ m)
        for j in range(len(pi)):
            loss -= pi[i] * transition[i, j] * np.log(probabilities[j])
    return loss


def naive_sampled_loss(params, sequences, targets, d):
    """The full softmax over positions of one-hot contexts, last row."""
    p, losses = as_numpy(params), []
    for sequence, target in zip(np.asarray(sequences), np.asarray(targets), strict=True):
        x = np.eye(d)[sequence]
        logits = x @ p["w_0"] @ p["w_q"] @ p["w_k"].T @ p["w_0"].T @ x.T
        rows = np.array([naive_softmax(row) for row in logits])
        output = (rows @ x @ p["w_0"] @ p["w_1"])[-1]
        losses.append(-np.log(naive_softmax(output)[target]))
    return np.mean(losses)


def formula_gradient(params, data):
    """-dθ/dt, written out from the chain rule through M and Φ."""
    p, pi, transition = as_numpy(params), np.asarray(data["stationary"]), np.asarray(data["transition"])
    w_0, w_1, w_q, w_k = p["w_0"], p["w_1"], p["w_q"], p["w_k"]
    d, m, phi = len(pi), w_0 @ w_1, w_0 @ w_q @ w_k.T @ w_0.T
    a = np.array([naive_softmax(np.log(pi) + row) for row in phi])
    errors = np.array([naive_softmax(a[i] @ m) - transition[i] for i in range(d)])
    d_m = sum(pi[i] * np.outer(a[i], errors[i]) for i in range(d))
    d_phi = np.array([[pi[i] * a[i, j] * (np.eye(d)[j] - a[i]) @ m @ errors[i] for j in range(d)] for i in range(d)])
    return {
        "w_0": d_m @ w_1.T + d_phi @ w_0 @ w_k @ w_q.T + d_phi.T @ w_0 @ w_q @ w_k.T,
        "w_1": w_0.T @ d_m,
        "w_q": w_0.T @ d_phi @ w_0 @ w_k,
        "w_k": w_0.T @ d_phi.T @ w_0 @ w_q,
    }


def directional_difference(loss, params, direction, step=1e-5):
    ahead = jax.tree.map(lambda x, v: x + step * v, params, direction)
    behind = jax.tree.map(lambda x, v: x - step * v, params, direction)
    return (loss(ahead) - loss(behind)) / (2 * step)


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("sizes", SIZES)
def test_population_loss_is_the_naive_loop(sizes):
    params, data = attention_problem(*sizes)
    loss = float(population_value_and_grad(params, data)[0])
    assert loss == pytest.approx(naive_population_loss(params, data), rel=1e-13)
    swapped = {**data, "transition": data["transition"].T}
    assert abs(float(population_value_and_grad(params, swapped)[0]) - loss) > 1e-3


@pytest.mark.parametrize("sizes", SIZES)
def test_population_gradient_is_the_formula_and_the_finite_difference(sizes):
    params, data = attention_problem(*sizes)
    grad = population_value_and_grad(params, data)[1]
    expected = formula_gradient(params, data)
    for name, value in expected.items():
        np.testing.assert_allclose(grad[name], value, rtol=1e-11, atol=1e-14)
    direction = normal_like(params)
    slope = directional_difference(lambda p: population_value_and_grad(p, data)[0], params, direction)
    assert float(dot(grad, direction)) == pytest.approx(float(slope), rel=1e-7)


def test_composite_gradients_are_those_of_the_parameters():
    params, data = attention_problem(4, 6, 3)
    parts = attention.composite(params)
    d_m, d_phi = jax.grad(attention.composite_loss, argnums=(0, 1))(parts["m"], parts["phi"], data)
    grad = population_value_and_grad(params, data)[1]
    np.testing.assert_allclose(params["w_0"].T @ d_m, grad["w_1"], rtol=1e-12)
    np.testing.assert_allclose(params["w_0"].T @ d_phi @ params["w_0"] @ params["w_k"], grad["w_q"], rtol=1e-11)


def test_logit_scale_multiplies_phi():
    params, data = attention_problem(4, 6, 3)
    halved = {**params, "w_q": 0.5 * params["w_q"]}
    scaled = attention.population_loss(params, data, logit_scale=0.5)
    assert float(scaled) == pytest.approx(float(attention.population_loss(halved, data)), rel=1e-14)
    assert float(scaled) != pytest.approx(float(attention.population_loss(params, data)), rel=1e-6)


def test_attention_rows_are_laws_and_start_at_the_stationary_one():
    params, data = attention_problem(4, 6, 3)
    a = attention.attention(params, data)
    np.testing.assert_allclose(a.sum(axis=1), 1.0, rtol=1e-14)
    off = {**params, "w_q": jnp.zeros((6, 3))}
    np.testing.assert_allclose(attention.attention(off, data), jnp.tile(data["stationary"], (4, 1)), rtol=1e-14)
    assert float(jnp.max(jnp.abs(a - data["stationary"][None, :]))) > 1e-3


def test_extreme_parameters_and_zeros_in_the_transition_stay_finite():
    params, data = attention_problem(4, 6, 3, scale=30.0)
    cyclic = {**data, "transition": jnp.roll(jnp.eye(4), 1, axis=1), "stationary": jnp.full((4,), 0.25)}
    zero = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def value_grad_and_product(point):
        value, grad = jax.value_and_grad(attention.population_loss)(point, cyclic)
        grad_fn = jax.grad(attention.population_loss)
        return value, grad, jax.jvp(lambda p: grad_fn(p, cyclic), (point,), (params,))[1]

    for point in (params, zero):
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(value_grad_and_product(point)))
    assert float(value_grad_and_product(zero)[0]) == pytest.approx(np.log(4), rel=1e-15)


def test_a_second_call_with_other_data_does_not_recompile():
    traces = []

    @jax.jit
    def loss(params, data):
        traces.append(1)
        return attention.population_loss(params, data)

    loss(*attention_problem(4, 6, 3, seed=0))
    loss(*attention_problem(4, 6, 3, seed=1))
    assert len(traces) == 1


@pytest.mark.parametrize("num, length", [(1, 1), (3, 2), (13, 40)])
def test_sampled_loss_is_the_full_softmax_over_positions(num, length):
    params, _ = attention_problem(4, 6, 3)
    sequences, targets = random_contexts(num, length)
    samples = {"sequences": sequences, "targets": targets}
    loss = float(sampled_value_and_grad(params, samples)[0])
    assert loss == pytest.approx(naive_sampled_loss(params, sequences, targets, 4), rel=1e-12)
    counted = count(sequences, targets, 4)
    assert float(sampled_value_and_grad(params, counted)[0]) == pytest.approx(loss, rel=1e-15)
    assert np.array_equal(counted["counts"].sum(axis=1), np.full(num, length))


def test_sampled_gradient_is_finite_where_token_types_are_absent():
    params, _ = attention_problem(4, 6, 3)
    sequences, targets = random_contexts(7, 2)
    samples = {"sequences": sequences, "targets": targets}
    assert bool(jnp.any(attention.context_counts(sequences, 4) == 0))
    grad = sampled_value_and_grad(params, samples)[1]
    direction = normal_like(params)
    slope = directional_difference(lambda p: sampled_value_and_grad(p, samples)[0], params, direction)
    assert float(dot(grad, direction)) == pytest.approx(float(slope), rel=1e-7)


def test_sampled_loss_approaches_the_population_loss():
    """Error of size s^-1/2 and N^-1/2: 16 times more of both is 4 times closer, up to the spread of 8 draws."""
    params, data = attention_problem(4, 6, 3)
    population = attention.population_loss(params, data)

    def error(key, num, length):
        law = data["stationary"]
        sequences, targets = td_data.sample_sequences(data["transition"], num, length, key=key, initial_law=law)
        return attention.sampled_loss(params, {"sequences": sequences, "targets": targets}) - population

    def rms(num, length):
        errors = jax.jit(jax.vmap(lambda key: error(key, num, length)))(jr.split(jr.key(3), 8))
        return float(jnp.sqrt(jnp.mean(jnp.square(errors))))

    coarse, fine = rms(40, 15), rms(16 * 40, 16 * 15)
    assert 2 < coarse / fine < 8
    assert fine < 0.04


def test_context_statistics_alone_approach_the_population_loss_with_length():
    """With the last token and the target averaged out exactly, only the context's frequencies are left: rate s^-1/2."""
    params, data = attention_problem(4, 6, 3)
    parts = attention.composite(params)
    sequences, _ = sample(data["transition"], 64, 6400, key=jr.key(1), initial_law=data["stationary"])

    @jax.jit
    @jax.vmap
    def loss_in_context(frequencies):
        shift = jnp.log(frequencies / data["stationary"])
        return attention.composite_loss(parts["m"], parts["phi"] + shift[None, :], data)

    def spread(length):
        counts = attention.context_counts(sequences[:, :length], 4).astype(float)
        return float(jnp.std(loss_in_context(counts / length)))

    assert spread(400) / spread(6400) == pytest.approx(4.0, rel=0.4)


def along_the_flow(law, loss, params, data):
    """d/dt of a conserved quantity for dθ/dt = -∇L, and its size if one block has the wrong sign."""
    velocity = jax.tree.map(jnp.negative, jax.jit(jax.grad(loss))(params, data))
    wrong = {**velocity, "w_q": -velocity["w_q"]}
    rate_of = jax.jit(lambda v: jax.jvp(lambda p: law(p, data), (params,), (v,))[1])
    rates = [rate_of(v) for v in (velocity, wrong)]
    return [float(jnp.max(jnp.abs(rate))) for rate in rates]


@pytest.mark.parametrize("law", [attention.embedding_balance, attention.query_key_balance])
def test_attention_conservation_laws(law):
    params, data = attention_problem(4, 6, 3)
    sequences, targets = random_contexts(20, 30)
    samples = {"sequences": sequences, "targets": targets}
    for loss, loss_data in ((attention.population_loss, data), (attention.sampled_loss, samples)):
        rate, wrong = along_the_flow(law, loss, params, loss_data)
        assert rate < 1e-14
        assert wrong > 1e-3


@pytest.mark.parametrize("widths", [(3, 4), (2, 5, 3), (4, 4, 4, 4), (3, 2, 6, 2, 5)])
def test_factorization_loss_is_the_naive_loop(widths):
    params = [normal(i, *shape) for i, shape in enumerate(zip(widths[1:], widths[:-1], strict=True))]
    target = normal(1, widths[-1], widths[0])
    product = np.eye(widths[0])
    for w in params:
        product = np.asarray(w) @ product
    expected = 0.0
    for i in range(widths[-1]):
        for j in range(widths[0]):
            expected += 0.5 * (product[i, j] - float(target[i, j])) ** 2
    data = {"target": target}
    np.testing.assert_allclose(linear.end_to_end(params), product, rtol=1e-13)
    assert float(linear.factorization_loss(params, data)) == pytest.approx(expected, rel=1e-13)
    direction = [normal(i, *w.shape) for i, w in enumerate(params)]
    value_and_grad = jax.jit(jax.value_and_grad(linear.factorization_loss))
    slope = directional_difference(lambda p: value_and_grad(p, data)[0], params, direction)
    grad = value_and_grad(params, data)[1]
    assert float(dot(grad, direction)) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("widths", [(3, 4), (2, 5, 3), (4, 4, 4, 4)])
def test_completion_loss_is_the_naive_loop_over_observed_entries(widths):
    params = [normal(i, *shape) for i, shape in enumerate(zip(widths[1:], widths[:-1], strict=True))]
    target = normal(1, widths[-1], widths[0])
    observed = np.random.default_rng(2).integers(0, 2, size=target.shape).astype(float)
    product = np.asarray(linear.end_to_end(params))
    expected, missed, hidden = 0.0, 0.0, 0.0
    for i in range(widths[-1]):
        for j in range(widths[0]):
            square = (product[i, j] - float(target[i, j])) ** 2
            if observed[i, j]:
                expected += 0.5 * square
            else:
                missed, hidden = missed + square, hidden + float(target[i, j]) ** 2
    data = {"target": target, "observed": jnp.asarray(observed)}
    assert float(linear.completion_loss(params, data)) == pytest.approx(expected, rel=1e-13)
    assert float(linear.unobserved_error(params, data)) == pytest.approx(np.sqrt(missed / hidden), rel=1e-13)
    everything = data | {"observed": jnp.ones_like(target)}
    whole = float(linear.factorization_loss(params, data))
    assert float(linear.completion_loss(params, everything)) == pytest.approx(whole, rel=1e-14)


@pytest.mark.parametrize("num_samples", [1, 3, 7, 13])
def test_exponential_loss_is_the_naive_loop(num_samples):
    params = [normal(0, 4, 3), normal(1, 1, 4)]
    x, y = normal(2, num_samples, 3), jnp.sign(normal(3, num_samples))
    vector = np.asarray(params[1])[0] @ np.asarray(params[0])
    expected = sum(np.exp(-float(y[i]) * float(vector @ np.asarray(x[i]))) for i in range(num_samples))
    assert float(linear.exponential_loss(params, {"x": x, "y": y})) == pytest.approx(expected, rel=1e-13)


def test_layers_are_aligned_where_one_reads_what_the_other_writes():
    u, v = jnp.array([0.6, 0.8]), jnp.array([0.8, -0.6])
    lower, upper = u[:, None] * jnp.array([1.0, 2.0])[None, :], jnp.array([3.0, 1.0])[:, None] * v[None, :]
    np.testing.assert_allclose(linear.layer_alignment([lower, upper]), [0.0], atol=1e-12)
    np.testing.assert_allclose(linear.layer_alignment([lower, jnp.outer(v, u)]), [1.0], rtol=1e-14)


def test_final_stage_shares_are_those_of_the_naive_loops():
    """Neurons that lower the loss as they grow, and pairs whose parts of the product point the same way."""
    params = [normal(i, 5, 5) for i in range(3)]
    data = {"target": normal(3, 5, 5), "observed": jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 5)), float)}
    w_1, w_2, w_3 = (np.asarray(w) for w in params)
    residual = np.asarray(data["observed"] * (data["target"] - linear.end_to_end(params)))
    reads, adds = [w_1, w_2 @ w_1], [w_3 @ w_2, w_3]
    neurons = [np.mean([add[:, k] @ residual @ read[k] > 0 for k in range(5)]) for read, add in zip(reads, adds)]  # noqa: B905
    np.testing.assert_allclose(linear.final_stage_neurons(params, data), neurons, rtol=1e-14)
    parts = [[np.outer(upper[:, k], lower[k]) for k in range(5)] for lower, upper in ((w_1, w_2), (w_2, w_3))]
    pairs = [np.mean([np.sum(p[i] * p[j]) > 0 for i in range(5) for j in range(i)]) for p in parts]
    np.testing.assert_allclose(linear.final_stage_pairs(params), pairs, rtol=1e-14)
    assert 0 < min(pairs) and 0 < max(neurons) and max(*pairs, *neurons) < 1


def test_balanced_layers_are_in_their_final_stage():
    target = normal(0, 4, 4)
    balanced = inits.balanced_linear(target, 3, jnp.array([0.4, 0.3, 0.2, 0.1]), key=jr.key(0))
    np.testing.assert_array_equal(linear.final_stage_pairs(balanced), [1.0, 1.0])


def test_linear_balancedness_is_conserved():
    params = inits.deep_linear((4, 5, 3, 4), 0.8, key=jr.key(0))
    data = {"target": jnp.eye(4)}
    velocity = [-g for g in jax.jit(jax.grad(linear.factorization_loss))(params, data)]
    law = linear.balancedness(params, data)
    assert law.shape == (5 * 5 + 3 * 3,)
    assert linear.balancedness(params[:1], data).shape == (0,)
    rate_of = jax.jit(lambda v: jax.jvp(linear.balancedness, (params,), (v,))[1])
    rate, wrong = rate_of(velocity), rate_of([-velocity[0], *velocity[1:]])
    assert float(jnp.max(jnp.abs(rate))) < 1e-14
    assert float(jnp.max(jnp.abs(wrong))) > 1e-2


@pytest.mark.parametrize("num_samples", [1, 3, 7, 13])
def test_two_layer_loss_is_the_naive_loop(num_samples):
    params = inits.two_layer_params(5, 3, 0.9, key=jr.key(0))
    x, y = normal(1, num_samples, 3), normal(2, num_samples)
    expected = 0.0
    for i in range(num_samples):
        output = 0.0
        for k in range(5):
            output += float(params["a"][k]) * np.tanh(sum(float(params["w"][k, j] * x[i, j]) for j in range(3)))
        expected += (output - float(y[i])) ** 2 / (2 * num_samples)
    loss = two_layer.loss_fn(jnp.tanh)(params, {"x": x, "y": y})
    assert float(loss) == pytest.approx(expected, rel=1e-13)


def test_the_skewed_tanh_has_the_stated_taylor_coefficients():
    derivatives, value = [], two_layer.skewed_tanh
    for _ in range(3):
        value = jax.grad(value)
        derivatives.append(float(value(jnp.array(0.0))))
    np.testing.assert_allclose(derivatives, [1.0, 1.0, -2.0], atol=1e-12)  # z + z²/2 - z³/3
    assert float(two_layer.skewed_tanh(jnp.array(0.0))) == 0.0 and float(two_layer.linear(jnp.array(0.3))) == 0.3


def test_two_layer_loss_is_one_object_an_activation():
    assert two_layer.loss_fn(jnp.tanh) is two_layer.loss_fn(jnp.tanh)
    assert two_layer.loss_fn(jnp.tanh) is not two_layer.loss_fn(jax.nn.relu)


def test_neuron_balance_is_conserved_for_homogeneous_activations_only():
    params = inits.two_layer_params(5, 3, 0.9, key=jr.key(0))
    data = {"x": normal(1, 9, 3), "y": normal(2, 9)}

    @jax.jit(static_argnums=0)
    def rates(activation):
        velocity = jax.tree.map(jnp.negative, jax.grad(two_layer.loss_fn(activation))(params, data))
        return jax.jvp(two_layer.neuron_balance, (params,), (velocity,))[1]

    def rate(activation):
        return float(jnp.max(jnp.abs(rates(activation))))

    assert rate(jax.nn.relu) < 1e-14
    assert rate(jnp.tanh) > 1e-3


# --- trilinear ---


def trilinear_params(rows, columns, seed=0):
    return {"a": normal(seed, rows), "b": normal(seed + 1, rows, columns), "c": normal(seed + 2, columns)}


@pytest.mark.parametrize("rows, columns", [(1, 3), (7, 2), (13, 13)])
def test_trilinear_energy_equals_the_sum_written_out(rows, columns):
    params = trilinear_params(rows, columns)
    p = as_numpy(params)
    written = sum(p["a"][i] * p["b"][i, j] * p["c"][j] for i in range(rows) for j in range(columns))
    assert float(trilinear.energy(params)) == pytest.approx(written, rel=1e-12)
    assert float(trilinear.loss(params)) == -float(trilinear.energy(params))


def test_trilinear_gradient_is_the_printed_flow():
    params = trilinear_params(4, 3)
    p, grad = as_numpy(params), jax.grad(trilinear.loss)(params)
    np.testing.assert_allclose(-grad["a"], p["b"] @ p["c"], rtol=1e-12)
    np.testing.assert_allclose(-grad["b"], np.outer(p["a"], p["c"]), rtol=1e-12)
    np.testing.assert_allclose(-grad["c"], p["b"].T @ p["a"], rtol=1e-12)


@pytest.mark.parametrize("name", trilinear.CONSERVED)
def test_trilinear_laws_are_orthogonal_to_the_gradient(name):
    """d/dt C = -∂C · ∇L = 0 at a random point, and not along another direction."""
    params, law = trilinear_params(4, 3), trilinear.CONSERVED[name]
    _, along = jax.jvp(law, (params,), (jax.grad(trilinear.loss)(params),))
    np.testing.assert_allclose(along, np.zeros(along.shape), atol=1e-12)
    _, elsewhere = jax.jvp(law, (params,), (normal_like(params),))
    assert float(jnp.max(jnp.abs(elsewhere))) > 0.1


def test_trilinear_rows_and_columns_of_zeros_stay_zero():
    params = trilinear_params(4, 3)
    padded = {"a": jnp.pad(params["a"], (0, 2)), "b": jnp.pad(params["b"], (0, 2)), "c": jnp.pad(params["c"], (0, 2))}
    grad, small = jax.grad(trilinear.loss)(padded), jax.grad(trilinear.loss)(params)
    np.testing.assert_allclose(grad["b"][:4, :3], small["b"], rtol=1e-12)
    assert not np.any(grad["b"][4:]) and not np.any(grad["b"][:, 3:]) and not np.any(grad["a"][4:])


def test_final_stage_fractions_count_indices_and_pairs():
    params = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([[2.0, 0.0], [-1.0, 0.5]]), "c": jnp.array([1.0, 1.0])}
    # da/dt = (2, -1/2), dc/dt = (1, 1/2): one of four falls. Rows (2, 0)·(-1, 1/2) < 0; columns (2, -1)·(0, 1/2) < 0.
    np.testing.assert_allclose(trilinear.final_stage_fractions(params), [3 / 4, 4 / 8])
    rank_one = {"a": jnp.ones(2), "b": jnp.ones((2, 2)), "c": jnp.ones(2)}
    np.testing.assert_allclose(trilinear.final_stage_fractions(rank_one), [1.0, 1.0])


# --- multilayer ---


def layers(widths, scale=0.7, seed=0):
    return [scale * normal(seed + i, out, into) for i, (into, out) in enumerate(itertools.pairwise(widths))]


@pytest.mark.parametrize("widths, num_samples", [((3, 1), 1), ((2, 4, 1), 3), ((3, 4, 5, 1), 7), ((2, 3, 3, 3, 1), 13)])
def test_multilayer_loss_equals_a_naive_loop(widths, num_samples):
    params, x, y = layers(widths), normal(20, num_samples, widths[0]), normal(21, num_samples)
    loss = 0.0
    for n in range(num_samples):
        hidden = np.asarray(params[0]) @ np.asarray(x[n])
        for w in params[1:]:
            hidden = np.asarray(w) @ np.tanh(hidden)
        loss += 0.5 * (hidden[0] - float(y[n])) ** 2 / num_samples
    found = multilayer.loss_fn(jnp.tanh)(params, {"x": x, "y": y})
    assert float(found) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("depth, eps", [(2, 0.02), (3, 0.02), (5, 0.05)])  # ε^(depth + 2) stays far above round-off
def test_multilayer_loss_starts_like_its_effective_loss(depth, eps):
    """L(εθ) - L(0) = ε^L L_eff(θ) (1 + O(ε²)): the difference falls by 2^(L+2) when ε is halved."""
    params, data = layers([3, *[4] * (depth - 1), 1]), {"x": normal(20, 7, 3), "y": normal(21, 7)}
    loss, flat = multilayer.loss_fn(jnp.tanh), multilayer.loss_fn(jnp.tanh)(layers([3, 1], 0.0), data)

    def difference(scale):
        small = [scale * w for w in params]
        return float(loss(small, data) - flat - multilayer.effective_loss(small, data))

    order = 2 * depth if depth == 2 else depth + 2
    assert difference(eps) / difference(eps / 2) == pytest.approx(2**order, rel=0.05)


def test_multilayer_alignment_and_off_axis_parts():
    params, data = layers([3, 4, 1]), {"x": normal(20, 7, 3), "y": normal(21, 7)}
    s, off, cosines = (
        fn(params, data) for fn in (lambda _, d: multilayer.correlation(d), multilayer.off_axis, multilayer.alignment)
    )
    np.testing.assert_allclose(off @ s, np.zeros(4), atol=1e-12)
    norms = jnp.sum(jnp.square(params[0]), axis=1)
    np.testing.assert_allclose(1 - cosines**2, jnp.sum(jnp.square(off), axis=1) / norms, rtol=1e-10)


def test_three_layers_are_the_trilinear_flow_at_rate_s():
    params, data = layers([3, 4, 5, 1]), {"x": normal(20, 7, 3), "y": normal(21, 7)}
    s = multilayer.correlation(data)
    rate = jnp.linalg.norm(s)
    reduced = {"a": params[2][0], "b": params[1], "c": params[0] @ s / rate}
    assert float(multilayer.effective_loss(params, data)) == pytest.approx(float(rate * trilinear.loss(reduced)))
