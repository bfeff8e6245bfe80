"""The rivals in PyTorch: torchdiffeq's dopri5, and gradient descent with its largest stable step."""

import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from jax.flatten_util import ravel_pytree

from _escapes import read_escapes
from _flows import Flow
from _peers import Compiled, Run, Solve

_AGREEMENT = 1e-12  # relative difference allowed between a loss here and in JAX
_MARGIN = 0.99  # of 2/λ_max, the largest stable learning rate
_REPORT_STEPS = 1000

Leaves = list[torch.Tensor]


def factorization(layers: Leaves, data: dict) -> torch.Tensor:
    """½ ‖W_3 W_2 W_1 − M‖²."""
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    return 0.5 * (product - data["target"]).square().sum()


def attention(leaves: Leaves, data: dict) -> torch.Tensor:
    """Cross-entropy of the population attention model; leaves in the order of the names w_0, w_1, w_k, w_q."""
    w_0, w_1, w_k, w_q = leaves
    phi = (w_0 @ w_q) @ (w_0 @ w_k).T
    rows = torch.softmax(phi + data["stationary"].log(), dim=1)
    log_p = torch.log_softmax(rows @ (w_0 @ w_1), dim=1)
    return -(data["stationary"][:, None] * data["transition"] * log_p).sum()


def tanh(leaves: Leaves, data: dict) -> torch.Tensor:
    """½ mean (Σ a tanh(w·x) − y)²; leaves a, w."""
    a, w = leaves
    return 0.5 * (torch.tanh(data["x"] @ w.T) @ a - data["y"]).square().mean()


LOSSES: dict[str, Callable[[Leaves, dict], torch.Tensor]] = {
    "factorization": factorization,
    "attention": attention,
    "tanh": tanh,
}


def dopri5_solver(flow: Flow, grid: np.ndarray, progress) -> Solve:
    """`torchdiffeq.odeint(method="dopri5")`."""
    from torchdiffeq import odeint

    loss, leaves, data = _checked(flow)
    fns = Compiled(flow)  # for the loss along the result, not timed
    shapes = [leaf.shape for leaf in leaves]
    sizes = [leaf.numel() for leaf in leaves]
    start, ts = torch.cat([leaf.reshape(-1) for leaf in leaves]), torch.tensor(grid)

    def field(t, y):
        fns.count["field"] += 1
        progress.value = float(t)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            parts = [part.view(shape) for part, shape in zip(y.split(sizes), shapes, strict=True)]
            (gradient,) = torch.autograd.grad(loss(parts, data), y)
        return -gradient

    def solve(rtol: float) -> Run:
        began = time.perf_counter()
        with torch.no_grad():
            ys = odeint(field, start, ts, rtol=rtol, atol=1e-2 * rtol * flow.init_scale, method="dopri5")
        seconds = time.perf_counter() - began
        return fns.run(seconds, grid, ys.numpy(), flow.levels)  # pyright: ignore[reportAttributeAccessIssue]

    return solve


def descent_solver(sharpness: float):
    """Full-batch gradient descent at η = 0.99 · 2/λ_max; step k is at t = ηk.

    Args:
        sharpness: λ_max, the largest eigenvalue of the Hessian anywhere on the way.
    """

    def make(flow: Flow, grid: np.ndarray, progress) -> Solve:
        del grid
        loss, leaves, data = _checked(flow)
        rate = _MARGIN * 2 / sharpness
        num_steps = int(np.ceil(flow.t1 / rate))

        def solve(rtol: float) -> Run:
            del rtol
            params = [leaf.clone().requires_grad_() for leaf in leaves]
            losses = torch.empty(num_steps, dtype=torch.float64)
            began = time.perf_counter()
            for step in range(num_steps):
                value = loss(params, data)
                gradients = torch.autograd.grad(value, params)
                losses[step] = value.detach()
                with torch.no_grad():
                    for param, gradient in zip(params, gradients, strict=True):
                        param.sub_(gradient, alpha=rate)
                if step % _REPORT_STEPS == 0:
                    progress.value = rate * step
            seconds = time.perf_counter() - began
            escapes = read_escapes(rate * np.arange(num_steps), losses.numpy(), flow.levels)
            return Run(seconds, escapes, steps=num_steps, gradients=num_steps, note=f"η = {rate:.4g}")

        return solve

    return make


def _checked(flow: Flow) -> tuple[Callable, Leaves, dict]:
    """Loss, parameters and data as tensors, once the loss and its gradient agree with those in JAX."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # matrices this small lose by threads: forty times at 64 words on a busy machine
    loss = LOSSES[flow.loss]
    data = {name: torch.tensor(np.array(x)) for name, x in flow.problem.data.items()}
    generator = np.random.default_rng(0)
    for params in (flow.params0, jax.tree.map(lambda x: generator.standard_normal(x.shape), flow.params0)):
        leaves = [torch.tensor(np.array(leaf)).requires_grad_() for leaf in jax.tree.leaves(params)]
        value = loss(leaves, data)
        gradient = np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(value, leaves)])
        expected, slope = flow.problem.value_and_grad(params)
        slope = np.asarray(ravel_pytree(slope)[0])
        assert abs(value.item() - float(expected)) <= _AGREEMENT * abs(float(expected)), (value.item(), float(expected))
        assert np.linalg.norm(gradient - slope) <= 1e3 * _AGREEMENT * np.linalg.norm(slope)
    return loss, [torch.tensor(np.array(leaf)) for leaf in jax.tree.leaves(flow.params0)], data
