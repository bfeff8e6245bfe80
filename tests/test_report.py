"""Results folders, stage tables, JSON."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from runs import attention_run, factorization_run
from thetadot import report
from thetadot.stages import find_stages


def test_nearest_plateau():
    assert report.nearest_plateau(0.9, {"a": 1.0, "b": 0.5}) == ("a", 1.0)
    assert report.nearest_plateau(0.9, {}) is None


def test_summary_says_what_happened_and_where_it_came_from():
    traj = attention_run()
    summary = json.loads(report.to_json(report.summarize(traj)))
    assert summary["experiment"] == "focus-dilution" and summary["status"] == "done"
    assert summary["options"]["t1"] == 200.0 and summary["t"] == 200.0
    assert summary["loss"] == traj["loss"][-1]
    first = summary["stages"][0]
    assert first["kind"] == "plateau" and first["nearest_plateau"] == "uniform"
    assert summary["provenance"]["versions"]["jax"] and "commit" in summary["provenance"]


def test_table_puts_the_prediction_beside_the_measurement():
    traj = factorization_run()
    text = io.StringIO()
    table = report.stage_table(find_stages(traj), traj.provenance["plateaus"], "stages")
    Console(width=120, file=text).print(table)
    assert "rank 1 0.5" in text.getvalue() and "descent" in text.getvalue()


def test_current_stage_counts_stages_of_a_kind():
    traj = factorization_run()
    stages = [report.current_stage(traj.ts[:n], traj["loss"][:n]) for n in range(2, len(traj.ts) + 1)]
    assert list(dict.fromkeys(stages)) == ["plateau 1", "descent 1", "plateau 2", "descent 2", "plateau 3"]


def test_json_has_no_nan_and_keeps_arrays_and_paths():
    facts = {"a": math.nan, "b": np.arange(2), "c": Path("x"), "d": (np.float64(1.5), None, True), 3: np.inf}
    assert json.loads(report.to_json(facts)) == {"a": None, "b": [0, 1], "c": "x", "d": [1.5, None, True], "3": None}


def test_folder_appears_whole_or_not_at_all(tmp_path):
    with report.new_folder(tmp_path / "new") as partial:
        (partial / "file").write_text("x", encoding="utf-8")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "file").is_file()
    with pytest.raises(RuntimeError), report.new_folder(tmp_path / "broken") as partial:
        (partial / "file").write_text("x", encoding="utf-8")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_folder_in_use_is_refused_and_an_empty_one_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    with report.new_folder(tmp_path / "empty") as partial:
        (partial / "file").touch()
    for taken in (tmp_path / "empty", tmp_path / "empty" / "file"):
        with pytest.raises(ValueError, match="not empty"), report.new_folder(taken):
            pass


def test_run_is_saved_and_loaded_again(tmp_path):
    traj = factorization_run()
    summary = report.write_run(tmp_path, traj)
    loaded = report.load_run(tmp_path)
    np.testing.assert_array_equal(loaded["loss"], traj["loss"])
    np.testing.assert_array_equal(loaded["w_1"], traj["w_1"])
    assert loaded.provenance["plateaus"] == traj.provenance["plateaus"]
    assert {path.name for path in (tmp_path / report.FIGURES).iterdir()} == set(summary["figures"])
    assert json.loads((tmp_path / report.SUMMARY).read_text(encoding="utf-8"))["stages"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a results folder"):
        report.load_run(tmp_path)
