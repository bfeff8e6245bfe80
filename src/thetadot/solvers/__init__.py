"""Diffrax solvers and step-size control made for gradient flows."""

from .base import AbstractFlowSolver as AbstractFlowSolver
from .deflated import DeflatedExponential as DeflatedExponential
from .displacement import DisplacementController as DisplacementController
from .krylov import KrylovExponential as KrylovExponential
from .policy import SOLVERS as SOLVERS
from .policy import Policy as Policy
from .policy import better_rank as better_rank
from .policy import choose_solver as choose_solver
from .policy import curvatures as curvatures
from .policy import explicit_solver as explicit_solver
from .policy import few_steps_left as few_steps_left
from .policy import is_explicit as is_explicit
from .policy import is_worth_a_race as is_worth_a_race
from .policy import runners as runners
from .stabilized import StabilizedRungeKutta as StabilizedRungeKutta
