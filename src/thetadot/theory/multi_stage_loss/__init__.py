"""On Multi-Stage Loss Dynamics in Neural Networks (arXiv 2410.20119): closed forms and checks.

| file | what it has |
|---|---|
| `closed_forms` | linearized neurons, T_1, the shape of the descent, the best linear fit |
| `slow_flow` | what ends the secondary plateau, and when |
| `initial_plateau`, `descent`, `secondary_plateau` | the checks of each stage, on flows of tanh and of tanh + ½ tanh² |
"""

from .closed_forms import LinearFit as LinearFit
from .closed_forms import descent_width as descent_width
from .closed_forms import growth as growth
from .closed_forms import initial_plateau_slope as initial_plateau_slope
from .closed_forms import linear_crossings as linear_crossings
from .closed_forms import linear_fit as linear_fit
from .closed_forms import linearized as linearized
from .closed_forms import linearized_fit as linearized_fit
from .closed_forms import moment_matrix as moment_matrix
from .closed_forms import plateau_shift as plateau_shift
from .closed_forms import predicted_plateaus as predicted_plateaus
from .descent import check_height, check_timing, check_width
from .initial_plateau import check_alignment, check_linearization
from .secondary_plateau import check_amplitudes, check_length, check_stable_ray
from .slow_flow import slow_escape_time as slow_escape_time

CHECKS = (
    check_linearization,
    check_alignment,
    check_timing,
    check_width,
    check_height,
    check_length,
    check_stable_ray,
    check_amplitudes,
)
"""Each measures a few claims; most take another flow than `flows.trace`, so that a wrong one can be seen to fail."""
