"""Inputs and stores of others: no code of theirs is run, and nothing escapes."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import scipy.sparse as sp
import xarray as xr
import zarr

import dmf
from dmf.engine.store import DamagedError
from dmf.io.checkpoints import CheckpointStore, Receipt
from dmf.io.matrices import open_matrix, write_matrix
from dmf.io.versions import version_of
from dmf.secrets import HIDDEN
from tests.jobs import PROBLEM, job_file, manifest_in, run_job, told, write_rows

PACKAGE = Path(dmf.__file__).parent


# --------------------------------------------------------------------------------- code


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def bomb(tmp_path: Path) -> Any:
    """A planted pickle; that it works is looked at first, that nobody ran it last."""
    crater = tmp_path / "crater"
    bomb = Bomb(crater)
    pickle.loads(pickle.dumps(bomb))
    crater.rmdir()
    yield bomb
    assert not crater.exists()


def as_npy(bomb: Bomb) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([[bomb]], dtype=object), allow_pickle=True)
    return file.getvalue()


def as_npz(bomb: Bomb, **others: Any) -> bytes:
    file = io.BytesIO()
    bombs = np.array([bomb], dtype=object)
    np.savez(file, allow_pickle=True, **dict.fromkeys(others, bombs))
    return file.getvalue()


# Metadata of Zarr 2 that ask for unpickling: as what makes objects of bytes, and as one
# more filter of strings, which readers of objects don't look for.
PICKLED = [{"id": "pickle", "protocol": 5}]
FILTERS = {"objects": PICKLED, "strings": [{"id": "vlen-utf8"}, *PICKLED]}


def plant_zarr(folder: Path, shape: tuple[int, ...], bomb: Bomb, filters: str) -> None:
    folder.mkdir()
    described = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": shape,
        "dtype": "|O",
        "compressor": None,
        "fill_value": None,
        "order": "C",
        "filters": FILTERS[filters],
    }
    (folder / ".zarray").write_text(json.dumps(described))
    (folder / ".".join("0" * len(shape))).write_bytes(pickle.dumps(bomb))


def refused(read: Callable[[], Any]) -> str:
    """Return the sentence that something is refused with."""
    with pytest.raises((ValueError, OSError)) as caught:
        read()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_pickled_matrices_are_refused(tmp_path: Path, bomb: Bomb) -> None:
    for name, content in (
        ("X.npy", as_npy(bomb)),
        ("X.npz", as_npz(bomb, format=1)),
        ("Y.npz", as_npz(bomb, data=1, indices=1, indptr=1, shape=1, format=1)),
        ("Z.npy", pickle.dumps(bomb)),
        ("Z.npz", pickle.dumps(bomb)),
        ("Z.mtx", pickle.dumps(bomb)),
        ("Z.csv", pickle.dumps(bomb)),
        ("Z.parquet", pickle.dumps(bomb)),
        ("Z.nc", pickle.dumps(bomb)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert str(path) in refused(lambda path=path: open_matrix(path))


@pytest.mark.parametrize("filters", FILTERS)
def test_pickled_zarr_arrays_are_refused(
    filters: str, tmp_path: Path, bomb: Bomb
) -> None:
    path = tmp_path / "X.zarr"
    plant_zarr(path, (2, 2), bomb, filters)
    sentence = refused(lambda: dmf.factorize(open_matrix(path), 1))
    assert str(path) in sentence


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("part", ["X", "rows", "beside"])
def test_pickles_in_datasets_are_refused(
    filters: str, part: str, tmp_path: Path, bomb: Bomb
) -> None:
    """As the matrix, as the labels of its rows, as a coordinate beside them."""
    path = tmp_path / "X.zarr"
    coords = {"rows": [1, 2, 3], "beside": ("rows", [4, 5, 6])}
    X = xr.DataArray(PROBLEM.nan[:3, :4], dims=("rows", "columns"), coords=coords)
    X.to_dataset(name="X").to_zarr(path, zarr_format=2, consolidated=False)
    attributes = (path / part / ".zattrs").read_text()
    (path / part).rename(tmp_path / "old")
    plant_zarr(path / part, X[part].shape if part != "X" else X.shape, bomb, filters)
    (path / part / ".zattrs").write_text(attributes)

    def fill() -> Any:
        opened = open_matrix(path)
        fit = dmf.factorize(opened, 1, max_rounds=2)
        write_matrix(dmf.impute(opened, fit), tmp_path / "filled.zarr")

    refused(fill)
    assert not (tmp_path / "filled.zarr").exists()


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("lazy", [False, True])
def test_pickles_in_models_are_refused(
    filters: str, lazy: bool, tmp_path: Path, bomb: Bomb
) -> None:
    fit = dmf.factorize(PROBLEM.nan, 2, max_rounds=2)
    fit.save(tmp_path / "whole.zarr")
    attributes = dict(zarr.open_group(tmp_path / "whole.zarr", mode="r").attrs)
    path = tmp_path / "model.zarr"
    path.mkdir()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps(attributes | {"lazy": lazy}))
    plant_zarr(path / "W", fit.W.shape, bomb, filters)
    plant_zarr(path / "H", fit.H.shape, bomb, filters)
    sentence = refused(lambda: dmf.load(path))
    assert sentence.startswith(f"the model {path} can't be read (")


def test_models_make_only_what_dmf_knows(tmp_path: Path) -> None:
    fit = dmf.factorize(PROBLEM.nan, 2, max_rounds=2)
    path = tmp_path / "model.zarr"
    fit.save(path)
    text = (path / "zarr.json").read_text()
    for name in ("os.system", "eval", "Factorization"):
        changed = text.replace('"kind": "Plane"', f'"kind": "{name}"')
        assert changed != text
        (path / "zarr.json").write_text(changed)
        assert f"this dmf doesn't know '{name}'" in refused(lambda: dmf.load(path))


def test_pickles_in_checkpoints_are_refused(tmp_path: Path, bomb: Bomb) -> None:
    """Also where their checksum is right."""
    store = CheckpointStore.at(tmp_path / "saved")
    good = store.write(1, "0a0a0a0a-00000000.npz", {"W": np.eye(2)})
    content = as_npz(bomb, W=1)
    path = tmp_path / "saved" / "v00000001" / good.name
    path.write_bytes(content)
    from dmf.io.checkpoints import _checksum

    planted = Receipt(good.name, len(content), _checksum(content))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        store.read(1, planted)


@pytest.mark.parametrize("name", ["manifest.json", "publishing"])
def test_pickles_in_manifests_are_refused(
    name: str, tmp_path: Path, bomb: Bomb
) -> None:
    write_rows(tmp_path)
    path = job_file(tmp_path)
    run_job(path)
    (tmp_path / f"model.zarr.{name}").write_bytes(pickle.dumps(bomb))
    shown = run_job(path).stderr
    assert re.search(r"WARNING: the (manifest|journal) \S+ can't be read \(", shown)


# What could make code of data, or run it. Dask pickles tasks: it does so between
# processes that trust each other, and never on disk.
FORBIDDEN = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("read_pickle", "unsafe_load", "full_load", "PyExtensionType"),
    "ALLOW_UNSAFE_PICKLE_DECODE",
}
# These have a switch for pickles, which must be off.
LOADERS = {"load", "save", "savez", "savez_compressed"}


def names_in(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                found |= {part for one in node.names for part in one.name.split(".")}
            case ast.ImportFrom():
                found |= {*(node.module or "").split(".")}
                found |= {one.name for one in node.names}
            case ast.Call(func=ast.Name(name)):
                found.add(name)
            case ast.Attribute(ast.Name("re"), "compile"):
                pass  # of regular expressions
            case ast.Attribute(ast.Name(module), name):
                found |= {name, f"{module}.{name}"}
            case ast.Attribute(attr=name):
                found.add(name)
    return found


def unswitched(tree: ast.AST) -> list[int]:
    """Return the lines where NumPy reads or writes arrays, pickled ones among them."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "np"
        and node.func.attr in LOADERS
        and not any(
            word.arg == "allow_pickle"
            and isinstance(word.value, ast.Constant)
            and word.value.value is False
            for word in node.keywords
        )
    ]


