"""Gradient flow of a two-layer ReLU network, followed from kink to kink (NumPy and SciPy only).

    L(w, a) = 1/(2N) Σ_i r_i²,   r_i = Σ_j a_j max(0, w_j·x_i) − y_i,   (w, a)' = −∇L.

Write e_i = r_i/N and b_j = Σ_i s_ji e_i x_i with switches s_ji = 1 where w_j·x_i > 0, else 0. Then

    w_j' = −a_j b_j,   a_j' = −Σ_i max(0, w_j·x_i) e_i.

**Kinks.** On w_j·x_i = 0 the gradient in w_j jumps by c x_i, c = a_j e_i. e is continuous, so every neuron has its
kinks for itself. c < 0 (concave): the flow crosses at once. c > 0 (convex): the switch may take a value λ in between,
which is a slide. With S the slid samples of neuron j, rows G = x[S], the condition G w_j' = 0 gives

    b_j → (I − G⁺G) b_j,   λ_i e_i = μ_i,   μ = −(G Gᵀ)⁻¹ G b_j   (b_j without S),

free of a_j. λ at an event is the least-norm problem min ‖b_j + Σ λ_i e_i x_i‖, 0 ≤ λ ≤ 1, of all convex kinks there.
A slide ends where λ reaches 0 or 1.

**Where the flow is not unique any more.** a_j² − |w_j|² is constant, so a neuron can reach a_j = 0 or w_j = 0, not
both.

- `turn`: a_j passes 0 during a slide. λ stays inside, but all c change sign: both sides now point away from the kink.
- `origin`: w_j = 0 is reached (always on d − 1 slid kinks, along a ray). Near 0 the loss is φ(u) = a_j Σ e_i max(0,
  u·x_i) to first order. Where φ < 0 for some u the neuron may leave along u; where φ ≥ 0 it must rest. φ is linear
  between the rays on which d − 1 kinks meet, so these rays decide.
- `wake`: a neuron that rests may leave. A neuron dies by crossing its last kink, and stops on it exactly; it may
  leave as soon as c < 0 for a kink it rests on. A neuron at rest in w_j = 0 may leave as soon as φ < 0 on a ray.
- `corner`: several kinks of one neuron are met at once, one of them concave (symmetric data; not decided here).

Everywhere else the flow goes on in one way: convex kinks are monotone, a concave kink is crossed with speed on both
sides, also while others are slid. No fork either: a_j = 0 off the kinks (smooth), a neuron dead at the start
(strictly inside its dead cone, it never moves), a kink touched at λ = 0 or 1 (convex), e_i = 0 in a slide (λ leaves
[0, 1] before). An `origin` is certain if the samples leave a dead cone (to rest is then a solution too); without one
it errs on the safe side.

Samples must be in general position (any d of them independent), and the start must lie on no kink.
"""

from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import DOP853
from scipy.optimize import brentq, lsq_linear, minimize_scalar

CROWD = 8  # nodes at the start of a step, before the even ones
NODES = np.concatenate(([0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03], np.linspace(0.0625, 1, 16)))


class Fork(NamedTuple):
    """Place past which the flow is not unique. `sample` is −1 where no single kink is meant."""

    t: float
    kind: str
    neuron: int
    sample: int


class Reference(NamedTuple):
    """What `solve` found. `slides` holds (t_in, t_out, neuron, sample), `t` is where it ended."""

    losses: np.ndarray
    times: np.ndarray
    w: np.ndarray
    a: np.ndarray
    forks: list
    unique_until: float
    slides: list
    crossings: int
    t: float


class Event(NamedTuple):
    """First margin that reaches zero: `kind` is one of kink, off, on, turn, wake."""

    t: float
    kind: str
    neuron: int
    sample: int


