"""What does not fit into memory is refused with a number, before anything is allocated."""

import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from flows import BOWL, QUARTIC, at, scalar_flows
from thetadot import memory
from thetadot.cli import main
from thetadot.experiments import EXPERIMENTS, MatrixFactorization
from thetadot.experiments._setup import check_numbers


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < memory.total() < 2**60
    memory.check_memory(memory.total(), "this", "nothing")
    with pytest.raises(ValueError, match=r"this would take at least .* GiB of memory, and there are .* GiB: do that"):
        memory.check_memory(memory.total() + 1, "this", "do that")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_asks_for_memory_before_it_allocates(name, monkeypatch):
    monkeypatch.setattr(memory, "total", lambda: 1)
    with pytest.raises(ValueError, match=r"^an experiment with .* parameters and .* numbers of data would take"):
        EXPERIMENTS[name]().setup()


def test_an_experiment_is_refused_by_its_own_numbers(monkeypatch):
    """Three layers of 100 x 100 and a target: ten times the parameters, and the target, of eight bytes each."""
    needed = 8 * (10 * 3 * 100**2 + 100**2)
    monkeypatch.setattr(memory, "total", lambda: needed)
    MatrixFactorization(size=100).setup()
    check_numbers(3 * 100**2, 100**2)
    monkeypatch.setattr(memory, "total", lambda: needed - 1)
    with pytest.raises(ValueError, match="choose smaller sizes"):
        MatrixFactorization(size=100).setup()


def test_the_command_line_says_so_and_ends(capsys):
    assert main(["run", "matrix-factorization", "--size", "100000", "--no-figures"]) == 2
    said = capsys.readouterr().err
    assert "3e+10 parameters and 1e+10 numbers of data would take at least 2.31e+03 GiB" in said


def test_rows_that_do_not_fit_are_refused():
    """A million save times of a hundred thousand numbers each."""
    problem, params0 = scalar_flows(QUARTIC, BOWL), at(1.0, 1.0)

    def everything(params, data):
        return jnp.zeros((100, 1000)) + params["x"][0]

    ts = np.linspace(0, 1, 1_000_000)
    with pytest.raises(ValueError, match=r"1048576 rows of 8e\+05 bytes each would take at least .* GiB.*fewer `ts`"):
        td.gradient_flow(problem, params0, 1.0, ts, {"everything": everything})
    traj = td.gradient_flow(problem, params0, 1.0, ts[::200_000], {"everything": everything})
    assert traj["everything"].shape == (5, 100, 1000)
