"""A small problem as a text, edits of it that change what is solved, and edits that do not.

The text is a module `problem` with a module `helpers` beside it. An edit replaces words of one of them.
"""

import importlib
import json
import re
import sys
import types

import jax
import numpy as np

from thetadot.identity import of_program, shapes_of
from thetadot.scan.identity import identified, identity_at, parts
from thetadot.scan.job import Job

PROBLEM = '''
import dataclasses
import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import helpers
from helpers import scaled

import thetadot as td

FACTOR = 0.5
TARGET = np.array([1.0, 2.0, 3.0])
LEVELS = {"low": 0.25, "high": 0.75}
POWER = 2


class Penalty:
    strength = 0.1

    def __init__(self, weight=1.0):
        self.weight = weight

    def value(self, x):
        return self.strength * self.weight * jnp.sum(x**4)


@dataclasses.dataclass(frozen=True)
class Window:
    start: float = 0.0
    width: float = 3.0

    def holds(self, t):
        return self.start <= t <= self.start + self.width

    @property
    def middle(self):
        return self.start + self.width / 2


class Reader:
    offset = 1

    @staticmethod
    def least(values):
        return min(values)

    def read(self, values):
        return values[-1] + self.offset


class Louder(Reader):
    def read(self, values):
        return 2 * super().read(values)


@jax.custom_jvp
def bent(x):
    return jnp.abs(x)


@bent.defjvp
def bent_jvp(primals, tangents):
    return bent(primals[0]), jnp.sign(primals[0]) * tangents[0]


@jax.custom_vjp
def clipped(x):
    return x


def clipped_fwd(x):
    return x, None


def clipped_bwd(_, g):
    return (jnp.clip(g, -1.0, 1.0),)


clipped.defvjp(clipped_fwd, clipped_bwd)


@jax.jit
def square(x):
    return x**POWER


def of_scale(scale):
    def times(x):
        return scale * x

    return times


PENALTY = Penalty()
DOUBLE = of_scale(2.0)
WINDOW = Window()


def loss(params, data):
    # the distance to the target
    x = params["x"]
    rest = jax.lax.cond(x[0] > 0, lambda x: x.sum(), lambda x: -x.sum(), x)
    folded, _ = jax.lax.scan(lambda carry, step: (carry + 0.1 * step, None), 0.0, x)
    return FACTOR * jnp.sum(square(DOUBLE(x) - TARGET - data)) + PENALTY.value(x) + scaled(rest) + bent(folded)


def backward_loss(params, data):
    return jnp.sum(clipped(params["x"]) ** 2) + 0.0 * jnp.sum(data)


def energy(params, data):
    return jnp.sum(params["x"] ** 2) - helpers.OFFSET


def invariant(params, data):
    return params["x"][0] - params["x"][1]


def late(traj, share=0.5, *, floor=1e-3):
    """The mean of the late losses."""
    values = [max(value, floor) for value in traj["loss"]]
    start = int(share * len(values))
    return sum(values[start:]) / len(values[start:])


def above(traj):
    return sum(1 for value in traj["loss"] if value > LEVELS["low"])


def measured(traj):
    inside = [t for t in traj.ts if WINDOW.holds(t)]
    return helpers.norm(inside) + math.floor(WINDOW.middle)


def told(traj):
    from helpers import shifted

    try:
        return Louder().read(shifted(traj["loss"])) + Reader.least(traj.ts)
    except IndexError:
        return -1.0


power_mean = partial(helpers.power_mean, power=3)


def nested(traj):
    threshold, count = 0.5, 0

    def count_one(value):
        nonlocal count
        if value < threshold:
            count += 1
        return count

    return [count_one(value) for value in traj["loss"]][-1]


@functools.lru_cache
def cached(traj):
    return float(np.median(traj["loss"])) + len(td.find_stages(traj))


def make(seed):
    rng = np.random.default_rng(seed)
    return td.Problem(loss, jnp.asarray(rng.normal(size=3)), {"difference": invariant}), {"x": jnp.ones(3)}


ASKED = {
    "make": make,
    "losses": [backward_loss],
    "observables": [energy],
    "measures": [late, above, measured, told, power_mean, nested, cached],
}
'''

