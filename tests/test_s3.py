"""S3, from a server on loopback: matrices, models and checkpoints, as in files."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import fsspec
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr
from click.testing import CliRunner

import dmf
from dmf.cli import main
from dmf.io import replace
from dmf.io.matrices import open_matrix, write_matrix
from dmf.io.replace import replace_behind
from dmf.io.tables import Columns
from dmf.io.versions import version_of
from tests.jobs import job_file, run_job, told
from tests.problems import low_rank

moto = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

PROBLEM = low_rank(30, 20)
LONG = Columns("user", "film", "stars")
pytestmark = [
    # Of Dask, about what pandas will do one day.
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server that keeps what it's given in memory, and the way to it.

    Credentials and address come as they usually do. Clients live as long as this: those
    that are forgotten before complain.
    """
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # One that a test before has made knows no credentials.
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem()
    server.stop()


@pytest.fixture
def bucket(server: Any) -> Iterator[str]:
    """The URL of an empty bucket."""
    name = f"bucket-{uuid4().hex}"
    server.mkdir(name)
    yield f"s3://{name}"
    server.rm(name, recursive=True)


def run(*arguments: Any) -> str:
    found = CliRunner().invoke(main, [str(one) for one in arguments])
    assert found.exit_code == 0, (found.output, found.exception)
    return str(found.output)


def names_in(url: str) -> list[str]:
    files = s3fs.S3FileSystem()
    files.invalidate_cache()
    return sorted(name.rsplit("/", 1)[-1] for name in files.ls(url, detail=False))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_from_the_shell(bucket: str, zarr_format: Any) -> None:
    zarr.create_array(
        f"{bucket}/X.zarr", data=PROBLEM.nan, chunks=(15, 10), zarr_format=zarr_format
    )
    run("factorize", f"{bucket}/X.zarr", "--rank=3", "-o", f"{bucket}/model.zarr")
    chunked = da.from_array(PROBLEM.nan, chunks=(15, 10))
    expected = dmf.factorize(chunked, 3)
    fit = dmf.load(f"{bucket}/model.zarr")
    np.testing.assert_array_equal(fit.W, expected.W, strict=True)
    for name in ("filled.zarr", "filled.npy"):
        out = f"{bucket}/{name}"
        run("impute", f"{bucket}/X.zarr", "--model", f"{bucket}/model.zarr", "-o", out)
        np.testing.assert_array_equal(
            open_matrix(out), dmf.impute(chunked, fit), strict=True
        )
    assert names_in(bucket) == ["X.zarr", "filled.npy", "filled.zarr", "model.zarr"]


def test_outputs_are_kept(bucket: str) -> None:
    fit = dmf.factorize(PROBLEM.nan, 2, max_rounds=3, tol=0)
    fit.save(f"{bucket}/model.zarr")
    write_matrix(PROBLEM.truth, f"{bucket}/X.zarr")
    write_matrix(PROBLEM.truth, f"{bucket}/X.npy")
    with pytest.raises(FileExistsError, match=r"model.zarr exists; choose another"):
        fit.save(f"{bucket}/model.zarr")
    for name in ("X.zarr", "X.npy"):
        with pytest.raises(FileExistsError, match=f"{name} exists; choose another"):
            write_matrix(PROBLEM.nan, f"{bucket}/{name}")
    with pytest.raises(FileExistsError, match="isn't a Zarr array, so that it won't"):
        write_matrix(PROBLEM.nan, f"{bucket}/model.zarr", overwrite=True)
    for name in ("X.zarr", "X.npy"):
        write_matrix(PROBLEM.nan, f"{bucket}/{name}", overwrite=True)
        np.testing.assert_array_equal(open_matrix(f"{bucket}/{name}"), PROBLEM.nan)


