"""Flows through kinks: losses with ReLU, hinge, |·| or max, which are smooth in pieces.

| module | knows |
|---|---|
| `rules` | which primitives choose, and what |
| `interpreter` | a program with its choices given |
| `switches` | the switches of a loss |
| `field`, `host` | the field with switches held, and along kinks: traced, and on the host |
| `events` | the kinks at a point, and which of them a step meets |
| `modes`, `corners` | the way on from there |
| `landing` | a step that is cut at its first event |
| `follower` | one step of a flow that is followed |
| `pieces` | who takes the steps |
| `report` | what a flow has met |
"""

from .pieces import Pieces as Pieces
from .switches import has_switches as has_switches
