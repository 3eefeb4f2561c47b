"""The report of a run: what it says, what it leaves out, and how a browser shows it."""

from __future__ import annotations

import html
import math
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmf.jobs import pages
from dmf.jobs.pictures import gaps
from dmf.jobs.record import RunRecord
from dmf.jobs.report import report, write_report
from tests.pages import Page, look, measured
from tests.runs import bare, record
from tests.test_cli import dmf_command, error_of

SECTIONS = {
    "warnings": "Warnings",
    "input": "What came in, and what went out",
    "findings": "What is missing, and where",
    "rounds": "Convergence",
    "validation": "Validation",
    "stages": "Where the time went",
    "plan": "The plan, and what happened",
    "settings": "Settings and versions",
}


def test_it_tells_all_there_is() -> None:
    run = record()
    page = Page(report(run))
    assert page.headings == [
        "Warnings",
        "What came in, and what went out",
        "What is missing, and where",
        "Convergence",
        "Validation",
        "Residuals",
        "The most and the least certain cells",
        "Where the time went",
        "The plan, and what happened",
        "Settings and versions",
    ]
    for said in (
        "panel: done",
        run.message,
        "exit code 0",
        "took 1 min 24 s",
        "2026-11-22 03:00 UTC",
        f"{run.findings['observed']:,} of 6,300 cells are observed.",
        "Without any observed entry: 1 of 90 rows.",
        "All 70 columns have observed entries.",
        "+25.0% against the last run",
        "one row has no observed entry",
    ):
        assert said in page.text
    assert page.row("shape") == ["90 × 70"]
    assert page.row("matrix") == ["/data/filled.npy"]
    assert page.row("model.rank") == ["3"]
    assert page.row("job.strict") == ["no"]
    assert page.row("fit") == ["4.5 s", "45.0%", ""]
    assert page.row("Time of a round") == ["4 ms", "5 ms"]
    assert page.row("Memory of the fullest process") == ["1.31 MiB", "384 MiB"]
    assert page.row("of that, factors") == ["64 KiB", "–"]
    assert page.row("Root mean square error") == ["0.25", "0.2", "+25.0%"]
    assert page.row("Mean absolute error")[0] == "0.125"
    pictures = [attrs for tag, attrs in page.tags if attrs.get("role") == "img"]
    assert len(pictures) == 6
    assert all(attrs["aria-label"] for attrs in pictures)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("figcaption") == tags.count("figure") == 6
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")


def test_cells_have_the_digits_that_their_deviations_mean() -> None:
    found = record().findings
    cells = {
        "sampled": 7,
        "most": [{"row": "a", "column": 5, "value": -12.3456, "std": 0.0312}],
        "least": [
            {"row": "b", "column": 6, "value": 1234.5, "std": 160.2},
            {"row": "c", "column": 6, "value": 0.4, "std": None},
        ],
    }
    page = Page(report(record(findings=found | {"cells": cells})))
    assert ["a", "5", "−12.346", "0.031"] in page.rows
    assert ["b", "6", "1,234", "160"] in page.rows
    assert ["c", "6", "0", "no bound"] in page.rows
    assert "Of 7 missing cells" in page.text


def test_plans_are_told_whatever_they_hold() -> None:
    plan = {"bytes": 2**21, "grid": "whole", "waves": 3, "seconds": None}
    page = Page(report(bare(plan=plan, measured={"peak_bytes": 2**22})))
    assert [row for row in page.rows if row] == [
        ["", "Planned", "Measured"],
        ["Memory of the fullest process", "2 MiB", "4 MiB"],
        ["Blocks", "whole", "–"],
        ["waves", "3", "–"],
    ]


@pytest.mark.parametrize("field", SECTIONS)
def test_sections_without_data_are_left_out(field: str) -> None:
    more = {"input": ["output"], "plan": ["measured"], "settings": ["versions"]}
    empty = {name: type(getattr(record(), name))() for name in more.get(field, [])}
    empty[field] = type(getattr(record(), field))()
    page = Page(report(record(**empty)))
    assert SECTIONS[field] not in page.headings
    assert len(page.headings) == (7 if field == "findings" else 9)


