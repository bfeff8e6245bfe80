"""The decoder against loops in NumPy, and what each of its parts may and may not see."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from thetadot import inits
from thetadot.models import decoder

D, M, N_TOKENS = 5, 4, 3


def make(seed=0, scale=0.7, **options):
    options = {"num_layers": 2, "num_heads": 2, "seq_len": N_TOKENS, "layer_norm": True} | options
    params = inits.decoder_params(D, M, 6, scale, key=jr.key(seed), **options)
    if options["layer_norm"]:  # gains that are not all 1
        params["gain"] = 1 + jnp.arange(M) / 7
        params["layers"][0]["gain_2"] = 1 - jnp.arange(M) / 9
    return params


def facts(num, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "tokens": jnp.asarray(rng.integers(0, D, (num, N_TOKENS))),
        "targets": jnp.asarray(rng.integers(0, D, num)),
        "lengths": jnp.asarray(rng.integers(1, N_TOKENS + 1, num)),
        "weights": jnp.asarray(rng.uniform(0.1, 2.0, num)),
    }


def naive_norm(gain, x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * gain if gain is not None else x


def naive_layer(layer, xs, activation, residual):
    normed = [naive_norm(layer.get("gain_1"), x) for x in xs]
    after = []
    for i, x in enumerate(xs):
        out = np.zeros_like(x)
        for head in range(layer["w_q"].shape[0]):
            w_q, w_k, w_v = (layer[name][head] for name in ("w_q", "w_k", "w_v"))
            scores = np.array([normed[i] @ w_q @ w_k.T @ normed[j] for j in range(i + 1)]) / np.sqrt(w_q.shape[1])
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed = sum(weights[j] * normed[j] @ w_v for j in range(i + 1))
            out = out + (mixed @ layer["w_o"][head] if "w_o" in layer else mixed)
        middle = x + out if residual else out
        block = activation(naive_norm(layer.get("gain_2"), middle) @ layer["w_1"]) @ layer["w_2"]
        after.append(middle + block if residual else block)
    return after


def naive_loss(params, data, activation=np.tanh, residual=True):
    """One sequence after another, cut to its length."""
    p, total = jax.tree.map(np.asarray, params), 0.0
    columns = (np.asarray(data[name]) for name in ("tokens", "lengths", "targets", "weights"))
    for tokens, length, target, weight in zip(*columns, strict=True):
        xs = [p["embedding"][t] + (p["position"][i] if "position" in p else 0) for i, t in enumerate(tokens[:length])]
        for layer in p["layers"]:
            xs = naive_layer(layer, xs, activation, residual)
        outputs = naive_norm(p.get("gain"), xs[-1]) @ p["output"]
        total -= weight * (outputs[target] - np.log(np.exp(outputs).sum()))
    return total / np.asarray(data["weights"]).sum()


def loss_of(params, data, residual=True):
    return float(_LOSSES[residual](params, data))


_LOSSES = {residual: jax.jit(decoder.loss_fn(jnp.tanh, residual)) for residual in (True, False)}


@pytest.mark.parametrize("num, residual", [(1, True), (3, True), (7, True), (13, True), (7, False)])
def test_loss_is_that_of_a_loop(num, residual):
    params, data = make(), facts(num)
    assert loss_of(params, data, residual) == pytest.approx(naive_loss(params, data, residual=residual), rel=1e-12)


@pytest.mark.parametrize("options", [{"layer_norm": False}, {"seq_len": None}, {"num_layers": 1, "num_heads": 4}])
def test_parts_that_are_left_out(options):
    params, data = make(**options), facts(7)
    assert loss_of(params, data) == pytest.approx(naive_loss(params, data), rel=1e-12)


def test_heads_are_summed_where_there_is_no_output_matrix():
    params, data = make(num_heads=1), facts(7)
    params["layers"] = [{k: v for k, v in layer.items() if k != "w_o"} for layer in params["layers"]]
    assert loss_of(params, data) == pytest.approx(naive_loss(params, data), rel=1e-12)


def test_without_lengths_and_weights_all_count_the_same_at_the_end():
    params, data = make(), facts(7)
    full = data | {"lengths": jnp.full(7, N_TOKENS), "weights": jnp.ones(7)}
    short = {"tokens": data["tokens"], "targets": data["targets"]}
    assert loss_of(params, short) == pytest.approx(naive_loss(params, full), rel=1e-12)


def test_matrices_in_the_data_are_used_and_not_trained():
    params, data = make(), facts(7)
    ends = {name: params.pop(name) for name in ("embedding", "output")}
    assert loss_of(params, data | ends) == pytest.approx(naive_loss(params | ends, data), rel=1e-12)
    assert "embedding" not in jax.eval_shape(jax.grad(decoder.loss_fn(jnp.tanh)), params, data | ends)


def test_nothing_sees_what_comes_after_it():
    params, data = make(), facts(7)
    stream = jax.jit(lambda tokens: decoder.hidden_states(params, {"tokens": tokens}, jnp.tanh))
    states = stream(data["tokens"])
    changed = data["tokens"].at[:, 2].set((data["tokens"][:, 2] + 1) % D)
    others = stream(changed)
    assert states.shape == (3, 7, N_TOKENS, M)
    np.testing.assert_array_equal(states[:, :, :2], others[:, :, :2])
    assert bool(jnp.all(jnp.any(states[:, :, 2] != others[:, :, 2], axis=-1)))


def test_attention_is_uniform_over_the_past_at_zero_and_a_law_everywhere():
    layer, x = make()["layers"][0], jr.normal(jr.key(3), (2, N_TOKENS, M))
    zero = dict(layer, w_q=jnp.zeros_like(layer["w_q"]))
    uniform = np.tril(np.ones((N_TOKENS, N_TOKENS))) / np.arange(1, N_TOKENS + 1)[:, None]
    np.testing.assert_allclose(decoder.attention_weights(zero, x), np.broadcast_to(uniform, (2, 2, 3, 3)), rtol=1e-12)
    np.testing.assert_allclose(decoder.attention_weights(layer, x).sum(axis=-1), 1.0, rtol=1e-12)


def test_parameters_by_scale():
    params = make(scale=1e-3, num_heads=4)
    flat = np.concatenate([np.ravel(params[name]) for name in ("embedding", "position", "output")])
    assert np.std(flat) == pytest.approx(1e-3, rel=0.3)  # 52 draws: their own spread is a tenth
    assert params["layers"][0]["w_q"].shape == (4, M, 1) and params["layers"][0]["w_o"].shape == (4, 1, M)
    with pytest.raises(ValueError, match=r"`decoder_params\(d_model=4\)` must be a multiple of `num_heads`=3"):
        make(num_heads=3)
