"""Labelled matrices on disk: netCDF files and Zarr groups, through xarray."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner

import dmf
from dmf.cli import main
from dmf.io import datasets
from dmf.io.matrices import check_output, check_writable, open_matrix, write_matrix
from tests.problems import low_rank

xr = pytest.importorskip("xarray")

PROBLEM = low_rank(30, 12, 2)
# Version 4 of netCDF needs HDF5.
NEEDS = {"scipy": "scipy", "h5netcdf": "h5py"}


@pytest.fixture(params=NEEDS)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What writes netCDF: once for version 3, once for version 4."""
    pytest.importorskip(NEEDS[request.param])
    monkeypatch.setattr(datasets, "_engine", lambda: request.param)
    return str(request.param)


def labelled(name: str | None = "temperature") -> Any:
    """Return the problem with days for rows and stations for columns."""
    return xr.DataArray(
        PROBLEM.nan,
        dims=("day", "station"),
        coords={
            "day": pd.date_range("2020-01-01", periods=30),
            "station": [f"s{j}" for j in range(12)],
            "height": ("station", np.arange(12.0)),
            "place": ("station", [f"near {j}" for j in range(12)]),
        },
        attrs={"units": "K"},
        name=name,
    )


def save(array: Any, path: Any, engine: str, **options: Any) -> None:
    """Write as its users do, without dmf."""
    dataset = array.to_dataset() if isinstance(array, xr.DataArray) else array
    if str(path).endswith(".nc"):
        dataset.to_netcdf(path, engine=engine)
    else:
        station = dataset.station.astype(object)
        place = dataset.place.astype(object).load()
        dataset = dataset.assign_coords(station=station, place=place)
        dataset.to_zarr(path, consolidated=False, **options)


def assert_same(found: Any, expected: Any) -> None:
    """Values, labels, other coordinates and attributes, not how they are stored."""
    xr.testing.assert_identical(found.compute(), expected)


@pytest.mark.parametrize("name", ["X.nc", "X.zarr", "X2.zarr"])
def test_read_fill_write(name: str, tmp_path: Path, engine: str) -> None:
    X = labelled()
    options = {} if name.endswith(".nc") else {"zarr_format": 2 if "2" in name else 3}
    save(X, tmp_path / name, engine, **options)
    found = open_matrix(tmp_path / name)
    assert found.chunks is not None
    assert_same(found, X)
    fit = dmf.factorize(found, 2, max_rounds=5, tol=0)
    of_memory = dmf.factorize(X, 2, max_rounds=5, tol=0)
    np.testing.assert_allclose(fit.W, of_memory.W, rtol=1e-9)
    filled = dmf.impute(found, fit)
    expected = dmf.impute(X, fit)
    for out in ("out.nc", "out.zarr"):
        write_matrix(filled, tmp_path / out)
        assert_same(open_matrix(tmp_path / out), expected)
        with pytest.raises(FileExistsError, match="exists; choose another path"):
            check_writable(tmp_path / out)
        write_matrix(X, tmp_path / out, overwrite=True)
        assert_same(open_matrix(tmp_path / out), X)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [name, "out.nc", "out.zarr"]
    )


@pytest.mark.parametrize("name", ["X.nc", "X.zarr"])
def test_behind_a_url(name: str, tmp_path: Path, engine: str) -> None:
    X, url = labelled(), f"memory://dmf-test-datasets/{engine}/{name}"
    write_matrix(X.chunk({"day": 7}), url)
    assert_same(open_matrix(url), X)
    with pytest.raises(FileExistsError, match="exists; choose another path"):
        write_matrix(X, url)
    write_matrix(X + 1, url, overwrite=True)
    np.testing.assert_array_equal(open_matrix(url), X + 1)


def test_only_what_a_block_needs_is_read(tmp_path: Path, engine: str) -> None:
    save(labelled(), tmp_path / "X.nc", engine)
    with dask.config.set({"array.chunk-size": "800B"}):
        found = open_matrix(tmp_path / "X.nc")
    assert found.data.npartitions > 3
    # The numbers alone take 2880 bytes.
    assert len(pickle.dumps(found.data.blocks[0, 0])) < 8000
    np.testing.assert_array_equal(found.data.compute(), PROBLEM.nan)


def test_chunks_are_those_of_the_file(tmp_path: Path) -> None:
    save(labelled().chunk({"day": 8, "station": 5}), tmp_path / "X.zarr", "")
    assert open_matrix(tmp_path / "X.zarr").chunks == ((8, 8, 8, 6), (5, 5, 2))
    irregular = labelled().chunk({"day": (10, 20), "station": 12})
    write_matrix(irregular, tmp_path / "Y.zarr")
    assert_same(open_matrix(tmp_path / "Y.zarr"), labelled())


def test_packed_values_are_unpacked(tmp_path: Path, engine: str) -> None:
    """Stored as small integers, with a scale, and one of them for what is missing."""
    X = labelled().round(1)
    packing = {"dtype": "int16", "scale_factor": 0.1, "_FillValue": -9999}
    dataset = X.to_dataset()
    dataset["temperature"].encoding = packing
    dataset.to_netcdf(tmp_path / "X.nc", engine=engine)
    found = open_matrix(tmp_path / "X.nc")
    np.testing.assert_allclose(found, X, atol=1e-6)
    write_matrix(found + 1000, tmp_path / "Y.nc")  # more than 16 bits hold
    np.testing.assert_allclose(open_matrix(tmp_path / "Y.nc"), X + 1000, atol=1e-4)


