"""Which solver: by name, or by what "auto" measures on the way."""

import dataclasses
from collections.abc import Callable

import diffrax as dfx
import numpy as np
from jaxtyping import Float

from ..arrays import Array, fori_loop, namespace, put
from ._deflation import eigh
from ._vector import scrambled
from .base import AbstractFlowSolver, fitted
from .deflated import DeflatedExponential
from .krylov import KrylovExponential
from .stabilized import StabilizedRungeKutta

SOLVERS: dict[str, Callable[[], dfx.AbstractSolver]] = {
    "deflated": DeflatedExponential,
    "krylov": KrylovExponential,
    "stabilized": StabilizedRungeKutta,
    "tsit5": dfx.Tsit5,
    "dopri5": dfx.Dopri5,
    "dopri8": dfx.Dopri8,
    "kvaerno5": dfx.Kvaerno5,
}

_RANKS = (8, 24, 56, 120)  # 8 (2ⁱ − 1): each loop is compiled once
_CHEAP_RANK = 24
_MANY_PARAMETERS = 1000  # from which no rank beyond the cheap one is tried
_CLIFF = 1e-3  # height of what is left beyond the outliers, relative to the first that is not deflated
_BLOCK = 0.1  # height that an outlier has at least, likewise
_FEW = 50  # steps of the present length: about twice what a look at the spectrum costs
_FAR = 60_000  # work left, from which other methods are worth a race
_LOOK = 360  # work of a look at the spectrum, and of what follows from it
_PATIENCE = 10  # looks, or races, whose work is done before the next one
_MOST_PATIENCE = 40


def choose_solver(solver: str | dfx.AbstractSolver, rtol: Float[Array, ""]) -> AbstractFlowSolver:
    """The solver of that name, or the one given; "auto" starts with a small deflated space."""
    if solver == "auto":
        return DeflatedExponential(_RANKS[0])
    if isinstance(solver, str):
        if solver not in SOLVERS:
            names = ", ".join(["auto", *SOLVERS])
            raise ValueError(f"unknown solver {solver!r}: choose one of {names}, or pass a diffrax solver.")
        return fitted(SOLVERS[solver](), rtol)
    if not isinstance(solver, dfx.AbstractSolver):
        raise ValueError(f"`solver` must be a name or a diffrax solver; got {type(solver).__name__}.")
    if not isinstance(solver, dfx.AbstractAdaptiveSolver):
        raise ValueError(
            f"{type(solver).__name__} does not estimate its error, so its steps cannot be adapted: "
            "wrap it in `diffrax.HalfSolver`."
        )
    if isinstance(getattr(solver, "tableau", None), dfx.MultiButcherTableau):
        raise ValueError(
            f"{type(solver).__name__} wants the field in two parts, and a gradient has one: try `Kvaerno5`."
        )
    return fitted(solver, rtol)


def explicit_solver(rtol: Float[Array, ""]) -> AbstractFlowSolver:
    """What "auto" takes where a number of the start is below the rounding of others: Dormand and Prince's order 8."""
    return fitted(dfx.Dopri8(), rtol)


def is_explicit(solver: str | dfx.AbstractSolver) -> bool:
    """Whether the steps of a solver are as short as the flow is stiff."""
    chosen = SOLVERS[solver]() if isinstance(solver, str) and solver in SOLVERS else solver
    return isinstance(chosen, dfx.AbstractERK)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What "auto" does when another solver may go farther: when it is asked.

    A value: each decision gives the next one. A flow changes, and with it the method that suits it, so the question
    comes back; but the more often nothing came of it, the more rarely, and never for more than a tenth of the work.

    Attributes:
        asks_from: work done, in gradients, before the question is asked. A product with the Hessian counts as two.
        patience: what the next refusal costs, in units of what it took to ask.
    """

    asks_from: int = 0
    patience: int = _PATIENCE

    def refused(self, work: int, price: int = 0) -> "Policy":
        """After `work` in all, of which it took `price` to ask, the solver was kept."""
        asks_from = work + self.patience * max(price, _LOOK)
        return Policy(asks_from, min(2 * self.patience, _MOST_PATIENCE))

    def switched(self) -> "Policy":
        """The solver was exchanged: everything is open again."""
        return Policy()

    def silent(self) -> "Policy":
        """Nothing is asked, for as long as it takes."""
        return dataclasses.replace(self, asks_from=np.iinfo(np.int32).max)


def few_steps_left(left: Array, step: Array) -> Array:
    """Whether so little time is left that a look at the spectrum does not pay."""
    return left <= _FEW * step


def is_worth_a_race(left: float, speed: float) -> bool:
    """Whether so much work is left, at a time covered per gradient of `speed`, that another method may pay."""
    return left > _FAR * speed


def runners(spectrum: np.ndarray, num_params: int) -> tuple[AbstractFlowSolver, ...]:
    """The methods of a race: a few directions exactly, the whole Jacobian by products, or explicit steps."""
    rank = better_rank(_RANKS[0], spectrum, num_params)
    return DeflatedExponential(rank), KrylovExponential(), StabilizedRungeKutta()


def better_rank(rank: int, curvatures: np.ndarray, num_params: int) -> int:
    """The rank that reaches over a cliff in the spectrum, if there is one; else `rank`.

    With k directions deflated, stability limits a step to about 3/|λ_{k+1}|. Where a block of outliers of one size is
    followed by almost nothing, as in a deep linear network that has learned some modes, the rank beyond it pays many
    times over. Where the spectrum decays gradually accuracy soon limits the steps instead, and the small rank, whose
    steps are cheap, wins. Many parameters make a large rank expensive: its products no longer share the cache.

    Args:
        rank: the rank in use.
        curvatures: the largest |λ| of the Hessian, in decreasing order.
        num_params: P.
    """
    padded = np.append(curvatures, np.zeros(_RANKS[-1] + 1)) / max(curvatures[min(rank, len(curvatures) - 1)], 1e-300)
    higher = [k for k in _RANKS if k > rank and (num_params < _MANY_PARAMETERS or k <= _CHEAP_RANK)]
    for below, k in zip([rank, *higher], higher, strict=False):
        if padded[k] < _CLIFF and padded[below] > _BLOCK:
            return k
    return rank


def curvatures(product: Callable[[Array], Array], y: Float[Array, " P"]) -> Float[Array, " M"]:
    """The largest |eigenvalues| of the Jacobian at y by Lanczos with full re-orthogonalization, decreasing.

    As many as the largest rank needs. Clusters of equal eigenvalues are seen once per copy only as rounding lets them
    in; where the space is exhausted the rest is zero, which says the same.

    Args:
        product: v -> J v at y.
        y: the point.
    """
    xp, num = namespace(y), min(_RANKS[-1] + 1, y.size)

    def extend(i, carry):
        basis, images = carry
        image = product(basis[i])
        last = basis[xp.maximum(i - 1, 0)]
        v = image - basis[i] * (basis[i] @ image) - last * xp.where(i > 0, last @ image, 0)
        v = v - basis.T @ (basis @ v)
        size = xp.linalg.norm(v)
        return put(basis, i + 1, v / xp.where(size > 0, size, 1)), put(images, i, image)

    start = scrambled(y, (1, y.size), seed=2)
    basis = xp.concatenate([start / xp.linalg.norm(start), xp.zeros((num, y.size), y.dtype)])
    basis, images = fori_loop(0, num, extend, (basis, xp.zeros((num, y.size), y.dtype)))
    projected = basis[:num] @ images.T
    return xp.sort(xp.abs(eigh((projected + projected.T) / 2)[0]))[::-1]
