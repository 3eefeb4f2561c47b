"""Tables on disk: what a shell user has, in and out."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.containers import Table, unwrap
from dmf.io.csv import whole_numbers
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


# ----------------------------------------------------------------------- wide, in parts


def mixed_table() -> pd.DataFrame:
    """Floats of two widths, and integers of which some are missing."""
    frame = wide_table()
    frame["v1"] = frame["v1"].astype("float32")
    frame["v2"] = pd.array(np.where(PROBLEM.mask[:, 2], 3, None), dtype="Int64")
    return frame.set_axis(pd.date_range("2020-01-01", periods=30, name="day"), axis=0)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("out", ["filled.parquet", "filled.csv"])
def test_a_matrix_in_parts(
    remote: bool, folder: bool, out: str, tmp_path: Path
) -> None:
    """It says the same as the frame in memory, but reads the numbers in tasks."""
    frame = mixed_table()
    where = f"memory://tables-{folder}-{out}" if remote else str(tmp_path)
    if folder:
        files, path = fsspec.url_to_fs(f"{where}/t.parquet")
        files.makedirs(path, exist_ok=True)
        for k in range(10):  # the tenth comes after the ninth
            part = frame.iloc[3 * k : 3 * k + 3]
            part.to_parquet(f"{where}/t.parquet/part-{k + 1}.parquet")
    else:
        frame.to_parquet(f"{where}/t.parquet", row_group_size=4)
    found = open_matrix(f"{where}/t.parquet")
    assert isinstance(found, Table)
    assert found.X.chunks[0] == ((3,) * 10 if folder else (4,) * 7 + (2,))
    array, labels = unwrap(frame)
    np.testing.assert_array_equal(found.X.compute(), array, strict=True)
    assert labels is not None
    assert labels.difference(found.labels) is None
    fit = dmf.factorize(found, 2, max_rounds=5, tol=0)
    filled = dmf.impute(found, fit)
    assert isinstance(filled, Table)
    write_matrix(filled, f"{where}/{out}", overwrite=True)
    expected = dmf.impute(frame, fit)
    if out.endswith(".csv"):
        again = pd.read_csv(f"{where}/{out}", index_col="day", parse_dates=["day"])
        np.testing.assert_allclose(again, expected, rtol=1e-6)
        assert list(again.index) == list(expected.index)
    else:
        again = pd.read_parquet(f"{where}/{out}")
        pd.testing.assert_frame_equal(again, expected, check_freq=False)
        assert open_matrix(f"{where}/{out}").X.numblocks == found.X.numblocks


def test_nothing_is_read_before_it_is_needed(tmp_path: Path, no_tasks: None) -> None:
    mixed_table().to_parquet(tmp_path / "t.parquet", row_group_size=4)
    assert open_matrix(tmp_path / "t.parquet").shape == (30, 12)


@pytest.mark.parametrize("size", [4, 100])
@pytest.mark.parametrize("index", [None, "day", "v0"])
def test_labels_of_parquet(tmp_path: Path, size: int, index: str | None) -> None:
    """Of a column that is named, of pandas' own index, or none."""
    frame = wide_table().reset_index(drop=index is None)
    frame["v0"] = np.arange(30) * 2
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=size)
    found = open_matrix(tmp_path / "t.parquet", Columns(index=index))
    array, labels = unwrap(found)
    expected, its = unwrap(frame if index is None else frame.set_index(index))
    np.testing.assert_array_equal(array, expected)
    assert its.difference(labels) is None
    assert its.rows.name == labels.rows.name
    with pytest.raises(ValueError, match="there is no column 'date'; the table has"):
        open_matrix(tmp_path / "t.parquet", Columns(index="date"))


