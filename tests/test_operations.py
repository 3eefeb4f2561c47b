"""The page for whoever is on call: it has all messages, and its example is as run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import zarr
from click.testing import CliRunner

from dmf import cli
from dmf.engine.loop import NOT_SAVED
from dmf.io import checkpoints, model
from dmf.jobs import manifest
from dmf.jobs.exits import MEANINGS, Exit
from tests.messages import GAP, sentences

PAGE = (Path(__file__).parent.parent / "deploy" / "OPERATIONS.md").read_text()
# What guards, lock, clusters and checkpoints refuse, and the decision of what to do. Of
# some modules only what a job can meet: the rest is for users of Python.
MODULES = [
    ("jobs/lock.py",),
    ("jobs/apart.py",),
    ("jobs/steps.py",),
    ("jobs/run.py",),
    ("jobs/manifest.py",),
    ("jobs/publish.py",),
    ("jobs/align.py",),
    ("engine/cluster.py",),
    ("engine/tls.py",),
    ("engine/losses.py",),
    ("engine/checkpoint.py",),
    ("engine/store.py",),
    ("io/checkpoints.py",),
    ("_checkpoint.py", "OtherFitError", "FileExistsError"),
]


# How it begins says who is late: see below.
LATE = "… in … s; wait longer with cluster.timeout"


def messages_in(page: str) -> list[str]:
    """Return the first cells of the tables of messages."""
    part = page.split("\n## Messages\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (.+?) \| .+ \|$", part, re.M)
    return [cell for cell in cells if cell != "message"]


def stands_for(cell: str, sentence: str) -> bool:
    """Return whether a cell is a sentence, or what of it comes before the way out."""
    pattern = re.escape(cell).replace(re.escape(GAP), ".+")
    return any(
        re.fullmatch(pattern, said) is not None
        for said in (sentence, sentence.rsplit("; ", 1)[0], sentence.split("; ")[0])
    )


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module[0])
def test_all_messages_are_there(module: tuple[str, ...]) -> None:
    cells = messages_in(PAGE)
    found = [one for one in sentences(*module) if one != LATE]
    assert found
    # A cell of gaps alone would stand for anything.
    assert all(len(cell.replace(GAP, "").strip()) > 5 for cell in cells)
    missing = [one for one in found if not any(stands_for(c, one) for c in cells)]
    assert missing == []


def test_messages_made_elsewhere_are_there() -> None:
    cells = messages_in(PAGE)
    assert LATE in sentences("engine/cluster.py")
    for sentence in (
        NOT_SAVED.format(GAP),
        f"Slurm has started none of the jobs in {GAP} s; wait longer",
        f"Kubernetes has started none of the workers in {GAP} s; wait longer",
    ):
        assert any(stands_for(cell, sentence) for cell in cells), sentence


def test_the_scan_of_messages_sees_them() -> None:
    (held, file) = sentences("jobs/lock.py")
    assert held.startswith("another run holds … and hasn't ended in … s; wait longer")
    assert file.startswith("the lock … can't be held (…); remove what is there")
    assert any("workers were lost …" in one for one in sentences(*MODULES[9]))
    assert any("the journal … can't be" in one for one in sentences("jobs/publish.py"))
    assert not stands_for("the lock … can't be held", "the lock x can't be found; y")


@pytest.mark.parametrize("code", Exit, ids=lambda code: code.name)
def test_all_exit_codes_are_there(code: Exit) -> None:
    (row,) = re.findall(rf"^\| {code.value} \| (.+?) \| (.+?) \|$", PAGE, re.M)
    assert row[0] == MEANINGS[code]
    # Those that only a person can change, and those that may pass by themselves.
    passing = {Exit.UNEXPECTED, Exit.CLUSTER_LOST, Exit.LOCKED, Exit.INTERRUPTED}
    lists = [
        {int(one) for one in re.findall(r"\d+", text)}
        for text in re.findall(r"Codes ([\d, and]+) (?:may pass|don't)", PAGE)
    ]
    assert [code in one for one in lists] == (
        [code in passing, code not in passing] if code else [False, False]
    )


def test_versions_of_formats_are_those_of_the_code() -> None:
    for what, version in (
        ("models", model.FORMAT_VERSION),
        ("checkpoints", checkpoints.FORMAT_VERSION),
        ("manifests of runs", manifest.FORMAT_VERSION),
    ):
        assert re.search(rf"^\| {what} \(.+?\) \| {version} \|", PAGE, re.M), what


def numbers_in(line: str) -> list[float]:
    return [float(one) for one in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", line)]


@pytest.mark.cluster
def test_the_example_is_what_dmf_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for seconds, and for memory of the process itself: 15%."""
    (shown,) = re.findall(r"^```\n\$ dmf (plan .*?)^```", PAGE, re.S | re.M)
    command, *lines = shown.splitlines()
    monkeypatch.chdir(tmp_path)
    zarr.create_array(
        "big.zarr",
        shape=(2_000_000, 10_000),
        chunks=(1000, 10_000),
        dtype="float32",
        fill_value="NaN",
    )
    result = CliRunner().invoke(cli.main, shlex.split(command))
    assert result.exit_code == 1
    found = [*result.stdout.splitlines(), result.stderr.splitlines()[-1]]
    assert len(found) == len(lines)
    for line, expected in zip(found, lines, strict=True):
        words = [
            re.sub(r"[\d.]+(e\+\d+)?", "#", one).split() for one in (line, expected)
        ]
        if line.startswith("a round"):
            assert line.endswith("s, 8004 tasks")
            continue
        assert words[0] == words[1]
        assert numbers_in(line) == pytest.approx(numbers_in(expected), rel=0.15)
