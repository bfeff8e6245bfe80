"""The trilinear flow shared by three-layer networks (arXiv 2402.15958) and transformers (arXiv 2510.06954).

Closed forms and checks of `thetadot.models.trilinear`: everything that is claimed of the effective flow alone.

| file | holds |
|---|---|
| `closed_forms` | exact blow-up times, bounds of time and energy |
| `times` | T* on a thousand draws, and at the exact times |
| `profile` | powers and limits at the blow-up; energy; invariants |
| `final_stage` | the condensation condition |
| `draws`, `paths` | starts, and what is read off their paths |
"""

from .closed_forms import balanced_time as balanced_time
from .closed_forms import energy_floor as energy_floor
from .closed_forms import scalar_time as scalar_time
from .closed_forms import time_bound as time_bound
from .final_stage import check_final_stage
from .profile import check_energy, check_invariants, check_profile
from .times import check_blow_up_times

CHECKS = (check_blow_up_times, check_profile, check_energy, check_invariants, check_final_stage)
"""Each takes another problem than the effective flow, so that a wrong one can be seen to fail."""
