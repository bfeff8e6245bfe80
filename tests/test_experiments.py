"""The registered experiments: what they set up, what they refuse, and that they run."""

import dataclasses
import json

import numpy as np
import pytest

from runs import attention_run, bridge_run, factorization_run, two_layer_run
from thetadot.experiments import (
    EXPERIMENTS,
    AnchorTask,
    FocusDilution,
    IdentityBridge,
    MatrixFactorization,
    MultiStageLoss,
    RankCollapse,
    name_of,
    options_of,
    run,
)
from thetadot.experiments.focus_dilution import read_matrix
from thetadot.plot import staircase_figure
from thetadot.stages import find_stages
from thetadot.theory import rank_collapse


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_described_frozen_dataclass(name):
    cls = EXPERIMENTS[name]
    experiment = cls()
    assert name_of(experiment) == name
    assert cls.__doc__ and cls.reference.startswith("arXiv:")
    assert cls.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    json.dumps(options_of(experiment))
    assert {"t1", "solver", "rtol", "seed", "init_scale"} <= {f.name for f in dataclasses.fields(cls)}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_setup_passes_the_same_functions_every_time(name):
    first, second = EXPERIMENTS[name](seed=0).setup(), EXPERIMENTS[name](seed=1).setup()
    assert all(second.observables[key] is fn for key, fn in first.observables.items())
    assert first.problem.loss_fn is second.problem.loss_fn


@pytest.mark.slow
def test_focus_dilution_shows_the_first_two_predicted_plateaus():
    traj = attention_run()
    plateaus = traj.provenance["plateaus"]
    assert plateaus["uniform"] == pytest.approx(np.log(4))
    assert plateaus["unigram"] == pytest.approx(0.72714, abs=1e-5)
    assert traj["loss"][0] == pytest.approx(plateaus["uniform"], abs=1e-4)
    near_unigram = np.abs(traj["loss"] - plateaus["unigram"]) < 5e-3
    assert np.ptp(traj.ts[near_unigram]) > 20  # a plateau, not a passage
    assert traj["loss"][-1] < 0.64  # focus has happened


def test_attention_focuses_on_the_frequent_token():
    traj = attention_run()
    assert traj["attention"].shape == (len(traj.ts), 4, 4)
    np.testing.assert_allclose(traj["attention"][0], np.tile([0.75, 0.19, 0.05, 0.01], (4, 1)), atol=1e-4)
    assert traj["attention"][-1, 0, 0] > 0.99
    np.testing.assert_allclose(traj["embedding_norm"][-1], np.linalg.norm(traj["w_0"][-1], axis=1), rtol=1e-12)


def test_factorization_learns_the_largest_mode_first():
    traj = factorization_run()
    assert traj.provenance["plateaus"] == {"rank 0": 5.0, "rank 1": 0.5, "rank 2": 0.0}
    np.testing.assert_allclose(traj["map_singular_values"][-1, :2], [3.0, 1.0], atol=1e-3)
    plateaus = [stage.loss for stage in find_stages(traj) if stage.kind == "plateau"]
    np.testing.assert_allclose(plateaus, [5.0, 0.5], atol=5e-3)


@pytest.mark.slow
def test_completion_recovers_what_it_does_not_see():
    """A rank-one matrix of size 4 from ten of its sixteen entries; three layers."""
    experiment = MatrixFactorization(singular_values=(2.0,), size=4, observed=0.625, depth=3, t1=1e4, rtol=1e-4, seed=1)
    traj = run(experiment)
    assert traj.provenance["notes"]["num_observed"] == 10
    assert traj["unobserved_error"][0] == pytest.approx(1.0, abs=1e-3) and traj["unobserved_error"][-1] < 1e-3
    np.testing.assert_array_equal(traj["final_stage_pairs"][-1], [1.0, 1.0])
    assert np.min(traj["layer_alignment"][-1]) > 1 - 1e-6
    plateaus = traj.provenance["plateaus"]
    assert traj["loss"][0] == pytest.approx(plateaus["rank 0"], abs=1e-6) and plateaus["rank 1"] < 1e-20
    assert len(staircase_figure(traj).axes) == 3
    single = dataclasses.replace(experiment, depth=1).setup()
    assert "unobserved_error" in single.observables and "final_stage_pairs" not in single.observables  # no hidden layer