HELPERS = """
import numpy as np

OFFSET = 0.25
SHIFT = 1.0


def scaled(x):
    return weighted(x, 0.01)


def weighted(x, weight):
    return weight * x


def norm(values):
    return float(np.sqrt(sum(value**2 for value in values)))


def shifted(values, by=None):
    return [value + (SHIFT if by is None else by) for value in values]


def power_mean(traj, power):
    return np.mean(np.asarray(traj["loss"]) ** power) ** (1 / power)
"""

# (words, words in their place), of the module `problem` where nothing else is said
CHANGES = {
    "a constant that the loss uses": ("FACTOR = 0.5", "FACTOR = 0.25"),
    "a constant by one rounding": ("FACTOR = 0.5", "FACTOR = 0.5000000000000001"),
    "an array that it uses": ("[1.0, 2.0, 3.0]", "[1.0, 2.0, 3.5]"),
    "the dtype of this array": ("3.0])", "3.0], np.float32)"),
    "a number in a closure": ("of_scale(2.0)", "of_scale(3.0)"),
    "the function that closes over it": ("return scale * x", "return scale + x"),
    "an attribute of a class": ("strength = 0.1", "strength = 0.2"),
    "a default of a class": ("weight=1.0", "weight=2.0"),
    "a method": ("jnp.sum(x**4)", "jnp.sum(x**6)"),
    "an argument of an object": ("Penalty()", "Penalty(3.0)"),
    "a power in a jitted helper": ("POWER = 2", "POWER = 4"),
    "the sign of a term": ("TARGET - data", "TARGET + data"),
    "one branch": ("lambda x: -x.sum()", "lambda x: -2 * x.sum()"),
    "the condition of a branch": ("x[0] > 0", "x[0] >= 0"),
    "which entry decides": ("x[0] > 0", "x[1] > 0"),
    "a step of a loop": ("0.1 * step", "0.2 * step"),
    "the start of a loop": ("None), 0.0, x)", "None), 1.0, x)"),
    "a term more": ("+ bent(folded)", "+ bent(folded) + 1.0"),
    "a term less": (" + scaled(rest)", ""),
    "a function by its inverse": ("jnp.abs(x)", "-jnp.abs(x)"),
    "a derivative of its own": ("jnp.sign(primals[0])", "0.5 * jnp.sign(primals[0])"),
    "a derivative in reverse": ("-1.0, 1.0", "-2.0, 2.0"),
    "an imported helper": ("helpers", "weight * x", "weight - x"),
    "a constant in an imported helper": ("helpers", "0.01", "0.02"),
    "a constant of an imported module": ("helpers", "OFFSET = 0.25", "OFFSET = 0.5"),
    "an observable": ('params["x"] ** 2) - helpers', 'params["x"] ** 4) - helpers'),
    "a conserved quantity": ('- params["x"][1]', '+ params["x"][1]'),
    "the seeds within make": ("default_rng(seed)", "default_rng(seed + 1)"),
    "the law of the data": ("rng.normal(", "rng.uniform("),
    "the size of the data": ("jnp.asarray(rng.normal(size=3))", "jnp.asarray(rng.normal(size=(2, 3)))"),
    "the precision of the data": ("jnp.asarray(rng.normal(size=3))", "jnp.asarray(rng.normal(size=3), jnp.float32)"),
    "the start": ('{"x": jnp.ones(3)}', '{"x": 2 * jnp.ones(3)}'),
    "the sign of a zero in the start": ('{"x": jnp.ones(3)}', '{"x": -jnp.zeros(3)}'),
    "the shape of the start": ('{"x": jnp.ones(3)}', '{"x": jnp.ones(3), "y": jnp.ones(1)}'),
    "another loss": ("td.Problem(loss", "td.Problem(backward_loss"),
    "a default of a measure": ("share=0.5", "share=0.25"),
    "a default by name": ("floor=1e-3", "floor=1e-4"),
    "what a measure does": ("sum(values[start:])", "max(values[start:])"),
    "a number in a comprehension": ("sum(1 for", "sum(2 for"),
    "a comparison": ("value > LEVELS", "value >= LEVELS"),
    "a key": ('LEVELS["low"]', 'LEVELS["high"]'),
    "a value in a dictionary": ('"low": 0.25', '"low": 0.3'),
    "a field of a dataclass": ("width: float = 3.0", "width: float = 4.0"),
    "an object that a measure uses": ("WINDOW = Window()", "WINDOW = Window(1.0)"),
    "a method of a dataclass": ("self.start <= t <=", "self.start < t <="),
    "a property": ("self.width / 2", "self.width / 3"),
    "a builtin": ("math.floor", "math.ceil"),
    "a class that is inherited from": ("offset = 1", "offset = 2"),
    "a method that is inherited": ("values[-1] + self.offset", "values[0] + self.offset"),
    "a static method": ("return min(values)", "return max(values)"),
    "what is caught": ("except IndexError", "except KeyError"),
    "what is then returned": ("return -1.0", "return -2.0"),
    "an import inside a function": ("helpers", "SHIFT = 1.0", "SHIFT = 2.0"),
    "a helper of a module": ("helpers", "value**2", "value**4"),
    "an argument of a partial": ("power=3", "power=4"),
    "the function of a partial": ("helpers", "np.mean(", "np.median("),
    "a number that an inner function uses": ("threshold, count = 0.5", "threshold, count = 0.6"),
    "what an inner function does": ("count += 1", "count += 2"),
    "a function of NumPy": ("np.median(", "np.mean("),
    "a function of this package": ("td.find_stages(traj)", "td.stages.plateau_lengths(traj)"),
}

