"""From Condensation to Rank Collapse (arXiv 2510.06954): closed forms and checks.

`closed_forms` has the formulas, the slips of the paper among them, and the other files one stage each.

| file | what is checked |
|---|---|
| `condensation` | stage 1: effective dynamics, condensation condition, escape time |
| `key_query` | stage 2: growth of queries and keys at s_1(F), their collapse to rank one, sizes of gradients |
| `three_stages` | all stages in one flow of the paper's model; invariants |
| `anchor` | all stages of the anchor-function task in a decoder between fixed ends |
"""

from .anchor import anchor_signal as anchor_signal
from .anchor import check_anchor_task
from .closed_forms import collapse_exponent as collapse_exponent
from .closed_forms import effective_params as effective_params
from .closed_forms import effective_rate as effective_rate
from .closed_forms import effective_start as effective_start
from .closed_forms import escape_time as escape_time
from .closed_forms import key_query_flow as key_query_flow
from .closed_forms import key_query_matrix as key_query_matrix
from .closed_forms import pooled_features as pooled_features
from .closed_forms import pooled_minimum as pooled_minimum
from .closed_forms import pooled_signal as pooled_signal
from .closed_forms import quasi_stationary as quasi_stationary
from .condensation import check_condensation_condition, check_effective_dynamics, check_escape_time
from .key_query import check_collapse_quality, check_gradient_separation, check_key_query_growth
from .three_stages import check_conservation, check_three_stages

CHECKS = (
    check_effective_dynamics,
    check_escape_time,
    check_condensation_condition,
    check_gradient_separation,
    check_key_query_growth,
    check_collapse_quality,
    check_three_stages,
    check_conservation,
    check_anchor_task,
)
"""Each measures a few claims; most take another flow than `flows.trace`, so that a wrong one can be seen to fail."""
