"""Malformed inputs, hundreds of them: one line that says what is wrong, and no trace.

Each kind of damage is a function that writes an input, drawn by a seed, and returns
what the command line is told. All of them must be refused: by commands, and as the
input of jobs.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import re
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr
from click.testing import CliRunner

import dmf
from dmf.cli import main
from dmf.jobs.exits import Exit, JobError
from dmf.jobs.problems import read_job
from dmf.jobs.run import run_job
from tests.jobs import job_file

Rng = np.random.Generator
Maker = Callable[[Path, Rng], str]

SEEDS = 10  # for each kind
SHAPE = (6, 5)
HUGE = 10**9
MEGABYTES = 300  # what refusing may take at most
LONG = "--row=user --column=film --value=stars"

pytestmark = [
    # Of Dask, about what pandas will do one day.
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    # Of SciPy, for netCDF files that it can't make sense of.
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore:Cannot close a netcdf_file"),
]


def matrix(rng: Rng) -> Any:
    """Return a matrix that is fine."""
    return np.where(rng.random(SHAPE) < 0.8, rng.standard_normal(SHAPE), np.nan)


def cut(path: Path, rng: Rng, least: int = 0) -> None:
    """Leave out the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(least, len(content))])


def garble(path: Path, rng: Rng) -> None:
    """Put noise in the place of a file."""
    path.write_bytes(rng.bytes(int(rng.integers(1, 4000))))


def pick(rng: Rng, options: list[Any]) -> Any:
    return options[rng.integers(len(options))]


# -------------------------------------------------------------------------------- .npy


def npy_cut(folder: Path, rng: Rng) -> str:
    np.save(folder / "X.npy", matrix(rng))
    cut(folder / "X.npy", rng)
    return "X.npy"


def npy_noise(folder: Path, rng: Rng) -> str:
    garble(folder / "X.npy", rng)
    return "X.npy"


def npy_of_other_things(folder: Path, rng: Rng) -> str:
    X = np.ones(SHAPE)
    dtype = pick(rng, ["U3", "S4", "O", "c16", "M8[D]", "m8[s]", "V8", "f8,i4"])
    array = np.full(SHAPE, 1, "i8").astype("V8") if dtype == "V8" else X.astype(dtype)
    np.save(folder / "X.npy", array)
    return "X.npy"


def npy_of_other_shapes(folder: Path, rng: Rng) -> str:
    shapes = [(0, 5), (6, 0), (0, 0), (), (30,), (2, 3, 5), (1,) * 9]
    np.save(folder / "X.npy", np.ones(pick(rng, shapes)))
    return "X.npy"


def npy_header(folder: Path, rng: Rng) -> str:
    """A header of the right form that says what it shouldn't."""
    shape = pick(
        rng,
        [
            f"({HUGE}, {HUGE})",
            f"({2**63}, {2**63})",
            "(-6, 5)",
            "(-6, -5)",
            "(6.0, 5)",
            "('6', 5)",
            "[6, 5]",
            "(True, 5)",
            "6",
            "(6, 5",
            "(" * 500 + ")" * 500,
            "__import__('os').mkdir('left')",
        ],
    )
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    return with_header(folder, text, b"\x01\x00")


def npy_header_of_other_kinds(folder: Path, rng: Rng) -> str:
    text = pick(
        rng,
        [
            "{'descr': '<f8', 'shape': (6, 5), }",
            "{'descr': 'nothing', 'fortran_order': False, 'shape': (6, 5), }",
            "{'descr': '<f8', 'fortran_order': 'no', 'shape': (6, 5), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (6, 5), }",
            "{'descr': '<f800', 'fortran_order': False, 'shape': (6, 5), }",
            "{'descr': '|V0', 'fortran_order': False, 'shape': (6, 5), }",
            "{}",
            "[]",
            "\x00",
            "'",
        ],
    )
    return with_header(folder, text, pick(rng, [b"\x01\x00", b"\x02\x00", b"\x09\x07"]))


def with_header(folder: Path, text: str, version: bytes) -> str:
    size = len(text).to_bytes(4 if version[0] == 2 else 2, "little")
    content = b"\x93NUMPY" + version + size + text.encode("latin1") + bytes(240)
    (folder / "X.npy").write_bytes(content)
    return "X.npy"


