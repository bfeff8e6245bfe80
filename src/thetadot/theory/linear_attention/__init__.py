"""Linear attention learns linear regression in context (Zhang, Singh, Latham & Saxe, arXiv 2501.16265).

`closed_forms` has the plateau losses and the times; `heads` checks them on flows of merged heads, and of heads with
keys and queries of their own, of rank one and two.
"""

from .closed_forms import head_time as head_time
from .closed_forms import learned_map as learned_map
from .closed_forms import merged_curve as merged_curve
from .closed_forms import plateau_losses as plateau_losses
from .closed_forms import sampling_factors as sampling_factors
from .closed_forms import second_rank_slope as second_rank_slope
from .heads import check_fixed_points, check_head_times, check_merged, check_ranks, check_separate

CHECKS = (check_merged, check_separate, check_head_times, check_fixed_points, check_ranks)
"""Each measures a few claims; all can take something wrong in place of the flow or the loss, and are seen to fail."""
