"""Networks as pure functions of their parameters, and the losses they are trained on.

A model is a file, not a class: its parameters are a plain pytree, its loss is `loss(params, data)`, and the exact
conservation laws of its gradient flow stand beside it.

| module | network | loss |
|---|---|---|
| `attention` | one-layer attention on a Markov chain | cross-entropy of the next token, population or sampled |
| `linear` | product of matrices | squared distance to a target matrix, or to its observed entries; exponential loss |
| `linear_attention` | linear attention on prompts | squared error of linear regression in context |
| `attention_classifier` | one-layer attention that classifies sequences | exponential or logistic loss of the margin |
| `multilayer` | fully connected network of any depth | mean squared error, and its leading order at small weights |
| `trilinear` | effective flow of three small layers | minus the energy `a^T B c`, unbounded below |
| `decoder` | decoder-only Transformer, ends trained or fixed | cross-entropy of the token after a sequence |
| `emb_mlp` | bag of words, two linear layers | cross-entropy of the answers, weight decay |
| `two_layer` | two-layer network with any activation | mean squared error |
"""

from typing import TYPE_CHECKING

from thetadot._lazy import on_demand

if TYPE_CHECKING:
    from thetadot.models import attention as attention
    from thetadot.models import attention_classifier as attention_classifier
    from thetadot.models import decoder as decoder
    from thetadot.models import emb_mlp as emb_mlp
    from thetadot.models import linear as linear
    from thetadot.models import linear_attention as linear_attention
    from thetadot.models import multilayer as multilayer
    from thetadot.models import trilinear as trilinear
    from thetadot.models import two_layer as two_layer
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        modules=(
            "attention",
            "attention_classifier",
            "decoder",
            "emb_mlp",
            "linear",
            "linear_attention",
            "multilayer",
            "trilinear",
            "two_layer",
        ),
    )