@pytest.mark.slow
def test_two_hop_questions_are_answered_with_the_bridge_alone():
    bridge, alone = bridge_run(), bridge_run(0.0)
    for traj, answered in ((bridge, 1.0), (alone, 0.0)):
        assert traj["accuracy"][-1] == 1 and traj["composed_accuracy"][-1] == answered
        assert traj.provenance["plateaus"]["uniform"] == pytest.approx(traj["loss"][0], abs=1e-4)
        assert traj["map"].shape == (len(traj.ts), 11, 6)
        np.testing.assert_allclose(
            traj["map_nuclear_norm"], np.sum(np.linalg.svd(traj["map"], compute_uv=False), axis=1), rtol=1e-9
        )
    assert bridge["latent_alignment"][-1] > 0.99 > 0.6 > abs(alone["latent_alignment"][-1])


@pytest.mark.slow
def test_multi_stage_loss_rests_at_the_best_linear_fit():
    traj = two_layer_run()
    x, y = (np.array(traj.provenance["notes"][name]) for name in ("inputs", "targets"))
    line = np.polyfit(x[:, 0], y, 1)
    bottom = np.mean((np.polyval(line, x[:, 0]) - y) ** 2) / 2
    assert traj.provenance["plateaus"]["best linear fit"] == pytest.approx(bottom)
    near = np.abs(traj["loss"] / bottom - 1) < 0.1  # tanh neurons of size m^-1/2: O(1/m) below the line
    assert np.ptp(traj.ts[near]) > 10
    middle = np.flatnonzero(near)[np.count_nonzero(near) // 3]
    np.testing.assert_allclose(traj["outputs"][middle], np.polyval(line, x[:, 0]), atol=0.15)
    assert np.max(np.median(traj["alignment"], axis=1)) > 0.97  # to u first, and then all neurons to the line
    along = np.abs(traj["w_1"][middle] @ line) / (np.linalg.norm(line) * traj["inner_norm"][middle])
    assert np.median(along) > 0.99
    assert traj["loss"][-1] < 0.3 * bottom


@pytest.mark.slow
def test_multi_stage_loss_records_what_its_names_say():
    traj = two_layer_run()
    norms = np.linalg.norm(traj["w_1"], axis=2)
    np.testing.assert_allclose(traj["inner_norm"], norms, rtol=1e-12)
    distance = np.sqrt(np.mean((np.sort(traj["outer_norm"][-1]) - np.sort(norms[-1])) ** 2))
    assert traj["wasserstein"][-1] == pytest.approx(distance)
    u = np.mean(np.array(traj.provenance["notes"]["targets"])[:, None] * traj.provenance["notes"]["inputs"], axis=0)
    rate = np.linalg.norm(u)
    assert traj.provenance["notes"]["growth_rate"] == pytest.approx(rate)
    np.testing.assert_allclose(traj["alignment"][0], np.abs(traj["w_1"][0] @ u) / (rate * norms[0]), rtol=1e-10)
    assert (
        set(MultiStageLoss(activation="linear").setup().problem.conserved)
        and not MultiStageLoss().setup().problem.conserved
    )
    assert "w_1" not in MultiStageLoss(num_neurons=20_000).setup().observables


def test_a_transition_matrix_comes_from_a_file(tmp_path):
    transition = np.array([[0.8, 0.2], [0.6, 0.4]])
    np.save(tmp_path / "p.npy", transition)
    np.savetxt(tmp_path / "p.csv", transition, delimiter=",")
    for name in ("p.npy", "p.csv"):
        data = FocusDilution(transition=tmp_path / name).setup().problem.data
        np.testing.assert_allclose(data["stationary"], [0.75, 0.25], rtol=1e-12)
        np.testing.assert_allclose(data["transition"], transition, rtol=1e-12)


def test_a_text_becomes_a_chain_with_its_words_as_labels(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the cat . " * 20, encoding="utf-8")
    setup = FocusDilution(text=str(text), vocab=5).setup()
    assert setup.labels[0] == "the" and len(setup.labels) == 5
    assert setup.problem.data["transition"].shape == (5, 5)
    assert setup.notes["text"] == str(text)


def test_large_arrays_are_not_recorded():
    assert {"attention", "w_0"} <= set(FocusDilution().setup().observables)
    assert "w_0" not in FocusDilution(d_model=5000).setup().observables


@pytest.mark.parametrize(
    ("experiment", "sentence"),
    [
        (FocusDilution(stationary=(0.5, 0.2)), "sum to one"),
        (FocusDilution(persistence=1.5), "persistence"),
        (FocusDilution(text="no/such/file.txt"), "no/such/file.txt"),
        (FocusDilution(text="a.txt", stationary=(0.5, 0.5)), "one source"),
        (FocusDilution(d_model=0), "d_model"),
        (IdentityBridge(num_entities=1), "two entities"),
        (IdentityBridge(pooling="max"), "pooling"),
        (IdentityBridge(label_noise=2.0), "label_noise"),
        (IdentityBridge(weight_decay=-1.0), "weight_decay"),
        (MatrixFactorization(depth=0), "depth"),
        (MatrixFactorization(singular_values=(1.0, 1.0, 1.0), size=2), "singular_values"),
        (MatrixFactorization(init_scale=-1.0), "init_scale"),
        (MatrixFactorization(observed=1.5), "observed"),
        (MultiStageLoss(num_neurons=0), "num_neurons"),
        (MultiStageLoss(init_scale=0.0), "init_scale"),
        (MultiStageLoss(teacher="line"), "choose among sine, cubic"),
        (MultiStageLoss(activation="relu"), "choose among tanh"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(experiment, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        experiment.setup()
    assert "\n" not in str(caught.value)


def test_a_broken_matrix_file_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("0.5,0.5\nhello\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"p\.csv"):
        read_matrix(tmp_path / "p.csv")
    with pytest.raises(ValueError, match="missing"):
        read_matrix(tmp_path / "missing.npy")


def test_rank_collapse_predicts_its_second_plateau_where_features_are_not_separable():
    setup = RankCollapse(activation="linear").setup()
    start = rank_collapse.quasi_stationary(setup.problem.data)
    assert setup.plateaus == {"origin": 1.0, "pooled features": pytest.approx(float(setup.problem.loss(start)))}
    assert {law for law, _ in setup.problem.conserved} == {"query-key balance", "value balance", "output balance"}
    separable = RankCollapse(focus=0.0, loss="logistic").setup()
    assert separable.plateaus == {"origin": pytest.approx(np.log(2))} and separable.notes["separable"]


def test_rank_collapse_refuses_an_unknown_activation():
    experiment = RankCollapse()
    object.__setattr__(experiment, "activation", "relu")  # past the type check that the tests switch on
    with pytest.raises(ValueError, match="must be one of tanh, linear"):
        experiment.setup()


@pytest.mark.slow
def test_rank_collapse_condenses_collapses_and_rises_again():
    traj = run(RankCollapse(rtol=1e-4))
    plateaus = [stage for stage in find_stages(traj) if stage.kind == "plateau"]
    np.testing.assert_allclose([stage.loss for stage in plateaus], [1.0, 0.709], atol=0.02)
    left = int(np.argmax(traj["loss"] < 0.9))  # the origin
    assert traj["w_1_stable_rank"][left] < 1.001 < 1.5 < traj["w_q_stable_rank"][left]
    assert np.min(traj["w_q_stable_rank"]) < 1.01 and traj["w_q_stable_rank"][-1] > 1.1


@pytest.mark.slow
def test_the_anchor_task_condenses_collapses_and_rises_again():
    """Outer weights are of rank one when queries and keys become so, just below the condensed saddle."""
    traj = run(AnchorTask(t1=2250.0, rtol=1e-4))
    deepest = int(np.argmin(traj["w_q_stable_rank"]))
    for name in ("w_1", "w_2", "w_v", "w_q", "w_k"):
        assert traj[f"{name}_stable_rank"][deepest] < 1.01 < 3 < traj[f"{name}_stable_rank"][0]
    assert 1.9 < traj["loss"][deepest] < 2.1 < 0.9 * np.log(14)
    assert traj["w_q_stable_rank"][-1] > 1.5 and traj["loss"][-1] < 1.5


def test_the_anchor_task_knows_its_signal():
    """Its largest singular value says when the origin is left: T̄*/(ε s_1) with a T̄* of a fifth to a quarter."""
    setup = AnchorTask().setup()
    s = setup.notes["signal_singular_values"]
    assert len(s) == 12 and s[0] == pytest.approx(1.0209537, rel=1e-6)
    assert setup.plateaus == {"origin": pytest.approx(np.log(14))}
    assert float(setup.problem.loss(setup.params0)) == pytest.approx(np.log(14), rel=1e-9)
