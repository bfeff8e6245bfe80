"""What is claimed: closed forms, one module a paper, each with its source and how far to trust it.

| module | source |
|---|---|
| `focus_dilution` | Focus and Dilution: The Multi-stage Learning Process of Attention (arXiv 2605.01199) |
| `linear` | exact flows of linear networks (arXiv 1312.6120) |
"""

from thetadot.theory import focus_dilution as focus_dilution
from thetadot.theory import linear as linear