def test_checkpoint_is_resumed(bucket: str) -> None:
    saved: dict[str, Any] = {
        "checkpoint": f"{bucket}/saved",
        "checkpoint_every": 5,
        "resume": True,
    }

    def fit(**options: Any) -> dmf.Factorization:
        return dmf.factorize(PROBLEM.nan, 3, max_rounds=20, tol=0, **options)

    fit(callbacks=[lambda record: record.round == 13], **saved)
    rounds: list[int] = []
    again = fit(callbacks=[lambda record: rounds.append(record.round)], **saved)
    assert min(rounds) > 10
    assert max(rounds) == 20
    np.testing.assert_array_equal(again.W, fit().W, strict=True)
    assert len(names_in(f"{bucket}/saved")) == 2


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_triplets(bucket: str, name: str) -> None:
    i, j = np.nonzero(PROBLEM.mask)
    frame = pd.DataFrame(
        {
            "user": [f"u{k}" for k in i],
            "film": [f"f{k}" for k in j],
            "stars": PROBLEM.nan[i, j],
        }
    )
    if name.endswith(".parquet"):
        frame.to_parquet(f"{bucket}/{name}", index=False)
    else:
        frame.to_csv(f"{bucket}/{name}", index=False)
    found = open_matrix(f"{bucket}/{name}", LONG)
    expected = dmf.from_triplets(frame, "user", "film", "stars")
    assert list(found.rows) == list(expected.rows)
    assert (found.X.compute() != expected.X).nnz == 0


def test_a_table_in_parts(bucket: str) -> None:
    names = [f"v{j}" for j in range(20)]
    frame = pd.DataFrame(PROBLEM.nan, columns=names).rename_axis("day")
    frame.to_parquet(f"{bucket}/t.parquet", row_group_size=8)
    run("factorize", f"{bucket}/t.parquet", "--rank=2", "-o", f"{bucket}/m.zarr")
    out = f"{bucket}/filled.parquet"
    run("impute", f"{bucket}/t.parquet", "--model", f"{bucket}/m.zarr", "-o", out)
    found = pd.read_parquet(out)
    seen = PROBLEM.mask
    np.testing.assert_array_equal(found.to_numpy()[seen], frame.to_numpy()[seen])
    assert not found.isna().any(axis=None)
    assert list(found.index) == list(frame.index)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_by_ranges_of_bytes(bucket: str, order: Any) -> None:
    X = np.asarray(PROBLEM.nan, order=order)
    files = s3fs.S3FileSystem()
    with files.open(f"{bucket}/X.npy", "wb") as file:
        np.save(file, X)
    with dask.config.set({"array.chunk-size": "800B"}):
        found = open_matrix(f"{bucket}/X.npy")
    assert found.npartitions > 3
    np.testing.assert_array_equal(found.compute(), X, strict=True)


def test_labelled_matrices(bucket: str) -> None:
    xr = pytest.importorskip("xarray")
    names = [f"s{j}" for j in range(20)]
    coords = {"day": np.arange(30), "station": names}
    X = xr.DataArray(PROBLEM.nan, dims=("day", "station"), coords=coords, name="x")
    for name in ("X.nc", "X.zarr"):
        write_matrix(X.chunk({"day": 8}), f"{bucket}/{name}")
        found = open_matrix(f"{bucket}/{name}")
        xr.testing.assert_identical(found.compute(), X)
        filled = dmf.impute(found, dmf.factorize(found, 2, max_rounds=5, tol=0))
        write_matrix(filled, f"{bucket}/filled-{name}")
        again = open_matrix(f"{bucket}/filled-{name}")
        xr.testing.assert_identical(again.compute(), filled.compute())


@pytest.mark.parametrize("name", ["X.npz", "X.mtx"])
def test_sparse_files(bucket: str, server: Any, tmp_path: Path, name: str) -> None:
    matrix = PROBLEM.sparse()
    if name == "X.npz":
        sp.save_npz(tmp_path / name, matrix)
    else:
        scipy.io.mmwrite(tmp_path / name, matrix, precision=17)
    server.put_file(str(tmp_path / name), f"{bucket}/{name}")
    assert (sp.csr_array(open_matrix(f"{bucket}/{name}")) != matrix).nnz == 0


def test_what_is_not_there(bucket: str) -> None:
    for name in ("X.npy", "X.npz", "X.mtx", "X.csv", "X.parquet", "X.nc", "X.zarr"):
        with pytest.raises(FileNotFoundError, match=f"there is nothing at .*{name}"):
            open_matrix(f"{bucket}/{name}")


