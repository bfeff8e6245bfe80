"""Ready-made flows, one file each: a dataclass of options that sets up a problem, and the verb that runs it.

    from thetadot.experiments import FocusDilution, run
    traj = run(FocusDilution(t1=100.0))

`EXPERIMENTS` is the registry that the command line lists.
"""

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thetadot._lazy import OnDemand, on_demand
from thetadot.experiments._setup import Setup as Setup
from thetadot.flow import gradient_flow
from thetadot.trajectory import Trajectory

if TYPE_CHECKING:
    from thetadot.experiments.anchor_task import AnchorTask as AnchorTask
    from thetadot.experiments.focus_dilution import FocusDilution as FocusDilution
    from thetadot.experiments.identity_bridge import IdentityBridge as IdentityBridge
    from thetadot.experiments.matrix_factorization import MatrixFactorization as MatrixFactorization
    from thetadot.experiments.multi_stage_loss import MultiStageLoss as MultiStageLoss
    from thetadot.experiments.rank_collapse import RankCollapse as RankCollapse
    from thetadot.experiments.three_layer import ThreeLayer as ThreeLayer

_CLASSES = {
    "focus-dilution": "FocusDilution",
    "identity-bridge": "IdentityBridge",
    "matrix-factorization": "MatrixFactorization",
    "rank-collapse": "RankCollapse",
    "anchor-task": "AnchorTask",
    "three-layer": "ThreeLayer",
    "multi-stage-loss": "MultiStageLoss",
}


def _load(name: str) -> Any:
    return getattr(import_module(f"{__name__}.{name.replace('-', '_')}"), _CLASSES[name])


EXPERIMENTS: Mapping[str, Any] = OnDemand(_CLASSES, _load)
"""The experiments by name, each in the file of that name."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_demand(__name__, names={k.replace("-", "_"): cls for k, cls in _CLASSES.items()})


def name_of(experiment: Any) -> str:
    """The registered name of an experiment, as `thetadot run` spells it."""
    return next(name for name, cls in _CLASSES.items() if type(experiment).__name__ == cls)


def options_of(experiment: Any) -> dict[str, Any]:
    """The options of an experiment as plain values that JSON can hold."""
    options = dataclasses.asdict(experiment)
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def run(
    experiment: Any, *, progress: bool | Callable = False, announce: Callable[[Setup], None] | None = None
) -> Trajectory:
    """Solve an experiment's flow.

    Args:
        experiment: an instance of one of `EXPERIMENTS`.
        progress: as in `gradient_flow`.
        announce: called with what is to be solved, before it begins.

    Returns:
        The trajectory, with the experiment's name, options, predicted plateaus and labels in its provenance.
    """
    setup: Setup = experiment.setup()
    if announce:
        announce(setup)
    traj = gradient_flow(
        setup.problem,
        setup.params0,
        experiment.t1,
        observables=dict(setup.observables),
        solver=experiment.solver,
        rtol=experiment.rtol,
        progress=progress,
    )
    return traj.with_provenance(
        experiment=name_of(experiment),
        reference=experiment.reference,
        options=options_of(experiment),
        plateaus=dict(setup.plateaus),
        labels=list(setup.labels),
        notes=dict(setup.notes),
    )
