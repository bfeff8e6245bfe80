"""`thetadot check`: verdicts as a table and as JSON, and the exit code."""

import json
import re

import pytest
import rich

from thetadot import cli_check, theory
from thetadot.cli import main
from thetadot.stages import Measured
from thetadot.theory.check import judge

FIELDS = {"claim", "reference", "status", "predicted", "measured", "error", "tolerance", "passed"}


def claims(*measured):
    return [judge(f"claim {i}", "a source", "reported", 1.0, Measured(x, 1e-3), 0.1) for i, x in enumerate(measured)]


@pytest.fixture(autouse=True)
def papers(monkeypatch):
    """Three papers of known outcome in place of the measured ones."""
    found = {
        "right": (lambda: claims(1.01), lambda: claims(0.99)),
        "wrong": (lambda: claims(1.0, 2.0),),
        "unreached": (lambda: claims(float("nan")),),
    }
    for module in (theory, cli_check):
        monkeypatch.setattr(module, "CHECKS", found)


@pytest.mark.parametrize(("names", "code"), [(["right"], 0), (["wrong"], 1), (["unreached"], 1), ([], 1)])
def test_the_exit_code_is_1_when_a_claim_fails(names, code, capsys):
    assert main(["check", *names]) == code
    out, err = capsys.readouterr()
    assert ("FAILS" in out) == (code == 1) and ("FAILS: claim" in err) == (code == 1)
    assert "holds" in out or names == ["unreached"]


def test_the_table_has_both_numbers(capsys):
    main(["check", "wrong"])
    lines = capsys.readouterr().out.splitlines()
    (row,) = (row for row, line in enumerate(lines) if "FAILS" in line)
    assert re.split(r"\s{2,}", lines[row].strip()) == ["FAILS", "claim 1", "1", "2", "0.001", "0.1"]
    assert lines[row + 1].strip() == "reported, a source"


def test_numbers_are_whole_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    check = judge("a claim " * 20, "a source", "paper", -1.2345678e-6, Measured(-1.2345679e-6, 1e-13), 1e-12)
    rich.print(cli_check.verdict_table([check], "right"))
    shown = capsys.readouterr().out
    assert "-1.2345678e-06   -1.2345679e-06     1e-13       1e-12" in shown
    assert shown.split().count("claim") == 21 and max(map(len, shown.splitlines())) <= 80


def test_json_is_a_list_of_checks_and_nothing_else(capsys):
    assert main(["check", "right", "unreached", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [set(row) for row in rows] == [FIELDS] * 3
    assert [row["passed"] for row in rows] == [True, True, False]
    assert rows[0]["measured"] == 1.01 and rows[2]["measured"] is None
    assert main(["check", "right", "--json"]) == 0


def test_an_unknown_paper_is_refused_before_work_begins(capsys):
    assert main(["check", "right", "dilution"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("thetadot: there are no checks called 'dilution': choose among right, wrong")
