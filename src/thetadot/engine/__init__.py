"""The engine: a request becomes a flow in progress, and its steps are taken by the host or by a compiled loop.

    request -> run -> tiers -> loop -> step -> accept
                |                       |
               log                    record

`docs/architecture.md` says who calls whom.
"""

from .checkpoints import checkpoint as checkpoint
from .checkpoints import resume as resume
from .ending import growth as growth
from .ending import hindrance as hindrance
from .loop import on_one_core as on_one_core
from .record import MONOTONE as MONOTONE
from .request import STANDING as STANDING
from .request import Request as Request
from .request import check_rtol as check_rtol
from .run import Run as Run
from .stats import stats as stats
from .status import Growth as Growth
from .status import Outcome as Outcome
from .status import verdict as verdict
from .status import with_rounding as with_rounding
from .tiers import compiled_at_once as compiled_at_once
from .together import drive_together as drive_together