SAME = {
    "a comment": ("# the distance to the target", "# how far from the target"),
    "no comment": ("    # the distance to the target\n", ""),
    "another docstring": ("The mean of the late losses.", "Late losses, on average."),
    "no docstring": ('    """The mean of the late losses."""\n', ""),
    "a docstring more": ("def above(traj):\n", 'def above(traj):\n    """How many."""\n'),
    "a docstring of a class": ("class Reader:\n", 'class Reader:\n    """Reads."""\n\n'),
    "empty lines": ("\n\n\ndef loss", "\n\n\n\n\n\ndef loss"),
    "lines that are folded": (
        "+ PENALTY.value(x) + scaled(rest)",
        "+ PENALTY.value(x) + (\n        scaled(rest)\n    )",
    ),
    "parentheses": ("FACTOR * jnp.sum(square", "(FACTOR) * jnp.sum(square"),
    "the name of a constant": ("FACTOR", "HALF"),
    "the name of an array": ("TARGET", "GOAL"),
    "the name of a function": ("square", "to_the_power"),
    "the name of a jitted constant": ("POWER", "EXPONENT"),
    "the name of a closure": ("times", "multiplied"),
    "the name of what it closes over": ("scale", "size"),
    "the name of a class": ("Penalty", "Fine"),
    "the name of an object": ("PENALTY", "FINE"),
    "the name of a method of the loss": (".value(x)", ".price(x)", "def value(self", "def price(self"),
    "the name of a local variable": ("rest", "remainder"),
    "the name of another": ("folded", "sum_of_all"),
    "the name of a derivative": ("bent_jvp", "slope_of_bent"),
    "the name of a function with a derivative": ("bent", "kink"),
    "the name of an observable": ("energy", "size"),
    "the name of an invariant function": ("invariant", "conserved"),
    "the names of parameters of a loss": (
        "def loss(params, data):",
        "def loss(p, data):",
        'x = params["x"]\n    rest',
        'x = p["x"]\n    rest',
    ),
    "the names in make": ("rng", "generator"),
    "the order of definitions": (
        "FACTOR = 0.5\nTARGET = np.array([1.0, 2.0, 3.0])\n",
        "TARGET = np.array([1.0, 2.0, 3.0])\nFACTOR = 0.5\n",
    ),
    "a name that nobody uses": ("POWER = 2", "POWER = 2\nUNUSED = 7"),
    "a function that nobody uses": ("def energy", "def unused(x):\n    return x\n\n\ndef energy"),
    "a method that is moved": (
        "    offset = 1\n\n    @static",
        "    @static",
        "return min(values)\n",
        "return min(values)\n\n    offset = 1\n",
    ),
    "how a number is written": ("FACTOR = 0.5", "FACTOR = 5e-1"),
    "how a number is computed": ("FACTOR = 0.5", "FACTOR = 1 / 2"),
    "how an array is made": ("np.array([1.0, 2.0, 3.0])", "np.arange(1.0, 4.0)"),
    "an array of JAX": ("np.array([1.0, 2.0, 3.0])", "jnp.array([1.0, 2.0, 3.0])"),
    "a helper that is written out": ("DOUBLE(x) - TARGET", "2.0 * x - TARGET"),
    "a helper that is imported in another way": ("scaled(rest)", "helpers.scaled(rest)"),
    "an import under another name": ("import helpers\n", "import helpers as tools\n", "helpers.", "tools."),
    "the name of a variable of a measure": ("start = int(", "first = int(", "values[start:]", "values[first:]"),
    "the name of its argument": (
        "def above(traj):\n    return sum(1 for value in traj[",
        "def above(t):\n    return sum(1 for value in t[",
    ),
    "the name of what runs in a comprehension": ("max(value, floor) for value in", "max(x, floor) for x in"),
    "the name of a dictionary": ("LEVELS", "HEIGHTS"),
    "the name of a dataclass": ("Window", "Interval"),
    "the name of an object of a measure": ("WINDOW", "INTERVAL"),
    "the name of a class that is inherited from": ("Reader", "Voice"),
    "the name of an inner function": ("count_one", "one_more"),
    "the name of a nonlocal variable": ("count", "number"),
    "the name of a variable that it reads": ("threshold", "limit"),
    "an annotation": ("def nested(traj)", "def nested(traj: td.Trajectory) -> int"),
    "an annotation of a variable": ("threshold, count = 0.5, 0", "count: int\n    threshold, count = 0.5, 0"),
    "a helper's comment": ("helpers", "OFFSET = 0.25", "OFFSET = 0.25  # a quarter"),
    "a helper's helper, renamed": ("helpers", "weighted", "times"),
    "a helper that nobody uses": ("helpers", "OFFSET = 0.25", "OFFSET = 0.25\nNOBODY = 3"),
    "a helper's constant, renamed": ("helpers", "SHIFT", "BY"),
    "a helper's docstring": ("helpers", "def norm(values):\n", 'def norm(values):\n    """The Euclidean norm."""\n'),
    "another quote": ('traj["loss"]', "traj['loss']"),
    "an import that nobody uses": ("import math\n", "import math\nfrom typing import TYPE_CHECKING\n"),
}


