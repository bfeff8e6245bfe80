"""Whether few kernels change a number or end a process: natural losses and random programs, each in its own process.

    python benchmarks/kernels.py [--losses N] [--random N] [--seed N] [--json FILE]
    python benchmarks/kernels.py --one NAME     # a natural loss, or the number of a random program

Each loss becomes two programs, as a flow makes them: the spectrum of its Hessian, and a loop of steps with products of
the Hessian and a decomposition. With kernels they are compiled as the flow's are, without as plainly as XLA can. A
program of which XLA dies falls back to the plain one; a process that ends is what must not be.
"""

import argparse
import json
import logging
import multiprocessing
import sys
import time
from collections import Counter
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from thetadot.compile import Program, compiled
from thetadot.compile.options import QUICK

OFF = False
SHAPES = {"w": (3, 4), "v": (4,), "b": (1,), "layers": (2, 4, 4), "row": (1, 3)}
RNG = np.random.default_rng(0)
DATA = {
    "x": RNG.normal(size=(6, 3)),
    "y": RNG.normal(size=6),
    "label": np.array([0, 1, 2, 3, 1, 0], np.uint8),
    "mask": np.array([1, 0, 1, 1, 0, 1], bool),
    "weight": np.array(0.1),
    "none": np.zeros((0, 3)),
    "order": np.array([5, 3, 4, 0, 1, 2], np.int32),
}


def hidden(p, d):
    return jnp.tanh(d["x"] @ p["w"])


def output(p, d):
    return hidden(p, d) @ p["v"] + p["b"]


def logits(p, d):
    return jax.nn.log_softmax(hidden(p, d) + p["b"])


def fit(p, d):
    return 0.5 * jnp.mean((output(p, d) - d["y"]) ** 2)


def norm(p):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))


def through_layers(p, d):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) + h, jnp.sum(h)), hidden(p, d), p["layers"])


def of_class(label):
    return label[:, None] == jnp.arange(4, dtype=jnp.uint8)


def normalized(h):
    return (h - h.mean(1, keepdims=True)) / (h.std(1, keepdims=True) + 1e-3)


def attended(w, h):
    return jax.nn.softmax(h @ w @ h.T)


def polynomial(z, coefficients):
    total = jnp.zeros_like(z)
    for degree, c in enumerate(coefficients):
        total = total + c * z**degree
    return total


