"""Runs that are killed, stopped, or meet each other; readers that watch all of it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import dmf
from dmf.io.checkpoints import CheckpointStore
from dmf.io.matrices import open_matrix, write_matrix
from dmf.io.places import exchange
from dmf.io.replace import name_run
from dmf.jobs.exits import Exit
from dmf.jobs.manifest import Manifest, Paths
from dmf.jobs.publish import Move, beside, publish
from tests.jobs import (
    PROBLEM,
    job_file,
    manifest_in,
    run_job,
    start_run,
    stop_at,
    told,
    write_rows,
)

pytestmark = pytest.mark.faults

# --------------------------------------------------------------------------------- lock

HOLDER = """
import sys
from dmf.jobs.lock import locked
with locked(sys.argv[1], 0):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a job until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "model.zarr.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_leaves_with_its_own_code(tmp_path: Path) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path, job={"wait": 0})
    with holder(tmp_path):
        result = run_job(path, code=Exit.LOCKED)
    lock = tmp_path / "model.zarr.lock"
    assert told(result) == (
        f"another run holds {lock} and hasn't ended in 0 s; wait longer with job.wait, "
        "or run it later"
    )
    assert not (tmp_path / "model.zarr").exists()


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path, job={"wait": 0})
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "model.zarr.lock").exists()
    assert told(run_job(path)).startswith("done")


def test_a_second_run_waits(tmp_path: Path) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path, job={"wait": "5min"})
    with holder(tmp_path) as process:
        waiting = start_run(path)
        assert waiting.stderr is not None
        assert json.loads(waiting.stderr.readline())["event"] == "started"
        assert process.stdin is not None
        process.stdin.close()
        (*_, last) = waiting.stderr
        assert waiting.wait() == 0
        waiting.stderr.close()
    assert json.loads(last)["event"].startswith("done: a full run")


# ------------------------------------------------------------------------------ readers

READER = """
import json, sys
import numpy as np
import zarr

path, seen, mixed, wrong = sys.argv[1], set(), 0, []
print("reading", flush=True)
while True:
    try:
        array = zarr.open_array(path, mode="r")
        before, values = array.attrs["dmf_run"], array[...]
        after = zarr.open_array(path, mode="r").attrs["dmf_run"]
    except Exception as error:
        wrong.append(repr(error))
        break
    if not np.all(values > 0):
        wrong.append(f"a part of {before} is missing")
    if before != after:
        mixed += 1
    elif not np.all(values == int(before)):
        wrong.append(f"{before} holds {np.unique(values)}")
    seen.add(before)
    if before == "200":
        break
print(json.dumps({"seen": len(seen), "mixed": mixed, "wrong": wrong}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["published", "exchanged", "written"])
def test_readers_see_the_old_or_the_new_version(how: str, tmp_path: Path) -> None:
    place = str(tmp_path / "filled.zarr")
    paths = Paths(*(str(tmp_path / name) for name in ("manifest", "lock", "journal")))

    def put(version: int) -> None:
        values = np.full((40, 40), float(version))
        run = f"{version:08}T000000-a"
        if how == "written" and version > 1:
            # As `dmf impute --overwrite` does; the id is that of a version before.
            write_matrix(values, place, overwrite=True)
            return
        staged = beside(place, run)
        write_zarr_in_chunks(values, staged)
        name_run(staged, str(version))
        move = Move.of(staged, place)
        if how == "published":
            manifest = Manifest(run, "", "", "", "full", {}, {})
            publish([move], manifest, paths)
        else:
            exchange(staged, place)

    put(1)
    if how == "written":
        check_that_it_never_goes(place, put)
        return
    with subprocess.Popen(
        [sys.executable, "-c", READER, place], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "reading\n"
            for version in range(2, 201):
                put(version)
            found = json.loads(reader.stdout.readline())
        finally:
            reader.kill()
    assert found["wrong"] == []
    assert found["seen"] > 1


def write_zarr_in_chunks(values: Any, place: str) -> None:
    zarr.create_array(place, data=values, chunks=(10, 10))


def check_that_it_never_goes(place: str, put: Callable[[int], None]) -> None:
    """Look for the array without a pause while it's written over."""
    gone, ended = [], threading.Event()

    def look() -> None:
        while not ended.is_set():
            if not os.path.exists(f"{place}/zarr.json"):
                gone.append(place)

    thread = threading.Thread(target=look)
    thread.start()
    for version in range(2, 52):
        put(version)
    ended.set()
    thread.join()
    assert gone == []
    assert float(np.asarray(open_matrix(place))[3, 3]) == 51


