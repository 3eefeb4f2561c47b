"""Models on disk: what is loaded is what was saved, and nothing else is loaded."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

import dmf
from dmf.io import model
from dmf.io.plain import KNOWN
from dmf.penalties import Lasso, NonNegative, Smooth
from tests import problems
from tests.problems import low_rank

PROBLEM = low_rank(30, 20)
# Parameters may be NumPy's numbers.
SOLVERS = [*problems.SOLVERS, dmf.GradientDescent(np.float32(0.1))]
PENALTIES = [
    None,
    "auto",
    dmf.Ridge(1),
    (dmf.Ridge(0.1, by_count=True), None),
    (Lasso(0.1, by_count=True) + NonNegative(), dmf.Ridge(0.1)),
    (Smooth(0.5, order=2), Smooth(1, step=np.arange(1, 20) / 4)),
]


def fitted(X: Any = PROBLEM.nan, **options: Any) -> dmf.Factorization:
    return dmf.factorize(X, 2, max_rounds=5, tol=0, **options)


@pytest.fixture(scope="module")
def fit() -> dmf.Factorization:
    return fitted()


def described(fit: dmf.Factorization) -> Any:
    """Return all of a model but its arrays, so that == compares it; NaN is "nan"."""
    return (
        [repr(record) for record in fit.history],
        repr(fit.history.initial_objective),
        fit.status,
        fit.penalty,
        fit.solver,
        fit.seed,
        repr(fit.objectives),
        fit.offsets,
        fit.offset,
        fit.offset_penalty,
        fit.unobserved_weight,
        fit.certificate,
    )


def assert_equal(loaded: dmf.Factorization, fit: dmf.Factorization) -> None:
    assert described(loaded) == described(fit)
    for name in ("W", "H", "row_offsets", "column_offsets"):
        factor, expected = getattr(loaded, name), getattr(fit, name)
        assert type(factor) is type(expected)
        if expected is None:
            continue
        np.testing.assert_array_equal(
            np.asarray(factor), np.asarray(expected), strict=True
        )


def metadata_of(path: Path) -> Any:
    """Return a model's metadata, which must be JSON as the standard has it."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} isn't JSON")

    return json.loads((path / "zarr.json").read_text(), parse_constant=refuse)


def change(path: Path, **attributes: Any) -> None:
    """Change attributes of a saved model behind dmf's back; None removes one."""
    metadata = metadata_of(path)
    for name, value in attributes.items():
        metadata["attributes"][name] = value
        if value is None:
            del metadata["attributes"][name]
    (path / "zarr.json").write_text(json.dumps(metadata))


# -------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver_comes_back(
    tmp_path: Path, fit: dmf.Factorization, solver: Any
) -> None:
    fit = replace(fit, solver=solver)
    fit.save(str(tmp_path / "model.zarr"))
    assert_equal(dmf.load(tmp_path / "model.zarr"), fit)
    metadata_of(tmp_path / "model.zarr")


def test_every_class_of_a_model_is_tested() -> None:
    made = [*SOLVERS, *(getattr(solver, "step", None) for solver in SOLVERS)]
    for penalty in PENALTIES:
        for one in penalty if isinstance(penalty, tuple) else (penalty,):
            made += [one, *getattr(one, "parts", ())]
    made = [one for one in made if not isinstance(one, str)]
    made.append(fitted().certificate)
    assert {type(one).__name__ for one in made} - {"NoneType"} == set(KNOWN)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_penalties_and_dtypes_come_back(
    tmp_path: Path, penalty: Any, dtype: str
) -> None:
    fit = fitted(PROBLEM.nan.astype(dtype), penalty=penalty, restarts=2, seed=2**70)
    assert fit.W.dtype == dtype
    fit.save(str(tmp_path / "model.zarr"))
    assert_equal(dmf.load(tmp_path / "model.zarr"), fit)


