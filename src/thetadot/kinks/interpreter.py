"""A traced program evaluated with the states of its switches given: loss, and all switching values on the way."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from ..arrays import Array
from ..problem import inner_jaxprs
from .rules import MASKS, RULES, SHAPES, SMOOTH, UNKNOWN

_POSITIVE = {"exp", "exp2", "abs", "logistic", "square", "sqrt"}
_KEEP_POSITIVE = {
    "add",
    "mul",
    "div",
    "reduce_sum",
    "dot_general",
    "broadcast_in_dim",
    "reshape",
    "transpose",
    "squeeze",
}
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call"}


class Switchboard:
    """Hands each site of a kink its states, and collects the switching values.

    Args:
        held: for each site, in the order of the program, (states, which of them are free). A free switch is on where
            its g > 0. None where all are.
    """

    def __init__(self, held: Sequence[tuple[Array, Array]] | None = None):
        self.held, self.values, self.names = held, [], []
        self.unseen: list[str] = []  # primitives whose insides are taken as they are
        self.result: Any = None  # of the program, at the end
        self._seen: dict[tuple, tuple] = {}

    def choose(self, g: Array, name: str) -> Array:
        """The states of the next site."""
        site = len(self.values)
        self.values.append(g)
        self.names.append(name)
        if self.held is None:
            return g > 0
        states, free = self.held[site]
        return jnp.where(free, (g > 0).astype(states.dtype), states)

    def apply(self, name: str, ins: Sequence[Array], literals: tuple, params: Any) -> Array:
        """The result of a primitive; the same comparison of the same arrays is one site."""
        key = (name, *literals)
        if key not in self._seen:
            self._seen[key] = (RULES[name](self.choose, ins, params), ins)  # which keeps their identities
        return self._seen[key][0]

    def split(self, count: int) -> "Switchboard":
        """That of a part of the program with so many sites, which come next."""
        begin = len(self.values)
        return Switchboard(None if self.held is None else self.held[begin : begin + count])

    def collect(self, values: Iterable[Array], names: Iterable[str]) -> None:
        """Adds what a part has collected."""
        self.values.extend(values)
        self.names.extend(names)


def has_kinks(jaxpr: Any) -> bool:
    """Whether a program may have kinks: a primitive that chooses, or one whose pieces are not known."""
    return any(_may_kink(equation) for equation in jaxpr.eqns)


def _may_kink(equation: Any) -> bool:
    if equation.primitive.name in RULES or equation.primitive.name in UNKNOWN:
        return _of_reals(equation)
    return not _is_smooth(equation) and any(has_kinks(inner) for inner in inner_jaxprs(equation))


def _of_reals(equation: Any) -> bool:
    return bool(equation.invars) and jnp.issubdtype(equation.invars[0].aval.dtype, jnp.floating)


def _is_smooth(equation: Any) -> bool:
    if equation.primitive.name != "custom_jvp_call":
        return False
    info = equation.params["call_jaxpr"].jaxpr.debug_info
    return getattr(info, "func_name", "") in SMOOTH


def evaluate(
    jaxpr: Any, consts: Sequence, args: Sequence, moves: Sequence[bool], board: Switchboard, matters: Sequence[bool]
) -> tuple[list, list[bool]]:
    """The outputs of a program, and which of them move with the parameters.

    Args:
        jaxpr: the program.
        consts: its constants.
        args: its arguments.
        moves: which of these move with the parameters.
        board: the switches.
        matters: which outputs matter for the gradient of the loss.
    """
    values, moving, positive = {}, {}, set()
    live = _live(jaxpr, matters)

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    def is_moving(atom):
        return not isinstance(atom, Literal) and moving[atom]

    def write(atoms, new, move):
        for atom, value, moved in zip(atoms, new, move, strict=True):
            values[atom], moving[atom] = value, moved

    write(jaxpr.constvars, consts, [False] * len(consts))
    write(jaxpr.invars, args, moves)
    for equation in jaxpr.eqns:
        ins = [read(atom) for atom in equation.invars]
        move = [is_moving(atom) for atom in equation.invars]
        outs_matter = [atom in live for atom in equation.outvars]
        takes_masks = any(_is_mask(atom, x) for atom, x in zip(equation.invars, ins, strict=True))
        counts = any(move) and any(outs_matter)
        name = equation.primitive.name
        if counts and name in UNKNOWN and _of_reals(equation):
            raise ValueError(
                f"the loss takes {UNKNOWN[name]} (`{name}`) of values that depend on the parameters, and its kinks are "
                "not known: write it with `max`, `min`, `abs` or `where`, or put `jax.lax.stop_gradient` around it."
            )
        if _is_positive(equation, positive):
            positive |= set(equation.outvars)
        if name == "abs" and equation.invars[0] in positive:
            outs, moved = ins, move
        elif counts and name in RULES and _of_reals(equation):
            keys = tuple(_name(atom, x) for atom, x in zip(equation.invars, ins, strict=True))
            outs, moved = [board.apply(name, ins, keys, equation.params)], [True]
        elif (
            counts
            and not _is_smooth(equation)
            and (any(has_kinks(inner) for inner in inner_jaxprs(equation)) or (name in _CALLS and takes_masks))
        ):
            outs, moved = _parts(equation, ins, move, board, outs_matter)
        elif takes_masks:
            outs, moved = _of_masks(equation, ins), [any(move)] * len(equation.outvars)
        else:
            outs, moved = _bound(equation, ins), [any(move)] * len(equation.outvars)
        write(equation.outvars, outs, moved)
    return [read(atom) for atom in jaxpr.outvars], [is_moving(atom) for atom in jaxpr.outvars]


def _live(jaxpr: Any, matters: Sequence[bool]) -> set:
    """The variables on which outputs that matter depend, but for what only ends in `stop_gradient`."""
    live = {
        atom for atom, wanted in zip(jaxpr.outvars, matters, strict=True) if wanted and not isinstance(atom, Literal)
    }
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name != "stop_gradient" and any(atom in live for atom in equation.outvars):
            live |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
    return live


def _name(atom: Any, value: Any) -> Any:
    """What two equal inputs have in common."""
    return atom.val.item() if isinstance(atom, Literal) else id(value)


def _is_mask(atom: Any, value: Any) -> bool:
    """Whether a number in [0, 1] stands for a boolean."""
    return atom.aval.dtype == jnp.bool_ and jnp.result_type(value) != jnp.bool_


def _of_masks(equation: Any, ins: Sequence) -> list:
    """The outputs of an equation, some of whose booleans are numbers."""
    name, params = equation.primitive.name, equation.params
    if name in MASKS:
        kind = next(x.dtype for atom, x in zip(equation.invars, ins, strict=True) if _is_mask(atom, x))
        bools = [atom.aval.dtype == jnp.bool_ for atom in equation.invars]
        return [MASKS[name]([jnp.asarray(x, kind) if is_bool else x for x, is_bool in zip(ins, bools, strict=True)])]
    if name in SHAPES:
        return [equation.primitive.bind(*ins, **params)]
    if name == "convert_element_type" and jnp.issubdtype(params["new_dtype"], jnp.floating):
        return [ins[0].astype(params["new_dtype"])]
    plain = [x > 0.5 if _is_mask(atom, x) else x for atom, x in zip(equation.invars, ins, strict=True)]
    return _bound(equation, plain)


def _is_positive(equation: Any, positive: set) -> bool:
    """Whether an equation makes numbers that are never negative, from what is `positive`."""
    name = equation.primitive.name
    if name in _POSITIVE or (name == "integer_pow" and equation.params["y"] % 2 == 0):
        return True
    known = (bool(np.all(x.val >= 0)) if isinstance(x, Literal) else x in positive for x in equation.invars)
    return name in _KEEP_POSITIVE and all(known)


def _bound(equation: Any, ins: Sequence) -> list:
    """The outputs of an equation as it stands."""
    bind = equation.primitive.get_bind_params(equation.params)
    functions, params = ((), bind) if isinstance(bind, dict) else bind  # a pair before JAX 0.10
    outs = equation.primitive.bind(*functions, *ins, **params)
    return list(outs) if equation.primitive.multiple_results else [outs]


def _parts(equation: Any, ins: Sequence, move: Sequence[bool], board: Switchboard, matters: Sequence[bool]):
    """The outputs of an equation that contains programs with kinks."""
    name = equation.primitive.name
    if name == "scan":
        return _scan(equation.params, ins, move, board, matters)
    if name == "cond":
        return _cond(equation.params, ins, move, board, matters)
    if name not in _CALLS:  # a solver within the loss, or a derivative of the user's own
        board.unseen.append(name)
        return _bound(equation, ins), [True] * len(equation.outvars)
    inner = inner_jaxprs(equation)[0]
    inner, consts = _open(inner)
    return evaluate(inner, consts, ins, move, board, matters)


def _open(program: Any) -> tuple[Any, Sequence]:
    return (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, ())


def _sites(run: Callable[[Switchboard], Any]) -> tuple[list[jax.ShapeDtypeStruct], list[str]]:
    """The shapes and names of the sites of a part, which is evaluated in the abstract."""
    board = Switchboard()

    def values():
        run(board)
        return board.values

    return jax.eval_shape(values), board.names


def _scan(params: Any, ins: Sequence, move: Sequence[bool], board: Switchboard, matters: Sequence[bool]):
    """A loop: its sites have a state for each turn. What is carried is taken to move, and to matter."""
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    body, consts = _open(params["jaxpr"])
    fixed, carry, xs = ins[:num_consts], list(ins[num_consts : num_consts + num_carry]), ins[num_consts + num_carry :]
    moves = [*move[:num_consts], *[True] * num_carry, *move[num_consts + num_carry :]]
    inside = [*[True] * num_carry, *matters[num_carry:]]

    def turn(carry, x, held):
        part = Switchboard(held)
        outs, _ = evaluate(body, consts, [*fixed, *carry, *x], moves, part, inside)
        return outs, part.values

    one = [jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)) for x in xs]
    zeros = [jnp.zeros(x.shape, x.dtype) for x in one]
    shapes, names = _sites(lambda part: evaluate(body, consts, [*fixed, *carry, *zeros], moves, part, inside))
    held = board.split(len(shapes)).held

    def step(carry, x_and_held):
        outs, values = turn(carry, *x_and_held)
        return outs[:num_carry], (outs[num_carry:], values)

    options = {"length": params["length"], "reverse": params["reverse"]}
    carry, (ys, values) = jax.lax.scan(step, carry, (list(xs), held), **options)
    board.collect(values, names)
    return [*carry, *ys], [True] * (num_carry + len(ys))


def _cond(params: Any, ins: Sequence, move: Sequence[bool], board: Switchboard, matters: Sequence[bool]):
    """A branch: the sites of branches that are not taken keep their states, far from any kink."""
    programs = [_open(branch) for branch in params["branches"]]
    operands, moves = ins[1:], move[1:]

    def run(number, part, operands):
        branch, consts = programs[number]
        return evaluate(branch, consts, operands, moves, part, matters)[0]

    sites = [_sites(lambda part, n=n: run(n, part, operands)) for n in range(len(programs))]
    shapes = [shape for of_branch, _ in sites for shape in of_branch]
    held = board.split(len(shapes)).held
    begins = [sum(len(of_branch) for of_branch, _ in sites[:n]) for n in range(len(programs) + 1)]

    def taken(number):
        begin, end = begins[number], begins[number + 1]

        def branch(*operands):
            part = Switchboard(None if held is None else held[begin:end])
            outs = run(number, part, operands)
            rest = [_far(shape, None if held is None else held[i][0]) for i, shape in enumerate(shapes)]
            return outs, [*rest[:begin], *part.values, *rest[end:]]

        return branch

    outs, values = jax.lax.switch(ins[0], [taken(n) for n in range(len(programs))], *operands)
    board.collect(values, [name for _, names in sites for name in names])
    return outs, [True] * len(outs)


def _far(shape: jax.ShapeDtypeStruct, states: Array | None) -> Array:
    """Switching values of one, on the side of the states."""
    one = jnp.ones(shape.shape, shape.dtype)
    return one if states is None else jnp.where(states.astype(shape.dtype) > 0, one, -one)
