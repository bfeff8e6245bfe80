"""How functions become code: what is asked of XLA, few kernels, and compilation in a process of its own."""

from .programs import Program as Program
from .programs import compiled as compiled
from .programs import program as program
from .programs import quick as quick
