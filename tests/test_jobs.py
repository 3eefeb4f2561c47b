"""Runs of jobs: what they do, and when they do nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.engine import runner as engine_runner
from dmf.engine.arrays import number_observed
from dmf.engine.cost import Machine
from dmf.io.matrices import open_matrix
from dmf.io.versions import version_of
from dmf.jobs.align import OtherMatrixError, align
from dmf.jobs.exits import Exit
from dmf.jobs.manifest import Manifest, decide, input_versions
from dmf.jobs.problems import read_job
from dmf.jobs.record import RUN_ID, RunRecord
from dmf.labels import Labels
from tests.jobs import PROBLEM, job_file, manifest_in, run_job, told, write_rows
from tests.problems import FORMS as FORMS_OF_X
from tests.problems import form_of, low_rank, mask_for

FIT = dmf.factorize(np.eye(3), 2, max_rounds=1)
HEAVY = ("numba", "pandas", "distributed", "matplotlib", "zarr")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job with 100 rows of input."""
    write_rows(tmp_path)
    return job_file(tmp_path)


def model_in(folder: Path) -> dmf.Factorization:
    """Load a model; a later one in its place doesn't change it."""
    fit = dmf.load(folder / "model.zarr")
    return replace(fit, W=np.asarray(fit.W), H=np.asarray(fit.H))


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("filled.npy", "imputed.npy")]


# -------------------------------------------------------------------------- full, twice


def test_a_run_does_what_the_library_does(job: Path, tmp_path: Path) -> None:
    result = run_job(job)
    assert told(result).startswith("done: a full run; ")
    X = np.load(tmp_path / "X.npy")
    expected = dmf.factorize(X, 3, validation=0.1)
    fit = model_in(tmp_path)
    np.testing.assert_array_equal(fit.W, expected.W, strict=True)
    filled = np.load(tmp_path / "filled.npy")
    np.testing.assert_array_equal(filled, dmf.impute(X, expected), strict=True)
    seen = ~np.isnan(X)
    assert filled[seen].tobytes() == X[seen].tobytes()
    np.testing.assert_array_equal(np.load(tmp_path / "imputed.npy"), ~seen)
    assert sorted(os.listdir(tmp_path)) == [
        "X.npy",
        "filled.npy",
        "imputed.npy",
        "job.toml",
        "model.zarr",
        "model.zarr.lock",
        "model.zarr.manifest.json",
    ]


def test_the_second_run_does_nothing(job: Path, tmp_path: Path) -> None:
    run_job(job)
    before = {place: version_of(str(place)) for place in tmp_path.iterdir()}
    result = run_job(job)
    last = manifest_in(tmp_path)["run"]
    assert told(result) == f"nothing to do: input and settings are those of run {last}"
    assert {place: version_of(str(place)) for place in tmp_path.iterdir()} == before