def test_a_run_that_came_to_nothing() -> None:
    page = Page(report(bare(code=5, outcome="the cluster was lost", message="No.")))
    assert page.headings == []
    assert "panel: the cluster was lost No." in page.text
    assert not {"table", "figure", "svg"} & {tag for tag, _ in page.tags}
    assert ("header", {"class": "verdict bad"}) in page.tags
    assert "nothing to do" in Page(report(bare(outcome="nothing to do"))).text


@pytest.mark.parametrize(
    ("code", "tone"), [(0, "good"), (130, "warn"), (1, "bad"), (7, "bad")]
)
def test_verdicts_have_a_tone(code: int, tone: str) -> None:
    assert ("header", {"class": f"verdict {tone}"}) in Page(
        report(bare(code=code))
    ).tags


def test_a_run_without_gaps_and_one_without_residuals() -> None:
    found = record().findings
    none = {"sampled": 0, "most": [], "least": []}
    page = Page(report(record(findings=found | {"cells": none})))
    assert "The most and the least certain cells" not in page.headings
    page = Page(report(record(findings=found | {"residuals": {}, "cells": none})))
    assert "Residuals" not in page.headings


@given(shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_gaps_are_drawn_without_complaint(shares: list[float]) -> None:
    """Matplotlib logs what it has to clip; nobody shall see that in a job's log."""
    found = {"picture": [shares], "shape": [1, len(shares)]}
    with mock.patch("matplotlib.image._log.warning") as warned:
        assert gaps(found).startswith("<svg")
    assert warned.call_args_list == []


def test_restarts_and_diverged_rounds() -> None:
    def one(round: int, candidate: int, objective: float) -> dict[str, Any]:
        return {
            "round": round,
            "candidate": candidate,
            "objective": objective,
            "rmse": objective,
            "validation_rmse": math.nan,
        }

    rounds = [one(1, 0, 5.0), one(1, 1, 7.0), one(2, 1, math.inf)]
    text = report(bare(rounds=rounds))
    assert "a curve for each of 2 restarts" in text
    assert "held out" not in text
    assert Page(report(bare(rounds=[one(1, 0, math.nan)]))).headings == []


HOSTILE = "<script>alert('&\"')</script>"


def test_everything_is_escaped() -> None:
    cell = {"row": HOSTILE, "column": HOSTILE, "value": 1.0, "std": 1.0}
    cells = {"sampled": 1, "most": [cell], "least": []}
    run = record(
        name=HOSTILE,
        id=HOSTILE,
        outcome=HOSTILE,
        message=HOSTILE,
        warnings=[HOSTILE],
        settings={HOSTILE: HOSTILE},
        input={HOSTILE: HOSTILE},
        output={HOSTILE: HOSTILE},
        stages=[[HOSTILE, 1.0]],
        versions={HOSTILE: HOSTILE},
        findings=record().findings | {"cells": cells},
    )
    text = report(run)
    assert "<script" not in text
    page = Page(text)
    assert page.text.count(HOSTILE) >= 13
    assert html.escape(HOSTILE)[:14] in text


def test_the_page_needs_nothing_else() -> None:
    text = report(record())
    assert "://" not in text
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "img", "object")
        for name in ("src", "href", "xlink:href", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    # Nor would a browser load anything else.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy in [attrs.get("content") for _, attrs in page.tags]
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names))
    for used in re.findall(r'(?:href="|url\()#(\w+)', text):
        assert used in names


def test_the_same_record_makes_the_same_page(tmp_path: Path) -> None:
    run = record()
    run.write(tmp_path)
    path = write_report(run, tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text() == report(RunRecord.read(tmp_path))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["report.html", "run.json"]


def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pages._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"need jinja2; .*pip install 'dmf\[jobs\]'"):
        report(bare())
    pages._environment.cache_clear()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"need matplotlib; .*'dmf\[jobs\]'"):
        report(record())


# Numbers.