@pytest.mark.parametrize("offsets", ["global", "rows", "columns", "both"])
def test_offsets_come_back(tmp_path: Path, offsets: str) -> None:
    fit = fitted(offsets=offsets, offset_penalty=dmf.Ridge(3))
    assert fit.offset != 0
    fit.save(str(tmp_path / "model.zarr"))
    assert_equal(dmf.load(tmp_path / "model.zarr"), fit)


def test_the_weight_of_the_unobserved_comes_back(tmp_path: Path) -> None:
    fit = fitted(PROBLEM.sparse(), unobserved_weight=0.3)
    fit.save(str(tmp_path / "model.zarr"))
    assert_equal(dmf.load(tmp_path / "model.zarr"), fit)


@pytest.mark.parametrize("chunks", [(10, 20), ((5, 12, 13), (3, 9, 8))])
def test_dask_factors_come_back_lazily(tmp_path: Path, chunks: Any) -> None:
    fit = fitted(da.from_array(PROBLEM.nan, chunks=chunks))
    fit.save(str(tmp_path / "model.zarr"))

    def computes(*arguments: Any, **options: Any) -> None:
        pytest.fail("load has computed something")

    with dask.config.set(scheduler=computes):
        loaded = dmf.load(tmp_path / "model.zarr")
    assert_equal(loaded, fit)


def test_converged_status_comes_back(tmp_path: Path) -> None:
    fit = dmf.factorize(PROBLEM.nan, 2, tol=0.01)
    assert fit.status.code == "converged"
    fit.save(str(tmp_path / "model.zarr"))
    assert str(dmf.load(tmp_path / "model.zarr").status) == str(fit.status)


def test_numbers_that_are_not_finite_come_back(
    tmp_path: Path, fit: dmf.Factorization
) -> None:
    record = replace(fit.history[0], gradient_norm_W=math.inf, step_H=-math.inf)
    fit = replace(
        fit, history=dmf.History([record], math.nan), objectives=(math.nan, 1e-300)
    )
    fit.save(str(tmp_path / "model.zarr"))
    metadata_of(tmp_path / "model.zarr")
    assert_equal(dmf.load(tmp_path / "model.zarr"), fit)


def test_fit_that_was_interrupted_at_once_comes_back(
    tmp_path: Path, fit: dmf.Factorization
) -> None:
    fit = replace(
        fit,
        history=dmf.History([], math.nan),
        status=dmf.Status("interrupted", 0),
        objectives=(math.nan,),
    )
    fit.save(str(tmp_path / "model.zarr"))
    loaded = dmf.load(tmp_path / "model.zarr")
    assert_equal(loaded, fit)
    assert math.isnan(loaded.objective)


@pytest.mark.parametrize("lazy", [False, True])
def test_factors_of_zeros_come_back(
    tmp_path: Path, fit: dmf.Factorization, lazy: bool
) -> None:
    # Zarr would leave such chunks out, as if they were lost.
    zeros = da.zeros if lazy else np.zeros
    fit = replace(fit, W=zeros((30, 2)), H=zeros((2, 20)))
    fit.save(str(tmp_path / "model.zarr"))
    assert_equal(dmf.load(tmp_path / "model.zarr"), fit)


def test_loaded_model_imputes_alike(tmp_path: Path, fit: dmf.Factorization) -> None:
    fit.save(str(tmp_path / "model.zarr"))
    lazy = da.from_array(PROBLEM.nan, chunks=(7, 20))
    for X in (PROBLEM.nan, lazy):
        np.testing.assert_array_equal(
            dmf.impute(X, dmf.load(tmp_path / "model.zarr")), dmf.impute(X, fit)
        )


def test_model_behind_a_url(fit: dmf.Factorization) -> None:
    url = "memory://dmf-test-model/model.zarr"
    with pytest.raises(FileNotFoundError, match=f"there is nothing at {url}"):
        dmf.load(url)
    fit.save(url)
    assert_equal(dmf.load(url), fit)
    with pytest.raises(FileExistsError, match=f"{url} exists; choose another path"):
        fit.save(url)
    other = replace(fit, seed=7)
    model.save(other, url, overwrite=True)
    assert_equal(dmf.load(url), other)