def test_nothing_heavy_is_imported_to_do_nothing(job: Path, tmp_path: Path) -> None:
    run_job(job)
    code = [
        "import sys",
        "from dmf import cli",
        f"try: cli.main(['run', {str(job)!r}])",
        "except SystemExit as end: assert end.code == 0",
        f"print([name for name in {HEAVY} if name in sys.modules])",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing to do" in done.stderr
    assert ast.literal_eval(done.stdout) == []


@pytest.mark.parametrize("name", ["filled.npy", "imputed.npy"])
@pytest.mark.parametrize("how", ["deleted", "changed"])
def test_an_output_that_is_gone_is_made_again(
    name: str, how: str, job: Path, tmp_path: Path
) -> None:
    run_job(job)
    before, model = outputs(tmp_path), version_of(str(tmp_path / "model.zarr"))
    if how == "deleted":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(b"mine")
    assert told(run_job(job)).startswith("done: a fill run")
    assert outputs(tmp_path) == before
    assert version_of(str(tmp_path / "model.zarr")) == model
    assert told(run_job(job)).startswith("nothing to do")


def test_a_model_that_was_changed_is_fitted_anew(job: Path, tmp_path: Path) -> None:
    run_job(job)
    before = outputs(tmp_path)
    (tmp_path / "model.zarr" / "zarr.json").write_text("{}")
    result = run_job(job, code=Exit.BAD_CONFIGURATION)
    assert "model.zarr exists and isn't a model of dmf, so that it wo" in told(result)
    (tmp_path / "model.zarr" / "zarr.json").unlink()
    (tmp_path / "model.zarr").rename(tmp_path / "aside")
    assert told(run_job(job)).startswith("done: a full run")
    assert outputs(tmp_path) == before


def test_a_manifest_that_is_damaged_is_told_of(job: Path, tmp_path: Path) -> None:
    run_job(job)
    (tmp_path / "model.zarr.manifest.json").write_text('{"format_version": 1}')
    result = run_job(job)
    assert "WARNING: the manifest" in result.stderr
    assert told(result).startswith("done: a full run")


# ---------------------------------------------------------------------------- decisions


def test_decisions(job: Path, tmp_path: Path) -> None:
    run_job(job)
    last = Manifest.from_json(manifest_in(tmp_path))

    def decided(*given: str, **changed: Any) -> str:
        asked = read_job(job, {}, given)
        other = Manifest(**{**vars(last), **changed})
        return decide(asked, other, input_versions(asked)).action

    assert decide(read_job(job, {}), None, {}).action == "full"
    assert decided() == "nothing"
    # What doesn't change the result: where it runs, what is told, how careful it is.
    assert decided("cluster.kind=threads", "cluster.threads=2") == "nothing"
    assert decided("log.format=json", "report.folder=r", "job.wait=0") == "nothing"
    assert decided("guards.missing=0.5", "checkpoint.every=3") == "nothing"
    # What makes another model, and what makes the same one closer.
    assert decided("model.rank=2") == decided("model.seed=1") == "full"
    assert decided("model.penalty.ridge=1") == decided("model.validation=0.2") == "full"
    assert decided("solver.tol=1e-6") == decided("model.patience=20") == "warm"
    assert decided("solver.tol=1e-6", "job.mode=full") == "full"
    assert decided(input={}) == decided(dmf="0.0.1") == "warm"
    assert decided("job.mode=fold-in", input={}) == "fold-in"
    # A fit that does more is as good as one that does less, but not the other way.
    assert decided("job.mode=full") == decided(mode="warm") == "nothing"
    assert decided("job.mode=full", mode="warm") == "full"
    assert decided(mode="fold-in") == "warm"
    assert decided("job.mode=fold-in", mode="warm") == "nothing"
    assert decided("output.mask=other.npy") == "fill"
    assert decided("output.model=other.zarr") == "full"


def test_versions_tell_what_was_written(tmp_path: Path) -> None:
    place = tmp_path / "a"
    assert version_of(str(place)) is None
    place.write_text("x")
    first = version_of(str(place))
    os.utime(place, ns=(0, 0))
    assert version_of(str(place)) != first
    folder = tmp_path / "folder"
    folder.mkdir()
    versions = [version_of(str(folder))]
    (folder / "b").write_text("x")
    versions.append(version_of(str(folder)))
    (folder / "b").rename(folder / "c")
    versions.append(version_of(str(folder)))
    assert len({*versions, None}) == 4
    folder.rename(tmp_path / "moved")
    assert version_of(str(tmp_path / "moved")) == versions[-1]


def test_versions_behind_a_url() -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    assert version_of("memory://versions/x") is None
    files.pipe_file("/versions/x/a", b"1")
    first = version_of("memory://versions/x"), version_of("memory://versions/x/a")
    files.pipe_file("/versions/x/a", b"2")
    again = version_of("memory://versions/x"), version_of("memory://versions/x/a")
    assert None not in (*first, *again)
    assert first[0] != again[0]
    assert first[1] != again[1]


def test_a_dry_run_does_nothing(job: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    shown = run_job(job, "--dry-run", "--set", "model.rank=2").stdout
    assert "rank = 2" in shown
    assert "\nfull run: there is no manifest of a former run\n" in shown
    assert sorted(os.listdir(tmp_path)) == before
    run_job(job)
    assert "\nnothing to do: input and se" in run_job(job, "--dry-run").stdout
    write_rows(tmp_path, 101)
    shown = run_job(job, "--dry-run").stdout
    assert "\nwarm run: the input has changed\n" in shown


# ------------------------------------------------------------------------ warm, fold-in


def test_a_warm_run_goes_on_from_the_last_model(job: Path, tmp_path: Path) -> None:
    write_rows(tmp_path, 100)
    run_job(job)
    first = model_in(tmp_path)
    X = write_rows(tmp_path, 110)
    assert told(run_job(job)).startswith("done: a warm run; ")
    expected = dmf.factorize(X, 3, validation=0.1, start=first)
    fit = model_in(tmp_path)
    np.testing.assert_array_equal(fit.W, expected.W, strict=True)
    np.testing.assert_array_equal(fit.H, expected.H, strict=True)
    assert manifest_in(tmp_path)["result"]["rmse"] == expected.validation_rmse
    assert np.load(tmp_path / "filled.npy").shape == (110, 30)


def test_warm_takes_a_fraction_of_full(tmp_path: Path) -> None:
    """Work is rounds × entries: a timing would tell of the machine."""
    problem = low_rank(2020, 200, 6, observed=0.1)
    settings = {"model": {"rank": 6}}
    work, rmse = {}, {}
    for mode in ("full", "warm"):
        folder = tmp_path / mode
        folder.mkdir()
        path = job_file(folder, job={"mode": mode}, **settings)
        write_rows(folder, 2000, problem.nan)
        run_job(path)
        X = write_rows(folder, 2020, problem.nan)
        run_job(path)
        result = manifest_in(folder)["result"]
        work[mode] = result["rounds"] * int(np.isfinite(X).sum())
        rmse[mode] = result["rmse"]
    assert work["warm"] < 0.25 * work["full"]
    assert rmse["warm"] < 1.01 * rmse["full"]


def test_fold_in_keeps_the_model(job: Path, tmp_path: Path) -> None:
    run_job(job)
    first = model_in(tmp_path)
    X = write_rows(tmp_path, 110)
    run_job(job, "--set", "job.mode=fold-in", "--set", "guards.worsened=9")
    fit = model_in(tmp_path)
    assert fit.status.code == "folded_in"
    np.testing.assert_array_equal(fit.W[:100], first.W)
    np.testing.assert_array_equal(fit.H, first.H)
    train, held_out = dmf.split_observed(X, 0.1, 0)
    new = first.fold_in(rows=train[100:])
    np.testing.assert_allclose(fit.W[100:], new.W, rtol=1e-12)
    found = manifest_in(tmp_path)["result"]["rmse"]
    np.testing.assert_allclose(found, fit.score(held_out).rmse, rtol=1e-12)


def test_a_matrix_that_has_shrunk_is_fitted_anew(job: Path, tmp_path: Path) -> None:
    run_job(job)
    write_rows(tmp_path, 90)
    result = run_job(job)
    assert (
        "the last model can't be used: it has shape (90, 30) and no " in result.stderr
    )
    assert told(result).startswith("done: a full run")


# ------------------------------------------------------------------------------- labels


def table(rows: list[int]) -> pd.DataFrame:
    """Return some rows of the problem as a table, labelled by their numbers."""
    columns = [f"c{j}" for j in range(30)]
    index = pd.Index([f"r{i}" for i in rows], name="id")
    return pd.DataFrame(PROBLEM.nan[rows], index=index, columns=columns)


@pytest.mark.parametrize("mode", ["warm", "fold-in"])
def test_rows_of_a_table_are_found_by_their_labels(mode: str, tmp_path: Path) -> None:
    """New ones come amid the others, one has gone, and the columns are shuffled."""
    path = job_file(
        tmp_path,
        job={"mode": mode},
        input={"path": "X.csv", "index": "id"},
        output={"matrix": "filled.csv"},
    )
    table(list(range(100))).to_csv(tmp_path / "X.csv")
    run_job(path)
    first = model_in(tmp_path)
    order = [*range(100, 105), *range(50, 100), 105, *range(49)]
    shuffled = table(order).iloc[:, ::-1]
    shuffled.to_csv(tmp_path / "X.csv")
    assert told(run_job(path)).startswith(f"done: a {mode} run")

    fit = model_in(tmp_path)
    assert fit.labels is not None
    known = [f"r{i}" for i in range(100) if i != 49]
    assert fit.labels.rows.tolist() == [*known, *(f"r{i}" for i in range(100, 106))]
    assert fit.labels.columns.tolist() == [f"c{j}" for j in range(30)]
    at = first.labels.row_positions(known) if first.labels else []
    if mode == "fold-in":
        np.testing.assert_array_equal(fit.W[:99], first.W[at])
    filled = pd.read_csv(tmp_path / "filled.csv", index_col="id")
    assert filled.index.tolist() == shuffled.index.tolist()
    assert filled.columns.tolist() == shuffled.columns.tolist()
    seen = shuffled.notna().to_numpy()
    np.testing.assert_array_equal(filled.to_numpy()[seen], shuffled.to_numpy()[seen])
    np.testing.assert_array_equal(np.load(tmp_path / "imputed.npy"), ~seen)
    expected = fit.predict(["r100", "r3"], ["c2", "c7"])
    cells = [filled.loc["r100", "c2"], filled.loc["r3", "c7"]]
    missing = [shuffled.isna().loc["r100", "c2"], shuffled.isna().loc["r3", "c7"]]
    for cell, value, free in zip(cells, expected, missing, strict=True):
        assert not free or cell == pytest.approx(value)


@given(st.permutations(range(12)), st.permutations(range(8)), st.data())
def test_alignment(rows: list[int], columns: list[int], data: st.DataObject) -> None:
    """Whatever the order: cells and factors are found by their labels."""
    kept_rows = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 8))
    frame = table(rows[: kept_rows[0]]).iloc[:, columns[: kept_rows[1]]]
    names = [f"r{i}" for i in range(9)], [f"c{j}" for j in range(6)]
    labels = Labels(pd.Index(names[0]), pd.Index(names[1]), {})
    rng = np.random.default_rng(0)
    W, H = rng.random((9, 2)), rng.random((2, 6))
    last = replace(FIT, W=W, H=H, labels=labels, row_offsets=W[:, 0])
    shared = [set(names[0]) & set(frame.index), set(names[1]) & set(frame.columns)]
    if not all(shared):
        with pytest.raises(OtherMatrixError, match="it has no row, or no column, that"):
            align(frame, None, last)
        return
    found = align(frame, frame.notna(), last)
    assert found.last.labels is not None
    pd.testing.assert_frame_equal(found.X, frame.loc[found.X.index, found.X.columns])
    np.testing.assert_array_equal(found.mask, found.X.notna())
    pd.testing.assert_frame_equal(found.as_read(found.X), frame)
    m, n = found.last.shape
    assert found.X.index[:m].tolist() == found.last.labels.rows.tolist()
    assert found.X.columns[:n].tolist() == found.last.labels.columns.tolist()
    assert (m, n) == (len(shared[0]), len(shared[1]))
    at = [names[0].index(name) for name in found.X.index[:m]]
    np.testing.assert_array_equal(found.last.W, W[at])
    np.testing.assert_array_equal(found.last.row_offsets, W[at, 0])


