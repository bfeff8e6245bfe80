"""What is claimed: closed forms and checks, one module or folder a paper, each with its source and how far to trust it.

| module | source |
|---|---|
| `condensed_directions` | condensation of two-layer networks at initial training (arXiv 2105.11686) |
| `focus_dilution` | Focus and Dilution: The Multi-stage Learning Process of Attention (arXiv 2605.01199) |
| `linear_attention` | linear attention that learns in context (arXiv 2501.16265) |
| `margin` | growth of the margin under exponential loss (arXiv 1906.05890) |
| `matrix_factorization` | exact flows of linear networks, factorization and completion (arXiv 1312.6120, 1905.13655) |
| `rank_collapse` | From Condensation to Rank Collapse (arXiv 2510.06954) |
| `three_layer` | On the dynamics of three-layer neural networks: initial condensation (arXiv 2402.15958) |
| `trilinear` | its effective flow, which it shares with arXiv 2510.06954 |
| `identity_bridge` | Identity Bridge: Enabling Implicit Reasoning via Shared Latent Memory (arXiv 2509.24653) |
| `multi_stage_loss` | On Multi-Stage Loss Dynamics in Neural Networks (arXiv 2410.20119) |
| `phase_diagram` | phase diagram of two-layer networks at infinite width (arXiv 2007.07497) |

A `Check` puts a number predicted beside the number measured; `run_checks` measures all of a paper's.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from thetadot._lazy import OnDemand, on_demand

if TYPE_CHECKING:
    from thetadot.theory import condensed_directions as condensed_directions
    from thetadot.theory import focus_dilution as focus_dilution
    from thetadot.theory import identity_bridge as identity_bridge
    from thetadot.theory import linear_attention as linear_attention
    from thetadot.theory import margin as margin
    from thetadot.theory import matrix_factorization as matrix_factorization
    from thetadot.theory import multi_stage_loss as multi_stage_loss
    from thetadot.theory import phase_diagram as phase_diagram
    from thetadot.theory import rank_collapse as rank_collapse
    from thetadot.theory import three_layer as three_layer
    from thetadot.theory import trilinear as trilinear
    from thetadot.theory.check import Check as Check
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        modules=(
            "condensed_directions",
            "focus_dilution",
            "identity_bridge",
            "linear_attention",
            "margin",
            "matrix_factorization",
            "multi_stage_loss",
            "phase_diagram",
            "rank_collapse",
            "three_layer",
            "trilinear",
        ),
        names={"check": "Check"},
    )

_PAPERS = {
    "focus-dilution": ("focus_dilution",),
    "matrix-factorization": ("matrix_factorization",),
    "linear-attention": ("linear_attention",),
    "max-margin": ("margin",),
    "rank-collapse": ("rank_collapse", "trilinear"),
    "three-layer": ("trilinear", "three_layer"),
    "identity-bridge": ("identity_bridge",),
    "multi-stage-loss": ("multi_stage_loss",),
    "condensed-directions": ("condensed_directions",),
    "phase-diagram": ("phase_diagram",),
}


def _checks_of(name: str) -> "tuple[Callable[[], list[Check]], ...]":
    modules = (import_module(f"{__name__}.{module}") for module in _PAPERS[name])
    return tuple(check for module in modules for check in module.CHECKS)


CHECKS: "Mapping[str, tuple[Callable[[], list[Check]], ...]]" = OnDemand(_PAPERS, _checks_of)
"""The papers whose claims are checked, by the name that `run_checks` and `thetadot check` take."""


def run_checks(name: str) -> "list[Check]":
    """Measures every claim of a paper: minutes at most.

    Args:
        name: one of `thetadot.theory.CHECKS`, "focus-dilution" for example.

    Returns:
        One `Check` a claim. A claim that fails is a result too: see its `passed`, and the two numbers.

    Raises:
        ValueError: nothing is checked under that name.
    """
    return [check for checks in iterate_checks(name) for check in checks]


def iterate_checks(name: str) -> "Iterator[list[Check]]":
    """As `run_checks`, a few at a time as they are measured."""
    if name not in CHECKS:
        raise ValueError(f"there are no checks called {name!r}: choose among {', '.join(CHECKS)}.")
    return (measure() for measure in CHECKS[name])
