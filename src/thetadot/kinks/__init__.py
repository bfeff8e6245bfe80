"""Flows through kinks: losses with ReLU, hinge, |·| or max, which are smooth in pieces.

| module | knows |
|---|---|
| `rules` | which primitives choose, and what |
| `interpreter` | a program with its choices given |
| `switches` | the switches of a loss |
| `field` | the field with switches held, and along kinks |
| `events` | which kinks a step meets, and which slides end in it |
| `modes` | the way on from there |
| `pieces` | the steps |
| `report` | what a flow has met |
"""

from .pieces import Pieces as Pieces
from .switches import has_switches as has_switches