def solve(x, y, w0, a0, t1, ts=(), levels=(), *, rtol=1e-11, until_fork=False, still=1e-10, max_steps=200_000):
    """Follows the flow from (w0, a0) to t1.

    Returns a `Reference`: losses at `ts` (nan where not reached) and the times at which the loss first falls to each
    of `levels` (inf where not reached). Past a fork it goes on by a rule: a `turn` takes the possible sides nearest
    to λ, a neuron at rest stays at rest; with `until_fork` it stops there. Where the speed falls below `still` |(w, a)|
    the multipliers are ratios of rounding errors: it stops, and the loss is taken as constant. Where no rule can go
    on, or after `max_steps`, it stops as well; `t` says where.
    """
    flow = _Flow(x, y, w0, a0, rtol)
    log = _Log(flow.loss, flow.theta, ts, levels)
    t, step, steps, stuck = 0.0, None, 0, 0
    while t < t1 and steps < max_steps and not (until_fork and flow.forks) and not flow.stopped:
        solver = DOP853(flow.field, t, flow.theta, t1, rtol=rtol, atol=flow.atol, first_step=step and min(step, t1 - t))
        event = None
        while event is None and solver.status == "running" and steps < max_steps:
            solver.step()
            steps += 1
            path = solver.dense_output()
            event = flow.first_event(path, solver.t_old, solver.t)
            end = event.t if event else solver.t
            log.record(path, solver.t_old, end)
            flow.theta = path(end) if event else solver.y
            if solver.status == "failed" or flow.speed() < still:
                break
        stuck = stuck + 1 if end == t else 0
        if stuck > 100:
            raise RuntimeError(f"No progress at t = {t}: the events there repeat.")
        t, step = end, solver.h_abs
        if solver.status == "failed" or flow.speed() < still:
            break
        if event:
            flow.handle(event)
    flow.close(t)
    losses = log.losses
    if flow.speed() < still:
        losses = np.where(np.isnan(losses), flow.loss(flow.theta), losses)
    w, a = flow.split(flow.theta)
    first = min((fork.t for fork in flow.forks), default=np.inf)
    return Reference(losses, log.times, w.copy(), a.copy(), flow.forks, first, flow.slides, flow.crossings, t)


class _Log:
    """Losses at given times, and first times of given losses, along a flow whose loss only falls."""

    def __init__(self, loss, theta, ts, levels):
        self.loss, self.ts, self.levels = loss, np.asarray(ts, float), np.asarray(levels, float)
        self.losses = np.where(self.ts <= 0, loss(theta), np.nan)
        self.times = np.where(loss(theta) <= self.levels, 0.0, np.inf)

    def record(self, path, t0, t1):
        for k in np.flatnonzero((t0 < self.ts) & (self.ts <= t1)):
            self.losses[k] = self.loss(path(self.ts[k]))
        for k in np.flatnonzero(np.isinf(self.times) & (self.loss(path(t1)) <= self.levels)):
            self.times[k] = _root(lambda t, k=k: self.loss(path(t)) - self.levels[k], t0, t1)


