"""Deep matrix factorization and completion: exact flows of linear networks, and what is claimed of small starts.

`closed_forms` has the modes of balanced networks of any depth, `jumps` the jump times of two layers from random starts;
the other files check them on flows.

| file | what is checked |
|---|---|
| `modes` | balanced starts: singular values over time (arXiv 1312.6120, 1905.13655) |
| `staircase` | random starts: plateaus, ranks, jump times, the first path (arXiv 2106.15933) |
| `completion` | observed entries only: recovery against depth and scale, saddles, the final stage (arXiv 2402.15958) |
"""

from .closed_forms import balanced_loss as balanced_loss
from .closed_forms import deep_mode as deep_mode
from .closed_forms import deep_time as deep_time
from .closed_forms import escape_time as escape_time
from .closed_forms import plateau_losses as plateau_losses
from .closed_forms import scalar_product_time as scalar_product_time
from .closed_forms import two_layer_mode as two_layer_mode
from .closed_forms import two_layer_time as two_layer_time
from .completion import check_final_stage, check_recovery, check_saddles
from .completion import error_exponent as error_exponent
from .completion import greedy_saddles as greedy_saddles
from .jumps import mean_two_layer_jumps as mean_two_layer_jumps
from .jumps import spread_of_two_layer_jumps as spread_of_two_layer_jumps
from .jumps import two_layer_jumps as two_layer_jumps
from .modes import check_jump_laws, check_modes, check_singular_value_equation
from .staircase import check_first_path, check_jump_times, check_staircase

CHECKS = (
    check_modes,
    check_jump_laws,
    check_singular_value_equation,
    check_staircase,
    check_jump_times,
    check_first_path,
    check_recovery,
    check_saddles,
    check_final_stage,
)
"""Each measures a few claims; all take another flow than `flows.trace`, so that a wrong one can be seen to fail."""