NATURAL = {
    "plain": fit,
    "switched_off": lambda p, d: fit(p, d) + jnp.where(OFF, d["weight"], 0.0) * norm(p),
    "switched_by_where": lambda p, d: fit(p, d) + jnp.where(OFF, d["weight"] * norm(p), 0.0),
    "switched_by_zero": lambda p, d: fit(p, d) + 0.0 * d["weight"] * norm(p),
    "switched_by_cond": lambda p, d: jax.lax.cond(d["weight"] > 1, lambda: fit(p, d) + norm(p), lambda: fit(p, d)),
    "index_of_one": lambda p, d: fit(p, d) + p["row"][0] @ p["row"][0] * p["b"][0],
    "index_of_last": lambda p, d: fit(p, d) + jnp.sum(p["row"][-1] * d["x"][-1]) ** 2,
    "row_of_one": lambda p, d: jnp.mean((d["x"] @ p["row"].T - d["y"][:, None]) ** 2) + p["b"][0] ** 2,
    "dynamic_one": lambda p, d: fit(p, d) + jnp.sum(jax.lax.dynamic_index_in_dim(p["row"], d["order"][0]) ** 2),
    "slice_of_all": lambda p, d: 0.5 * jnp.mean((output(p, {**d, "x": d["x"][:6]}) - d["y"][:6]) ** 2),
    "slice_of_half": lambda p, d: 0.5 * jnp.mean((output(p, d)[::2] - d["y"][::2]) ** 2),
    "dynamic_slice": lambda p, d: jnp.sum(jax.lax.dynamic_slice(output(p, d), (0,), (6,)) ** 2) + norm(p),
    "batch_of_all": lambda p, d: jnp.mean(output(p, {**d, "x": jax.lax.dynamic_slice(d["x"], (0, 0), (6, 3))}) ** 2),
    "empty_slice": lambda p, d: fit(p, d) + jnp.sum(d["x"][6:] @ p["w"]),
    "empty_data": lambda p, d: fit(p, d) + jnp.sum((d["none"] @ p["w"]) ** 2),
    "unsigned_mask": lambda p, d: -jnp.mean(jnp.where(of_class(d["label"]), logits(p, d), 0)),
    "unsigned_select": lambda p, d: jnp.sum(jnp.where(d["label"] < 4, output(p, d), 0.0) ** 2),
    "unsigned_never": lambda p, d: fit(p, d) + jnp.sum(jnp.where(d["label"] < 0, output(p, d), 0.0) ** 2),
    "unsigned_gather": lambda p, d: -jnp.mean(logits(p, d)[jnp.arange(6), d["label"]]),
    "take_along": lambda p, d: -jnp.mean(jnp.take_along_axis(logits(p, d), d["label"][:, None].astype(int), 1)),
    "one_hot": lambda p, d: -jnp.mean(jax.nn.one_hot(d["label"], 4) * logits(p, d)),
    "one_class": lambda p, d: -jnp.sum(jax.nn.one_hot(d["label"] * 0, 1) * logits(p, d)[:, :1]) + norm(p),
    "bool_mask": lambda p, d: jnp.sum(jnp.where(d["mask"], (output(p, d) - d["y"]) ** 2, 0)) / jnp.sum(d["mask"]),
    "mask_of_all": lambda p, d: jnp.mean(jnp.where(jnp.ones(6, bool), (output(p, d) - d["y"]) ** 2, 0)),
    "causal_mask": lambda p, d: jnp.sum(jnp.where(jnp.tri(6, dtype=bool), hidden(p, d) @ hidden(p, d).T, -1e9) * 1e-9),
    "degree_zero": lambda p, d: fit(p, d) + jnp.mean(polynomial(output(p, d), [1.0])),
    "degree_one": lambda p, d: jnp.mean((polynomial(output(p, d), [0.0, 1.0]) - d["y"]) ** 2),
    "power_zero": lambda p, d: fit(p, d) + jnp.sum(p["v"] ** 0),
    "power_one": lambda p, d: fit(p, d) + jnp.sum(jnp.abs(p["v"]) ** 1.0),
    "horner": lambda p, d: jnp.mean((jnp.polyval(p["v"], output(p, d) * 0.1) - d["y"]) ** 2),
    "horner_zero": lambda p, d: fit(p, d) + jnp.mean(jnp.polyval(p["b"], output(p, d))),
    "unused_data": lambda p, d: jnp.sum((p["v"] - 1) ** 2) + jnp.sum(p["layers"][0] ** 4),
    "unused_params": lambda p, d: jnp.sum(p["w"] ** 4) + jnp.sum(p["w"]),
    "constant": lambda p, d: jnp.asarray(1.0) + 0 * p["b"][0],
    "stop_gradient": lambda p, d: jnp.mean((output(p, d) - jax.lax.stop_gradient(output(p, d)) - d["y"]) ** 2),
    "stop_all": lambda p, d: fit(jax.lax.stop_gradient(p), d) + norm(p),
    "broadcast_one": lambda p, d: jnp.mean((jnp.broadcast_to(p["b"], (6,)) * output(p, d) - d["y"]) ** 2),
    "mean_of_one": lambda p, d: fit(p, d) + jnp.mean(p["b"]) * jnp.mean(p["row"], axis=0)[0],
    "var_of_one": lambda p, d: fit(p, d) + jnp.sum(jnp.var(p["row"], axis=0)),
    "layer_norm": lambda p, d: jnp.mean((normalized(hidden(p, d)) @ p["v"] - d["y"]) ** 2),
    "softmax": lambda p, d: -jnp.mean(jnp.sum(jax.nn.softmax(d["x"] @ p["w"]) * logits(p, d), axis=1)),
    "softmax_of_one": lambda p, d: fit(p, d) - jnp.sum(jax.nn.log_softmax(p["b"]) * d["weight"]),
    "logsumexp": lambda p, d: jnp.mean(jax.nn.logsumexp(hidden(p, d), axis=1)) + norm(p),
    "attention": lambda p, d: jnp.mean((attended(p["layers"][0], hidden(p, d)) @ output(p, d) - d["y"]) ** 2),
    "scan_layers": lambda p, d: jnp.mean((through_layers(p, d)[0] @ p["v"] - d["y"]) ** 2),
    "scan_sums": lambda p, d: jnp.sum(through_layers(p, d)[1] ** 2) + norm(p),
    "scan_one": lambda p, d: jnp.sum(jax.lax.scan(lambda c, r: (c + r, c * r), p["v"][:3], p["row"])[1]) + fit(p, d),
    "fori": lambda p, d: jnp.sum(jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["layers"][0]), hidden(p, d)) ** 2),
    "map": lambda p, d: jnp.mean(jax.lax.map(lambda x: jnp.tanh(x @ p["w"]) @ p["v"], d["x"]) ** 2),
    "conv": lambda p, d: jnp.sum(jnp.convolve(p["v"], p["row"][0]) ** 2) + jnp.sum((p["w"] - 1) ** 2),
    "clip_wide": lambda p, d: jnp.mean((jnp.clip(output(p, d), -jnp.inf, jnp.inf) - d["y"]) ** 2),
    "relu": lambda p, d: jnp.mean((jax.nn.relu(d["x"] @ p["w"]) @ p["v"] - d["y"]) ** 2),
    "cumulative": lambda p, d: jnp.sum(jnp.cumsum(output(p, d)) ** 2) * 1e-2 + norm(p),
    "permuted": lambda p, d: jnp.mean((output(p, d)[d["order"]] - d["y"]) ** 2),
    "two_norms": lambda p, d: jnp.linalg.norm(p["w"]) * jnp.linalg.norm(p["v"]) + fit(p, d),
    "concatenated": lambda p, d: jnp.sum(jnp.concatenate([p["b"], p["v"], p["row"][0], jnp.zeros(0)]) ** 4) + fit(p, d),
    "padded": lambda p, d: jnp.sum(jnp.pad(p["v"], (0, 0)) ** 2 + jnp.pad(p["v"], (1, 1))[1:-1] ** 2) + fit(p, d),
    "roll_of_one": lambda p, d: jnp.sum(jnp.roll(p["row"], 1, axis=0) ** 2 * jnp.roll(p["v"][:3], 0)) + fit(p, d),
    "einsum": lambda p, d: jnp.einsum("ij,j,i->", hidden(p, d), p["v"], d["y"]) ** 2 + norm(p),
    "outer_of_one": lambda p, d: jnp.sum((jnp.outer(p["b"], p["v"]) - p["layers"][0, :1]) ** 2) + fit(p, d),
}  # fmt: skip