def npy_of_bad_values(folder: Path, rng: Rng) -> str:
    X = matrix(rng)
    X[tuple(rng.integers(SHAPE))] = pick(rng, [np.inf, -np.inf])
    np.save(folder / "X.npy", X if rng.random() < 0.7 else np.full(SHAPE, np.nan))
    return "X.npy"


# -------------------------------------------------------------------------- .npz, .mtx


def npz_cut(folder: Path, rng: Rng) -> str:
    sp.save_npz(folder / "X.npz", sp.random_array(SHAPE, density=0.5, rng=rng))
    cut(folder / "X.npz", rng)
    return "X.npz"


def npz_noise(folder: Path, rng: Rng) -> str:
    garble(folder / "X.npz", rng)
    return "X.npz"


def npz_flipped(folder: Path, rng: Rng) -> str:
    """One bit of the values is another one: a checksum tells."""
    X = sp.csr_array(np.abs(np.nan_to_num(matrix(rng))) + 1)
    sp.save_npz(folder / "X.npz", X, compressed=False)
    content = bytearray((folder / "X.npz").read_bytes())
    where = content.index(X.data.tobytes()) + int(rng.integers(X.data.nbytes))
    content[where] ^= 1 << int(rng.integers(8))
    (folder / "X.npz").write_bytes(content)
    return "X.npz"


def npz_members(folder: Path, rng: Rng) -> str:
    """Arrays that make no matrix."""
    members = {
        "format": np.array(b"csr"),
        "shape": np.array([3, 3]),
        "data": np.ones(3),
        "indices": np.array([0, 1, 2]),
        "indptr": np.array([0, 1, 2, 3]),
    }
    members |= pick(
        rng,
        [
            {"format": np.array(b"xyz")},
            {"format": np.array(7)},
            {"format": np.array(["csr", None], dtype=object)},
            {"shape": np.array([2, 2])},
            {"shape": np.array([-3, 3])},
            {"shape": np.array([3.5, 3])},
            {"shape": np.array([3, 3, 3])},
            {"shape": np.array([HUGE, HUGE])},
            {"shape": np.array([3, HUGE * HUGE])},
            {"shape": np.array("3 3")},
            {"data": np.ones(2)},
            {"data": np.array(["a", "b", "c"])},
            {"data": np.array([1, None, 2], dtype=object)},
            {"data": np.ones(3) * 1j},
            {"data": np.array([1, np.inf, 2])},
            {"data": np.ones(3, dtype="M8[D]")},
            {"indices": np.array([0, 1, 3])},
            {"indices": np.array([0, -1, 2])},
            {"indices": np.array(["a", "b", "c"])},
            {"indptr": np.array([0, 2, 1, 3])},
            {"indptr": np.array([0, 1, 2])},
            {"indptr": np.array([0, 1, 2, HUGE])},
            {"indptr": np.array([1, 1, 2, 3])},
        ],
    )
    np.savez(folder / "X.npz", **members)
    return "X.npz"


def npz_of_other_kinds(folder: Path, rng: Rng) -> str:
    row, column = np.array([0, 1]), np.array([0, 1])
    ones = np.ones(2)
    members = pick(
        rng,
        [
            {
                "format": b"coo",
                "shape": (2, 2),
                "data": ones,
                "row": row,
                "col": [0, 5],
            },
            {"format": b"coo", "shape": (HUGE, HUGE), "data": ones, "row": row}
            | {"col": column},
            {"format": b"coo", "shape": (2, 2), "data": ones, "row": row},
            {"format": b"csc", "shape": (HUGE, 2), "data": ones, "indices": row}
            | {"indptr": [0, 1, 2]},
            {"format": b"dia", "shape": (HUGE, HUGE), "data": [ones], "offsets": [0]},
            {"format": b"bsr", "shape": (3, 2), "data": np.ones((1, 2, 2))}
            | {"indices": [0], "indptr": [0, 1]},
            {
                "format": b"csr",
                "shape": (0, 5),
                "data": [],
                "indices": [],
                "indptr": [0],
            },
            {"format": b"csr", "shape": (2, 2), "data": [], "indices": []}
            | {"indptr": [0, 0, 0]},
            {"X": np.ones((2, 2))},
        ],
    )
    np.savez(folder / "X.npz", **members)
    return "X.npz"