def test_what_cannot_be_reached(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # Bound, and so nobody else's, but not listening.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address})
        for name in ("X.npy", "X.npz", "X.mtx", "X.csv", "X.parquet", "X.nc", "X.zarr"):
            model = tmp_path / "model.zarr"
            options = ["factorize", f"{bucket}/{name}", "--rank=1", "-o", model]
            found = CliRunner().invoke(main, [str(option) for option in options])
            assert found.exit_code == 1, found.output
            assert found.output.startswith(f"Error: {bucket}/{name} can't be ")
            assert len(found.output.splitlines()) == 1
        with pytest.raises(OSError, match=r"X\.npy can't be reached .*; check the URL"):
            write_matrix(PROBLEM.truth, f"{bucket}/X.npy")
    assert list(tmp_path.iterdir()) == []


JOB = """
[input]
path = "{input}"
[model]
rank = 2
[output]
model = "{model}"
[checkpoint]
path = "{checkpoint}"
"""


def ran(folder: Path, *options: str, **places: str) -> tuple[int, str]:
    """Run a job; return its exit code and the last line of its log."""
    given = {"input": "X.npy", "model": "model.zarr", "checkpoint": "saved"} | places
    (folder / "job.toml").write_text(JOB.format(**given))
    result = CliRunner().invoke(main, ["run", str(folder / "job.toml"), *options])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.stderr.splitlines()[-1] if result.stderr else ""


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("name", "code"), [("input", 3), ("model", 2), ("checkpoint", 2)]
)
def test_jobs_whose_stores_are_gone(
    name: str,
    code: int,
    options: tuple[str, ...],
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save(tmp_path / "X.npy", PROBLEM.nan)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with monkeypatch.context() as patch:
            patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address})
            place = f"{bucket}/place.zarr"
            found, told = ran(tmp_path, *options, **{name: place})
    assert found == code
    assert f"{place} can't be reached (Could not connect to the endpoint URL" in told
    if name != "input":
        found, told = ran(tmp_path, *options, **{name: "s3://no-such/a.zarr"})
        assert found == code
        told_of = "there is no bucket no-such for s3://no-such/a.zarr; create it first"
        assert told_of in told


def test_a_job_with_everything_in_a_store(bucket: str, tmp_path: Path) -> None:
    """It fits, has nothing to do, goes on, and is held back: as with files."""
    X, model, filled = (f"{bucket}/{name}.zarr" for name in ("X", "model", "filled"))
    whole = low_rank(120, 30, 3).nan
    path = job_file(
        tmp_path,
        input={"path": X},
        model={"offsets": "both"},
        output={"model": model, "matrix": filled, "mask": f"{bucket}/imputed.npy"},
        checkpoint={"path": f"{bucket}/saved", "every": 5},
        guards={"missing": 0.9},
    )

    def published() -> list[str | None]:
        return [version_of(place) for place in (model, filled, f"{bucket}/imputed.npy")]

    def given(array: Any) -> Any:
        write_matrix(da.from_array(array, chunks=(25, 30)), X, overwrite=True)
        return array

    for rows, mode in ((100, "full"), (120, "warm")):
        array = given(whole[:rows])
        assert told(run_job(path)).startswith(f"done: a {mode} run")
        fit, before = dmf.load(model), published()
        assert fit.shape == array.shape
        expected = dmf.impute(array, fit).astype(array.dtype)
        np.testing.assert_array_equal(open_matrix(filled), expected, strict=True)
        mask = open_matrix(f"{bucket}/imputed.npy").compute()
        np.testing.assert_array_equal(mask, np.isnan(array))
        assert told(run_job(path)).startswith("nothing to do")
        assert published() == before
    sparse = given(np.where(np.arange(30) < 2, whole, np.nan))
    refused = f"not published: {np.isnan(sparse).mean():.2%} of the cells are missing"
    assert told(run_job(path, code=7)).startswith(refused)
    assert published() == before
    names = ["X", "filled", "imputed.npy", "model", "model.zarr.manifest.json"]
    assert [name.removesuffix(".zarr") for name in names_in(bucket)] == names


def test_what_is_the_same_is_not_copied(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that stay as they were, the chunks stay."""
    new = PROBLEM.truth.copy()
    new[20, 3] += 1
    for name, X in (("old", PROBLEM.truth), ("new", new)):
        zarr.create_array(f"{bucket}/{name}.zarr", data=X, chunks=(10, 20))
    copied: list[str] = []
    copy = replace._copy

    def watch(files: Any, names: list[str], *places: str) -> None:
        copied.extend(names)
        copy(files, names, *places)

    monkeypatch.setattr(replace, "_copy", watch)
    replace_behind(f"{bucket}/new.zarr", f"{bucket}/old.zarr")
    assert copied == ["c/2/0", "zarr.json"]
    np.testing.assert_array_equal(open_matrix(f"{bucket}/old.zarr"), new, strict=True)