def random_loss(seed):
    """A loss of a dozen random operations on small arrays, axes of length one among them."""
    rng = np.random.default_rng(seed)
    unary = [jnp.tanh, jnp.sin, jnp.exp, jnp.cos, jnp.abs, jnp.negative, lambda z: z**2, lambda z: z**0]
    binary = [jnp.add, jnp.multiply, jnp.subtract, jnp.maximum, lambda a, b: a / (1 + b**2), lambda a, b: a]
    picks = rng.integers(0, 2**31, size=(12, 6))

    def loss(p, d):
        known = [*jax.tree.leaves(p), d["x"], d["y"][:, None], d["weight"].reshape(1, 1), d["x"][:1]]
        for kind, i, j, which, at, n in picks:
            z, other = jnp.atleast_2d(0.5 * known[i % len(known)]), jnp.atleast_2d(known[j % len(known)])
            z, other = z.reshape(z.shape[0], -1), other.reshape(other.shape[0], -1)
            rows, columns = z.shape
            match kind % 12:
                case 0 | 1:
                    z = unary[which % len(unary)](jnp.clip(z, -3, 3))
                case 2 | 3:
                    z = binary[which % len(binary)](z, other[:1, :1] if other.shape != z.shape else other)
                case 4:
                    z = z @ (other if other.shape[0] == columns else jnp.ones((columns, 1 + n % 3)))
                case 5:
                    z = z[at % rows] if which % 2 else z[: 1 + at % rows, ::-1]
                case 6:
                    z = jnp.where([z > 0, z < jnp.inf, jnp.zeros(z.shape, bool)][which % 3], z, d["weight"])
                case 7:
                    z = [jnp.sum, jnp.max, jnp.mean, jnp.prod][which % 4](z, axis=at % 2, keepdims=bool(n % 2))
                case 8:
                    z = jnp.concatenate([z, z[: at % 2], z[:0]])
                case 9:
                    z = jax.lax.fori_loop(0, 1 + n % 3, lambda k, z, at=at: jnp.tanh(z * (k + at % 2)), z)
                case 10:
                    z = jax.lax.cond(jnp.sum(z) > at % 2 - 0.5, jnp.sin, lambda z: z * 0.5, z)
                case 11:
                    z = jnp.where(d["label"][: 1 + at % 6, None] == which % 5, z[:1], z[:1, ::-1])
            known.append(z)
        return sum(jnp.mean(jnp.tanh(z)) for z in known) + 0.1 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))

    return loss


