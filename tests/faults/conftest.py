"""How many faults there are, and the table of what became of them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

# Processes of a case import the others; what they do to themselves is not for this one.
collect_ignore_glob = ["[!t]*.py"]


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--faults", type=int, default=24, help="how many faults to try")
    parser.addoption("--first", type=int, default=0, help="the seed to begin with")
    parser.addoption("--full", action="store_true", help="freeze and cut for long")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first")
        number = metafunc.config.getoption("--faults")
        metafunc.parametrize("seed", range(first, first + number))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table: fault × phase × outcome × rounds lost."""
    rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for reports in terminalreporter.stats.values():
        for report in reports:
            told = dict(getattr(report, "user_properties", ()))
            if "outcome" in told and report.when == "call":
                rows[told["fault"], told["phase"], told["outcome"]].append(told["lost"])
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("| fault | phase | outcome | times | rounds lost |")
    terminalreporter.write_line("|---|---|---|---|---|")
    for row in sorted(rows):
        lost = sorted(rows[row])
        span = f"{lost[0]}" if lost[0] == lost[-1] else f"{lost[0]} to {lost[-1]}"
        cells = " | ".join((*row, str(len(lost)), span))
        terminalreporter.write_line(f"| {cells} |")
    number = sum(map(len, rows.values()))
    terminalreporter.write_line(f"{number} faults")
