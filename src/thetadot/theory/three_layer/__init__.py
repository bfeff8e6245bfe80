"""On the dynamics of three-layer neural networks: initial condensation (arXiv 2402.15958): closed forms and checks.

What is claimed of its effective flow alone is in `thetadot.theory.trilinear`; here are the networks themselves. The
statements were worked out again from the model, and the docstrings say "derived"; the paper is the source of the
effective flow, of its blow-up and of the condensation under the final-stage condition.

| file | holds |
|---|---|
| `closed_forms` | escape times, misalignment, the second mode |
| `condensation` | tanh network against effective flow; the rows of the first layer turn to ±v |
| `depth` | escape times of two to five layers |
| `modes` | two modes under two and more layers |
| `flows` | networks, samples, and the flow that is checked |
"""

from .closed_forms import balanced_escape_time as balanced_escape_time
from .closed_forms import escape_exponent as escape_exponent
from .closed_forms import off_axis_share as off_axis_share
from .closed_forms import second_mode as second_mode
from .condensation import check_condensation, check_effective_flow
from .depth import check_depth_law
from .modes import check_mode_selection

CHECKS = (check_effective_flow, check_condensation, check_depth_law, check_mode_selection)
"""Each takes another flow than `flows.trace`, so that a wrong one can be seen to fail."""
