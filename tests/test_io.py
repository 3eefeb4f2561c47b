"""Matrices on disk: what is read is what was written, and failures leave no trace."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from dmf.io import places
from dmf.io.blocks import store_zarr
from dmf.io.matrices import check_writable, open_matrix, write_matrix
from tests.problems import low_rank

X = low_rank(30, 20).nan


def small_chunks(itemsize: int = 8) -> Any:
    """Return a context in which "auto" chunks hold 100 numbers at most."""
    return dask.config.set({"array.chunk-size": f"{100 * itemsize}B"})


def failing(where: tuple[int, int] = (1, 0)) -> Any:
    """Return a Dask array, 2 × 2 chunks, one of which can't be computed."""

    def block(block_info: Any = None) -> Any:
        if block_info[None]["chunk-location"] == where:
            msg = "this block fails"
            raise RuntimeError(msg)
        return np.ones((2, 2))

    return da.map_blocks(
        block, chunks=((2, 2), (2, 2)), dtype=float, meta=np.empty((0, 0))
    )


# ------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8", "int16", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_read_lazily_and_exactly(tmp_path: Path, dtype: str, order: Any) -> None:
    matrix = np.asarray(np.nan_to_num(X) * 10, dtype=dtype, order=order)
    np.save(tmp_path / "X.npy", matrix)
    with small_chunks(matrix.itemsize):
        read = open_matrix(tmp_path / "X.npy")
    assert read.npartitions > 3
    assert read.dtype == matrix.dtype
    np.testing.assert_array_equal(read.compute(scheduler="sync"), matrix, strict=True)


def test_npy_is_opened_inside_the_tasks(tmp_path: Path) -> None:
    path = tmp_path / "X.npy"
    np.save(path, np.zeros((30, 20)))
    with small_chunks():
        first = open_matrix(path)
    # Pickled, a memmap or an array would take 4800 bytes for the numbers alone.
    graph = pickle.dumps(dict(first.__dask_graph__()))
    assert len(graph) / first.npartitions < 1000
    np.save(path, X)
    np.testing.assert_array_equal(first.compute(), X)
    assert open_matrix(path).name != first.name


def test_npy_block_is_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", X)
    block = open_matrix(tmp_path / "X.npy").compute()
    assert type(block) is np.ndarray
    assert block.flags.owndata


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "dia"])
@pytest.mark.parametrize("make", [sp.csr_array, sp.csr_matrix])
def test_npz_of_any_format(tmp_path: Path, kind: str, make: Any) -> None:
    matrix = make(low_rank().sparse()).asformat(kind)
    sp.save_npz(tmp_path / "X.npz", matrix)
    read = open_matrix(tmp_path / "X.npz")
    assert type(read) is type(matrix)
    np.testing.assert_array_equal(read.toarray(), matrix.toarray(), strict=True)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_keeps_its_chunks(tmp_path: Path, zarr_format: Any) -> None:
    zarr.create_array(
        tmp_path / "X.zarr", data=X, chunks=(8, 20), zarr_format=zarr_format
    )
    read = open_matrix(tmp_path / "X.zarr")
    assert read.chunks == ((8, 8, 8, 6), (20,))
    np.testing.assert_array_equal(read.compute(), X, strict=True)


def test_an_array_in_a_zarr_group(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "all.zarr")
    group.create_array("X", data=X)
    np.testing.assert_array_equal(open_matrix(tmp_path / "all.zarr" / "X"), X)


