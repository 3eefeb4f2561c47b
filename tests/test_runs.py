"""Many runs beside each other, and the metrics of one."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmf.jobs.history import history, read_runs, table, write_history
from dmf.jobs.prometheus import metrics, write_metrics
from dmf.jobs.record import RunRecord
from dmf.jobs.summary import summary
from tests.pages import Page, look, measured
from tests.runs import bare, record
from tests.test_cli import dmf_command, error_of
from tests.test_report import HOSTILE

FIRST = datetime(2026, 11, 1, 3, tzinfo=UTC)
LOST = {"code": 5, "outcome": "the cluster was lost"}


def night(k: int) -> RunRecord:
    """Return the run of the k-th night; every fifth failed."""
    values = {
        "id": f"night-{k:02}",
        "started": (FIRST + timedelta(days=k)).isoformat(),
        "seconds": 60.0 + k,
    }
    if k % 5 == 4:
        return bare(**values, **LOST)
    return record(**values, validation={"rmse": 0.25 + 0.01 * k})


def write_all(runs: list[RunRecord], folder: Path) -> Path:
    for run in runs:
        (folder / run.id).mkdir(parents=True)
        run.write(folder / run.id)
    return folder


# Summaries.


def test_a_summary() -> None:
    run = record()
    short = summary(run)
    assert (short.rows, short.columns, short.code) == (90, 70, 0)
    assert short.observed == run.findings["observed"]
    assert short.rounds == run.rounds[-1]["round"]
    assert short.rmse == run.findings["residuals"]["rmse"]
    assert (short.validation_rmse, short.last_rmse) == (0.25, 0.2)
    # What was fitted tells what the input and the findings don't.
    assert summary(record(input={})) == short
    assert summary(record(findings={})).rmse == run.rounds[-1]["rmse"]
    nothing = summary(bare(validation={"rmse": math.nan}))
    assert [value for value in nothing[6:] if value is not None] == [0]
    assert (nothing.outcome, summary(bare(code=3)).outcome) == ("done", "failed")


# Records of many runs.


def test_runs_are_read_in_their_order(tmp_path: Path) -> None:
    runs = [night(k) for k in range(6)]
    write_all(runs[::-1], tmp_path)
    (tmp_path / "other").mkdir()  # no run
    (tmp_path / "latest").symlink_to(tmp_path / "night-05")  # one that is known
    (tmp_path / "notes.txt").write_text("")
    assert [run.id for run in read_runs(tmp_path)] == [run.id for run in runs]


def test_times_are_compared_as_times(tmp_path: Path) -> None:
    """Whatever their zone: without one, they are in UTC, as all should be."""
    times = {
        "c": "2026-11-01T05:00:00+01:00",
        "a": "2026-11-01T03:30:00",
        "b": "2026-11-01T03:45:00Z",
    }
    write_all([bare(id=id, started=started) for id, started in times.items()], tmp_path)
    assert [run.id for run in read_runs(tmp_path)] == ["a", "b", "c"]
    assert len(history(read_runs(tmp_path))) > 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "isn't the record of a run"),
        ("[]", "isn't the record of a run"),
        ('{"name": "x", "id": "y"}', "missing 1 required .* argument: 'started'"),
        ('{"name": "x", "id": "y", "started": "today"}', "Invalid isoformat string"),
        (
            '{"name": "x", "id": "y", "started": "2026-11-01", "rounds": [{}]}',
            "run.json was left out: 'round'",
        ),
    ],
    ids=["torn", "list", "fields", "time", "rounds"],
)
def test_damaged_records_are_left_out(tmp_path: Path, text: str, said: str) -> None:
    write_all([night(0)], tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(text)
    with pytest.warns(UserWarning, match=said) as caught:
        (run,) = read_runs(tmp_path)
    assert len(caught) == 1
    assert run.id == "night-00"
    result = dmf_command("history", tmp_path)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Warning: {tmp_path / 'bad' / 'run.json'} was left out: ")
    assert "2026-11-01 03:00 UTC" in result.stdout


def test_no_runs(tmp_path: Path) -> None:
    assert error_of("history", tmp_path) == (
        f"there is no run in {tmp_path}; name the folder that holds the folders of "
        "runs, such as the one under [report] in the job"
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    with (
        pytest.warns(UserWarning, match="was left out"),
        pytest.raises(FileNotFoundError, match=r"that isn't damaged \(1 are\); name"),
    ):
        read_runs(tmp_path)


def test_a_table() -> None:
    lines = table([night(3), night(4)]).splitlines()
    head, *rows = [re.split(r"\s{2,}", line) for line in lines]
    assert " ".join(head) == "Started Outcome Code Matrix Missing RMSE Held out Time"
    short = summary(night(3))
    numbers = [f"{short.missing:.1%}", f"{short.rmse:.4g}", "0.28", "1 min 3 s"]
    assert rows == [
        ["2026-11-04 03:00 UTC", "done", "0", "90 × 70", *numbers],
        ["2026-11-05 03:00 UTC", "the cluster was lost", "5", *"––––", "1 min 4 s"],
    ]
    assert len({len(line) for line in lines}) == 1  # numbers are set to the right


def test_the_command(tmp_path: Path) -> None:
    runs = [night(k) for k in range(6)]
    write_all(runs, tmp_path / "runs")
    result = dmf_command("history", tmp_path / "runs")
    assert result.output == f"{table(runs)}\n"
    assert not list(tmp_path.glob("*.html"))
    page = tmp_path / "drift.html"
    result = dmf_command("history", tmp_path / "runs", "--json", "--output", page)
    listed = json.loads(result.output)
    assert listed == [summary(run)._asdict() for run in runs]
    assert listed[4]["validation_rmse"] is None
    assert page.read_text() == history(runs)
    assert write_history(runs, page).read_text() == history(runs)


# The page about them.


def test_the_page_of_many_runs() -> None:
    runs = [night(k) for k in range(12)]
    page = Page(history(runs))
    assert page.headings == ["Drift", "Runs, the last one first"]
    assert (
        "12 runs from 2026-11-01 03:00 UTC to 2026-11-12 03:00 UTC; 2 of" in page.text
    )
    assert "0.36 in the last run; 0.25 to 0.36 in all." in page.text
    assert "1 min 11 s in the last run; 1 min to 1 min 11 s in all." in page.text
    assert len([attrs for _, attrs in page.tags if attrs.get("role") == "img"]) == 4
    assert len(page.rows) == 13
    assert page.rows[1][0] == "2026-11-12 03:00 UTC"
    assert page.row("2026-11-05 03:00 UTC")[:2] == ["the cluster was lost", "5"]
    text = history(runs)
    assert text == history(runs)
    assert "://" not in text
    assert "<script" not in history([record(name=HOSTILE, outcome=HOSTILE)])


def test_pages_of_few_runs() -> None:
    page = Page(history([bare()]))
    assert "1 run from 2026-11-22 03:00 UTC" in page.text
    assert "none of them failed" in page.text
    assert "Time of the whole run: 0 ms in the last run." in page.text
    # A number that only an earlier run has.
    page = Page(history([night(3), night(4)]))
    assert "0.28 in the last run that has one." in page.text
    assert "Crosses are runs that failed" in page.text


@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser(browser: str, tmp_path: Path, width: int) -> None:
    text = history([night(k) for k in range(20)])
    told = measured(browser, text, tmp_path, width)
    expected = {"width": width, "scrolled": width, "beyond": 0, "loaded": 0, "flat": 0}
    assert told == expected
    page = tmp_path / "history.html"
    page.write_text(text)
    light = "--blink-settings=preferredColorScheme=1"
    _, picture = look(browser, page, tmp_path, width, light)
    # Curves of good runs, and crosses of the others.
    for colour, least in (((43, 110, 168), 300), ((184, 92, 18), 60)):
        found = np.abs(picture - np.array(colour)).max(axis=-1) < 40
        assert np.count_nonzero(found) > least


# Metrics. The parser follows the specification of the text format 0.0.4, line by line.

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\["\\n])*)"(,|$)')
SAMPLE = re.compile(rf"({NAME})(?:{{(.*)}})? (\S+)(?: (-?\d+))?", re.DOTALL)
UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


def parsed(text: str) -> Samples:
    """Return the samples of each metric by their labels."""
    assert text.endswith("\n"), "the last line must end with a line feed"
    found: Samples = {}
    about: dict[str, set[str]] = {}
    current = None
    for line in text.split("\n")[:-1]:
        if line.startswith("# "):
            word, name, rest = line[2:].split(" ", 2)
            assert re.fullmatch(NAME, name)
            assert word in ("HELP", "TYPE")
            assert word not in about.setdefault(name, set()), "only once"
            assert name not in found, "before the first sample"
            about[name].add(word)
            assert word == "HELP" or rest in ("counter", "gauge", "untyped")
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        name, labels, value, time = match.groups()
        assert time is None, "the collector refuses times"
        assert name == current or name not in found, "a group for each metric"
        current = name
        assert about[name] == {"HELP", "TYPE"}
        own, at = {}, 0
        while labels and at < len(labels):
            label = LABEL.match(labels, at)
            assert label, labels[at:]
            escaped = re.compile(r'\\["\\n]')
            own[label[1]] = escaped.sub(lambda m: UNESCAPED[m[0]], label[2])
            at = label.end()
        key = frozenset(own.items())
        assert key not in found.setdefault(name, {}), "labels are unique"
        found[name][key] = float(value)
    return found


def test_metrics() -> None:
    run = record()
    found = parsed(metrics(run))
    name = ("name", "panel")
    one = frozenset({name})
    plain = {key: values[one] for key, values in found.items() if one in values}
    expected = {
        "exit_code": 0,
        "start_timestamp_seconds": datetime(2026, 11, 22, 3, tzinfo=UTC).timestamp(),
        "duration_seconds": 83.5,
        "input_rows": 90,
        "input_columns": 70,
        "input_observed_entries": run.findings["observed"],
        "input_missing_ratio": run.findings["missing"],
        "rounds": len(run.rounds),
        "rmse": run.findings["residuals"]["rmse"],
        "validation_rmse": 0.25,
        "validation_mae": 0.125,
        "validation_last_rmse": 0.2,
        "round_seconds": 0.005,
        "planned_round_seconds": 0.004,
        "peak_bytes": 3 * 2**27,
        "warnings": 1,
    }
    expected["end_timestamp_seconds"] = expected["start_timestamp_seconds"] + 83.5
    assert plain == {f"dmf_run_{key}": value for key, value in expected.items()}
    about = {name, ("id", run.id), ("outcome", "done"), ("version", "0.1.0")}
    assert found["dmf_run_info"] == {frozenset(about): 1}
    assert found["dmf_run_stage_seconds"] == {
        frozenset({name, ("stage", stage)}): took for stage, took in run.stages
    }


def test_a_run_that_came_to_nothing_has_few_metrics() -> None:
    found = parsed(metrics(bare(code=5, validation={"rmse": math.nan})))
    assert {name.removeprefix("dmf_run_") for name in found} == {
        "info",
        "exit_code",
        "start_timestamp_seconds",
        "end_timestamp_seconds",
        "duration_seconds",
        "rounds",
        "warnings",
    }


@given(
    name=st.text(),
    outcome=st.text(min_size=1),
    stages=st.lists(st.tuples(st.text(), st.floats(0, 1e12))),
    seconds=st.floats(0, 1e12),
)
def test_any_names_come_back(
    name: str, outcome: str, stages: list[Any], seconds: float
) -> None:
    run = bare(name=name, outcome=outcome, stages=stages, seconds=seconds)
    found = parsed(metrics(run))
    about = {("name", name), ("id", "one"), ("outcome", outcome), ("version", "")}
    assert found["dmf_run_info"] == {frozenset(about): 1}
    assert found["dmf_run_duration_seconds"][frozenset({("name", name)})] == seconds
    took: dict[Any, float] = {}
    for stage, part in stages:
        key = frozenset({("name", name), ("stage", stage)})
        took[key] = took.get(key, 0.0) + part
    assert found.get("dmf_run_stage_seconds", {}) == took


def test_metrics_are_written_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "dmf.prom"
    path.write_text("old")
    assert write_metrics(record(), path) == path
    assert path.read_text() == metrics(record())
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"go to dmf.txt, .*; call it dmf.prom"):
        write_metrics(record(), tmp_path / "dmf.txt")


def test_what_was_there_stays_if_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dmf.prom"
    path.write_text("old")

    def full(*arguments: Any) -> None:
        msg = "no space left on device"
        raise OSError(msg)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_metrics(record(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
