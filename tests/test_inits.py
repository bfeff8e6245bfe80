import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from thetadot import inits
from thetadot.models import linear


def test_attention_parameters_are_one_draw_in_the_stated_order():
    params = inits.attention_params(4, 8, 5, 1e-3, key=jr.key(0))
    flat = 1e-3 * jr.normal(jr.key(0), (2 * 4 * 8 + 2 * 8 * 5,))
    ordered = [params[name] for name in ("w_0", "w_1", "w_q", "w_k")]
    assert [w.shape for w in ordered] == [(4, 8), (8, 4), (8, 5), (8, 5)]
    np.testing.assert_array_equal(jnp.concatenate([w.ravel() for w in ordered]), flat)
    # The tree order (W_K before W_Q) is another one.
    assert not np.array_equal(jnp.concatenate([w.ravel() for w in jax.tree.leaves(params)]), flat)


def test_gaussian_fills_any_tree_in_tree_order():
    template = {"b": jax.ShapeDtypeStruct((), jnp.float64), "a": [jnp.zeros((2, 3)), np.zeros(4)]}
    params = inits.gaussian(template, 0.5, key=jr.key(1))
    assert jax.tree.structure(params) == jax.tree.structure(template)
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    np.testing.assert_array_equal(flat, 0.5 * jr.normal(jr.key(1), (11,)))


def test_gaussian_scale():
    """10 000 draws: the standard deviation is right to 1/sqrt(20 000) = 0.7 %, five of them are 3.5 %."""
    params = inits.gaussian({"w": jnp.zeros((100, 100))}, 0.3, key=jr.key(1))
    assert float(jnp.std(params["w"])) == pytest.approx(0.3, rel=0.035)


def test_init_scale_and_key_can_be_traced():
    make = jax.jit(jax.vmap(lambda scale, key: inits.attention_params(3, 2, 2, scale, key=key)))
    scales = jnp.array([1e-3, 1e-2])
    batch = make(scales, jnp.stack([jr.key(0), jr.key(7)]))
    np.testing.assert_allclose(batch["w_q"][1], inits.attention_params(3, 2, 2, 1e-2, key=jr.key(7))["w_q"])


def test_two_layer_parameters():
    params = inits.two_layer_params(5, 3, 0.1, key=jr.key(0))
    flat = 0.1 * jr.normal(jr.key(0), (20,))
    np.testing.assert_array_equal(params["a"], flat[:5])
    np.testing.assert_array_equal(params["w"], flat[5:].reshape(5, 3))


def test_deep_linear_takes_one_key_or_one_a_layer():
    params = inits.deep_linear((2, 5, 3), 0.1, key=jr.key(0))
    assert [w.shape for w in params] == [(5, 2), (3, 5)]
    assert not np.array_equal(params[0].ravel()[:6], params[1].ravel()[:6])
    keys = jax.vmap(jr.key)(jnp.arange(10, 13))
    for i, w in enumerate(inits.deep_linear((10, 10, 10, 10), 1e-3, key=keys)):
        np.testing.assert_array_equal(w, 1e-3 * jr.normal(jr.key(10 + i), (10, 10)))


def test_deep_linear_mistakes():
    with pytest.raises(ValueError, match=r"`deep_linear\(key=\.\.\.\)` must be one key or 2, one a layer; got 3"):
        inits.deep_linear((2, 5, 3), 0.1, key=jr.split(jr.key(0), 3))
    with pytest.raises(ValueError, match="needs at least an input and an output width"):
        inits.deep_linear((2,), 0.1, key=jr.key(0))


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_balanced_linear_is_balanced_and_aligned(shape, num_layers):
    target = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    strengths = jnp.linspace(0.3, 0.1, min(shape))
    params = inits.balanced_linear(target, num_layers, strengths, key=jr.key(0))
    assert len(params) == num_layers
    if num_layers > 1:
        assert float(jnp.max(jnp.abs(linear.balancedness(params)))) < 1e-14
        params_plain = inits.balanced_linear(target, num_layers, strengths)
        assert float(jnp.max(jnp.abs(params_plain[0] - params[0]))) > 1e-2
    u, _, vt = np.linalg.svd(target, full_matrices=False)
    modes = u.T @ linear.end_to_end(params) @ vt.T
    np.testing.assert_allclose(modes, np.diag(strengths), atol=1e-14)


def test_balanced_linear_mistakes():
    with pytest.raises(ValueError, match=r"`balanced_linear\(num_layers=\.\.\.\)` must be at least 1; got 0"):
        inits.balanced_linear(jnp.eye(2), 0, 0.1)


def test_classifier_parameters_are_one_draw_in_the_stated_order():
    params = inits.attention_classifier_params(3, 1e-2, key=jr.key(0))
    flat = np.concatenate([np.ravel(params[name]) for name in ("w_q", "w_k", "w_v", "w_1", "w_2")])
    np.testing.assert_allclose(flat, 1e-2 * jr.normal(jr.key(0), (39,)), rtol=1e-14)
    assert [params[name].shape for name in ("w_v", "w_2")] == [(3, 3), (3,)]