def test_a_model_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is replaced between its W and its H is read again."""
    from dmf.io import model

    X, place = PROBLEM.nan, tmp_path / "model.zarr"
    first, second = (dmf.factorize(X, 3, seed=seed, max_rounds=3) for seed in (0, 1))
    first.save(place)
    read, replaced = model._array, []

    def replace_before_H(group: Any, name: str, lazy: bool) -> Any:
        if name == "H" and not replaced:
            replaced.append(name)
            second.save(place, overwrite=True)
        return read(group, name, lazy)

    monkeypatch.setattr(model, "_array", replace_before_H)
    found = dmf.load(place)
    assert replaced == ["H"]
    np.testing.assert_array_equal(found.W, second.W)
    np.testing.assert_array_equal(found.H, second.H)


# --------------------------------------------------------------------------- publishing


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_publication_is_finished_by_the_next_run(
    moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path)
    run_job(path)
    write_rows(tmp_path, 110)
    left = [moved]

    def fails(staged: str, place: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "I/O error")
        exchange(staged, place)

    with monkeypatch.context() as patch:
        patch.setattr("dmf.jobs.publish.exchange", fails)
        run_job(path, code=Exit.UNEXPECTED)
    shown = run_job(path, "--dry-run").stdout
    assert shown.endswith("publish run: a killed run was about to\n")
    result = run_job(path)
    assert "finished what a killed run was about to publish" in result.stderr
    assert told(result).startswith("nothing to do")
    X, fit = np.load(tmp_path / "X.npy"), dmf.load(tmp_path / "model.zarr")
    np.testing.assert_array_equal(np.load(tmp_path / "filled.npy"), dmf.impute(X, fit))
    assert manifest_in(tmp_path)["mode"] == "warm"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path)
    run_job(path)
    before = sorted(os.listdir(tmp_path)), (tmp_path / "filled.npy").read_bytes()
    write_rows(tmp_path, 110)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmf.io.model.save", full)
    result = run_job(path, code=Exit.UNEXPECTED)
    assert "No space left on device" in told(result)
    names = sorted(name for name in os.listdir(tmp_path) if "checkpoint" not in name)
    assert (names, (tmp_path / "filled.npy").read_bytes()) == before


@pytest.mark.parametrize(
    "text",
    ["{}", "garbage", "[]", '{"moves": [["a"]], "manifest": {}}', '{"moves": []}'],
)
def test_a_journal_that_is_damaged_is_dropped(text: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path)
    run_job(path)
    journal = tmp_path / "model.zarr.publishing"
    journal.write_text(text)
    (tmp_path / "filled.npy").unlink()
    result = run_job(path)
    assert f"WARNING: the journal {journal} can't be read (" in result.stderr
    assert "what its run hasn't published is done anew" in result.stderr
    assert told(result).startswith("done: a fill run")
    assert not journal.exists()


def test_a_finished_publication_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path)

    def fails(staged: str, place: str) -> None:
        raise OSError(5, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr("dmf.jobs.publish.exchange", fails)
        run_job(path, code=Exit.UNEXPECTED)
    assert (tmp_path / "model.zarr.checkpoint").exists()
    assert told(run_job(path)).startswith("nothing to do")
    assert not (tmp_path / "model.zarr.checkpoint").exists()


def test_what_a_run_left_that_was_killed_last_of_all_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("dmf.jobs.run.clear_checkpoint", interrupts)
        run_job(path, code=Exit.INTERRUPTED)
    assert (tmp_path / "model.zarr.checkpoint").exists()
    assert told(run_job(path)).startswith("nothing to do")
    assert not (tmp_path / "model.zarr.checkpoint").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": []}, "its outputs is no object"),
        ({"input": 1}, "its input is no object"),
        ({"result": None}, "its result is no object"),
        ({"mode": "x"}, "its mode is 'x'"),
    ],
)
def test_a_manifest_of_other_types_is_told_of(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path)
    run_job(path)
    manifest = manifest_in(tmp_path) | changes
    (tmp_path / "model.zarr.manifest.json").write_text(json.dumps(manifest))
    result = run_job(path)
    assert f"can't be read ({said}); all is done anew" in result.stderr
    assert told(result).startswith("done: a full run")


@pytest.mark.parametrize("name", ["lock", "manifest.json", "checkpoint"])
def test_other_things_where_a_job_keeps_its_own(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    path, place = job_file(tmp_path), tmp_path / f"model.zarr.{name}"
    if name == "checkpoint":
        place.write_text("mine")
    else:
        place.mkdir()
    result = run_job(path, code=Exit.BAD_CONFIGURATION)
    said = {
        "lock": f"the lock {place} can't be held (Is a directory); remove what is ther",
        "manifest.json": f"[Errno 21] Is a directory: '{place}'",
        "checkpoint": f"the checkpoint {place} is a file; name a folder",
    }
    assert told(result).startswith(said[name])


def test_a_lock_of_a_url_needs_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path, output={"model": "memory://no-folder/model.zarr"})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "X.npy"))
    assert "Not a directory" in told(run_job(path, code=Exit.BAD_CONFIGURATION))
    shown = run_job(path, "--dry-run", code=Exit.BAD_CONFIGURATION).stderr
    assert "Not a directory" in shown


def test_a_checkpoint_of_no_kind_is_told_early(tmp_path: Path) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path, checkpoint={"path": "foo://x"})
    for options in ((), ("--dry-run",)):
        result = run_job(path, *options, code=Exit.BAD_CONFIGURATION)
        assert "foo://x can't be reached (Protocol not known: foo)" in result.stderr


def test_a_checkpoint_in_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither bad input nor a reason to begin anew; the next run goes on."""
    X = write_rows(tmp_path)
    sections: dict[str, Any] = {
        "model": {"validation": None},
        "solver": {"tol": 0, "max_rounds": 30},
        "checkpoint": {"every": 4},
        "log": {"level": "debug"},
    }
    path = job_file(tmp_path, **sections)
    with monkeypatch.context() as patch:
        patch.setattr("dmf.io.model.save", interrupts)
        run_job(path, code=Exit.INTERRUPTED)
    place = tmp_path / "model.zarr.checkpoint"

    def fails(*arguments: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "manifest", fails)
        result = run_job(path, code=Exit.UNEXPECTED)
    assert told(result) == (
        f"the checkpoint {place} can't be read ([Errno 5] Input/output error); look "
        "after its store, and run it again to go on from there"
    )
    assert CheckpointStore.at(place).versions()
    assert not (tmp_path / "model.zarr").exists()
    assert "round=" not in run_job(path).stderr  # there was none left to run
    expected = dmf.factorize(X, 3, tol=0, max_rounds=30)
    np.testing.assert_array_equal(dmf.load(tmp_path / "model.zarr").W, expected.W)