def test_no_load_path_unpickles() -> None:
    """The scan sees what it looks for, and finds none of it."""
    planted = ast.parse(
        "import pickle\nnp.load(f)\neval(x)\nos.system(y)\nre.compile(z)"
    )
    assert names_in(planted) & FORBIDDEN == {"pickle", "eval", "os.system"}
    assert unswitched(planted) == [2]
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert names_in(tree) & FORBIDDEN == set(), path
        assert unswitched(tree) == [], path


# ------------------------------------------------------------------------------- places


ESCAPES = ["../escaped", "../../escaped", "/tmp/dmf-escaped", "..", "a/../../escaped"]


def everything_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
@pytest.mark.parametrize("name", ESCAPES)
def test_names_of_variables_stay_in_the_output(
    name: str, suffix: str, tmp_path: Path
) -> None:
    """What a variable is called is what a file of others calls it."""
    folder = tmp_path / "out"
    folder.mkdir()
    X = xr.DataArray(np.eye(3), dims=("a", "b"), name=name)
    with suppress(ValueError):
        write_matrix(X, folder / f"filled{suffix}")
    outside = everything_in(tmp_path) - {Path("out")}
    assert all(path.parts[:2] == ("out", f"filled{suffix}") for path in outside)
    assert not Path("/tmp/dmf-escaped").exists()


