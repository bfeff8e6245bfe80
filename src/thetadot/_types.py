"""Type aliases, and the shape letters used in every annotation.

Letters in shape strings, one meaning each across the package:

| letter | size of | | letter | size of |
|---|---|---|---|---|
| `P` | parameters, raveled | | `d` | vocabulary (token types) |
| `T` | saved times | | `m` | residual stream `d_model`, or hidden neurons |
| `S` | seeds | | `h` | attention head `d_head` |
| `N` | samples | | `s` | context length |
| `D` | inputs | | `r` | singular values, `min` of a matrix's sides |
| `C` | outputs | | `L` | layers |
| `H` | heads | | `n` | tokens of one sequence |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree
from jaxtyping import Key as KeyOf

Scalar = Float[Array, ""]
Numbers = ArrayLike | Sequence[float] | Sequence[Sequence[float]]
"""Numbers given by hand: arrays, or nested tuples or lists."""
Key = PRNGKeyArray
Keys = KeyOf[Array, " L"]
"""Several keys in one array, such as `jax.random.split` returns."""
Params = PyTree[Float[Array, "..."]]
"""What is trained: any pytree of float arrays."""
NamedParams = Mapping[str, Float[Array, "..."]]
"""Parameters by name, the form most models here use."""
Data = Mapping[str, Any]
"""What the loss depends on and the flow does not change: arrays by name."""
LossFn = Callable[[Any, Any], Scalar]
"""`loss(params, data)`."""
Observable = Callable[[Any, Any], Array]
"""`observable(params, data)`."""