def edited(words):
    """(`problem`, `helpers`) after an edit: pairs of words, and the module's name before them where it is `helpers`."""
    texts = {"problem": PROBLEM, "helpers": HELPERS}
    module = "helpers" if len(words) % 2 else "problem"
    words = words[len(words) % 2 :]
    for old, new in zip(words[::2], words[1::2], strict=True):
        pattern = rf"\b{old}\b" if old.isidentifier() else re.escape(old)
        texts[module], count = re.subn(pattern, lambda _, new=new: new, texts[module])
        assert count, f"{old!r} is not in {module}"
    return texts["problem"], texts["helpers"]


def fingerprint(problem, helpers, folder="/somewhere"):
    """What identifies lane 0 of a scan of these texts, and the loss that is differentiated in reverse only."""
    modules = {"helpers": helpers, "problem": problem}
    try:
        for name, text in modules.items():
            sys.modules[name] = module = types.ModuleType(name)
            module.__file__ = f"{folder}/{name}.py"
            exec(compile(text, module.__file__, "exec"), module.__dict__)
        return identified_by(sys.modules["problem"].ASKED)
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def identified_by(asked):
    """Part -> number."""
    functions = dict(zip("abcdefg", asked["measures"], strict=True))
    observables = dict(zip("h", asked["observables"], strict=True))
    axes = {"seed": np.arange(2)}
    job = Job(asked["make"], axes, 1.0, {}, functions, observables, "tsit5", 1e-6, False, 100, True)
    job, trusted = identified(job)
    assert not trusted
    numbers = dict(zip(parts(job), identity_at(job, 0).tolist(), strict=True))
    shapes = shapes_of({"x": np.ones(3)}, np.ones(3))
    return numbers | {"backward": of_program(asked["losses"][0], shapes, derivatives=True).number}


if __name__ == "__main__":  # `problem` and `helpers` are files beside each other
    jax.config.update("jax_enable_x64", True)
    sys.path.insert(0, sys.argv[1])
    sys.stdout.write(json.dumps(identified_by(importlib.import_module("problem").ASKED)))