def spectrum(loss):
    """The eigenvalues of the Hessian, column by column."""

    def fn(p, d):
        y, unravel = jax.flatten_util.ravel_pytree(p)
        field = jax.grad(lambda y: loss(unravel(y), d))
        return jnp.linalg.eigvalsh(jax.lax.map(lambda v: jax.jvp(field, (y,), (v,))[1], jnp.eye(y.size)))

    return fn


def steps(loss):
    """Some steps with the parts of a deflated one: gradients, products with a block, a decomposition, a choice."""

    def fn(p, d):
        y, unravel = jax.flatten_util.ravel_pytree(p)
        field = jax.grad(lambda y: loss(unravel(y), d))

        def step(carry):
            n, y, block = carry
            slope = field(y)
            products = jax.vmap(lambda v: jax.jvp(field, (y,), (v,))[1], 1, 1)(block)
            block = jnp.linalg.qr(block + 0.01 * products)[0]
            moved = y - 0.01 * slope
            held = loss(unravel(moved), d) <= loss(unravel(y), d)
            return n + 1, jnp.where(held, moved, y - 0.001 * slope), block

        carry = jax.lax.while_loop(lambda carry: carry[0] < 4, step, (0, y, jnp.eye(y.size, 3)))
        return carry, unravel(carry[1])

    return fn


def one(name, connection=None):
    """How a case ends: programs that fell back, and the largest difference that kernels make."""
    jax.config.update("jax_enable_x64", True)
    loss = NATURAL[name] if name in NATURAL else random_loss(int(name))
    rng = np.random.default_rng(1)
    p = {key: jnp.asarray(0.5 * rng.normal(size=shape)) for key, shape in SHAPES.items()}
    d = {key: jnp.asarray(value) for key, value in DATA.items()}
    fallen: list[str] = []
    log = logging.getLogger("thetadot")
    log.setLevel("INFO")
    handler = logging.Handler()
    handler.emit = lambda record: fallen.append(record.getMessage())
    log.addHandler(handler)
    difference = 0.0
    for make in (spectrum, steps):
        found = compiled(make(loss), small=True, loops=True)(p, d)
        right = Program(make(loss), QUICK)(p, d)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            same_nans = bool(np.all(np.isnan(a) == np.isnan(b)))
            error = np.max(np.abs(a - b), initial=0.0, where=~np.isnan(b)) / (1 + np.max(np.abs(b), initial=0.0))
            difference = max(difference, float(error) if same_nans else np.inf)
    row = {"name": name, "fallen": fallen, "difference": difference}
    if connection:
        connection.send(row)
    return row


def in_a_process(context, name):
    """`one`, and how its process ended."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=one, args=(name, theirs))
    process.start()
    theirs.close()
    row: dict[str, Any] = {"name": name, "fallen": [], "difference": np.nan}
    try:
        row = ours.recv()
    except EOFError:  # it ended
        pass
    process.join()
    return row | {"exit": process.exitcode}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", type=int, default=len(NATURAL), help="how many natural losses")
    parser.add_argument("--random", type=int, default=300, help="how many random programs")
    parser.add_argument("--seed", type=int, default=0, help="number of the first of them")
    parser.add_argument("--minutes", type=float, default=np.inf, help="begin none after that")
    parser.add_argument("--json", help="write the rows there")
    parser.add_argument("--one", help="a single case, here; its row on stdout")
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(one(args.one)) + "\n")
        return
    context = multiprocessing.get_context("forkserver")  # which has imported all this, and starts no threads
    context.set_forkserver_preload(["thetadot", "jax.flatten_util"])
    rows, began = [], time.monotonic()
    for name in (*list(NATURAL)[: args.losses], *map(str, range(args.seed, args.seed + args.random))):
        if time.monotonic() - began > 60 * args.minutes:
            break
        rows.append(row := in_a_process(context, name))
        bad = row["exit"] or not float(row["difference"]) < 1e-8
        if bad or row["fallen"]:
            print(f"{'NOT ' if bad else ''}right: {json.dumps(row)}", flush=True)
    for kind in ("natural losses", "random programs"):
        some = [row for row in rows if (row["name"] in NATURAL) == (kind == "natural losses")]
        ends = Counter(row["exit"] for row in some if row["exit"])
        fallen = sum(bool(row["fallen"]) for row in some)
        worst = max((row["difference"] for row in some), default=0.0)
        print(f"{len(some)} {kind}: {sum(ends.values())} ended the process, {fallen} fell back, difference {worst:.1e}")
    print(f"{time.monotonic() - began:.0f} s")
    if args.json:
        with open(args.json, "w") as out:
            json.dump(rows, out, indent=1)


if __name__ == "__main__":
    main()