def test_file_url_is_a_path(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", X)
    np.testing.assert_array_equal(open_matrix(f"file://{tmp_path}/X.npy"), X)


# --------------------------------------------------------------- what can't be read


def _truncated_npy(path: Path) -> None:
    np.save(path, X)
    path.write_bytes(path.read_bytes()[:-1])


def _flipped_npz(path: Path) -> None:
    sp.save_npz(path, low_rank().sparse(), compressed=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _index_too_large(path: Path) -> None:
    arrays = {"data": np.ones(2), "indices": np.array([0, 9]), "indptr": [0, 1, 2]}
    np.savez(path, format=b"csr", shape=(2, 2), **arrays)


def _blocks_beyond(path: Path) -> None:
    blocks = {"data": np.ones((1, 2, 2)), "indices": [0], "indptr": [0, 1]}
    np.savez(path, format=b"bsr", shape=(3, 2), **blocks)


def _group(path: Path) -> None:
    zarr.create_group(path).create_array("inside", data=X)


def _folder(path: Path) -> None:
    path.mkdir()


def _bad_json(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")


def _zarr_vector(path: Path) -> None:
    zarr.create_array(path, data=np.ones(3))


UNREADABLE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("X.npy", lambda p: p.write_bytes(b"no"), "isn't a .npy file of numbers"),
    ("X.npy", lambda p: p.write_bytes(b""), "isn't a .npy file of numbers"),
    ("X.npy", lambda p: p.write_bytes(pickle.dumps(X)), "isn't a .npy file of num"),
    ("X.npy", _truncated_npy, "is cut off: it has 4927 bytes.* 4928; write it anew"),
    (
        "X.npy",
        lambda p: np.save(p, np.array([[1, None]])),
        "pickled Python objects, which dmf never loads; convert",
    ),
    ("X.npy", lambda p: np.save(p, np.ones(3)), r"shape \(3,\); a matrix has two"),
    ("X.npz", lambda p: np.savez(p, X=X), "isn't a sparse matrix, or it is damaged"),
    ("X.npz", lambda p: p.write_bytes(b""), "isn't a sparse matrix, or it is damaged"),
    ("X.npz", lambda p: p.write_bytes(b"no"), "isn't a sparse matrix, or it is dam"),
    ("X.npz", _flipped_npz, "isn't a sparse matrix, or it is damaged"),
    ("X.npz", _blocks_beyond, "isn't a sparse matrix, or it is damaged"),
    ("X.npz", _index_too_large, "isn't a sparse matrix, or it is damaged"),
    ("X.zarr", _group, "is a Zarr group, not an array; .*/NAME .it has: inside."),
    ("X.zarr", _folder, "can't be opened as Zarr .it has no Zarr metadata"),
    ("X.zarr", lambda p: p.write_bytes(b""), "can't be opened as Zarr"),
    ("X.zarr", _bad_json, "can't be opened as Zarr"),
    ("X.zarr", _zarr_vector, r"shape \(3,\); a matrix has two"),
    ("X.txt", lambda p: p.write_text("1,2"), "of no kind that dmf reads; give a .npy"),
]


@pytest.mark.parametrize(("name", "make", "message"), UNREADABLE)
def test_what_cannot_be_read(
    tmp_path: Path, name: str, make: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        open_matrix(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["X.npy", "X.npz", "X.zarr"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no.*{name}; check the path"):
        open_matrix(tmp_path / name)


def test_url_that_cannot_be_opened() -> None:
    with pytest.raises(ValueError, match=r"nonsense://X\.zarr can't be opened as Zarr"):
        open_matrix("nonsense://X.zarr")


# ------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize("chunks", [None, (8, 20), ((10, 20), (5, 12, 3))])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_round_trip(tmp_path: Path, suffix: str, chunks: Any, dtype: str) -> None:
    matrix = np.nan_to_num(X * 10).astype(dtype)
    written = matrix if chunks is None else da.from_array(matrix, chunks=chunks)
    path = tmp_path / f"X{suffix}"
    write_matrix(written, path)
    np.testing.assert_array_equal(open_matrix(path).compute(), matrix, strict=True)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize("make", [np.zeros, da.zeros])
def test_empty_matrix(tmp_path: Path, suffix: str, make: Any) -> None:
    write_matrix(make((0, 3)), tmp_path / f"X{suffix}")
    assert open_matrix(tmp_path / f"X{suffix}").compute().shape == (0, 3)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [((8, 20), (8, 20)), ((8, (20, 0)), (8, 20)), (((10, 20), (5, 12, 3)), (20, 12))],
)
def test_zarr_output_is_rechunked_only_if_needed(
    tmp_path: Path, chunks: Any, expected: tuple[int, int]
) -> None:
    write_matrix(da.from_array(X, chunks=chunks), tmp_path / "X.zarr")
    assert zarr.open_array(tmp_path / "X.zarr", mode="r").chunks == expected


def test_blas_has_one_thread_in_each_task(tmp_path: Path) -> None:
    def block(block_info: Any = None) -> Any:
        threads = [
            library["num_threads"]
            for library in threadpool_info()
            if library["user_api"] == "blas"
        ]
        return np.full((1, 1), max(threads))

    with threadpool_limits(limits=2, user_api="blas"):
        lazy = da.map_blocks(block, chunks=((1,) * 4, (1,)), meta=np.empty((0, 0), int))
        write_matrix(lazy, tmp_path / "threads.npy")
    assert np.load(tmp_path / "threads.npy").ravel().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_a_matrix_may_replace_the_file_that_it_is_made_from(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"X{suffix}"
    write_matrix(X, path)
    write_matrix(open_matrix(path) + 1, path, overwrite=True)
    np.testing.assert_array_equal(open_matrix(path), X + 1)


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_failure_leaves_no_trace(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"X{suffix}"
    # In order, so that nothing is still being written when the error arrives.
    with (
        dask.config.set(scheduler="sync"),
        pytest.raises(RuntimeError, match="this block fails"),
    ):
        write_matrix(failing(), path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_failure_keeps_the_older_output(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"X{suffix}"
    write_matrix(X, path)
    with (
        dask.config.set(scheduler="sync"),
        pytest.raises(RuntimeError, match="this block fails"),
    ):
        write_matrix(failing(), path, overwrite=True)
    np.testing.assert_array_equal(open_matrix(path), X)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_task_that_outlives_a_failure_leaves_no_trace(
    tmp_path: Path, suffix: str
) -> None:
    began, failed = threading.Event(), threading.Event()

    def block(block_info: Any = None) -> Any:
        if block_info[None]["chunk-location"] == (0, 0):
            began.set()
            failed.wait(timeout=60)
            return np.ones((2, 2))
        began.wait(timeout=60)
        msg = "this block fails"
        raise RuntimeError(msg)

    lazy = da.map_blocks(block, chunks=((2, 2), (2,)), meta=np.empty((0, 0)))
    with ThreadPoolExecutor(2) as pool, dask.config.set(pool=pool):
        with pytest.raises(RuntimeError, match="this block fails"):
            write_matrix(lazy, tmp_path / f"X{suffix}")
        failed.set()
    assert os.listdir(tmp_path) == []


def test_write_that_outlives_a_failure_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, removed = threading.Event(), threading.Event()
    remove = places.remove

    def removing(path: str) -> None:
        remove(path)
        removed.set()

    monkeypatch.setattr(places, "remove", removing)

    class Slow:
        """Its chunk is written after others have failed, and before all is removed."""

        def __init__(self, place: str) -> None:
            self.place = place

        def __setitem__(self, where: Any, block: Any) -> None:
            began.set()
            removed.wait(timeout=0.2)  # which nobody may do meanwhile
            os.makedirs(f"{self.place}/c", exist_ok=True)  # as Zarr does

    def block(block_info: Any = None) -> Any:
        if block_info[None]["chunk-location"] == (1, 0):
            began.wait(timeout=60)
            msg = "this block fails"
            raise RuntimeError(msg)
        return np.ones((2, 2))

    lazy = da.map_blocks(block, chunks=((2, 2), (2,)), meta=np.empty((0, 0)))

    def write() -> None:
        with places.published(str(tmp_path / "X.zarr"), lambda: None) as temporary:
            os.mkdir(temporary)
            store_zarr(lazy, temporary, Slow(temporary))

    with (
        ThreadPoolExecutor(2) as pool,
        dask.config.set(pool=pool),
        pytest.raises(RuntimeError, match="this block fails"),
    ):
        write()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_full_disk_raises_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_matrix(failing(), tmp_path / "X.npy")
    assert os.listdir(tmp_path) == []


def test_output_that_cannot_be_moved_in_keeps_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "X.zarr"
    write_matrix(X, path)
    rename = os.rename

    def fails_for_the_new_one(source: str, target: str) -> None:
        if source.endswith(".part"):
            raise OSError(errno.EIO, "I/O error")
        rename(source, target)

    # As on systems and file systems that can't exchange two names.
    monkeypatch.setattr("dmf.io.places._exchanged", lambda *_: False)
    monkeypatch.setattr(os, "rename", fails_for_the_new_one)
    with pytest.raises(OSError, match="I/O error"):
        write_matrix(X + 1, path, overwrite=True)
    np.testing.assert_array_equal(open_matrix(path), X)
    assert os.listdir(tmp_path) == [path.name]


# ------------------------------------------------------------- what can't be written to


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_existing_output_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"X{suffix}"
    write_matrix(X, path)
    for refuse in (lambda: check_writable(path), lambda: write_matrix(X + 1, path)):
        with pytest.raises(FileExistsError, match=f"X{suffix} exists; choose another"):
            refuse()
    np.testing.assert_array_equal(open_matrix(path), X)


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("X.npy", _folder, "a file"),
        ("X.npy", _zarr_vector, "a file"),
        ("X.zarr", _folder, "a Zarr array"),
        ("X.zarr", _group, "a Zarr array"),
        ("X.zarr", lambda p: p.write_text("notes"), "a Zarr array"),
    ],
)
def test_only_like_is_overwritten_by_like(
    tmp_path: Path, name: str, make: Callable[[Path], Any], kind: str
) -> None:
    make(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=f"exists and isn't {kind}, so that it"):
        write_matrix(X, tmp_path / name, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "X.npy"

    def block() -> Any:
        path.write_text("somebody else's")
        return np.ones((2, 2))

    lazy = da.map_blocks(block, chunks=((2,), (2,)), meta=np.empty((0, 0)))
    with pytest.raises(FileExistsError, match="exists; choose another path"):
        write_matrix(lazy, path)
    assert path.read_text() == "somebody else's"
    assert os.listdir(tmp_path) == [path.name]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/no; create it"):
        check_writable(tmp_path / "no" / "X.npy")


def test_folder_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root, as whom tests often run, may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match="can't be written to; choose another"):
        check_writable(tmp_path / "X.npy")


@pytest.mark.parametrize("name", ["X.txt", "X", "X.npz", "memory://X.npz"])
def test_unknown_output(tmp_path: Path, name: str) -> None:
    path = name if "://" in name else tmp_path / name
    with pytest.raises(
        ValueError, match=r"its name must end in \.npy or \.zarr or, for"
    ):
        check_writable(path)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (low_rank().sparse(), TypeError, "use scipy.sparse.save_npz"),
        (np.ones(3), ValueError, "array must have two dimensions"),
        (np.ones((2, 2), dtype=complex), TypeError, "array must hold real numbers"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, array: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_matrix(array, tmp_path / "X.npy")
    assert os.listdir(tmp_path) == []


def test_zarr_behind_a_url() -> None:
    url = "memory://dmf-test-io/X.zarr"
    with pytest.raises(FileNotFoundError, match=f"there is nothing at {url}"):
        open_matrix(url)
    write_matrix(da.from_array(X, chunks=(8, 20)), url)
    np.testing.assert_array_equal(open_matrix(url), X)
    with pytest.raises(FileExistsError, match=f"{url} exists; choose another path"):
        write_matrix(X, url)
    write_matrix(X + 1, url, overwrite=True)
    np.testing.assert_array_equal(open_matrix(url), X + 1)


def test_zarr_group_behind_a_url_is_not_overwritten() -> None:
    url = "memory://dmf-test-io/group.zarr"
    zarr.create_group(url).create_array("inside", data=X)
    with pytest.raises(FileExistsError, match="exists and isn't a Zarr array"):
        write_matrix(X, url, overwrite=True)
    np.testing.assert_array_equal(open_matrix(f"{url}/inside"), X)


def test_output_is_plain_zarr_3(tmp_path: Path) -> None:
    write_matrix(X, tmp_path / "X.zarr")
    metadata = json.loads((tmp_path / "X.zarr" / "zarr.json").read_text())
    assert (metadata["zarr_format"], metadata["node_type"]) == (3, "array")


# ------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(30, 20), (1, 20), (20, 1), (0, 3)])
def test_npy_behind_a_url_is_read_by_ranges(
    order: Any, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://dmf-test-io/X.npy"
    rng = np.random.default_rng(0)
    matrix = np.asarray(rng.standard_normal(shape), order=order)
    with fsspec.open(url, "wb") as file:
        np.save(file, matrix)
    read: list[int] = []
    cat_file = MemoryFileSystem.cat_file

    def counted(self: Any, path: str, **options: Any) -> bytes:
        content: bytes = cat_file(self, path, **options)
        read.append(len(content))
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    with small_chunks():
        lazy = open_matrix(url)
    (header,) = read
    np.testing.assert_array_equal(lazy.compute(), matrix, strict=True)
    assert sum(read) - header == matrix.nbytes  # each number once
    assert max(read[1:], default=0) <= 800
    assert (lazy.npartitions > 3) == (shape == (30, 20))


@pytest.mark.parametrize("chunks", [None, (8, 20), ((10, 20), (5, 12, 3))])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_npy_to_a_url(chunks: Any, dtype: str) -> None:
    url = f"memory://dmf-test-io/{dtype}-{chunks}/X.npy"
    matrix = np.nan_to_num(X * 10).astype(dtype)
    written = matrix if chunks is None else da.from_array(matrix, chunks=chunks)
    write_matrix(written, url)
    np.testing.assert_array_equal(open_matrix(url).compute(), matrix, strict=True)
    with pytest.raises(FileExistsError, match=r"X\.npy exists; choose another path"):
        write_matrix(written, url)
    write_matrix(written + 1, url, overwrite=True)
    np.testing.assert_array_equal(open_matrix(url).compute(), matrix + 1)


def test_failure_leaves_no_half_of_a_zarr_behind_a_url() -> None:
    url = "memory://dmf-test-io/failed/X.zarr"
    with pytest.raises(RuntimeError, match="this block fails"):
        write_matrix(failing(), url)
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        open_matrix(url)
    write_matrix(X, url)
    np.testing.assert_array_equal(open_matrix(url), X)


def test_shards_are_read_at_once(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "X.zarr", data=X, chunks=(2, 5), shards=(8, 10))
    read = open_matrix(tmp_path / "X.zarr")
    assert read.chunks == ((8, 8, 8, 6), (10, 10))
    np.testing.assert_array_equal(read.compute(), X, strict=True)


def test_failure_leaves_no_trace_behind_a_url() -> None:
    url = "memory://dmf-test-io/failed/X.npy"
    with pytest.raises(RuntimeError, match="this block fails"):
        write_matrix(failing(), url)
    files, path = fsspec.url_to_fs(url)
    assert not files.exists(path)
    write_matrix(X, url)
    with pytest.raises(RuntimeError, match="this block fails"):
        write_matrix(failing(), url, overwrite=True)
    np.testing.assert_array_equal(open_matrix(url), X)


@pytest.mark.parametrize("name", ["X.npz", "X.mtx", "X.mtx.gz"])
def test_sparse_behind_a_url(tmp_path: Path, name: str) -> None:
    matrix = low_rank().sparse()
    if name == "X.npz":
        sp.save_npz(tmp_path / name, matrix)
    else:
        scipy.io.mmwrite(tmp_path / "X.mtx", matrix, precision=17)
        content = (tmp_path / "X.mtx").read_bytes()
        (tmp_path / "X.mtx.gz").write_bytes(gzip.compress(content))
    url = f"memory://dmf-test-io/{name}"
    with fsspec.open(url, "wb") as file:
        file.write((tmp_path / name).read_bytes())
    for place in (url, tmp_path / name):
        assert (sp.csr_array(open_matrix(place)) != matrix).nnz == 0


@pytest.mark.parametrize(("name", "make", "message"), UNREADABLE)
def test_what_cannot_be_read_behind_a_url(
    tmp_path: Path, name: str, make: Callable[[Path], Any], message: str
) -> None:
    """The same sentences as for files, but that a URL of unknown kind may be Zarr."""
    make(tmp_path / name)
    url = f"memory://dmf-test-io/{tmp_path.name}/{name}"
    files, path = fsspec.url_to_fs(url)
    files.put(str(tmp_path / name), path, recursive=True)
    with pytest.raises((ValueError, OSError)) as caught:
        open_matrix(url)
    if name.endswith((".npy", ".npz")):
        assert re.search(message, str(caught.value))
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_zarr_with_damaged_chunks(tmp_path: Path) -> None:
    write_matrix(X, tmp_path / "X.zarr")
    for chunk in (tmp_path / "X.zarr" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"no chunk at all")
    with pytest.raises(
        ValueError, match=r"a part of .*X\.zarr can't be read .*; check"
    ):
        open_matrix(tmp_path / "X.zarr").compute()


@pytest.mark.parametrize("chunks", [(1, 1), (10**5, 10**5), (10**9, 10**9)])
def test_zarr_that_says_it_is_huge(tmp_path: Path, chunks: tuple[int, int]) -> None:
    zarr.create_array(
        tmp_path / "X.zarr", shape=(10**9, 10**9), chunks=chunks, dtype="float64"
    )
    with pytest.raises(ValueError, match="can be worked on; check it, or write it in"):
        open_matrix(tmp_path / "X.zarr")


def test_sparse_that_says_it_is_huge(tmp_path: Path) -> None:
    header = "%%MatrixMarket matrix coordinate real general\n"
    (tmp_path / "X.mtx").write_text(f"{header}1000000000 1000000000 1\n1 1 1.0\n")
    huge = sp.coo_array(([1.0], ([0], [0])), shape=(10**9, 10**9))
    sp.save_npz(tmp_path / "X.npz", huge)
    for name in ("X.mtx", "X.npz"):
        with pytest.raises(ValueError, match="but it stores 1 entries only; check its"):
            open_matrix(tmp_path / name)


# One line for each format that is read and written as it is, without labels.
FORMATS = [".npy", ".zarr"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    suffix=st.sampled_from(FORMATS),
    remote=st.booleans(),
    cut=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_any_shape_and_chunks(
    tmp_path: Path, m: int, n: int, suffix: str, remote: bool, cut: tuple[int, int]
) -> None:
    matrix = np.arange(m * n, dtype=float).reshape(m, n)
    where = "memory://dmf-test-io/any/X" if remote else f"{tmp_path}/X"
    write_matrix(da.from_array(matrix, chunks=cut), f"{where}{suffix}", overwrite=True)
    np.testing.assert_array_equal(open_matrix(f"{where}{suffix}"), matrix, strict=True)
