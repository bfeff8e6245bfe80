"""`thetadot check`: the claims of papers, measured, as a table of verdicts or as JSON."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thetadot import report
from thetadot.theory import CHECKS, Check, iterate_checks


def check_claims(names: Sequence[str], json: bool, out: Console, log: Console) -> int:
    """Measures the claims of the papers named, all if none is, and prints the verdicts.

    Args:
        names: of `thetadot.theory.CHECKS`.
        json: print a list of objects with the fields of `Check` on stdout, instead of a table.
        out: where the table goes.
        log: where progress and failures go.

    Returns:
        The exit code: 1 if a claim fails, else 0.
    """
    papers = {name: iterate_checks(name) for name in names or CHECKS}  # names are refused before work begins
    checks = []
    for name, found in papers.items():
        with log.status(f"{name}: compiling") as status:
            rows = []
            for some in found:
                rows += some
                status.update(f"{name}: {len(rows)} claims measured")
        if not json:
            out.print(verdict_table(rows, name))
        checks += rows
    if json:
        sys.stdout.write(report.to_json([dataclasses.asdict(check) for check in checks]) + "\n")
    failed = [check for check in checks if not check.passed]
    for check in failed:
        log.print(f"thetadot: {check}", soft_wrap=True)
    return 1 if failed else 0


def verdict_table(checks: Iterable[Check], title: str) -> Table:
    """One row a claim: the verdict, what was predicted and measured, how well, and how far apart they may be."""
    table = Table("", "claim", title=title, box=SIMPLE_HEAD)
    for column in ("predicted", "measured", "± error", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    for check in checks:
        numbers = f"{check.predicted:.8g}", f"{check.measured:.8g}", f"{check.error:.1g}", f"{check.tolerance:.1g}"
        claim = Text.assemble(check.claim, "\n", (f"{check.status}, {check.reference}", "dim"))
        table.add_row("holds" if check.passed else "FAILS", claim, *numbers)
    return table