def npz_with_paths(folder: Path, rng: Rng) -> str:
    """Members that would be outside if they were unpacked; none must be."""
    sp.save_npz(folder / "fine.npz", sp.random_array(SHAPE, density=0.5, rng=rng))
    start = pick(rng, ["../", "/tmp/../", "..\\", "a/../../"])
    with (
        zipfile.ZipFile(folder / "fine.npz") as fine,
        zipfile.ZipFile(folder / "X.npz", "w") as bad,
    ):
        for name in fine.namelist():
            bad.writestr(start + name, fine.read(name))
    return "X.npz"


def npz_member_header(folder: Path, rng: Rng) -> str:
    """An array inside says that it's huge."""
    file = io.BytesIO()
    count = pick(rng, [HUGE, HUGE * HUGE, -1])
    header = {"descr": "<f8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
    np.savez(folder / "X.npz", format=b"csr", shape=(3, 3), indptr=[0, 1, 2, 3])
    with zipfile.ZipFile(folder / "X.npz", "a") as archive:
        archive.writestr("data.npy", file.getvalue() + bytes(24))
        archive.writestr("indices.npy", file.getvalue() + bytes(24))
    return "X.npz"


MARKET = "%%MatrixMarket matrix coordinate real general\n"


def mtx_cut(folder: Path, rng: Rng) -> str:
    X = sp.random_array(SHAPE, density=0.5, rng=rng)
    scipy.io.mmwrite(folder / "X.mtx", X, precision=3)
    lines = (folder / "X.mtx").read_text().splitlines(keepends=True)
    kept = lines[: rng.integers(len(lines) - 1)]
    (folder / "X.mtx").write_text("".join(kept))
    return "X.mtx"


def mtx_lines(folder: Path, rng: Rng) -> str:
    text = pick(
        rng,
        [
            "",
            "2 2 1\n1 1 1\n",
            "%%MatrixMarket\n2 2 1\n1 1 1\n",
            MARKET.replace("coordinate", "list") + "2 2 1\n1 1 1\n",
            MARKET.replace("general", "symmetric") + "2 3 1\n1 3 1\n",
            MARKET.replace("real", "complex") + "2 2 1\n1 1 1 1\n",
            f"{MARKET}2 2 1\n0 1 1\n",
            f"{MARKET}2 2 1\n1 3 1\n",
            f"{MARKET}2 2 1\n-1 1 1\n",
            f"{MARKET}2 2 1\n1 1 one\n",
            f"{MARKET}2 2 1\n1 1 inf\n",
            f"{MARKET}2 2\n1 1 1\n",
            f"{MARKET}2 2 {HUGE * HUGE}\n1 1 1\n",
            f"{MARKET}{HUGE} {HUGE} 1\n1 1 1\n",
            f"{MARKET}{HUGE} {HUGE} 0\n",
            f"{MARKET}{2**64} 2 1\n1 1 1\n",
            f"{MARKET}0 5 0\n",
            f"{MARKET}2 2 0\n",
            MARKET.replace("coordinate", "array") + "2 2\n1\n2\n3\n",
            MARKET.replace("coordinate", "array") + f"{HUGE} {HUGE}\n1\n",
            MARKET.replace("coordinate", "array") + "-2 2\n1\n",
        ],
    )
    (folder / "X.mtx").write_text(text)
    return "X.mtx"


def mtx_noise(folder: Path, rng: Rng) -> str:
    garble(folder / "X.mtx", rng)
    if rng.random() < 0.5:
        noise = (folder / "X.mtx").read_bytes()
        (folder / "X.mtx").write_bytes(MARKET.encode() + b"\xff" + noise)
    return "X.mtx"


def compressed_noise(folder: Path, rng: Rng) -> str:
    name = pick(rng, ["X.mtx.gz", "X.mtx.bz2", "t.csv.gz", "t.tsv.bz2", "t.csv.xz"])
    garble(folder / name, rng)
    return name if "mtx" in name else f"{name} {LONG}"


# -------------------------------------------------------------------------------- Zarr


def zarr_array(folder: Path, rng: Rng, **options: Any) -> Path:
    zarr_format: Any = pick(rng, [2, 3])
    settings: dict[str, Any] = {"chunks": (3, 5), "zarr_format": zarr_format}
    settings |= options or {"data": matrix(rng)}
    zarr.create_array(folder / "X.zarr", **settings)
    return folder / "X.zarr"


def chunks_of(path: Path) -> list[Path]:
    inside = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [file for file in inside if not re.match(r"\.z|zarr\.json", file.name)]


def zarr_chunk(folder: Path, rng: Rng) -> str:
    """A chunk is cut off, noise or empty. (One that is missing stands for zeros.)"""
    chunk = pick(rng, chunks_of(zarr_array(folder, rng)))
    if rng.random() < 0.6:
        cut(chunk, rng)
    else:
        garble(chunk, rng)
    return "X.zarr"


def metadata_of(path: Path) -> Path:
    (file,) = [name for name in (".zarray", "zarr.json") if (path / name).exists()]
    return path / file


def zarr_metadata(folder: Path, rng: Rng) -> str:
    """A key is missing, or holds something of another kind."""
    file = metadata_of(zarr_array(folder, rng))
    metadata = json.loads(file.read_text())
    needed = ["shape", "zarr_format"]
    needed += ["dtype", "chunks"] if file.name == ".zarray" else ["data_type", "codecs"]
    key = pick(rng, needed)
    if rng.random() < 0.3:
        del metadata[key]
    else:
        metadata[key] = pick(rng, [None, "no", -1, [-6, 5], [[]], {"a": 1}, True, 99])
    file.write_text(json.dumps(metadata))
    return "X.zarr"


def zarr_metadata_text(folder: Path, rng: Rng) -> str:
    file = metadata_of(zarr_array(folder, rng))
    damage = rng.integers(4)
    if damage == 0:
        cut(file, rng)
    elif damage == 1:
        garble(file, rng)
    elif damage == 2:
        file.write_text(pick(rng, ["[]", "null", "7", '"zarr"', "{" * 5000]))
    else:
        file.unlink()
    return "X.zarr"


def zarr_of_other_things(folder: Path, rng: Rng) -> str:
    shapes = [(0, 5), (6, 0), (), (30,), (2, 3, 5)]
    if rng.random() < 0.5:
        shape = pick(rng, shapes)
        chunks = tuple(max(size, 1) for size in shape)
        zarr_array(folder, rng, shape=shape, chunks=chunks, dtype="f8")
    else:
        zarr_array(folder, rng, shape=SHAPE, dtype=pick(rng, ["c16", "M8[s]", "c8"]))
    return "X.zarr"


def zarr_that_says_it_is_huge(folder: Path, rng: Rng) -> str:
    chunks = pick(rng, [(1, 1), (1000, 1000), (10**6, 10**6), (HUGE, HUGE)])
    zarr_array(folder, rng, shape=(HUGE, HUGE), chunks=chunks, dtype="f8")
    return "X.zarr"


def zarr_of_bad_values(folder: Path, rng: Rng) -> str:
    X = matrix(rng)
    X[tuple(rng.integers(SHAPE))] = np.inf
    zarr_array(folder, rng, data=X)
    return "X.zarr"


def zarr_groups(folder: Path, rng: Rng) -> str:
    group = zarr.create_group(folder / "X.zarr", zarr_format=pick(rng, [2, 3]))
    for name in ["a", "b"][: rng.integers(3)]:
        group.create_array(name, data=matrix(rng))
    return pick(rng, ["X.zarr", "X.zarr --variable c", "X.zarr/c"])


def netcdf(folder: Path, rng: Rng) -> str:
    pytest.importorskip("xarray")
    scipy_file = scipy.io.netcdf_file(folder / "X.nc", "w")
    with scipy_file as file:
        for name, size in zip(("row", "column", "line"), (*SHAPE, 1), strict=True):
            file.createDimension(name, size)
        file.createVariable("x", "f8", ("row", "column"))[:] = matrix(rng)
        file.createVariable("c", "f8", ("line", "row", "column"))[:] = matrix(rng)
    damage = rng.integers(4)
    if damage == 0:
        cut(folder / "X.nc", rng)
    elif damage == 1:
        garble(folder / "X.nc", rng)
    return pick(rng, ["X.nc --variable y", "X.nc --variable c"])


# ------------------------------------------------------------------------------ tables


def long_lines(rng: Rng) -> list[str]:
    pairs = [(i, j) for i in range(6) for j in range(5) if (i + j) % 2 == 0]
    return [f"u{i},f{j},{rng.standard_normal():.3f}" for i, j in pairs]


def csv_long(folder: Path, rng: Rng) -> str:
    lines = long_lines(rng)
    k = int(rng.integers(len(lines)))
    user, film, _ = lines[k].split(",")
    bad = pick(
        rng,
        [
            f"{user},{film},1,2,3,4",  # ragged
            f"{user},{film},1,",
            f"{user},{film},good",
            f"{user},{film},inf",
            f"{user},{film},-Infinity",
            f"{user},{film},1 000",
            f"{user},{film},1e999",
            f"{user},{film},0y10",
            f"{user},{film}",  # too short
            f"{user},{film},2020-01-01",
            f",{film},1",
            f"{user},,1",
            f"NaN,{film},1",
            f"{user},NA,1",
            f"{lines[k - 1]}",  # twice
            f'"{user},{film},1',  # a quotation without end
        ],
    )
    text = "\n".join(["user,film,stars", *lines[:k], bad, *lines[k + 1 :]])
    (folder / "t.csv").write_text(f"{text}\n")
    return f"t.csv {LONG}"


def csv_text(folder: Path, rng: Rng) -> str:
    lines = "\n".join(long_lines(rng)).encode()
    content = pick(
        rng,
        [
            b"",
            b"\n\n",
            b"user,film,stars\n",
            b"a,b,c\n" + lines,
            b"user,user,user\n" + lines,
            b"user,film,stars\n" + lines + b"\n\xff\xfe,f\xe9,2\n",
            ("user,film,stars\n" + lines.decode()).encode("utf-16"),
            b"user;film;stars\n" + lines,
            b"PAR1" + lines,
        ],
    )
    (folder / "t.csv").write_bytes(content)
    return f"t.csv {LONG}"


def csv_wide(folder: Path, rng: Rng) -> str:
    table = [[f"{value:.3f}" for value in row] for row in matrix(rng)]
    k = int(rng.integers(6))
    damage = pick(rng, ["ragged", "words", "inf", "latin", "empty", "header", "index"])
    if damage == "ragged":
        table[k] += ["1"] * 3
    elif damage in ("words", "inf", "latin"):
        table[k][0] = {"words": "high", "inf": "inf", "latin": "é"}[damage]
    lines = ["a,b,c,d,e", *(",".join(row) for row in table)]
    lines = {"empty": [], "header": lines[:1]}.get(damage, lines)
    text = "\n".join(lines)
    (folder / "t.csv").write_bytes(
        text.encode("latin1" if damage == "latin" else "utf8")
    )
    return "t.csv --index z" if damage == "index" else "t.csv"


def parquet(folder: Path, rng: Rng) -> str:
    frame = pd.DataFrame(matrix(rng), columns=list("abcde"))
    kind = rng.integers(5)
    if kind == 2:
        frame["c"] = pick(rng, ["high", pd.Timestamp("2020"), b"bytes"])
    elif kind == 3:
        frame.loc[int(rng.integers(6)), "d"] = np.inf
    elif kind == 4:
        frame = frame[:0] if rng.random() < 0.5 else frame[[]]
    frame.to_parquet(folder / "t.parquet", row_group_size=pick(rng, [2, 100]))
    if kind == 0:
        cut(folder / "t.parquet", rng)
    elif kind == 1:
        garble(folder / "t.parquet", rng)
    return "t.parquet"


def parquet_pages(folder: Path, rng: Rng) -> str:
    """The table of contents is fine, the pages are noise."""
    frame = pd.DataFrame(matrix(rng), columns=list("abcde"))
    rows = pick(rng, [2, 100])
    frame.to_parquet(folder / "t.parquet", row_group_size=rows)
    content = bytearray((folder / "t.parquet").read_bytes())
    contents_at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content[4:contents_at] = rng.bytes(contents_at - 4)
    (folder / "t.parquet").write_bytes(content)
    return "t.parquet"


def parquet_long(folder: Path, rng: Rng) -> str:
    rows = [line.split(",") for line in long_lines(rng)]
    frame = pd.DataFrame(rows, columns=["user", "film", "stars"])
    damage = rng.integers(5)
    if damage:
        frame["stars"] = frame["stars"].astype(float)
    k = int(rng.integers(len(frame)))
    if damage == 1:
        frame.loc[k, "stars"] = np.inf
    elif damage == 2:
        frame.loc[k, "user"] = None
    elif damage == 3:
        frame = pd.concat([frame, frame[k : k + 1]])
    elif damage == 4:
        frame = frame[:0]
    frame.to_parquet(folder / "t.parquet", index=False)
    return f"t.parquet {LONG}"


# ------------------------------------------------------------------------------- paths


NAMES = ["X.npy", "X.npz", "X.mtx", "X.nc", "X.zarr", "t.csv", "t.tsv", "t.parquet"]


def path(folder: Path, rng: Rng) -> str:
    """A link to itself, a folder instead of a file, a file as a folder, or nothing."""
    name = pick(rng, NAMES)
    damage = rng.integers(5)
    if damage == 0:
        (folder / name).symlink_to(folder / name)
    elif damage == 1:
        (folder / name).symlink_to("other")
        (folder / "other").symlink_to(name)
    elif damage == 2:
        (folder / name).mkdir()
    elif damage == 3:
        (folder / "file").write_text("")
        name = f"file/{name}"
    return name


def zarr_loop(folder: Path, rng: Rng) -> str:
    """A chunk is a link to itself."""
    chunk = pick(rng, chunks_of(zarr_array(folder, rng)))
    chunk.unlink()
    chunk.symlink_to(chunk)
    return "X.zarr"


def forbidden(folder: Path, rng: Rng) -> str:
    """What is fine, but may not be read, or is where nobody may look."""
    X = matrix(rng)
    inner = folder / "inner"
    inner.mkdir()
    name = pick(rng, [name for name in NAMES if name != "X.nc"])
    if name == "X.zarr":
        zarr_array(inner, rng, data=X)
    elif name == "X.npy":
        np.save(inner / name, X)
    elif name == "X.npz":
        sp.save_npz(inner / name, sp.csr_array(np.nan_to_num(X)))
    elif name == "X.mtx":
        scipy.io.mmwrite(inner / name, sp.csr_array(np.nan_to_num(X)))
    elif name == "t.parquet":
        pd.DataFrame(X, columns=list("abcde")).to_parquet(inner / name)
    else:
        table = pd.DataFrame(X, columns=list("abcde"))
        separator = "," if name == "t.csv" else "\t"
        table.to_csv(inner / name, index=False, sep=separator)
    pick(rng, [inner, inner / name]).chmod(0)
    return f"inner/{name}"


def other_names(folder: Path, rng: Rng) -> str:
    garble(folder / "X.xyz", rng)
    scheme = pick(rng, ["nonsense", "memory", "file"])
    return pick(rng, ["X.xyz", "X", ".", "..", "/", f"{scheme}://no/such/X.npy"])


def empty(folder: Path, rng: Rng) -> str:
    name = pick(rng, [name for name in NAMES if name != "X.zarr"])
    (folder / name).write_bytes(b"")
    return name


STRUCTURE: list[Maker] = [
    *(npy_cut, npy_noise, npy_of_other_things, npy_of_other_shapes),
    *(npy_header, npy_header, npy_header_of_other_kinds),
    *(npz_cut, npz_noise, npz_flipped, npz_of_other_kinds),
    *(npz_members, npz_members, npz_members, npz_with_paths, npz_member_header),
    *(mtx_cut, mtx_lines, mtx_lines, mtx_lines, mtx_noise, compressed_noise),
    *(zarr_chunk, zarr_chunk, zarr_metadata, zarr_metadata, zarr_metadata),
    *(zarr_metadata_text, zarr_metadata_text, zarr_of_other_things),
    *(zarr_that_says_it_is_huge, zarr_groups, zarr_loop, netcdf),
    *(csv_long, csv_long, csv_long, csv_text, csv_text, csv_wide, csv_wide),
    *(parquet, parquet, parquet_pages, parquet_long, path, path, path, other_names),
    *(other_names, empty, empty, forbidden),
]
VALUES: list[Maker] = [npy_of_bad_values, zarr_of_bad_values]
CASES = [
    (maker, seed)
    for maker in dict.fromkeys([*STRUCTURE, *VALUES])
    for seed in range(SEEDS * [*STRUCTURE, *VALUES].count(maker))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a matrix that is fine, for what fills such matrices."""
    place = tmp_path_factory.mktemp("fine") / "model.zarr"
    dmf.factorize(matrix(np.random.default_rng(0)), 1, max_rounds=2).save(place)
    return place


def peak() -> float:
    """Return the most memory that this process has ever had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_there_are_enough() -> None:
    assert len(CASES) >= 500


@contextmanager
def by_permissions() -> Iterator[None]:
    """Let permissions count for root, too: Linux lets a thread give up its rights."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, of this thread
    before, without = ((ctypes.c_uint32 * 6)() for _ in range(2))
    assert libc.capget(header, before) == 0
    without[:] = before[:]
    without[0] &= ~0b110  # to override permissions of files, and those to read them
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextmanager
def damaged(
    maker: Maker, seed: int, folder: Path, made: tuple[str, ...] = ()
) -> Iterator[list[str]]:
    """Make an input in a folder; refusing it may leave no more there than is named."""
    given = maker(folder, np.random.default_rng(seed)).split()
    outside = sorted(os.listdir(folder.parent))
    used = peak()
    before = sorted(os.walk(folder))
    with by_permissions():
        yield given
    for name in made:
        (folder / name).unlink(missing_ok=True)
    assert sorted(os.walk(folder)) == before
    assert sorted(os.listdir(folder.parent)) == outside
    assert peak() - used < MEGABYTES
    if maker is netcdf:
        gc.collect()  # here, where its warnings are known


each_case = pytest.mark.parametrize(
    ("maker", "seed"),
    [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in CASES],
)


@each_case
def test_refused_in_one_line(
    maker: Maker,
    seed: int,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with damaged(maker, seed, tmp_path) as given:
        # What is filled isn't looked at as closely: its values may be any.
        if maker in VALUES or maker in (csv_wide, parquet, other_names) or seed % 2:
            command = ["factorize", *given, "--rank=1", "--quiet", "-o", "out.zarr"]
        else:
            output = ["out.npy", "out.zarr"][seed // 2 % 2]
            command = ["impute", *given, "--model", str(model), "-o", output]
        found = CliRunner().invoke(main, command)
    told = (command, found.output, found.exception)
    assert isinstance(found.exception, SystemExit), told
    assert found.exit_code == 1, told
    assert re.fullmatch(r"Error: [^\n]+\n", found.output), told
    assert "Traceback" not in found.output, told
    assert len(found.output) < 800, told
    assert_cause(maker, found.output)


def assert_cause(maker: Maker, said: str) -> None:
    """Where the system says what is wrong, that isn't guessed anew."""
    if maker is forbidden:
        assert "Permission denied" in said


def as_sections(given: list[str]) -> dict[str, dict[str, Any]]:
    """Return what the command line is told of an input, as a job says it."""
    place, *options = given
    words = " ".join(options).replace("--", "").replace("=", " ").split()
    keys = dict(zip(words[::2], words[1::2], strict=True))
    return {"input": {"path": place, **keys}, "model": {"rank": 1, "validation": None}}


@each_case
def test_jobs_end_with_a_code(
    maker: Maker, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = ("job.toml", "out.zarr.lock")
    matrix = [None, "filled.zarr"][seed % 2]
    output = {"model": "out.zarr", "matrix": matrix, "mask": None}
    with damaged(maker, seed, tmp_path, left) as given:
        path = job_file(tmp_path, output=output, **as_sections(given))
        try:
            record = run_job(read_job(path, {}), "fuzz")
        except JobError as error:
            code, said = error.code, str(error)
        else:
            code, said = Exit(record.code), record.message
            assert record.outcome == code.name.lower().replace("_", " ")
            assert capsys.readouterr().err.count(" ERROR: ") == 1
    assert code in (Exit.BAD_CONFIGURATION, Exit.BAD_INPUT), said
    assert said
    assert "\n" not in said
    assert len(said) < 800
    assert_cause(maker, said)