def test_names_of_variables(tmp_path: Path, engine: str) -> None:
    X = labelled()
    several = xr.Dataset(
        {
            "a": X,
            "b": X + 1,
            "cube": X.expand_dims("hour"),
            "line": X[0].drop_vars("day"),
        }
    )
    path = tmp_path / "X.nc"
    several.to_netcdf(path, engine=engine)
    np.testing.assert_array_equal(open_matrix(path, variable="b"), X + 1)
    has = r"; name one with two dimensions, as in --variable NAME \(it has: a, b\)$"
    for variable, message in (
        (None, r"X\.nc doesn't say which variable is the matrix"),
        ("cube", r"'cube' in .*X\.nc has dimensions \('hour', 'day', 'station'\)"),
        ("c", r"there is no variable 'c' in .*X\.nc"),
    ):
        with pytest.raises(ValueError, match=message + has):
            open_matrix(path, variable=variable)
    np.save(tmp_path / "X.npy", PROBLEM.nan)
    with pytest.raises(
        ValueError, match="neither netCDF nor Zarr, and has no variable"
    ):
        open_matrix(tmp_path / "X.npy", variable="a")
    write_matrix(PROBLEM.nan, tmp_path / "X.zarr")
    with pytest.raises(ValueError, match="is a Zarr array, not a group with an array"):
        open_matrix(tmp_path / "X.zarr", variable="a")


def test_arrays_of_plain_groups_have_names_too(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "all.zarr")
    group.create_array("X", data=PROBLEM.nan)
    found = open_matrix(tmp_path / "all.zarr", variable="X")
    np.testing.assert_array_equal(found, PROBLEM.nan)
    with pytest.raises(ValueError, match=r"no array 'Y' in .*all\.zarr \(it has: X\)"):
        open_matrix(tmp_path / "all.zarr", variable="Y")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_mask_in_the_same_group(tmp_path: Path, zarr_format: Any) -> None:
    group = zarr.create_group(tmp_path / "all.zarr", zarr_format=zarr_format)
    group.create_array("X", data=PROBLEM.truth, chunks=(10, 5))
    group.create_array("mask", data=PROBLEM.mask, chunks=(10, 5))
    place = tmp_path / "all.zarr"
    command = f"factorize {place}/X --mask {place}/mask --rank 2 --quiet"
    found = CliRunner().invoke(main, [*command.split(), "-o", str(tmp_path / "m")])
    assert found.exit_code == 0, found.output
    X, mask = (da.from_array(a, (10, 5)) for a in (PROBLEM.truth, PROBLEM.mask))
    expected = dmf.factorize(X, 2, mask=mask)
    np.testing.assert_array_equal(dmf.load(tmp_path / "m").W, expected.W, strict=True)


def test_from_the_shell(tmp_path: Path, engine: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    X = labelled()
    xr.Dataset({"a": X, "b": X + 1}).to_netcdf("X.nc", engine=engine)

    def run(command: str) -> None:
        found = CliRunner().invoke(main, command.split())
        assert found.exit_code == 0, found.output

    run("factorize X.nc --variable b --rank 2 -o model.zarr --quiet")
    run("impute X.nc --variable b --model model.zarr -o out.nc")
    out = open_matrix("out.nc")
    np.testing.assert_array_equal(out.day, X.day)
    seen = PROBLEM.mask
    np.testing.assert_array_equal(out.to_numpy()[seen], (X + 1).to_numpy()[seen])
    assert not np.isnan(out).any()


def test_what_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "X.nc").write_bytes(b"CDF\x01 but not really")
    with pytest.raises(ValueError, match=r"X\.nc can't be read as netCDF .*; check"):
        open_matrix(tmp_path / "X.nc")
    with pytest.raises(ValueError, match="the input has no named dimensions; write a"):
        check_output(PROBLEM.nan, tmp_path / "out.nc")


@pytest.mark.parametrize(
    ("place", "writer"), [("memory://X.nc", "h5netcdf"), ("X.nc", "scipy")]
)
def test_what_workers_cannot_write(
    place: str, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It's refused before anything is filled."""
    monkeypatch.setattr(datasets, "_engine", lambda: writer)
    check_output(labelled(), place)
    cluster = SimpleNamespace(remote=True)
    monkeypatch.setattr(datasets, "choose_runner", lambda client: cluster)
    with pytest.raises(ValueError, match=r"workers of a cluster can't write .*X\.nc"):
        check_output(labelled(), place)


def test_words_are_no_matrix(tmp_path: Path, engine: str) -> None:
    words = xr.DataArray([["a", "b"]], dims=("row", "column"), name="words")
    words.to_netcdf(tmp_path / "X.nc", engine=engine)
    with pytest.raises(ValueError, match=r"not real numbers; convert it|\(it has: "):
        open_matrix(tmp_path / "X.nc")


def test_groups_with_more_in_them_are_not_replaced(tmp_path: Path) -> None:
    X = labelled()
    save(xr.Dataset({"a": X, "b": X}), tmp_path / "X.zarr", "")
    with pytest.raises(FileExistsError, match="isn't a Zarr array, so that it won't"):
        write_matrix(X, tmp_path / "X.zarr", overwrite=True)


def test_nameless_matrix(tmp_path: Path, engine: str) -> None:
    for name in ("X.nc", "X.zarr"):
        write_matrix(labelled(None), tmp_path / name)
        assert open_matrix(tmp_path / name).name == "X"
