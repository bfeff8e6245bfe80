"""The Transformer of the Identity Bridge: many networks at once, and the role of weight decay."""

import pytest

import thetadot as td
from thetadot.theory.identity_bridge import transformer


@pytest.mark.slow
def test_networks_side_by_side_train_as_they_would_alone(monkeypatch):
    """Adam acts on each entry alone: the second seed without the bridge, among four networks and by itself."""
    monkeypatch.setattr(transformer, "_NUM_STEPS", 30)
    setting = transformer.Setting(3, 4)
    _, lacking = transformer.train(setting, (1.0, 0.0), num_seeds=2)
    questions = transformer._questions(td.data.training_facts(setting.task))
    problem = td.Problem(transformer._LOSS, questions | {"weights": transformer._weights(setting.task, 0.0)})
    params0 = transformer.start(setting, transformer._INIT_SCALE, transformer._FIRST_SEED + 1)
    alone = td.descent(problem, params0, 30, transformer._LEARNING_RATE, transformer._adamw(1.0), save_every=30)
    assert lacking.loss[1] == pytest.approx(alone["loss"][-1], rel=1e-10)
    assert lacking.accuracy.shape == (2,) and lacking.alignment.shape == (2, 1)


@pytest.mark.slow
def test_weight_decay_strengthens_the_bridge():
    accuracy = transformer.sweep((0.1,), (0.1, 1.0)).accuracy.mean("seed").sel(init_scale=0.1)
    assert float(accuracy.sel(weight_decay=1.0, bridge=1.0)) > float(accuracy.sel(weight_decay=0.1, bridge=1.0)) + 0.1
    assert float(accuracy.sel(bridge=0.0).max()) < 0.1