def test_triplets_stay_where_they_were(tmp_path: Path) -> None:
    """A line that is put first makes no other order of rows."""
    long = table(list(range(60))).stack().dropna().reset_index()
    long.columns = pd.Index(["user", "item", "stars"])
    columns = {"row": "user", "column": "item", "value": "stars"}
    # What comes is noise: errors may grow.
    loose = {"worsened": 1.0}
    path = job_file(tmp_path, input={"path": "X.csv", **columns}, guards=loose)
    long.to_csv(tmp_path / "X.csv", index=False)
    run_job(path)
    first = model_in(tmp_path)
    new = pd.DataFrame({"user": ["new"] * 3, "item": ["c5", "c1", "c2"], "stars": 1.0})
    pd.concat([new, long[::-1]]).to_csv(tmp_path / "X.csv", index=False)
    assert told(run_job(path)).startswith("done: a warm run")
    fit = model_in(tmp_path)
    assert fit.labels is not None
    assert first.labels is not None
    assert fit.labels.rows.tolist() == [*first.labels.rows, "new"]
    assert fit.labels.columns.tolist() == first.labels.columns.tolist()
    filled, imputed = (np.load(tmp_path / f"{n}.npy") for n in ("filled", "imputed"))
    rows = fit.labels.row_positions(long["user"])
    items = fit.labels.column_positions(long["item"])
    np.testing.assert_array_equal(filled[rows, items], long["stars"])
    assert not imputed[rows, items].any()
    assert (~imputed).sum() == len(long) + 3


