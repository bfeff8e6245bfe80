"""Stated errors of escape times, and the sentence that rounding decides, on random flows whose times are known.

    python benchmarks/rounding.py [--flows N] [--seed N] [--json FILE]

Three kinds, in turn, at scales from 1e-1 to 1e-60:

- wells: ½ (x − 1)² + Σ sᵢ ¼ (zᵢ² − 1)², in coordinates of its own or in turned ones, where zᵢ has no digits below the
  rounding of x;
- products: ½ Σ (sᵢ − aᵢ bᵢ)², each mode in coordinates of its own;
- layers: two or three layers ½ ‖W_L … W₁ − M‖² with two aligned modes in turned coordinates.

The exact times are those of the start as it is rounded. Where a direction has fewer than two digits there, beside
numbers of other directions, rounding may decide, and the sentence is right; elsewhere it is a false alarm.
"""

# ruff: noqa: E402

import argparse
import json
import time

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np

import thetadot as td
from thetadot.models import linear
from thetadot.theory import matrix_factorization as theory

SIZE = 3  # directions that escape
BARE = 1e-14  # of a direction beside numbers of order one, from which the sentence is needed or may come


IN_WELLS = {f"{i}": lambda p, d, i=i: (d["frame"] @ p)[1 + i] for i in range(SIZE)}
PRODUCTS = {f"{i}": lambda p, d, i=i: p["a"][i] * p["b"][i] for i in range(SIZE)}
MODES = {f"{i}": lambda p, d, i=i: d["left"][:, i] @ linear.end_to_end(p) @ d["right"][:, i] for i in range(2)}


def wells(rng):
    """Loss, start, observables, levels, exact times, and which of them rounding may decide."""
    turned = bool(rng.integers(2))
    frame = np.linalg.qr(rng.normal(size=(SIZE + 1, SIZE + 1)))[0] if turned else np.eye(SIZE + 1)
    rates, z0 = rng.uniform(0.3, 3, SIZE), 10 ** -rng.uniform(1, 25 if turned else 60, SIZE)
    start = frame.T @ np.append(rng.uniform(-1, 3), z0)
    z0 = np.asarray((frame.astype(np.longdouble) @ start)[1:], float)  # as it is rounded
    levels = rng.uniform(0.3, 0.7, SIZE) * np.sign(z0)
    exact = 0.5 * (np.log(levels**2 / (1 - levels**2)) - np.log(z0**2 / (1 - z0**2))) / rates
    return well_loss, {"frame": frame, "rates": rates}, start, IN_WELLS, levels, exact, turned & (np.abs(z0) < BARE)


def well_loss(params, data):
    """½ (x − 1)² + Σ sᵢ ¼ (zᵢ² − 1)²."""
    x, *z = data["frame"] @ params
    return 0.5 * (x - 1) ** 2 + 0.25 * jnp.sum(data["rates"] * (jnp.stack(z) ** 2 - 1) ** 2)


def products(rng):
    """Balanced pairs: aᵢ² obeys the logistic equation."""
    target, scale = rng.uniform(0.3, 3, SIZE), 10 ** -rng.uniform(1, 30, SIZE)
    levels = rng.uniform(0.1, 0.9, SIZE) * target
    signs = rng.choice([-1.0, 1.0], SIZE)
    start = {"a": scale * signs, "b": scale * signs}
    exact = (np.log(levels / (target - levels)) - np.log(scale**2 / (target - scale**2))) / (2 * target)
    return product_loss, target, start, PRODUCTS, levels, exact, np.zeros(SIZE, bool)


def product_loss(params, data):
    """½ Σ (sᵢ − aᵢ bᵢ)²."""
    return 0.5 * jnp.sum((data - params["a"] * params["b"]) ** 2)