@given(st.floats(0, 1e9))
def test_times_are_close_to_what_they_say(given: float) -> None:
    units = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}
    words = pages.seconds(given).split()
    said = [float(n) * units[u] for n, u in zip(words[::2], words[1::2], strict=True)]
    assert abs(sum(said) - given) <= 0.5 + given / 24
    assert len(words) <= 4


@given(st.floats(0, 1))
def test_shares_are_all_or_nothing_only_if_they_are(share: float) -> None:
    said = pages.percent(share)
    assert (said in ("0%", "100%")) == (share in (0, 1)) or min(share, 1 - share) < 1e-5
    assert abs(float(said.rstrip("%")) / 100 - share) <= 0.0005 + 1e-9


def test_numbers() -> None:
    assert [pages.number(x) for x in (None, math.nan, True)] == ["–"] * 3
    found = [pages.number(x) for x in (0, -1.5, 1234567, 0.000123456, 12345.6, 1e12)]
    assert found == [
        "0",
        "−1.5",
        "1,234,567",
        "0.0001235",
        "12,346",
        "1,000,000,000,000",
    ]
    assert [pages.size(x) for x in (0, 1023, 2**20, None)] == [
        "0 bytes",
        "1.02e+03 bytes",
        "1 MiB",
        "–",
    ]
    assert [pages.brief(x) for x in (9999, 20000, -2.5e6, 0.25)] == [
        "9999",
        "20k",
        "−2.5M",
        "0.25",
    ]
    assert [pages.seconds(x) for x in (0.0123, 59.4, 60, 3725, 90000, None)] == [
        "12.3 ms",
        "59.4 s",
        "1 min",
        "1 h 2 min",
        "1 d 1 h",
        "–",
    ]


# The command.


def test_the_command_draws_it_anew(tmp_path: Path) -> None:
    record().write(tmp_path)
    assert dmf_command("report", tmp_path).output == f"{tmp_path / 'report.html'}\n"
    text = (tmp_path / "report.html").read_text()
    other = tmp_path / "other.html"
    dmf_command("report", tmp_path, "--output", other)
    assert other.read_text() == text == report(record())


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    assert error_of("report", tmp_path) == (
        f"there is no record of a run in {tmp_path}; name the folder of a run"
    )
    (tmp_path / "run.json").write_text("{")
    assert "isn't the record of a run, or it is damaged" in error_of("report", tmp_path)


# In a browser.


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(browser: str, tmp_path: Path, width: int, dark: bool) -> None:
    text = report(record(settings={"input": {"path": "/" + "long-name/" * 30}}))
    page = tmp_path / "report.html"
    page.write_text(text)
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _, picture = look(browser, page, tmp_path, width, scheme)
    assert picture.shape[1] == width
    paper = picture[-1, -1]
    assert (paper.mean() < 60) == dark
    # The map of what is missing, which is in full colour where nothing is.
    blue = np.abs(picture - np.array([43, 122, 191])).max(axis=-1) < 12
    rows, columns = np.nonzero(blue)
    assert np.count_nonzero(blue) > 5000
    assert np.ptp(rows) > 80
    assert np.ptp(columns) > 150
    # Letters and lines, from the top to the foot.
    marked = np.abs(picture - paper).max(axis=-1) > 40
    assert marked[:, :].any(axis=1)[: rows.min()].mean() > 0.3
    assert marked.mean() > 0.02

    assert measured(browser, text, tmp_path, width, scheme) == {
        "width": width,
        "scrolled": width,
        "beyond": 0,
        "loaded": 0,
        "flat": 0,
    }


def test_a_browser_would_load_nothing(browser: str, tmp_path: Path) -> None:
    """The policy of the page holds also for what somebody has smuggled into it."""
    text = report(bare())
    smuggled = "<script>document.body.dataset.ran = 1</script>"
    page = tmp_path / "report.html"
    page.write_text(text.replace("</body>", f"{smuggled}</body>"))
    dom, _ = look(browser, page, tmp_path, 800)
    assert smuggled in dom
    assert "data-ran" not in dom
