"""thetadot: traces neural-network training as the ordinary differential equation θ̇ = −∇L.

A loss is a pure JAX function; its gradient flow is integrated adaptively, with the times at which it crosses levels,
its plateaus and descents, and the error of every number.
"""

import typing as _typing

from ._lazy import on_demand as _on_demand

if _typing.TYPE_CHECKING:
    from . import data as data
    from . import inits as inits
    from . import models as models
    from . import observables as observables
    from . import solvers as solvers
    from . import theory as theory
    from ._version import __version__ as __version__
    from .blowup import BlowUp as BlowUp
    from .blowup import blow_up as blow_up
    from .descent import descent as descent
    from .descent import distance_to_flow as distance_to_flow
    from .flow import gradient_flow as gradient_flow
    from .ladder import crossing_times as crossing_times
    from .laws import Fit as Fit
    from .laws import fit_log_law as fit_log_law
    from .laws import fit_power_law as fit_power_law
    from .problem import Problem as Problem
    from .scan import scan as scan
    from .stages import Measured as Measured
    from .stages import Stage as Stage
    from .stages import find_stages as find_stages
    from .theory import Check as Check
    from .theory import run_checks as run_checks
    from .trajectory import Trajectory as Trajectory
    from .trajectory import load as load
else:
    __getattr__, __dir__ = _on_demand(
        __name__,
        modules=("data", "inits", "models", "observables", "solvers", "theory"),
        names={
            "_version": "__version__",
            "blowup": "BlowUp blow_up",
            "descent": "descent distance_to_flow",
            "flow": "Problem gradient_flow",  # who states a problem traces it: the first call waits for no import
            "ladder": "crossing_times",
            "laws": "Fit fit_log_law fit_power_law",
            "scan": "scan",
            "stages": "Measured Stage find_stages",
            "theory": "Check run_checks",
            "trajectory": "Trajectory load",
        },
    )