def test_names_in_archives_are_no_paths(tmp_path: Path) -> None:
    """Archives are read in memory: nothing is unpacked."""
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "X.npz"
    sp.save_npz(path, sp.csr_array(np.eye(4)))
    with ZipFile(path, "a") as archive:
        for name in ESCAPES:
            archive.writestr(f"{name}.npy", b"x")
    before = everything_in(tmp_path)
    np.testing.assert_array_equal(open_matrix(path).toarray(), np.eye(4))
    assert everything_in(tmp_path) == before
    assert not Path("/tmp/dmf-escaped.npy").exists()


def test_ids_and_columns_stay_in_the_outputs(tmp_path: Path) -> None:
    """Labels that look like paths are labels; the name of a job is no path either."""
    folder = tmp_path / "out"
    folder.mkdir()
    ids = [*ESCAPES, "<script>alert(1)</script>", "{{7*7}}", "\\..\\escaped"]
    names = [f"{one}/{k}" for k, one in enumerate(ids)]
    rows = [",".join(["id", *names])]
    values = np.arange(64.0).reshape(8, 8) % 7 + np.eye(8)
    for label, line in zip(ids, values, strict=True):
        rows.append(",".join([label, *map(str, line)]))
    rows[3] = ",".join([rows[3].split(",")[0], "", *rows[3].split(",")[2:]])
    (folder / "X.csv").write_text("\n".join(rows) + "\n")
    path = job_file(
        folder,
        job={"name": "../../escaped"},
        input={"path": "X.csv", "index": "id"},
        model={"rank": 2, "validation": None},
        output={"model": "m.zarr", "matrix": "filled.csv", "mask": "mask.npy"},
        report={"folder": "runs", "prometheus": "dmf.prom"},
    )
    assert told(run_job(path)).startswith("done")
    assert {one.parts[0] for one in everything_in(tmp_path)} == {"out"}
    made = {one.parts[1] for one in everything_in(tmp_path) if len(one.parts) > 1}
    assert made == {
        *("X.csv", "job.toml", "m.zarr", "m.zarr.lock", "m.zarr.manifest.json"),
        *("filled.csv", "mask.npy", "runs", "dmf.prom"),
    }
    (page,) = folder.glob("runs/*/report.html")
    assert "<script>alert(1)</script>" not in page.read_text()
    assert "{{7*7}}" in (folder / "filled.csv").read_text()


@pytest.mark.parametrize("receipt", ["../../secret.npz", "/etc/passwd", "x.npz"])
def test_checkpoints_name_only_their_own_files(receipt: str, tmp_path: Path) -> None:
    store = CheckpointStore.at(tmp_path / "saved")
    whole = store.write(1, "0a0a0a0a-00000000.npz", {"W": np.eye(2)})
    store.publish(1, {}, [whole])
    assert store.manifest(1) == ({}, [whole])
    from dmf.io.checkpoints import MANIFEST, _checksum

    path = tmp_path / "saved" / "v00000001" / MANIFEST
    body = json.loads(path.read_text())["body"].replace(whole.name, receipt)
    path.write_text(json.dumps({"checksum": _checksum(body.encode()), "body": body}))
    with pytest.raises(DamagedError, match=r"manifest\.json names files of others"):
        store.manifest(1)


def test_journals_move_only_what_runs_have_written(tmp_path: Path) -> None:
    """Whoever may write beside the model must not have a run move or remove more."""
    folder, valued = tmp_path / "out", tmp_path / "valued"
    for one in (folder, valued):
        one.mkdir()
    (valued / "data.npy").write_bytes(b"of great value")
    write_rows(folder)
    path = job_file(folder)
    run_job(path)
    manifest = {"format_version": 1, **manifest_in(folder)}
    journal = folder / "model.zarr.publishing"
    place, version = str(valued / "data.npy"), version_of(str(valued / "data.npy"))
    there = f"{HIDDEN}@host/x.npy"
    for run, move, why in (
        ("../../valued", [place, version], "'../../valued' is no run"),
        (manifest["run"], [place, None], f"{place} has no version"),
        (manifest["run"], [f"s3://{there}", "x"], f"no longer names s3://{there}"),
        (manifest["run"], [place, place, version], "too many values to unpack"),
        # What no run has written isn't moved.
        (manifest["run"], [place, version], ""),
    ):
        planted = {"moves": [move], "manifest": manifest | {"run": run}}
        journal.write_text(json.dumps(planted))
        shown = run_job(path).stderr
        assert why in shown
        assert ("and is removed; what its run" in shown) == bool(why)
        assert (valued / "data.npy").read_bytes() == b"of great value"
        assert os.listdir(valued) == ["data.npy"]
        assert not journal.exists()
