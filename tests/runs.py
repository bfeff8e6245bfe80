"""Small real runs, solved once and shared by the tests of everything at the edge."""

from functools import cache

from thetadot.experiments import FocusDilution, IdentityBridge, MatrixFactorization, MultiStageLoss, run
from thetadot.trajectory import Trajectory


@cache
def attention_run() -> Trajectory:
    """Condensation and focus of the default chain: plateaus log 4 and H(π), then the first descent below."""
    return run(FocusDilution(t1=200.0, rtol=1e-4))


@cache
def factorization_run() -> Trajectory:
    """Both modes of a 3×3 matrix learned, one after the other."""
    return run(MatrixFactorization(singular_values=(3.0, 1.0), size=3, depth=2, t1=60.0, rtol=1e-4))


@cache
def bridge_run(identity_fraction: float = 1.0) -> Trajectory:
    """Two-hop facts over three entities a set, learned with or without the identity bridge."""
    return run(IdentityBridge(num_entities=3, width=9, identity_fraction=identity_fraction, t1=2000.0, rtol=1e-4))


@cache
def two_layer_run() -> Trajectory:
    """A hundred tanh neurons: zero, the best linear fit, and what comes after."""
    return run(MultiStageLoss(num_neurons=100, t1=150.0, rtol=1e-4))