def test_a_mask_in_parts(tmp_path: Path) -> None:
    names = [f"v{j}" for j in range(12)]
    mask = pd.DataFrame(PROBLEM.mask, columns=names)
    mask.to_parquet(tmp_path / "M.parquet", row_group_size=7)
    frame = pd.DataFrame(PROBLEM.truth, columns=names)
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=4)
    X, M = (open_matrix(tmp_path / name) for name in ("t.parquet", "M.parquet"))
    fit = dmf.factorize(X, 2, mask=M, max_rounds=5, tol=0)
    expected = dmf.factorize(frame, 2, mask=mask, max_rounds=5, tol=0)
    np.testing.assert_allclose(fit.W, expected.W, rtol=1e-9)


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    frame = wide_table()
    (tmp_path / "t.parquet").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is nothing at .*t\.parquet"):
        open_matrix(tmp_path / "t.parquet")
    frame[:9].to_parquet(tmp_path / "t.parquet" / "a.parquet")
    frame[9:].drop(columns="v3").to_parquet(tmp_path / "t.parquet" / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet has other columns than .*a\.par"):
        open_matrix(tmp_path / "t.parquet")
    words = frame.assign(v3="high")
    words.to_parquet(tmp_path / "w.parquet", row_group_size=4)
    with pytest.raises(
        ValueError, match=r"column 'v3' of .*w\.parquet holds .*--index"
    ):
        open_matrix(tmp_path / "w.parquet")


# ---------------------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "12", "-3", "0"], [1, 12, -3, 0]),
        (["007", "a1", "12", "7"], ["007", "a1", "12", "7"]),
        (["007", "7", "12", "0"], ["007", "7", "12", "0"]),
        (["1.5", "2", "1e3", "+4"], ["1.5", "2", "1e3", "+4"]),
        (["1", "99999999999999999999", "2", "3"],) * 2,
        (["true", "False", "x y", "é"],) * 2,
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv.gz"])
@OLD_DASK
def test_ids_are_text_unless_all_are_whole_numbers(
    name: str, ids: list[str], expected: list[Any], tmp_path: Path
) -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    frame = pd.DataFrame({"user": ids, "film": ids[::-1], "stars": values})
    write(frame, tmp_path / name, index=False)
    found = open_matrix(tmp_path / name, LONG)
    assert found.rows.tolist() == expected
    assert found.columns.tolist() == expected[::-1]
    fit = dmf.factorize(found, 1, max_rounds=2)
    fit.save(tmp_path / "model.zarr")
    again = dmf.load(tmp_path / "model.zarr")
    assert again.labels is not None
    assert again.labels.rows.tolist() == expected
    assert again.labels.row_positions(expected).tolist() == [0, 1, 2, 3]


@OLD_DASK
def test_ids_do_not_depend_on_what_comes_first(tmp_path: Path) -> None:
    """A column that looks like numbers far beyond what Dask looks at."""
    lines = [f"{k},{k % 50},{k % 5}" for k in range(60_000)]
    text = "\n".join(["user,film,stars", *lines, "u60000,7a,3"])
    (tmp_path / "t.csv").write_text(text + "\n")
    found = open_matrix(tmp_path / "t.csv", LONG)
    assert found.rows[:3].tolist() == ["0", "1", "2"]
    assert found.rows[-1] == "u60000"
    assert found.X.compute().nnz == 60_001


@pytest.mark.parametrize("bytes_a_part", [1, 7, 100])
def test_parts_of_any_size(
    bytes_a_part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line is in one part, also where parts are shorter than lines."""
    monkeypatch.setattr("dmf.io.csv.PART", bytes_a_part)
    frame = long_table()[:6]
    write(frame, tmp_path / "t.csv", index=False)
    found = open_matrix(tmp_path / "t.csv", LONG)
    expected = dmf.from_triplets(frame, "user", "film", "stars")
    assert list(found.rows) == list(expected.rows)
    assert (found.X.compute() != expected.X).nnz == 0


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("client")
@OLD_DASK
def test_workers_read_the_parts(tmp_path: Path, monkeypatch: Any) -> None:
    """And what they have filled goes to places that only this process sees."""
    frame = mixed_table()
    frame.to_parquet(tmp_path / "wide.parquet", row_group_size=4)
    found = open_matrix(tmp_path / "wide.parquet")
    filled = dmf.impute(found, dmf.factorize(found, 2, max_rounds=5, tol=0))
    for name in ("out.parquet", "out.csv", "out.npy"):
        write_matrix(filled, f"memory://cluster/{name}")
    expected = filled.X.compute()
    np.testing.assert_array_equal(
        open_matrix("memory://cluster/out.npy").compute(scheduler="sync"), expected
    )
    again = pd.read_parquet("memory://cluster/out.parquet")
    np.testing.assert_allclose(again, expected, rtol=1e-6)
    write(long_table(), tmp_path / "t.csv", index=False)
    triplets = open_matrix(tmp_path / "t.csv", LONG)
    of_memory = dmf.from_triplets(long_table(), "user", "film", "stars")
    assert (triplets.X.compute() != of_memory.X).nnz == 0


def test_a_file_that_changes_is_told(tmp_path: Path) -> None:
    frame = long_table()
    write(frame, tmp_path / "t.csv", index=False)
    found = open_matrix(tmp_path / "t.csv", LONG)
    write(frame[::-1], tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=r"t\.csv has changed since it was opened"):
        found.X.compute()


def test_columns_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user,film,stars,film\n1,2,3,4\n")
    with pytest.raises(ValueError, match="2 columns are called 'film'; the table has"):
        open_matrix(tmp_path / "t.csv", LONG)
    with pytest.raises(ValueError, match="2 columns are called 'film'; the table has"):
        open_matrix(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="no columns are called 'day'; the table has"):
        open_matrix(tmp_path / "t.csv", Columns("day", "film", "stars"))


def test_labels_of_rows_are_ids_too(tmp_path: Path) -> None:
    text = "code,a,b\n007,1,2\n12,3,\n"
    (tmp_path / "t.csv").write_text(text)
    found = open_matrix(tmp_path / "t.csv", Columns(index="code"))
    assert found.index.tolist() == ["007", "12"]
    filled = dmf.impute(found, dmf.factorize(found, 1))
    write_matrix(filled, tmp_path / "out.csv")
    again = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in again] == ["code", "007", "12"]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1))
def test_whole_numbers_are_written_back_as_they_were(ids: list[str]) -> None:
    read = whole_numbers(pd.Index(ids, dtype="str"))
    assert [str(one) for one in read] == ids


@given(st.lists(st.integers(-(10**18) + 1, 10**18 - 1), min_size=1))
def test_whole_numbers_are_numbers(ids: list[int]) -> None:
    assert whole_numbers(pd.Index([str(one) for one in ids])).tolist() == ids
