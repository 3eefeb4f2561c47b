"""A job meets a fault at a random moment; what it publishes is as if it hadn't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import Stage, draw, play

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


def test_fault(
    seed: int,
    stage: Stage,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    outcome = play(stage, draw(seed, not pytestconfig.getoption("--full")), tmp_path)
    record_property("fault", outcome.case.fault)
    record_property("phase", outcome.case.phase)
    record_property("outcome", outcome.ended if not outcome.wrong else "WRONG")
    record_property("lost", outcome.lost)
    assert outcome.wrong == (), outcome
