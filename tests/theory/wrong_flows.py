"""Flows that are wrong on purpose, in place of the one that a check of Focus and Dilution measures."""

import jax
import jax.numpy as jnp
import numpy as np

from thetadot.models.attention import population_loss
from thetadot.theory.focus_dilution import flows

OTHER = flows.chain((0.6, 0.25, 0.1, 0.05), 0.3)


def another_chain(chain, params0, t1, levels=None, rtol=1e-8):
    """The flow of another chain than the one that the prediction is for."""
    del chain
    return flows.trace(OTHER, params0, t1, levels, rtol)


def mirrored_chain(chain, params0, t1, levels=None, rtol=1e-8):
    """P on the other side of independence, a tenth further away: the attention grows the other way, at 1.1 c.

    Some of its entries are negative, which the loss does not mind near a saddle.
    """
    independent = jnp.broadcast_to(chain["stationary"][None, :], chain["transition"].shape)
    mirrored = independent - 1.1 * (chain["transition"] - independent)
    return flows.trace(chain | {"transition": mirrored}, params0, t1, levels, rtol)


def large_start(chain, params0, t1, levels=None, rtol=1e-8):
    """A Gaussian start of size 0.3 instead of a small one; others have left their saddle."""
    size = max(float(np.max(np.abs(block))) for block in params0.values())
    return flows.trace(chain, jax.tree.map(lambda x: x * 0.3 / size, params0), t1, levels, rtol)


def cut_short(chain, params0, t1, levels=None, rtol=1e-8):
    """A flow that ends long before what is claimed."""
    return flows.trace(chain, params0, t1 / 1000, levels, rtol)


def loosely_solved(chain, params0, t1, levels=None, rtol=1e-8):
    """A tolerance at which nothing is conserved."""
    del rtol
    return flows.trace(chain, params0, t1, levels, 1e-2)


def weak_attention(params, data):
    """The loss with the attention logits a tenth smaller."""
    return population_loss(params, data, logit_scale=0.9)
