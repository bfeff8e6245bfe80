"""The closed forms of arXiv 2605.01199 measured on the flow itself, to the digits that theory states."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot.models import attention
from thetadot.theory import focus_dilution as theory

SYMMETRIC = jnp.array([0.7, 0.1, 0.1, 0.1])
STAIRCASE = jnp.array([0.75, 0.19, 0.05, 0.01])


def embedding_norm(params, data):
    del data
    return jnp.linalg.norm(params["w_0"])


def query_norm(params, data):
    del data
    return jnp.linalg.norm(params["w_q"])


def problem(law, persistence=0.5):
    transition = td.data.persistent_chain(law, persistence)
    conserved = {"embedding": attention.embedding_balance, "query-key": attention.query_key_balance}
    return td.Problem(attention.population_loss, {"stationary": law, "transition": transition}, conserved)


def growth_rate(law, params0, t1, observable, low, high):
    """d log(observable)/dt between two of its levels."""
    traj = td.gradient_flow(
        problem(law),
        params0,
        t1,
        observables={"embedding_norm": embedding_norm, "query_norm": query_norm},
        crossings={"low": (observable, low, "up"), "high": (observable, high, "up")},
        stop="high",
        rtol=1e-8,
    )
    assert traj.status == "stopped"
    return np.log(high / low) / (traj.crossings["high"][0] - traj.crossings["low"][0])


def trace(law, params0, t1, level=1.0):
    """The flow and when it passes a level of the loss; one compiled loop serves every test below."""
    return td.gradient_flow(problem(law), params0, t1, crossings={"descent": ("loss", level)})


@pytest.mark.slow
def test_condensation_rate():
    """Stage I grows at μ₁ = |π| |π − 1/d| = 0.374700, four digits."""
    params0 = td.inits.attention_params(4, 8, 8, 1e-8, key=jr.key(1))
    measured = growth_rate(SYMMETRIC, params0, 100.0, "embedding_norm", 1e-4, 1e-3)
    predicted = float(theory.condensation_rate(SYMMETRIC))
    assert predicted == pytest.approx(0.374700, abs=5e-7)
    assert measured == pytest.approx(predicted, rel=5e-5)
    assert measured != pytest.approx(float(theory.condensation_rate(STAIRCASE)), rel=1e-2)  # another law


@pytest.mark.slow
def test_attention_growth_at_the_saddle():
    """Stage II grows at c = λ Λ Cov V / n⁵ = 0.0800996 from the unigram saddle, four digits."""
    saddle = theory.unigram_saddle(SYMMETRIC, 8, 8)
    noise = td.inits.attention_params(4, 8, 8, 1e-9, key=jr.key(2))
    params0 = saddle | {name: noise[name] for name in ("w_q", "w_k")}
    measured = growth_rate(SYMMETRIC, params0, 400.0, "query_norm", 1e-5, 1e-4)
    transition = td.data.persistent_chain(SYMMETRIC, 0.5)
    predicted = float(theory.attention_growth_rate(SYMMETRIC, transition))
    assert predicted == pytest.approx(0.0800996, abs=5e-8)
    assert measured == pytest.approx(predicted, rel=5e-5)
    weaker = td.data.persistent_chain(SYMMETRIC, 0.49)  # c is proportional to λ, so 2 % of λ must show
    assert measured != pytest.approx(float(theory.attention_growth_rate(SYMMETRIC, weaker)), rel=1e-2)


@pytest.mark.slow
def test_degenerate_loss():
    """With equal rare tokens the flow gets stuck at L_deg = 0.819714040, above the entropy rate."""
    params0 = td.inits.attention_params(4, 8, 8, 1e-3, key=jr.key(0))
    traj = trace(SYMMETRIC, params0, 2000.0)
    predicted = float(theory.degenerate_loss(SYMMETRIC, 0.5))
    assert predicted == pytest.approx(0.819714040, abs=5e-10)
    assert traj["loss"][-1] == pytest.approx(predicted, abs=1e-9)
    assert traj["loss"][-1] > float(theory.entropy_rate(SYMMETRIC, td.data.persistent_chain(SYMMETRIC, 0.5))) + 0.1


@pytest.mark.slow
def test_condensation_time_against_the_scale():
    """T_I = (1/μ₁) log(1/ε) + O(1): the slope over five decades to 1 %."""
    scales = np.logspace(-7, -3, 5)
    level = (np.log(4) + float(theory.unigram_loss(SYMMETRIC))) / 2
    times = []
    for scale in scales:
        params0 = td.inits.attention_params(4, 8, 8, scale, key=jr.key(3))
        times += trace(SYMMETRIC, params0, 100.0, level).crossings["descent"]
    slope = np.polyfit(np.log(1 / scales), times, 1)[0]
    predicted, slower = (
        float(x) for x in theory.stage_time_slopes(SYMMETRIC, td.data.persistent_chain(SYMMETRIC, 0.5))
    )
    assert slope == pytest.approx(predicted, rel=1e-2)
    assert slope != pytest.approx(slower, rel=1e-2)


@pytest.fixture(scope="module")
def staircase():
    params0 = td.inits.attention_params(4, 8, 8, 1e-3, key=jr.key(0))
    return trace(STAIRCASE, params0, 6000.0)


def test_the_staircase_of_plateaus(staircase):
    """log 4, H(π) = 0.72714 and the rank-one saddle 0.63336 come first, then three lower ones."""
    plateaus = [stage.loss for stage in td.find_stages(staircase) if stage.kind == "plateau"]
    assert plateaus[0] == pytest.approx(np.log(4), abs=1e-5)
    assert plateaus[1] == pytest.approx(0.72714, abs=5e-4)  # passed at a distance of about sqrt(ε)
    assert plateaus[2] == pytest.approx(0.63336, abs=5e-4)
    assert plateaus[3] == pytest.approx(0.61, abs=5e-3)
    assert plateaus[4] == pytest.approx(0.5627, abs=5e-4)
    assert plateaus == sorted(plateaus, reverse=True)
    assert plateaus[-1] > 0.55361  # the entropy rate bounds them all


def test_conservation_and_energy(staircase):
    """The flow's invariants and its energy identity hold to the tolerance of the default run."""
    assert staircase.stats["energy_error"] < 1e-6
    assert all(drift < 1e-5 for drift in staircase.stats["conservation"].values())
