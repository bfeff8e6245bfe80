"""One loop over solver steps: compiled chunks that record observables and crossings as the flow moves.

`diffrax.diffeqsolve` stops at its first event, forgets the step size when it is resumed and cannot tell a blow-up from
a hang; so the loop over `solver.step` and `controller.adapt_step_size` is here. It is a pure function of a state, so a
flow can be driven in chunks, with progress shown and rows moved to the host in between, and resumed with the same
steps.

Within each accepted step the dense output is evaluated at the two inner Gauss–Lobatto points: for the dissipation
∫‖∇L‖² dt (order 6), and so that two crossings in one step are seen.
"""

from .checkpoints import checkpoint as checkpoint
from .checkpoints import resume as resume
from .host import Run as Run
from .loop import on_one_core as on_one_core
from .state import Flow as Flow
from .state import Outcome as Outcome
from .together import drive_together as drive_together