# ------------------------------------------------------------------------ interruptions

LONG = {"solver": {"tol": 0, "max_rounds": 400}, "checkpoint": {"every": 30}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "by", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"]
)
def test_a_stopped_run_goes_on(by: int, tmp_path: Path) -> None:
    X = write_rows(tmp_path)
    model = {"validation": None}
    path = job_file(tmp_path, model=model, **LONG)
    process = start_run(path)
    lines = stop_at(process, 20, by)
    assert process.returncode == Exit.INTERRUPTED
    assert lines[-1]["event"].startswith("interrupted after round ")
    assert lines[-1]["event"].endswith("; the next run goes on from its checkpoint")
    assert lines[-1]["code"] == 130
    store = CheckpointStore.at(tmp_path / "model.zarr.checkpoint")
    told_of, _ = store.manifest(store.versions()[0])
    # A round that isn't settled is done again.
    last = int(lines[-1]["event"].split()[3].strip(";"))
    assert told_of["reached"]["round"] in (last - 1, last)
    assert not (tmp_path / "model.zarr").exists()
    run_job(path)
    expected = dmf.factorize(X, 3, tol=0, max_rounds=400)
    fit = dmf.load(tmp_path / "model.zarr")
    np.testing.assert_array_equal(fit.W, expected.W)
    assert len(fit.history) == 400


