"""The field between events: switches held in their states, and the motion along the kinks that are slid on.

With every switch held the loss is smooth, and its field is f = −∇L. On a kink g_k = 0 towards which the field points
from both sides the flow slides: with n_k = ∇g_k for the kinks that are slid on, as the columns of G,

    θ' = f − G μ,    μ = (Gᵀ G)⁻¹ Gᵀ f,

which is the least-norm element of what the gradients on all sides span (Filippov 1988; Davis, Drusvyatskiy, Kakade and
Lee 2020, Found. Comput. Math. 20, 119: such curves fall at the rate −‖θ'‖²).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ..arrays import Array
from ..compile import quick
from ..engine.field import TracedField
from ..problem import Problem
from .switches import Switches, switches_of

_EXACT = 1e-13  # of Gᵀ f, as residual
_MOST_ITERATIONS = 12  # one where normals are constant, as of a first layer


class Mode(NamedTuple):
    """Where a flow is among its kinks."""

    states: Bool[np.ndarray, " K"]  # of the switches
    slides: tuple[int, ...]  # the kinks that it slides on

    def flipped(self, kinks: Collection[int]) -> "Mode":
        """With these on their other sides."""
        states = self.states.copy()
        states[list(kinks)] ^= True
        return self._replace(states=states)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SwitchedField:
    """The field of a mode inside a program that is being traced."""

    plain: TracedField
    states: Array  # (K,) bool
    free: Array  # (K,) bool: which follow their switching values instead
    slides: Array  # (S,) int
    counts: Array  # (S,): 1 for a kink, 0 for what fills the room
    inverse: Array  # (S, S): of Gᵀ G near here, which preconditions it
    switches: Switches = field(metadata={"static": True})

    def loss(self, y: Float[Array, " P"]) -> tuple[Float[Array, ""], Float[Array, " K"]]:
        """(L, g)."""
        params = self.plain.layout.unravel(self.plain.stretch * y)
        loss, g = self.switches.loss(params, self.plain.problem.data, self.states, self.free)
        return loss.astype(y.dtype), g

    def force(self, y: Float[Array, " P"]) -> tuple[Float[Array, ""], Float[Array, " P"], Float[Array, " K"]]:
        """(L, −∇L, g)."""
        (loss, g), grad = jax.value_and_grad(self.loss, has_aux=True)(y)
        return loss, -grad, g

    def normals(self, y: Float[Array, " P"], kinks: Int[Array, " S"]) -> Float[Array, "S P"]:
        """∇g_k."""
        _, pull = jax.vjp(lambda y: self.loss(y)[1], y)
        one = jnp.zeros(self.states.shape, y.dtype)
        return jax.vmap(lambda k: pull(one.at[k].set(1.0))[0])(kinks)

    def moving(self, y: Float[Array, " P"]) -> tuple[Array, Array, Array, Array, Array]:
        """(L, θ', f, g, μ)."""
        if self.slides.size == 0:
            loss, force, g = self.force(y)
            return loss, force, force, g, jnp.zeros(0, y.dtype)
        along, g = self._along(y)
        off, _ = along(self.counts * g[self.slides], None)
        y = y - off
        loss, force, g = self.force(y)
        along, _ = self._along(y)
        normal, mu = along(None, force)
        return loss, force - normal, force, g, mu

    def _along(self, y: Float[Array, " P"]) -> tuple[Callable, Array]:
        """(v or Gᵀ v -> (G μ, μ) with μ = (Gᵀ G)⁻¹ Gᵀ v, g) at y."""
        g, push = jax.linearize(lambda y: self.loss(y)[1], y)
        pull = jax.linear_transpose(push, y)

        def combine(mu):
            return pull(jnp.zeros(g.shape, g.dtype).at[self.slides].add(self.counts * mu))[0]

        def gram(mu):
            return self.counts * push(combine(mu))[self.slides] + (1 - self.counts) * mu

        def solve(matvec, b):
            options = {"tol": _EXACT, "maxiter": _MOST_ITERATIONS, "M": lambda v: self.inverse @ v}
            return jax.scipy.sparse.linalg.cg(matvec, b, **options)[0]

        def along(speeds, vector):
            speeds = self.counts * push(vector)[self.slides] if speeds is None else speeds
            mu = jax.lax.custom_linear_solve(gram, speeds, solve, symmetric=True)
            return combine(mu), mu

        return along, g

    def velocity(self, y: Float[Array, " P"]) -> Float[Array, " P"]:
        """θ'."""
        return self.moving(y)[1]


class Programs(NamedTuple):
    """What the host calls, compiled; `mode` stands for all arrays of a `SwitchedField` but the plain one."""

    moving: Callable  # (data, stretch, y, mode) -> L, θ', f, g and μ in one vector
    products: Callable  # (data, stretch, y, mode, rows) -> ∂θ'/∂θ times each of these
    speeds: Callable  # (data, stretch, y, mode, velocity) -> dg/dt
    normals: Callable  # (data, stretch, y, mode, kinks) -> ∇g_k
    sides: (
        Callable  # (data, stretch, y, mode, shares, kinks) -> (L, −∇L, g) on both sides of each kink, (S, 2, 1 + P + K)
    )
    mixed: Callable  # (data, stretch, y, mode, shares) -> −∇L


@lru_cache(maxsize=128)
def programs(loss_fn, layout, shapes, light: bool) -> Programs:
    """Compiled once for every loss and layout."""
    compiler: Callable = quick if light else jax.jit
    switches = switches_of(loss_fn, shapes)

    def at(data, stretch, mode):
        plain = TracedField(Problem(loss_fn, data), stretch, layout, ())
        return SwitchedField(plain, *mode, switches=switches)

    def moving(data, stretch, y, mode):
        loss, *vectors = at(data, stretch, mode).moving(y)
        return jnp.concatenate([loss[None], *vectors])

    def products(data, stretch, y, mode, rows):
        _, times = jax.linearize(at(data, stretch, mode).velocity, y)
        return jax.vmap(times)(rows)

    def speeds(data, stretch, y, mode, velocity):
        return jax.jvp(lambda y: at(data, stretch, mode).loss(y)[1], (y,), (velocity,))[1]

    def normals(data, stretch, y, mode, kinks):
        return at(data, stretch, mode).normals(y, kinks)

    def force(data, stretch, y, mode, shares):
        _, free, *rest = mode
        return at(data, stretch, (shares, jnp.zeros_like(free), *rest)).force(y)

    def sides(data, stretch, y, mode, shares, kinks):
        def side(k, share):
            loss, force_k, g = force(data, stretch, y, mode, shares.at[k].set(share))
            return jnp.concatenate([loss[None], force_k, g])

        return jax.vmap(lambda k: jnp.stack([side(k, 0.0), side(k, 1.0)]))(kinks)

    def mixed(data, stretch, y, mode, shares):
        return force(data, stretch, y, mode, shares)[1]

    return Programs(*(compiler(fn) for fn in (moving, products, speeds, normals, sides, mixed)))