class _Flow:
    """State of the walk: parameters `theta`, switches `on`, slides and rests of each neuron, and what has happened."""

    def __init__(self, x, y, w0, a0, rtol):
        self.x, self.y = np.asarray(x, float), np.asarray(y, float)
        self.m, self.d = np.shape(w0)
        self.theta = np.concatenate((np.ravel(w0), a0)).astype(float)
        self.atol = rtol * np.sqrt(np.mean(self.theta**2))
        reach = _rays(self.x)
        self.dead_cone = bool(np.any(np.all(reach == 0, axis=1)))
        self.rays = reach[np.any(reach > 0, axis=1)]  # φ = 0 on the edges of a dead cone
        g = np.asarray(w0) @ self.x.T
        if np.any(g == 0):
            raise ValueError("Argument `w0` must lie on no kink, but some w0_j·x_i is 0.")
        self.on = g > 0
        self.inverse = cache(lambda S: np.linalg.pinv(self.x[list(S)]))  # G⁺ of a tuple of samples
        self.along = cache(lambda S: np.eye(self.d) - self.inverse(S) @ self.x[list(S)])  # I − G⁺G: along their kinks
        self.slid = {}  # neuron → {sample: time of entry}
        self.rest = {}  # neuron → samples on whose kinks it rests; all samples: at w_j = 0
        self.forks, self.slides, self.crossings, self.stopped = [], [], 0, False
        self.hold()

    def split(self, theta):
        """Last axis (P) → w (m, d) and a (m)."""
        cut = self.m * self.d
        return theta[..., :cut].reshape(*theta.shape[:-1], self.m, self.d), theta[..., cut:]

    def loss(self, theta):
        w, a = self.split(theta)
        return 0.5 * np.mean((a @ (self.on * (w @ self.x.T)) - self.y) ** 2)

    def speed(self):
        """|(w, a)'| / |(w, a)|."""
        return np.linalg.norm(self.field(0.0, self.theta)) / np.linalg.norm(self.theta)

    # One activation pattern

    def hold(self):
        """Prepares the smooth field and the margins of the present switches, slides and rests."""
        w, a = self.split(self.theta)
        self.s = self.on.astype(float)
        pairs = [(j, tuple(S)) for j, S in self.slid.items()]
        self.sliders = np.array(list(self.slid), int)
        self.P = np.array([self.along(S) for _, S in pairs]).reshape(-1, self.d, self.d)
        self.K = np.concatenate([self.inverse(S).T for _, S in pairs] or [np.zeros((0, self.d))])
        slid = [(j, i) for j, S in pairs for i in S]
        free = np.any(self.on, axis=1, keepdims=True) & np.ones_like(self.on)  # a dead neuron does not move
        free[tuple(np.array(slid, int).reshape(-1, 2).T)] = False
        kinks = np.argwhere(free)
        rests = [(j, i) for j, Z in self.rest.items() if len(Z) < len(self.y) for i in Z]
        self.zeros = np.array([j for j, Z in self.rest.items() if len(Z) == len(self.y)], int)
        self.kinks, self.slid_at, self.rests = (np.array(k, int).reshape(-1, 2).T for k in (kinks, slid, rests))
        self.sign = np.sign(a)
        self.side = np.where(self.on, 1.0, -1.0)
        self.names = (
            [("kink", *k) for k in kinks.tolist()]
            + [(kind, *k) for kind in ("off", "on", "turn") for k in slid]
            + [("wake", *k) for k in rests]
            + [("wake", j, -1) for j in self.zeros.tolist()]
        )
        reach = np.linalg.norm(w, axis=1)[:, None] * np.linalg.norm(self.x, axis=1)
        self.tiny = np.zeros(len(self.names))
        self.tiny[: len(kinks)] = 1e-11 * reach[tuple(self.kinks)]  # a kink just left is 0 up to rounding

    def slopes(self, theta):
        """e (…, N), b (…, m, d) and the values max(0, w_j·x_i) (…, m, N)."""
        w, a = self.split(theta)
        z = self.s * (w @ self.x.T)
        e = ((a[..., None, :] @ z)[..., 0, :] - self.y) / len(self.y)
        return e, (self.s * e[..., None, :]) @ self.x, z

    def field(self, t, theta):
        del t
        a = self.split(theta)[1]
        e, b, z = self.slopes(theta)
        if len(self.sliders):
            b[self.sliders] = (self.P @ b[self.sliders, :, None])[..., 0]
        return -np.concatenate(((a[:, None] * b).ravel(), z @ e))

    def multipliers(self, b):
        """μ of all slid kinks (λ = μ/e)."""
        return -(self.K * b[..., self.slid_at[0], :]).sum(-1)

    def margins(self, theta):
        """Numbers (…, M) that are positive as long as the pattern holds, in the order of `names`."""
        w, a = self.split(theta)
        e, b, _ = self.slopes(theta)
        j, i = self.slid_at
        mu = self.multipliers(b)
        kinks = (self.side * (w @ self.x.T))[..., self.kinks[0], self.kinks[1]]
        rests = self.sign[self.rests[0]] * e[..., self.rests[1]]
        zeros = np.min(self.sign[self.zeros, None] * (e @ self.rays.T)[..., None, :], -1)
        s = self.sign[j]
        return np.concatenate((kinks, s * mu, s * (e[..., i] - mu), s * a[..., j], rests, zeros), -1)

    def first_event(self, path, t0, t1):
        """Earliest zero of a margin on [t0, t1], or None. Nodes crowd at t0, where kinks just left start from 0."""
        nodes = t0 + (t1 - t0) * NODES
        values = self.margins(path(nodes).T) + self.tiny
        below = np.append((values < 0).any(1), True)
        nodes, values = nodes[: np.argmax(below) + 1], values[: np.argmax(below) + 1]  # later ones need no look
        found = []
        for k in np.flatnonzero((values < 0).any(0) | _may_dip(nodes, values)):
            t = _first_root(lambda t, k=k: self.margins(path(t))[k], nodes, values[:, k], self.tiny[k])
            if t is not None:
                found.append(Event(float(t), *self.names[k]))
        return min(found, default=None)

    # Events

    def handle(self, event):
        t, kind, j, i = event
        if kind == "kink":
            self.hit(t, j, i)
        elif kind == "turn":
            self.turn(t, j, i)
        elif kind == "wake":
            self.forks.append(Fork(t, "wake", j, i))
            del self.rest[j]
        else:
            self.slide(t, j, [k for k in self.slid[j] if k != i])
            self.on[j, i] = kind == "on"
        self.hold()

    def hit(self, t, j, i):
        """Neuron j meets the kink of sample i: it crosses, slides, or dies."""
        w, a = (v[j] for v in self.split(self.theta))
        e = self.slopes(self.theta)[0]
        S = list(self.slid.get(j, {}))
        if len(S) == self.d - 1 or np.linalg.norm(w) < 1e-9 * abs(a):
            return self.reach_origin(t, j, a * e)
        near = np.abs(self.x @ w) < 1e-9 * np.linalg.norm(self.x, axis=1) * np.linalg.norm(w)
        near[S] = False
        if near.sum() > 1 and np.any(a * e[near] < 0):
            self.forks.append(Fork(t, "corner", j, i))
        w[:] = self.along((*S, i)) @ w  # exactly onto the kinks
        before = self.on[j, i]
        if a * e[i] < 0:
            self.on[j, i] = not before
        else:
            S = [*S, i]
        self.on[j, S] = False
        if not self.on[j].any():  # no slope is left: it stops here
            self.rest[j] = S
            self.slide(t, j, [])
        elif S:
            lam = _box(e[S, None] * self.x[S], e[self.on[j]] @ self.x[self.on[j]])
            self.on[j, S] = lam == 1
            self.slide(t, j, [k for k, v in zip(S, lam, strict=True) if 0 < v < 1])
        self.crossings += int(i not in self.slid.get(j, {}) and self.on[j, i] != before)

    def reach_origin(self, t, j, c):
        """Neuron j reaches w_j = 0 and rests there. A fork if φ < 0 on a ray; then to rest needs a dead cone."""
        self.slide(t, j, [])
        self.on[j] = False
        self.split(self.theta)[0][j] = 0
        if np.min(self.rays @ c) < 0:
            self.forks.append(Fork(t, "origin", j, -1))
            self.stopped = not self.dead_cone
        else:
            self.rest[j] = list(range(len(self.y)))

    def turn(self, t, j, i):
        """a_j passes 0 on slid kinks, and all of them turn concave: it leaves on the possible sides nearest to λ."""
        self.forks.append(Fork(t, "turn", j, i))
        e, b, _ = self.slopes(self.theta)
        mine = self.slid_at[0] == j
        S = self.slid_at[1][mine]
        lam = self.multipliers(b)[mine] / e[S]
        best = np.inf
        for sides in product((0, 1), repeat=len(S)):
            away = self.sign[j] * self.x[S] @ (b[j] + (sides * e[S]) @ self.x[S])  # sign of w_j'·x_i, a_j has turned
            far = np.linalg.norm(sides - lam)
            if np.all(np.where(sides, away, -away) > 0) and far < best:
                best, self.on[j, S] = far, sides
        self.slide(t, j, [])

    def slide(self, t, j, S):
        """From t on neuron j slides on exactly the kinks of the samples S."""
        old = self.slid.pop(j, {})
        self.slides += [(start, t, j, k) for k, start in old.items() if k not in S]
        if S:
            self.slid[j] = {k: old.get(k, t) for k in S}

    def close(self, t):
        for j in list(self.slid):
            self.slide(t, j, [])


