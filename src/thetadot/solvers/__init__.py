"""Diffrax solvers and step-size control made for gradient flows."""

from .choice import SOLVERS as SOLVERS
from .choice import choose_solver as choose_solver
from .choice import describe_solver as describe_solver
from .choice import enlarge as enlarge
from .choice import may_enlarge as may_enlarge
from .choice import step_cost as step_cost
from .deflated import DeflatedExponential as DeflatedExponential
from .displacement import DisplacementController as DisplacementController