def interrupts(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("dmf.jobs.run.opened", "the next run begins again"),
        ("dmf.jobs.steps.asdict", "the next run goes on from its checkpoint"),
        ("dmf.factorize", "the next run begins again"),
        ("dmf.jobs.publish.exchange", "the next run finishes publishing"),
    ],
    ids=["reading", "after the fit", "before a round", "publishing"],
)
def test_what_the_next_run_does_is_told(
    where: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(where, interrupts)
        result = run_job(path, code=Exit.INTERRUPTED)
    assert told(result) == f"interrupted; {said}"
    goes_on = run_job(path)
    finished = "finished what a killed run was about to publish" in goes_on.stderr
    assert finished == (said == "the next run finishes publishing")


@pytest.mark.parametrize("every", [1, 400], ids=["saved", "not saved"])
def test_a_fit_that_is_interrupted_tells_of_its_checkpoint(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it couldn't be saved any more."""
    write_rows(tmp_path)
    path = job_file(tmp_path, checkpoint={"every": every})
    if every == 400:
        monkeypatch.setattr(CheckpointStore, "versions", lambda self: [])

    def after_two(record: Any) -> None:
        if record.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("dmf.jobs.steps._log_round", after_two)
    said = told(run_job(path, code=Exit.INTERRUPTED))
    end = "goes on from its checkpoint" if every == 1 else "begins again"
    assert re.fullmatch(rf"interrupted after round \d; the next run {end}", said)


@contextmanager
def dask_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A scheduler or a worker of Dask, as its command starts it."""
    command = [sys.executable, "-m", *arguments, "--no-dashboard"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.cluster
def test_a_cluster_without_workers_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run goes on from its checkpoint."""
    from distributed import default_client

    where = {"kind": "processes", "workers": 1, "timeout": "1s"}
    often = LONG | {"checkpoint": {"every": 1}}
    path = job_file(tmp_path, cluster=where, **often)
    write_rows(tmp_path)

    def leave(record: dmf.Record) -> None:
        if record.round == 3:
            default_client().cluster.scale(0)

    with monkeypatch.context() as patch:
        patch.setattr("dmf.jobs.steps._log_round", leave)
        result = run_job(path, code=Exit.CLUSTER_LOST)
    assert told(result).startswith("the cluster has had no worker for 1 s; look why")
    assert not (tmp_path / "model.zarr").exists()
    seen: list[int] = []
    monkeypatch.setattr("dmf.jobs.steps._log_round", lambda one: seen.append(one.round))
    run_job(job_file(tmp_path, **often))
    assert min(seen) > 1


@pytest.mark.slow
@pytest.mark.cluster
def test_a_scheduler_that_dies_ends_the_run(tmp_path: Path) -> None:
    X = write_rows(tmp_path)
    path = job_file(tmp_path, model={"validation": None}, **LONG)
    at_any_port = ("--host", "127.0.0.1", "--port", "0")
    with dask_process("distributed.cli.dask_scheduler", *at_any_port) as scheduler:
        assert scheduler.stderr is not None
        (address,) = next(
            found
            for line in scheduler.stderr
            if (found := re.findall(r"Scheduler at: +(tcp://\S+)", line))
        )
        options = ("--nthreads", "1", "--no-nanny", "--death-timeout", "5")
        where = (
            "--set",
            "cluster.kind=scheduler",
            "--set",
            f"cluster.address={address}",
        )
        with dask_process("distributed.cli.dask_worker", address, *options):
            process = start_run(path, *where)
            assert process.stderr is not None
            rounds = (line for line in process.stderr if '"event": "round"' in line)
            for _ in range(40):
                next(rounds)
            scheduler.kill()
            *_, last = process.stderr
            assert process.wait(timeout=60) == Exit.CLUSTER_LOST
            process.stderr.close()
    told_last = json.loads(last)["event"]
    assert told_last.startswith("the connection to the scheduler was lost (the client")
    # What was saved on the cluster is gone on from without it.
    assert CheckpointStore.at(tmp_path / "model.zarr.checkpoint").versions()
    run_job(path)
    expected = dmf.factorize(X, 3, tol=0, max_rounds=400)
    fit = dmf.load(tmp_path / "model.zarr")
    np.testing.assert_allclose(fit.W @ fit.H, expected.W @ expected.H, rtol=1e-8)


KILLED = """
import os, signal, sys
from dmf import cli
from dmf.io.checkpoints import CheckpointStore
from dmf.jobs import publish, run, steps

# Dies at the n-th event of a run, before or after it.
left, when = int(sys.argv[1]), sys.argv[2]

def doomed(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

CheckpointStore._write = doomed(CheckpointStore._write)
CheckpointStore.clear = doomed(CheckpointStore.clear)
for name in ("exchange", "write_json", "remove"):
    setattr(publish, name, doomed(getattr(publish, name)))
publish.os.remove = doomed(publish.os.remove)
steps.name_run = doomed(steps.name_run)
steps.beside = doomed(steps.beside)
steps.log = run.log = doomed(run.log)
cli.main(["run", "job.toml"])
"""


@contextmanager
def watched(folder: Path, versions: dict[str, set[bytes]]) -> Iterator[list[str]]:
    """Read outputs again and again; yield what was neither of the versions."""
    wrong: list[str] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            for name, known in versions.items():
                try:
                    if content_of(folder / name) not in known:
                        wrong.append(f"{name} is neither old nor new")
                except Exception as error:
                    wrong.append(f"{name}: {error!r}")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield wrong
    finally:
        ended.set()
        thread.join()


def content_of(path: Path) -> bytes:
    if path.name == "model.zarr":
        fit = dmf.load(path)
        return fit.W.tobytes() + fit.H.tobytes()
    if path.suffix == ".npy":
        return np.load(path).tobytes()
    while True:
        array = zarr.open_array(path, mode="r")
        before = array.attrs["dmf_run"]
        try:
            content = array[...].tobytes()
        except ValueError:  # chunks of another shape than the one that was opened
            content = None
        if zarr.open_array(path, mode="r").attrs["dmf_run"] == before:
            assert content is not None
            return content


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """What is there in the end is what a run makes that nothing disturbs."""
    names = ("filled.zarr", "imputed.npy", "model.zarr")
    sections: dict[str, Any] = {
        # In memory, so that the model's factors are read whole.
        "input": {"path": "X.npz"},
        "output": {"matrix": "filled.zarr"},
        "solver": {"tol": 0, "max_rounds": 30},
        "model": {"validation": 0.1, "patience": 30},
        "checkpoint": {"every": 4},
        "log": {"level": "debug"},
    }

    def prepared(folder: Path) -> tuple[Path, dict[str, bytes]]:
        """Publish a first version, and write the input of a second one."""
        folder.mkdir()
        path = job_file(folder, **sections)
        write_sparse(folder, 100)
        run_job(path)
        old = {name: content_of(folder / name) for name in names}
        write_sparse(folder, 110)
        return path, old

    calm, old = prepared(tmp_path / "calm")
    run_job(calm)
    new = {name: content_of(calm.parent / name) for name in names}
    assert all(old[name] != new[name] for name in names)
    versions = {name: {old[name], new[name]} for name in names}
    rng, stopped = random.Random(7), 0
    for k in range(20):
        path, found = prepared(tmp_path / f"run-{k}")
        assert found == old
        moment = str(rng.randrange(1, 95)), rng.choice(["before", "after"])
        with watched(path.parent, versions) as wrong:
            killed = subprocess.run(
                [sys.executable, "-c", KILLED, *moment],
                cwd=path.parent,
                capture_output=True,
                text=True,
            )
            assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
            stopped += killed.returncode != 0
            run_job(path)
        assert wrong == [], moment
        assert {name: content_of(path.parent / name) for name in names} == new, moment
        assert not [n for n in os.listdir(path.parent) if n.endswith(".part")]
        assert told(run_job(path)).startswith("nothing to do")
    # Late moments may lie behind the end.
    assert stopped >= 15


def write_sparse(folder: Path, rows: int) -> None:
    import scipy.sparse as sp

    problem = replace(PROBLEM, truth=PROBLEM.truth[:rows], mask=PROBLEM.mask[:rows])
    sp.save_npz(folder / "X.npz", problem.sparse())