def test_half_written_model_behind_a_url_is_none(fit: dmf.Factorization) -> None:
    url = "memory://dmf-test-model/half.zarr"
    broken = replace(fit, H=da.map_blocks(_fails, chunks=fit.H.shape, dtype=float))
    with pytest.raises(RuntimeError, match="H fails"):
        model.save(broken, url)
    with pytest.raises(ValueError, match="isn't a model of dmf"):
        dmf.load(url)


# ------------------------------------------------------------------------------- saving


def _fails() -> Any:
    msg = "H fails"
    raise RuntimeError(msg)


def test_failure_keeps_the_older_model(tmp_path: Path, fit: dmf.Factorization) -> None:
    path = tmp_path / "model.zarr"
    fit.save(str(path))
    lazy = da.map_blocks(_fails, chunks=fit.H.shape, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(RuntimeError, match="H fails"):
        model.save(replace(fit, H=lazy), path, overwrite=True)
    assert_equal(dmf.load(path), fit)
    assert os.listdir(tmp_path) == [path.name]


def test_existing_model_is_refused_or_overwritten(
    tmp_path: Path, fit: dmf.Factorization
) -> None:
    path = tmp_path / "model.zarr"
    fit.save(str(path))
    other = replace(fit, seed=7)
    with pytest.raises(FileExistsError, match=r"model\.zarr exists; choose another"):
        other.save(str(path))
    assert_equal(dmf.load(path), fit)
    model.save(other, path, overwrite=True)
    assert_equal(dmf.load(path), other)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("what", ["array", "group", "folder", "file"])
def test_only_models_are_overwritten(
    tmp_path: Path, fit: dmf.Factorization, what: str
) -> None:
    path = tmp_path / "model.zarr"
    if what == "array":
        zarr.create_array(path, data=PROBLEM.truth)
    elif what == "group":
        zarr.create_group(path, attributes={"format": "other"})
    elif what == "folder":
        path.mkdir()
    else:
        path.write_text("notes")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="exists and isn't a model of dmf, so"):
        model.save(fit, path, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_folder(tmp_path: Path, fit: dmf.Factorization) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*; create it"):
        fit.save(str(tmp_path / "no" / "model.zarr"))


@dataclass(frozen=True)
class OwnSolver:
    """A solver of a user's own: the default one, by another name."""

    def half_step(self, half: Any) -> Any:
        return dmf.NormalizedGradient().half_step(half)


@dataclass(frozen=True)
class Exact(dmf.Exact):
    """A class of a user's own with the name of one of dmf's."""


@pytest.mark.parametrize(
    "solver", [OwnSolver(), dmf.NormalizedGradient(step=Exact())], ids=repr
)
def test_own_solver_is_refused_with_a_way_out(tmp_path: Path, solver: Any) -> None:
    fit = fitted(solver=solver)
    path = tmp_path / "model.zarr"
    with pytest.raises(TypeError, match="can't be saved, because a model holds no co"):
        fit.save(str(path))
    assert not path.exists()
    replace(fit, solver=dmf.NormalizedGradient()).save(str(path))
    np.testing.assert_array_equal(dmf.load(path).W, fit.W)


# ---------------------------------------------------------------- what can't be loaded


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing at .*model\.zarr; check the"):
        dmf.load(tmp_path / "model.zarr")


def test_what_is_no_model(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "array.zarr", data=PROBLEM.truth)
    zarr.create_group(tmp_path / "group.zarr", attributes={"format": "other"})
    for name in ("array.zarr", "group.zarr"):
        with pytest.raises(ValueError, match=f"{name} isn't a model of dmf; give what"):
            dmf.load(tmp_path / name)
    (tmp_path / "file").write_text("notes")
    with pytest.raises(ValueError, match="file can't be opened as Zarr"):
        dmf.load(tmp_path / "file")


def test_newer_model(tmp_path: Path, fit: dmf.Factorization) -> None:
    path = tmp_path / "model.zarr"
    fit.save(str(path))
    newest = model.FORMAT_VERSION
    change(path, format_version=newest + 1, dmf_version="9.0", history=None)
    message = (
        rf"model\.zarr has format version {newest + 1} \(dmf 9\.0\), but dmf \S+ reads "
        f"versions up to {newest}; upgrade dmf"
    )
    with pytest.raises(ValueError, match=message):
        dmf.load(path)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"solver": {"kind": "Adam"}}, "this dmf doesn't know 'Adam'"),
        ({"solver": {"kind": "Plane", "x": 1}}, "unexpected keyword argument 'x'"),
        ({"penalty": {"W": {"kind": "Ridge", "strength": -1}}}, "at least 0, got -1"),
        ({"history": None}, "'history' is missing"),
        ({"history": {"round": [1]}}, "'objective' is missing"),
        ({"status": {"code": "fine", "round": 1}}, "its status 'fine' isn't known"),
        ({"status": "fine"}, "indices must be integers"),
    ],
)
def test_damaged_attributes(
    tmp_path: Path, fit: dmf.Factorization, attributes: Any, message: str
) -> None:
    path = tmp_path / "model.zarr"
    fit.save(str(path))
    change(path, **attributes)
    with pytest.raises(
        ValueError, match=rf"model\.zarr can't be read \(.*{message}.*\); save it again"
    ):
        dmf.load(path)


