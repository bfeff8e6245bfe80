"""Diffrax solvers and step-size control made for gradient flows."""

from ._vector import each as each
from .choice import SOLVERS as SOLVERS
from .choice import better_rank as better_rank
from .choice import choose_solver as choose_solver
from .choice import curvatures as curvatures
from .choice import describe_solver as describe_solver
from .choice import step_cost as step_cost
from .choice import with_rank as with_rank
from .choice import with_tolerances as with_tolerances
from .deflated import DeflatedExponential as DeflatedExponential
from .displacement import DisplacementController as DisplacementController
from .krylov import KrylovExponential as KrylovExponential
from .stabilized import StabilizedRungeKutta as StabilizedRungeKutta