def _box(A, b):
    """argmin ‖b + λ A‖ over 0 ≤ λ ≤ 1, for rows A (k, d)."""
    size = max(np.abs(A).max(), np.abs(b).max())
    return lsq_linear(A.T / size, -b / size, (0, 1), method="bvls", tol=1e-15).x


def _rays(x):
    """max(0, u·x_i) (rays, N) for all unit vectors ±u on which d − 1 kinks meet. Checks the general position of x."""
    size = np.linalg.norm(x, axis=1)
    unit = x / size[:, None]
    N, d = x.shape
    sets = np.array(list(combinations(range(N), d)), int)
    if not len(sets) or not np.abs(np.linalg.det(unit[sets])).min() > 1e-10:
        raise ValueError("Argument `x` must be in general position: any d samples independent, and at least d of them.")
    edges = np.array(list(combinations(range(N), d - 1)), int)
    g = unit @ np.linalg.svd(unit[edges])[2][:, -1].T
    g[edges.T, np.arange(len(edges))] = 0  # exactly
    return np.maximum(np.concatenate((g, -g), 1), 0).T * size


def _root(f, lo, hi):
    """Zero of f on [lo, hi] where f(hi) has the other sign; lo if f(lo) already has it, up to rounding."""
    if f(lo) * f(hi) > 0 or f(lo) == 0:
        return lo
    find: Any = brentq
    return find(f, lo, hi, xtol=1e-15 * hi, rtol=1e-15)