def layers(rng):
    """The weaker mode is an own direction of the plateau only as far as its strength has digits beside the stronger."""
    num_layers = int(rng.integers(2, 4))
    target = -np.sort(-rng.uniform(0.3, 3, 2))
    strengths = target * 10 ** -rng.uniform(1, 16 if num_layers == 2 else 8, 2)
    levels = rng.uniform(0.1, 0.9, 2) * target
    frames = [np.linalg.qr(rng.normal(size=(2, 2)))[0] for _ in range(num_layers + 1)]
    factors = strengths ** (1 / num_layers)
    start = [frames[i + 1] @ np.diag(factors) @ frames[i].T for i in range(num_layers)]
    data = {"target": frames[-1] @ np.diag(target) @ frames[0].T, "left": frames[-1], "right": frames[0]}
    exact = np.asarray(theory.deep_time(levels, target, strengths, num_layers))
    return layer_loss, data, start, MODES, levels, exact, np.repeat(np.min(strengths) < BARE / 1e-5, 2)


def layer_loss(params, data):
    """½ ‖W_L … W₁ − M‖²."""
    return 0.5 * jnp.sum((linear.end_to_end(params) - data["target"]) ** 2)


KINDS = (wells, products, layers)


def measured(kind, rng):
    """A row for each escape of one random flow.

    True and stated error, time, whether rounding may decide it, whether it was found, and what one plain flow says: its
    own error, and whether it tells of rounding.
    """
    loss, data, start, observables, levels, exact, bare = kind(rng)
    data, start = jax.tree.map(jnp.asarray, (data, start))
    crossings = {f"{i}": (f"{i}", float(level)) for i, level in enumerate(levels)}
    problem, t1 = td.Problem(loss, data), 1.5 * float(exact.max()) + 1
    found = td.crossing_times(problem, start, crossings, t1, observables)
    plain = td.gradient_flow(problem, start, t1, ts=[t1], observables=observables, crossings=crossings)
    rows = zip(found.values(), plain.crossings.values(), exact, bare, strict=True)
    return [
        {
            "true": abs(m.value - t),
            "stated": m.error,
            "t": t,
            "bare": bool(b),
            "bare flow": bool(np.any(bare)),
            "found": bool(np.isfinite(m.value)),
            "plain": abs(times[0] - t) if times else np.inf,
            "plain tells": plain.status == "rounding",
        }
        for m, times, t, b in rows
    ]


def summary(rows) -> dict:
    """Coverage, false alarms, and how useful the errors are."""
    keys = "true", "stated", "t", "bare", "bare flow", "plain", "plain tells"
    true, stated, times, bare, bare_flow, plain, tells = (np.array([row[key] for row in rows]) for key in keys)
    off = plain > 1e-3 * times
    told = np.isinf(stated)
    told_of = ~np.isnan(stated)
    wrong = ~told & ~(true <= stated)
    finite = ~told & told_of
    return {
        "escapes": len(rows),
        "wrong": int(np.sum(wrong)),
        "worst true over stated of the wrong": float(np.max(true[wrong] / stated[wrong], initial=0)),
        "rounding may decide": int(np.sum(bare)),
        "told of these": int(np.sum(told & bare)),
        "told of others": int(np.sum(told & ~bare)),
        "median stated over true": float(np.median(stated[finite] / np.maximum(true[finite], 1e-300))),
        "plain flows off by more than 1e-3": int(np.sum(off)),
        "of them told of rounding": int(np.sum(off & tells)),
        "told of in flows without a bare direction": int(np.sum(tells & ~bare_flow)),
        "stated below 1 % of the time": float(np.mean(stated[finite] < 0.01 * times[finite])),
    }


def main() -> None:
    """Runs the flows and prints a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    chosen = parser.parse_args()
    results = {}
    for kind in KINDS:
        began, rows = time.perf_counter(), []
        for i in range(chosen.flows // len(KINDS)):
            rng = np.random.default_rng([chosen.seed, i])
            for row in measured(kind, rng):
                rows.append(row | {"flow": i})
                if not (np.isinf(row["stated"]) or row["true"] <= row["stated"]):
                    print(f"{kind.__name__} {i}: {row}", flush=True)
        results[kind.__name__] = {"summary": summary(rows), "rows": rows, "seconds": time.perf_counter() - began}
        print(kind.__name__, json.dumps(results[kind.__name__]["summary"]), flush=True)
    if chosen.json:
        with open(chosen.json, "w", encoding="utf-8") as file:
            json.dump(results, file, default=float)


if __name__ == "__main__":
    main()
