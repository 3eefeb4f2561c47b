"""What is behind a URL replaced: by jobs, with readers that come in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import zarr

import dmf
from dmf.io import replace
from dmf.io.matrices import open_matrix, write_matrix
from dmf.io.replace import BEING_REPLACED, RUN, replace_behind
from tests.jobs import PROBLEM, job_file, run_job, told, write_rows

Array = Any


@pytest.fixture
def store() -> str:
    return f"memory://dmf-test-replace-{uuid4().hex}"


def names_in(store: str) -> list[str]:
    files, root = fsspec.url_to_fs(store)
    return sorted(name.rsplit("/", 1)[-1] for name in files.ls(root, detail=False))


def attribute_of(place: str) -> Any:
    return zarr.open(place, mode="r").attrs.get(RUN)


def interrupted(at: int, then: Callable[[], None]) -> Callable[..., None]:
    """Return what copies, but calls something and fails at the call of a number."""
    copy, calls = replace._copy, iter(range(100))

    def stop(*arguments: Any) -> None:
        if next(calls) == at:
            then()
            msg = "the store has gone"
            raise OSError(msg)
        copy(*arguments)

    return stop


def test_a_file(store: str) -> None:
    for name, value in (("new", b"of the new"), ("old", b"of the old one")):
        fsspec.open(f"{store}/{name}", "wb").fs.pipe_file(f"{store}/{name}", value)
    replace_behind(f"{store}/new", f"{store}/old")
    assert fsspec.open(f"{store}/old").fs.cat_file(f"{store}/old") == b"of the new"


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("at", [0, 1])
def test_an_array_in_two_goes(
    at: int, zarr_format: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads meanwhile is told, also after it has stopped halfway."""
    old, new = PROBLEM.truth[:, :20], np.where(PROBLEM.mask, PROBLEM.truth, 0)
    for name, X in (("old", old), ("new", new)):
        target = zarr.create_array(
            f"{store}/{name}", data=X, chunks=(50, 7), zarr_format=zarr_format
        )
        target.update_attributes({RUN: name})
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        stop = interrupted(at, lambda: seen.append(attribute_of(f"{store}/old")))
        patch.setattr(replace, "_copy", stop)
        with pytest.raises(OSError, match="the store has gone"):
            replace_behind(f"{store}/new", f"{store}/old")
    assert [*seen, attribute_of(f"{store}/old")] == [BEING_REPLACED] * 2
    replace_behind(f"{store}/new", f"{store}/old")
    assert attribute_of(f"{store}/old") == "new"
    found = zarr.open_array(f"{store}/old", mode="r")
    np.testing.assert_array_equal(found[...], new, strict=True)


def test_a_model_is_not_half_read(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = [dmf.factorize(PROBLEM.nan, rank, max_rounds=2, tol=0) for rank in (2, 3)]
    for name, fit in zip(("old", "new"), fits, strict=True):
        fit.save(f"{store}/{name}")

    def load() -> None:
        with pytest.raises(ValueError, match="is being replaced; load it again in a"):
            dmf.load(f"{store}/old")

    with monkeypatch.context() as patch:
        patch.setattr(replace, "_copy", interrupted(1, load))
        with pytest.raises(OSError, match="the store has gone"):
            replace_behind(f"{store}/new", f"{store}/old")
    load()
    replace_behind(f"{store}/new", f"{store}/old")
    np.testing.assert_array_equal(dmf.load(f"{store}/old").W, fits[1].W, strict=True)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_job_that_ends_halfway_is_finished(
    at: int, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = {"model": f"{store}/m.zarr", "matrix": f"{store}/X.zarr", "mask": None}
    path = job_file(tmp_path, output=output)
    write_rows(tmp_path, 90)
    run_job(path)
    X = write_rows(tmp_path, 100)
    with monkeypatch.context() as patch:
        patch.setattr(replace, "_copy", interrupted(at, lambda: None))
        result = run_job(path, code=1)
    assert "the store has gone" in told(result)
    assert "the next run finishes publishing" not in told(result)
    result = run_job(path)
    assert "finished what a killed run was about to publish" in result.stderr
    assert told(result).startswith("nothing to do")
    filled = open_matrix(f"{store}/X.zarr")
    expected = dmf.impute(X, dmf.load(f"{store}/m.zarr"))
    np.testing.assert_array_equal(filled.compute(), expected, strict=True)
    assert names_in(store) == ["X.zarr", "m.zarr", "m.zarr.manifest.json"]


def test_an_output_that_fails_leaves_the_old_one(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = {"model": f"{store}/m.zarr", "matrix": f"{store}/X.zarr", "mask": None}
    path = job_file(tmp_path, output=output)
    write_rows(tmp_path, 90)
    run_job(path)
    before = open_matrix(f"{store}/X.zarr").compute()

    def fail(*arguments: Any, **options: Any) -> None:
        write_matrix(*arguments, **options)
        msg = "the store is full"
        raise OSError(msg)

    write_rows(tmp_path, 100)
    with monkeypatch.context() as patch:
        patch.setattr("dmf.io.matrices.write_matrix", fail)
        run_job(path, code=1)
    np.testing.assert_array_equal(open_matrix(f"{store}/X.zarr"), before, strict=True)
    assert dmf.load(f"{store}/m.zarr").shape == (90, 30)
    kept = ["X.zarr", "m.zarr", "m.zarr.manifest.json"]
    assert names_in(store) == sorted([*kept, "m.zarr.checkpoint"])
    assert told(run_job(path)).startswith("done: a warm run")
    assert names_in(store) == kept