def _may_dip(t, v):
    """Columns of v (nodes, M) in which a parabola through three even nodes has its lowest point inside and below 0."""
    t, v = t[CROWD:], v[CROWD:]
    d1 = np.diff(v, axis=0) / np.diff(t)[:, None]
    d2 = np.diff(d1, axis=0) / (t[2:] - t[:-2])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        low = 0.5 * (t[:-2] + t[1:-1])[:, None] - 0.5 * d1[:-1] / d2
        value = v[:-2] + d1[:-1] * (low - t[:-2, None]) + d2 * (low - t[:-2, None]) * (low - t[1:-1, None])
    return np.any((d2 > 0) & (t[:-2, None] < low) & (low < t[2:, None]) & (value < 0), axis=0)


def _first_root(f, t, v, tiny):
    """First zero of f, whose values at the nodes t are v (shifted up by `tiny`); None if it only comes close."""
    n = int(np.argmax(v < 0)) if np.any(v < 0) else len(t)
    for k in range(CROWD, min(n, len(t) - 1)):  # a dip between nodes comes first
        if v[k] <= v[k - 1] and v[k] <= v[k + 1]:
            sharp = {"xatol": 1e-12 * (t[-1] - t[0])}
            lowest: Any = minimize_scalar(f, bounds=(t[k - 1], t[k + 1]), method="bounded", options=sharp)
            low = lowest.x
            if f(low) < -tiny:
                return _root(f, t[k - 1], low)
    if n == len(t):
        return None
    return _root(f, t[max(n - 1, 0)], t[n])