# ------------------------------------------------------------------ formats, companions


FORMS: dict[str, Any] = {
    "X.npy": lambda path, X: np.save(path, X),
    "X.npz": lambda path, X: sp.save_npz(path, PROBLEM.sparse()[: len(X)]),
    "X.zarr": lambda path, X: zarr.create_array(path, data=X, chunks=(20, 30)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_forms_of_input_and_output(form: str, suffix: str, tmp_path: Path) -> None:
    X = PROBLEM.nan
    FORMS[form](tmp_path / form, X)
    named = {"matrix": f"filled{suffix}", "mask": f"imputed{suffix}"}
    path = job_file(tmp_path, input={"path": form}, output=named)
    run_job(path)
    filled, imputed = (
        np.asarray(open_matrix(tmp_path / named[name])) for name in ("matrix", "mask")
    )
    seen = ~np.isnan(X)
    assert filled[seen].tobytes() == X[seen].tobytes()
    assert imputed.dtype == bool
    np.testing.assert_array_equal(imputed, ~seen)
    assert told(run_job(path)).startswith("nothing to do")


def test_a_mask_says_what_is_observed(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", PROBLEM.truth)
    np.save(tmp_path / "M.npy", PROBLEM.weights)
    path = job_file(tmp_path, input={"mask": "M.npy"})
    run_job(path)
    np.testing.assert_array_equal(np.load(tmp_path / "imputed.npy"), ~PROBLEM.mask)
    np.save(tmp_path / "M.npy", PROBLEM.weights * 2)
    assert told(run_job(path)).startswith("done: a warm run")


def test_unchanged_chunks_are_linked(tmp_path: Path) -> None:
    """Folding in leaves the rows alone that were there: their files stay the same."""
    X = PROBLEM.nan
    path = job_file(
        tmp_path,
        job={"mode": "fold-in"},
        guards={"worsened": 9},
        input={"path": "X.zarr"},
        output={"matrix": "filled.zarr", "mask": "imputed.zarr"},
    )

    def chunks() -> dict[str, int]:
        found = (tmp_path / "filled.zarr" / "c").rglob("*")
        names = {str(p.relative_to(tmp_path)): p.stat().st_ino for p in found}
        return {name: inode for name, inode in names.items() if name.count("/") == 3}

    zarr.create_array(tmp_path / "X.zarr", data=X[:80], chunks=(20, 30))
    run_job(path)
    before = chunks()
    zarr.create_array(
        tmp_path / "X.zarr", data=X[:100], chunks=(20, 30), overwrite=True
    )
    run_job(path)
    after = chunks()
    assert (len(before), len(after)) == (4, 5)
    assert {name: after[name] for name in before} == before
    filled = np.asarray(open_matrix(tmp_path / "filled.zarr"))
    fit = model_in(tmp_path)
    np.testing.assert_allclose(filled, dmf.impute(X[:100], fit), rtol=1e-12)


# --------------------------------------------------------------------------- exit codes


def test_bad_input(job: Path, tmp_path: Path) -> None:
    X = write_rows(tmp_path)
    X[3, 4] = np.inf
    write_rows(tmp_path, X=X)
    result = run_job(job, code=Exit.BAD_INPUT)
    assert told(result).startswith("X is infinite in row 3, column 4")
    assert not (tmp_path / "filled.npy").exists()
    result = run_job(job, "--set", "model.rank=31", code=2)
    assert told(result).startswith("rank must be at most min(m, n) = 30 for X of shape")
    result = run_job(job, "--set", "output.matrix=filled.csv", code=2)
    assert "filled.csv would be a table, but the input isn't a mat" in told(result)
    np.save(tmp_path / "X.npy", np.empty((0, 30)))
    result = run_job(job, code=Exit.BAD_INPUT)
    assert "(0, 30)" in told(result)
    (tmp_path / "X.npy").unlink()
    result = run_job(job, code=Exit.BAD_INPUT)
    assert told(result) == f"there is nothing at {tmp_path / 'X.npy'}; check the path"


def test_outputs_are_checked_before_anything_is_read(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("dmf.io.matrices.open_matrix", read)
    result = run_job(job, "--set", "output.matrix=no/f.npy", code=2)
    assert told(result) == f"there is no folder {tmp_path / 'no'}; create it first"
    result = run_job(job, "--set", "output.matrix=f.txt", code=2)
    assert "f.txt; its name must end in " in told(result)
    (tmp_path / "filled.npy").mkdir()
    result = run_job(job, code=2)
    assert "filled.npy exists and isn't a file, so that it won't be" in told(result)


def test_strict_runs_publish_what_has_converged(job: Path, tmp_path: Path) -> None:
    short = ("--set", "solver.max_rounds=2", "--set", "solver.tol=0")
    strict = ("--set", "job.strict=true")
    result = run_job(job, *short, *strict, code=Exit.NOT_CONVERGED)
    assert told(result).startswith("not published: stopped after max_rounds=2 rounds")
    assert not (tmp_path / "model.zarr").exists()
    assert told(run_job(job, *strict)).startswith("done")
    assert not (tmp_path / "model.zarr.checkpoint").exists()


def test_a_cluster_that_is_not_there(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmf.engine.cluster.CONNECT_SECONDS", 0.2)
    where = ("--set", "cluster.kind=scheduler", "--set", "cluster.address=nowhere")
    result = run_job(job, *where, code=Exit.CLUSTER_LOST)
    assert told(result).startswith("can't connect to a Dask scheduler at nowhere (")


def test_a_cluster_that_is_lost(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmf.engine.losses import WorkersLost

    def lost(*arguments: Any, **options: Any) -> None:
        msg = "workers of the cluster were lost"
        raise WorkersLost(msg)

    monkeypatch.setattr(dmf, "factorize", lost)
    result = run_job(job, code=Exit.CLUSTER_LOST)
    assert told(result) == "workers of the cluster were lost"


def test_a_bug_shows_its_traceback(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*arguments: Any, **options: Any) -> None:
        msg = "a bug"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr(dmf, "factorize", bug)
    result = run_job(job, code=Exit.UNEXPECTED)
    assert told(result) == "ZeroDivisionError: a bug"
    assert "Traceback (most recent call last):" in result.stderr


def test_a_missing_library_is_one_sentence(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", None)
    given = ["kind=slurm", "jobs=1", "cores=1", "memory=1GB"]
    options = [part for one in given for part in ("--set", f"cluster.{one}")]
    result = run_job(job, *options, code=Exit.CLUSTER_LOST)
    assert told(result) == (
        "clusters on Slurm need dask-jobqueue: pip install 'dmf[slurm]'"
    )


def test_a_log_that_cannot_be_written(job: Path, tmp_path: Path) -> None:
    result = run_job(job, "--set", "log.file=no/run.log", code=2)
    path = tmp_path / "no" / "run.log"
    assert f"No such file or directory: '{path}'" in result.stderr


def test_without_the_libraries_of_jobs(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "dmf.jobs.problems")
    monkeypatch.setitem(sys.modules, "pydantic", None)
    result = run_job(job, code=1)
    assert result.stderr == "Error: jobs need pydantic: pip install 'dmf[jobs]'\n"


def test_plans_are_shown_and_recorded(job: Path, tmp_path: Path) -> None:
    shown = run_job(job, "--dry-run").stdout
    assert "full run: there is no manifest of a former run\nmatrix " in shown
    assert re.search(r"^a round +[0-9.]+ m?s, [0-9]+ tasks$", shown, re.MULTILINE)
    run_job(job, "--set", "report.folder=runs")
    (folder,) = (tmp_path / "runs").iterdir()
    record = RunRecord.read(folder)
    m, n = record.input["shape"]
    assert record.plan["shape"] == [m, n]
    assert record.plan["bytes"] > record.plan["process"] > 0
    assert record.plan["refusal"] is None
    assert "nothing to do" in run_job(job, "--dry-run").stdout.splitlines()[-1]


def test_runs_that_cant_fit_are_refused(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Machine(2, memory=50e6)
    monkeypatch.setattr(engine_runner.Threads, "machine", lambda self: small)
    done = run_job(job, code=Exit.BAD_CONFIGURATION)
    assert "but this machine has 50 MB, of which it may use 90%;" in done.stderr
    assert not (tmp_path / "model.zarr").exists()


def test_a_plan_is_refused_before_all_is_read(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: Any) -> None:
        raise AssertionError

    small = Machine(2, memory=50e6)
    monkeypatch.setattr(engine_runner.Threads, "machine", lambda self: small)
    monkeypatch.setattr("dmf.engine.arrays.number_observed", read)
    run_job(job, code=Exit.BAD_CONFIGURATION)


def test_a_dry_run_refuses_what_a_run_refuses(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        small = Machine(2, memory=50e6)
        patch.setattr(engine_runner.Threads, "machine", lambda self: small)
        result = run_job(job, "--dry-run", code=Exit.BAD_CONFIGURATION)
        assert "full run: there is no manifest" in result.stdout
        assert re.search(r"^memory +", result.stdout, re.MULTILINE)
        assert "what would fit:" not in result.stdout
        assert "but this machine has 50 MB, of which it may use 90%;" in result.stderr
    (tmp_path / "filled.npy").mkdir()
    result = run_job(job, "--dry-run", code=Exit.BAD_CONFIGURATION)
    assert "filled.npy exists and isn't a file, so that it won't" in result.stderr


def test_a_dry_run_plans_where_a_run_would_be(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = ("--set", "cluster.kind=threads", "--set", "cluster.threads=3")
    shown = run_job(job, "--dry-run", *threads).stdout
    assert re.search(r"^runs on +3 threads of this process$", shown, re.MULTILINE)
    monkeypatch.setattr("dmf.engine.cluster.CONNECT_SECONDS", 0.2)
    where = ("--set", "cluster.kind=scheduler", "--set", "cluster.address=nowhere")
    result = run_job(job, "--dry-run", *where, code=Exit.CLUSTER_LOST)
    assert "can't connect to a Dask scheduler at nowhere (" in result.stderr
    given = ["kind=slurm", "jobs=1", "cores=1", "memory=1GB"]
    options = [part for one in given for part in ("--set", f"cluster.{one}")]
    last = run_job(job, "--dry-run", *options).stdout.splitlines()[-1]
    assert last == "the plan of the fit is made when the cluster is there"


@pytest.mark.cluster
def test_a_dry_run_plans_for_a_cluster(job: Path, cluster: Any) -> None:
    address = f"cluster.address={cluster.scheduler_address}"
    where = ("--set", "cluster.kind=scheduler", "--set", address)
    shown = run_job(job, "--dry-run", *where).stdout
    assert re.search(r"^runs on +2 workers, 2 threads in all$", shown, re.MULTILINE)


@pytest.mark.parametrize("every", [3, "90s", "5min", "2h", "120s"])
def test_what_a_dry_run_shows_can_be_read_back(
    every: int | str, tmp_path: Path
) -> None:
    write_rows(tmp_path)
    path = job_file(
        tmp_path,
        checkpoint={"every": every},
        model={"penalty": {"ridge": 0.5, "by_count": True}},
        job={"name": "π \N{GRINNING FACE}"},
        cluster={
            "kind": "kubernetes",
            "image": "dmf",
            "workers": 1,
            "env": {"A": "1"},
        },
    )
    job = read_job(path, {})
    shown = run_job(path, "--dry-run").stdout
    path.write_text(shown.rsplit("\n\n", 1)[0])
    assert read_job(path, {}) == job
    # A guard that has nothing to compare is left out.
    path = job_file(tmp_path, model={"validation": None})
    job = read_job(path, {})
    path.write_text(run_job(path, "--dry-run").stdout.split("\nfull run: ")[0])
    assert read_job(path, {}) == job


# ------------------------------------------------------------------------------- guards


@pytest.mark.parametrize("form", FORMS_OF_X)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_what_is_observed_is_counted(form: str, masked: bool) -> None:
    problem = low_rank()
    X, mask, expected = form_of(problem, form), None, problem.mask
    if masked:
        weights = np.where(problem.truth > 0, problem.weights, 0.0)
        mask = mask_for(weights, problem.mask, form)
        expected = expected & (weights > 0)
    assert number_observed(X, mask) == np.count_nonzero(expected)


def test_a_model_that_has_worsened_is_refused(job: Path, tmp_path: Path) -> None:
    run_job(job)
    before, last = outputs(tmp_path), manifest_in(tmp_path)["result"]["rmse"]
    rng = np.random.default_rng(0)
    write_rows(tmp_path, X=PROBLEM.nan + rng.standard_normal(PROBLEM.nan.shape))
    result = run_job(job, code=Exit.REFUSED)
    assert told(result).startswith("not published: the RMSE on held-out entries is ")
    assert (
        f" above the last run's {last:.6g} and more than guards.worsened=0.1 all"
        in (told(result))
    )
    assert outputs(tmp_path) == before
    assert manifest_in(tmp_path)["result"]["rmse"] == last
    # Whoever allows it gets it, without another fit: it goes on from the checkpoint.
    run_job(job, "--set", "guards.worsened=1000")
    assert manifest_in(tmp_path)["result"]["rmse"] > 1.1 * last


def test_models_of_other_settings_are_not_compared(job: Path, tmp_path: Path) -> None:
    run_job(job)
    # One factor can't do what three do: that is what was asked for.
    result = run_job(job, "--set", "model.rank=1", "--set", "guards.worsened=0.01")
    assert told(result).startswith("done: a full run")


def test_a_matrix_of_gaps_is_refused(job: Path, tmp_path: Path) -> None:
    result = run_job(job, "--set", "guards.missing=0.3", code=Exit.REFUSED)
    share = np.isnan(np.load(tmp_path / "X.npy")).mean()
    assert told(result) == (
        f"not published: {share:.2%} of the cells are missing, more than "
        "guards.missing=0.3; check the input, or raise it"
    )
    assert not (tmp_path / "filled.npy").exists()


# --------------------------------------------------------------------- logs and records


def test_logs_are_lines_of_json(job: Path, tmp_path: Path) -> None:
    options = ("--set", "log.format=json", "--set", "log.file=run.log")
    result = run_job(job, *options, "--set", "log.level=debug")
    assert result.output == ""
    text = (tmp_path / "run.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    events = [line["event"] for line in lines]
    assert events[:2] == ["started", "decided"]
    assert events[-1].startswith("done: a full run")
    rounds = [line["round"] for line in lines if line["event"] == "round"]
    assert rounds == list(range(1, manifest_in(tmp_path)["result"]["rounds"] + 1))
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    result = run_job(job, *options, "--set", "model.rank=31", code=2)
    assert result.stderr.startswith("Error: rank must be at most min(m, n) = 30")


def test_every_run_leaves_a_record(job: Path, tmp_path: Path) -> None:
    keep = ("--set", "report.folder=runs", "--set", "report.keep=3")
    run_job(job, *keep)
    run_job(job, *keep)
    run_job(job, *keep, "--set", "model.rank=31", code=2)
    records = [RunRecord.read(folder) for folder in (tmp_path / "runs").iterdir()]
    done, nothing, bad = sorted(
        records, key=lambda record: (record.code, -len(record.rounds))
    )
    assert [one.code for one in (done, nothing, bad)] == [0, 0, 2]
    assert bad.outcome == "bad configuration"
    assert bad.message.startswith("rank must be at most")
    assert nothing.message.startswith("nothing to do")
    assert done.name == "job"
    assert done.settings["model"]["rank"] == 3
    assert done.versions["dmf"] == dmf.__version__
    X = np.load(tmp_path / "X.npy")
    observed = int(np.isfinite(X).sum())
    assert done.input["shape"] == [100, 30]
    assert (done.input["observed"], done.input["dtype"]) == (observed, "float64")
    assert done.input["missing"] == pytest.approx(1 - observed / X.size)
    fit = model_in(tmp_path)
    assert [one["objective"] for one in done.rounds] == fit.history.objective.tolist()
    assert done.validation["rmse"] == fit.validation_rmse
    assert done.output["matrix"] == str(tmp_path / "filled.npy")
    assert done.measured["peak_bytes"] > 1e6
    names = [name for name, _ in done.stages]
    assert names[-3:] == ["compare", "write", "publish"]
    assert sum(seconds for _, seconds in done.stages) <= done.seconds + 0.01
    # What has another name isn't a run's folder, whatever is in it.
    for name in ("mine", "20261122T030000"):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    run_job(job, *keep)
    names = set(os.listdir(tmp_path / "runs"))
    assert {"mine", "20261122T030000"} < names
    assert len(names) == 5
    assert sum(bool(re.fullmatch(RUN_ID, name)) for name in names) == 3


def test_a_run_with_nothing_to_do_tells_what_is_known(
    job: Path, tmp_path: Path
) -> None:
    keep = ("--set", "report.prometheus=dmf.prom")

    def told_of() -> dict[str, str]:
        lines = (tmp_path / "dmf.prom").read_text().splitlines()
        found = (re.fullmatch(r"dmf_run_(\w+)\{.*\} (.*)", line) for line in lines)
        return {match[1]: match[2] for match in found if match}

    run_job(job, *keep)
    first = told_of()
    assert told(run_job(job, *keep)).startswith("nothing to do")
    second = told_of()
    same = ("input_rows", "input_columns", "input_missing_ratio", "validation_rmse")
    for name in (*same, "validation_mae"):
        assert second[name] == first[name]


def test_warnings_are_logged_and_recorded(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factorize = dmf.factorize

    def warns(*arguments: Any, **options: Any) -> Any:
        warnings.warn("mind the\ngap", UserWarning, stacklevel=2)
        return factorize(*arguments, **options)

    monkeypatch.setattr(dmf, "factorize", warns)
    result = run_job(job, "--set", "report.folder=runs")
    assert "WARNING: mind the gap" in result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert "mind the gap" in RunRecord.read(folder).warnings


def test_a_checkpoint_of_another_fit_is_dropped(job: Path, tmp_path: Path) -> None:
    strict = ("--set", "job.strict=true", "--set", "solver.max_rounds=2")
    run_job(job, *strict, "--set", "solver.tol=0", code=Exit.NOT_CONVERGED)
    assert (tmp_path / "model.zarr.checkpoint").is_dir()
    X = write_rows(tmp_path, 90)
    result = run_job(job)
    assert "WARNING: begun anew, because the checkpoint" in result.stderr
    expected = dmf.factorize(X, 3, validation=0.1)
    np.testing.assert_array_equal(model_in(tmp_path).W, expected.W)


def test_a_model_behind_a_url(tmp_path: Path) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path, output={"model": "memory://jobs/model.zarr"})
    run_job(path)
    fit = dmf.load("memory://jobs/model.zarr")
    np.testing.assert_array_equal(
        np.load(tmp_path / "filled.npy"), dmf.impute(np.load(tmp_path / "X.npy"), fit)
    )
    assert told(run_job(path)).startswith("nothing to do")


def test_on_so_many_threads(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmf.engine.runner import Threads

    factorize, found = dmf.factorize, []

    def noted(*arguments: Any, **options: Any) -> Any:
        found.append(Threads().machine().threads)
        return factorize(*arguments, **options)

    monkeypatch.setattr(dmf, "factorize", noted)
    run_job(job, "--set", "cluster.kind=threads", "--set", "cluster.threads=3")
    assert found == [3]


@pytest.mark.slow
@pytest.mark.cluster
def test_on_processes(job: Path, tmp_path: Path) -> None:
    where = ("--set", "cluster.kind=processes", "--set", "cluster.workers=2")
    run_job(job, *where, "--set", "report.folder=runs")
    (folder,) = (tmp_path / "runs").iterdir()
    # The memory of this process isn't what the workers took.
    assert set(RunRecord.read(folder).measured) == {"seconds"}
    X = np.load(tmp_path / "X.npy")
    expected = dmf.factorize(X, 3, validation=0.1)
    fit = model_in(tmp_path)
    np.testing.assert_allclose(fit.W @ fit.H, expected.W @ expected.H, rtol=1e-8)
