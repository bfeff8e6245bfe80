"""Identity Bridge: Enabling Implicit Reasoning via Shared Latent Memory (arXiv 2509.24653): closed forms and checks.

Trained on one-hop facts `(e_1, r_1) → e_2` and `(e_2, r_2) → e_3` alone, an Emb-MLP answers no composed question
`(e_1, r_1, r_2) → e_3`. With the zero-hop facts `(e_2) → e_2` as well it answers all of them, from a small start.

| file | what is there |
|---|---|
| `blocks` | the symmetric W: coefficients a, b, c, d, margins, rank-one completion, the lemma |
| `reduction` | the flow on symmetric parameters: twelve embeddings for 3n + 2 |
| `program` | the least nuclear norm, with a certificate, and in closed form |
| `bridge` | accuracy, completion and alignment with and without the bridge, over seeds and scales |
| `regularization` | lemma, convex program, limit of the flow, weight decay |
| `complexity` | partial and noisy bridges, relations, entities |
| `transformer` | a small Transformer: AdamW and flow |
"""

from .blocks import Blocks as Blocks
from .blocks import average_blocks as average_blocks
from .blocks import completed as completed
from .blocks import composed_margin as composed_margin
from .blocks import diagonal_blocks as diagonal_blocks
from .blocks import least_norm_entry as least_norm_entry
from .blocks import margins as margins
from .bridge import check_bridge, check_initialization, check_sum_of_embeddings, check_tolerance
from .complexity import check_entities, check_partial_bridge, check_relations
from .program import Optimum as Optimum
from .program import bridge_optimum as bridge_optimum
from .program import norm_without_bridge as norm_without_bridge
from .program import solve_program as solve_program
from .reduction import lift as lift
from .reduction import reduced_blocks as reduced_blocks
from .reduction import reduced_data as reduced_data
from .reduction import reduced_loss as reduced_loss
from .reduction import reduced_params as reduced_params
from .regularization import check_lemma, check_limit, check_program, check_weight_decay
from .transformer import check_transformer, check_transformer_flow

CHECKS = (
    check_lemma,
    check_program,
    check_entities,
    check_limit,
    check_bridge,
    check_tolerance,
    check_sum_of_embeddings,
    check_initialization,
    check_partial_bridge,
    check_weight_decay,
    check_relations,
    check_transformer,
    check_transformer_flow,
)
"""Each measures a few claims; most take other flows than `flows.ends`, so that wrong ones can be seen to fail."""
