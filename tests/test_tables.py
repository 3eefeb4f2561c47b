"""Tables on disk: what a shell user has, in and out."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

import dmf
from dmf.io.matrices import open_matrix, write_matrix
from dmf.io.tables import Columns
from tests.problems import low_rank

PROBLEM = low_rank(30, 12, 2)
LONG = Columns("user", "film", "stars")


def long_table() -> pd.DataFrame:
    i, j = np.nonzero(PROBLEM.mask)
    return pd.DataFrame(
        {
            "user": [f"u{k}" for k in i],
            "film": [f"f{k}" for k in j],
            "stars": PROBLEM.nan[i, j],
            "weight": 1.0 + (i % 3),
            "note": "not wanted",
        }
    )


def wide_table() -> pd.DataFrame:
    names = [f"v{j}" for j in range(PROBLEM.nan.shape[1])]
    return pd.DataFrame(PROBLEM.nan, columns=names).rename_axis("day")


def write(frame: pd.DataFrame, path: Path, **options: Any) -> None:
    if path.suffix == ".parquet":
        frame.to_parquet(path, **options)
    else:
        separator = "\t" if ".tsv" in path.name else ","
        frame.to_csv(path, sep=separator, **options)


# Of Dask, about what pandas will do one day.
OLD_DASK = pytest.mark.filterwarnings("ignore:The inplace keyword")


@OLD_DASK
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet"])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_observation_a_line(name: str, weighted: bool, tmp_path: Path) -> None:
    frame = long_table()
    write(frame, tmp_path / name, index=False)
    weight = "weight" if weighted else None
    columns = Columns("user", "film", "stars", weight)
    found = open_matrix(tmp_path / name, columns)
    expected = dmf.from_triplets(frame, "user", "film", "stars", weight)
    assert list(found.rows) == list(expected.rows)
    assert list(found.columns) == list(expected.columns)
    assert (found.X.compute() != expected.X).nnz == 0
    if weighted:
        assert (found.mask.compute() != expected.mask).nnz == 0


@OLD_DASK
def test_a_folder_of_parts_is_read_in_parts(tmp_path: Path) -> None:
    frame = long_table()
    (tmp_path / "t.parquet").mkdir()
    parts = np.array_split(np.arange(len(frame)), 3)
    for k, part in enumerate(parts):
        frame.iloc[part].to_parquet(tmp_path / "t.parquet" / f"part-{k}.parquet")
    found = open_matrix(tmp_path / "t.parquet", LONG)
    assert found.X.numblocks == (3, 1)
    expected = dmf.from_triplets(frame, "user", "film", "stars")
    assert found.X.shape == expected.X.shape


def test_behind_a_url() -> None:
    frame = long_table()
    frame.to_csv("memory://tables/t.csv", index=False)
    found = open_matrix("memory://tables/t.csv", LONG)
    assert found.X.shape == PROBLEM.nan.shape


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_a_matrix_as_it_is(name: str, tmp_path: Path) -> None:
    frame = wide_table()
    write(frame, tmp_path / name)
    found = open_matrix(
        tmp_path / name, Columns(index=None if name == "t.parquet" else "day")
    )
    pd.testing.assert_frame_equal(found, frame)
    fit = dmf.factorize(found, 2, max_rounds=5, tol=0)
    filled = dmf.impute(found, fit)
    write_matrix(filled, tmp_path / f"filled-{name}")
    again = open_matrix(
        tmp_path / f"filled-{name}", Columns(index=None if ".pa" in name else "day")
    )
    pd.testing.assert_frame_equal(again, filled)
    assert not again.isna().any(axis=None)
    seen = ~frame.isna().to_numpy()
    np.testing.assert_array_equal(again.to_numpy()[seen], frame.to_numpy()[seen])


def test_matrix_market(tmp_path: Path) -> None:
    X = sp.csr_array(np.nan_to_num(PROBLEM.nan))
    scipy.io.mmwrite(tmp_path / "X.mtx", X, precision=17)
    with (tmp_path / "X.mtx").open("rb") as plain:
        (tmp_path / "Y.mtx.gz").write_bytes(gzip.compress(plain.read()))
    for name in ("X.mtx", "Y.mtx.gz"):
        found = open_matrix(tmp_path / name)
        assert (sp.csr_array(found) != X).nnz == 0


MALFORMED: dict[str, tuple[str, bytes]] = {
    "empty": ("t.csv", b""),
    "not text": ("t.csv", bytes(range(128, 256))),
    "no Parquet": ("t.parquet", b"PAR1 but not really"),
    "no gzip": ("t.csv.gz", b"user,film,stars\n1,2,3\n"),
    "ragged": ("t.csv", b"user,film,stars\n1,2,3\n1,2,3,4,5,6\n"),
    "other columns": ("t.csv", b"a,b,c\n1,2,3\n"),
    "words": ("t.csv", b"user,film,stars\n1,2,good\n"),
    "no id": ("t.csv", b"user,film,stars\n,2,3\n"),
    "infinite": ("t.csv", b"user,film,stars\n1,2,inf\n"),
    "no lines": ("t.csv", b"user,film,stars\n"),
    "twice": ("t.csv", b"user,film,stars\n1,2,3\n1,2,4\n"),
    "no market": ("t.mtx", b"%%MatrixMarket nothing\n"),
    "a market beyond its shape": (
        "t.mtx",
        b"%%MatrixMarket matrix coordinate real general\n2 2 1\n3 1 1.0\n",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, tmp_path: Path) -> None:
    """One line that says what is wrong, no traceback, no output."""
    from click.testing import CliRunner

    from dmf.cli import main

    name, content = MALFORMED[case]
    (tmp_path / name).write_bytes(content)
    options = (
        [] if name == "t.mtx" else ["--row=user", "--column=film", "--value=stars"]
    )
    command = ["factorize", str(tmp_path / name), "--rank=1", "--quiet", *options]
    found = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "model.zarr")])
    assert found.exit_code == 1, found.output
    assert re.fullmatch(r"Error: .+\n", found.output), found.output
    assert "Traceback" not in found.output
    assert not (tmp_path / "model.zarr").exists()


def test_columns_are_named_all_or_none(tmp_path: Path) -> None:
    write(long_table(), tmp_path / "t.csv")
    message = (
        "a table with one observation a line needs row, column and value, the names of "
        "its columns; got row='user', column=None, value=None"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        open_matrix(tmp_path / "t.csv", Columns(row="user"))
    np.save(tmp_path / "X.npy", PROBLEM.nan)
    with pytest.raises(
        ValueError, match=r"X.npy isn't a table \(.csv, .tsv, .parquet\)"
    ):
        open_matrix(tmp_path / "X.npy", LONG)
    with pytest.raises(ValueError, match="there is no column 'date'; the table has"):
        open_matrix(tmp_path / "t.csv", Columns(index="date"))
    message = "holds .*, not numbers; if it labels the rows, name it with --index user"
    with pytest.raises(ValueError, match=message):
        open_matrix(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="would be a table, but the input isn't a"):
        write_matrix(PROBLEM.nan, tmp_path / "out.csv")


def test_from_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from dmf.cli import main

    def run(command: str) -> str:
        found = CliRunner().invoke(main, command.split())
        assert found.exit_code == 0, found.output
        return str(found.output)

    monkeypatch.chdir(tmp_path)
    frame = long_table()
    write(frame, Path("t.csv"), index=False)
    names = "--row user --column film --value stars"
    run(f"factorize t.csv {names} --rank 2 --offsets both -o model.zarr --quiet")
    fit = dmf.load("model.zarr")
    expected = dmf.factorize(
        dmf.from_triplets(frame, "user", "film", "stars"), 2, offsets="both"
    )
    pairs = (["u3", "u7"], ["f4", "f1"])
    np.testing.assert_allclose(fit.predict(*pairs), expected.predict(*pairs), rtol=1e-3)
    wide_table().to_csv("wide.csv")
    run("factorize wide.csv --index day --rank 2 -o wide.zarr --quiet")
    told = run("impute wide.csv --index day --model wide.zarr -o filled.parquet")
    assert "filled.parquet: 30 × 12, filled from wide.zarr" in told
    assert pd.read_parquet("filled.parquet").index.name == "day"