def _lose_array(path: Path) -> None:
    (path / "H" / "zarr.json").unlink()


def _lose_chunk(path: Path) -> None:
    (path / "W" / "c" / "0" / "0").unlink()


def _flip_bit(path: Path) -> None:
    chunk = path / "W" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[17] ^= 1
    chunk.write_bytes(content)


def _cut_chunk(path: Path) -> None:
    chunk = path / "W" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-8])


def _other_rank(path: Path) -> None:
    zarr.create_array(path / "H", data=np.ones((3, 20)), overwrite=True)


def _vector(path: Path) -> None:
    zarr.create_array(path / "H", data=np.ones(3), overwrite=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lose_array, "'H'"),
        (_lose_chunk, "1 of the 1 chunks of W are missing"),
        (_flip_bit, "checksum do not match"),
        (_cut_chunk, "checksum do not match"),
        (_other_rank, r"W has shape \(30, 2\), but H has shape \(3, 20\)"),
        (_vector, r"H has shape \(3,\)"),
    ],
)
def test_damaged_arrays(
    tmp_path: Path, fit: dmf.Factorization, damage: Any, message: str
) -> None:
    path = tmp_path / "model.zarr"
    fit.save(str(path))
    damage(path)
    with pytest.raises(ValueError, match=rf"can't be read \(.*{message}.*\); save it"):
        dmf.load(path)


def test_damaged_chunk_of_a_lazy_model(tmp_path: Path) -> None:
    path = tmp_path / "model.zarr"
    fitted(da.from_array(PROBLEM.nan, chunks=(10, 20))).save(str(path))
    _flip_bit(path)
    loaded = dmf.load(path)
    with pytest.raises(ValueError, match="checksum do not match"):
        loaded.W.compute()


def test_broken_metadata(tmp_path: Path, fit: dmf.Factorization) -> None:
    path = tmp_path / "model.zarr"
    fit.save(str(path))
    (path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.zarr can't be opened as Zarr"):
        dmf.load(path)


def test_importing_dmf_is_cheap() -> None:
    code = (
        "import sys, dmf, dmf.cli\n"
        "heavy = {'zarr', 'dask.array', 'distributed', 'matplotlib', 'numba'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
