"""Focus and Dilution: The Multi-stage Learning Process of Attention (arXiv 2605.01199): closed forms and checks.

`closed_forms` has the formulas, and the other files one stage each: what it predicts against what the flow does.

| file | what is checked |
|---|---|
| `condensation` | stage I, the second saddle, how long the stages last |
| `focus` | stage II: growth and direction of the attention |
| `dilution` | stage III: mass off the ray, the degenerate critical point |
| `symmetry_breaking` | stage IV: transverse rates, escape, delay |
| `cycles` | all stages in one flow: plateaus, focus and dilution dated, invariants |
| `linearization` | Lemma 3.1 |
| `sampling` | finitely many contexts of finite length |
"""

from .closed_forms import Moments as Moments
from .closed_forms import attention_growth_rate as attention_growth_rate
from .closed_forms import condensation_rate as condensation_rate
from .closed_forms import degenerate_loss as degenerate_loss
from .closed_forms import dilution_direction as dilution_direction
from .closed_forms import entropy_rate as entropy_rate
from .closed_forms import moments as moments
from .closed_forms import outer_decay_rates as outer_decay_rates
from .closed_forms import predicted_plateaus as predicted_plateaus
from .closed_forms import stage_time_slopes as stage_time_slopes
from .closed_forms import transverse_matrix as transverse_matrix
from .closed_forms import uniform_loss as uniform_loss
from .closed_forms import unigram_loss as unigram_loss
from .closed_forms import unigram_saddle as unigram_saddle
from .condensation import check_condensation, check_second_saddle, check_timing
from .cycles import check_staircase
from .dilution import check_degenerate_point, check_dilution
from .focus import check_attention_growth, check_saddle_spectrum
from .linearization import check_linearization
from .sampling import check_length_of_contexts, check_number_of_samples
from .symmetry_breaking import check_escape, check_transverse_rates

CHECKS = (
    check_condensation,
    check_second_saddle,
    check_timing,
    check_saddle_spectrum,
    check_attention_growth,
    check_dilution,
    check_degenerate_point,
    check_transverse_rates,
    check_escape,
    check_staircase,
    check_linearization,
    check_number_of_samples,
    check_length_of_contexts,
)
"""Each measures a few claims; most take another flow than `flows.trace`, so that a wrong one can be seen to fail."""
