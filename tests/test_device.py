"""Fits where arrays aren't NumPy's: the same results, and no copy that isn't named."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import array_api_strict as strict
import dask.array as da
import numpy as np
import pandas as pd
import pytest

import dmf
from dmf import device
from dmf.device import to_host
from dmf.engine.grid import Grid
from dmf.offsets import COLUMNS
from tests.devices import (
    DeviceArray,
    HiddenCopyError,
    assert_close,
    kinds_told_apart,
    on_device,
    strict_device,
)
from tests.problems import (
    CHUNKS,
    SOLVERS,
    form_of,
    interrupt_in,
    low_rank,
    same_factors,
)

PENALTIES = [
    None,
    "auto",
    dmf.Ridge(0.3),
    dmf.Lasso(0.2) + dmf.Ridge(0.1),
    dmf.Lasso(0.02, by_count=True),
    dmf.NonNegative() + dmf.Lasso(0.1) + dmf.Ridge(0.2),
    (dmf.Ridge(0.1), dmf.Smooth(2.0)),
]
IN_FLOAT64 = [
    dmf.NonNegative(),
    (dmf.Smooth(0.5, order=2) + dmf.Ridge(0.1), dmf.NonNegative() + dmf.Ridge(0.1)),
]
DEFAULT = dmf.NormalizedGradient()
EXACT = dmf.AlternatingLeastSquares()
# Most of it is observed: rows with hardly more entries than the rank have planes that
# are almost degenerate, where rounding grows; as it does where rows come to a bound.
PROBLEM = low_rank(observed=0.9, dtype=np.float32)
WIDE = low_rank().nan


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return strict_device(monkeypatch)


def both(X: Any = None, rank: int = 3, **options: Any) -> tuple[Any, Any]:
    """Return the fit on a device, and the same one on the processor."""
    X = PROBLEM.nan if X is None else X
    options = {"max_rounds": 5, "tol": 0, **options}
    there = dmf.factorize(X, rank, device="gpu", **options)
    return there, dmf.factorize(X, rank, device="cpu", **options)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver(seen: list[int], solver: Any) -> None:
    assert_close(*both(solver=solver, penalty=dmf.Ridge(0.1), restarts=2, drop=False))


@pytest.mark.parametrize("solver", [DEFAULT, EXACT], ids=["default", "exact"])
@pytest.mark.parametrize("penalty", [*PENALTIES, *IN_FLOAT64], ids=repr)
def test_every_penalty(seen: list[int], penalty: Any, solver: Any) -> None:
    smooth = isinstance(penalty, tuple)
    if smooth and solver == EXACT:
        with pytest.raises(ValueError, match="Smooth ties neighbouring rows"):
            both(penalty=penalty, solver=solver)
        return
    assert_close(*both(WIDE, penalty=penalty, solver=solver))
    if penalty not in IN_FLOAT64:
        assert_close(*both(penalty=penalty, solver=solver))


@pytest.mark.parametrize("offsets", COLUMNS)
def test_every_kind_of_offsets(seen: list[int], offsets: str) -> None:
    options = {"offsets": offsets, "offset_penalty": dmf.Ridge(0.4, by_count=True)}
    assert_close(*both(**options))
    assert_close(*both(PROBLEM.truth + 5, **options))  # nothing is missing
    assert_close(*both(WIDE, penalty=dmf.NonNegative(), **options))


@pytest.mark.parametrize(
    ("weighted", "alpha", "validation"),
    list(product([False, True], [0.0, 0.3, 1.0], [None, 0.2])),
)
def test_weights_zeros_and_what_is_held_out(
    seen: list[int], weighted: bool, alpha: float, validation: float | None
) -> None:
    mask = PROBLEM.weights if weighted else PROBLEM.mask
    there, here = both(
        PROBLEM.truth, mask=mask, unobserved_weight=alpha, validation=validation
    )
    assert_close(there, here)
    if validation is not None:
        found, expected = there.history.validation_rmse, here.history.validation_rmse
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("penalty", [None, dmf.NonNegative(), dmf.Lasso(0.1)], ids=repr)
def test_complete_data(seen: list[int], penalty: Any) -> None:
    assert_close(*both(np.abs(PROBLEM.truth), penalty=penalty))


@pytest.mark.usefixtures("keep_chunks")
def test_several_blocks_and_strips(seen: list[int]) -> None:
    X = da.from_array(PROBLEM.nan, chunks=CHUNKS)
    there, here = both(X, penalty=(dmf.Ridge(0.1), dmf.Smooth(1.0)), offsets="both")
    for name in ("W", "H", "row_offsets", "column_offsets"):
        one, other = (np.asarray(getattr(fit, name)) for fit in (there, here))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    X = da.from_array(PROBLEM.nan, chunks=CHUNKS)
    there, here = both(X, stream=True)
    np.testing.assert_allclose(np.asarray(there.W), np.asarray(here.W), rtol=1e-3)


def test_what_is_too_large_stays_on_the_host(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that don't fit into the device's memory come to it in each pass."""
    X = low_rank(m=400, n=300, dtype=np.float32).nan
    monkeypatch.setattr("dmf.engine.memory.PROCESS", 0.0)
    monkeypatch.setattr("dmf.engine.grid.PROCESS", 0.0)
    monkeypatch.setattr("dmf.device.Gpu.memory", lambda self: 1.2 * X.nbytes)
    options: dict[str, Any] = {"max_rounds": 5, "tol": 0, "validation": 0.1}
    found = dmf.plan(X, 3, device="gpu", validation=0.1)
    assert found.streamed
    assert np.prod(found.grid) > 2
    assert found.refusal is None
    said = "the blocks of X would take .* each pass reads them anew"
    with pytest.warns(da.PerformanceWarning, match=said):
        there = dmf.factorize(X, 3, device="gpu", **options)
    assert_close(there, dmf.factorize(X, 3, **options))
    asked = dmf.factorize(PROBLEM.nan, 3, device="gpu", stream=True, max_rounds=5)
    assert_close(asked, dmf.factorize(PROBLEM.nan, 3, max_rounds=5))


def test_rounds_bring_nothing_to_the_host_but_their_reports(seen: list[int]) -> None:
    """No factor, no gradient, no residual leaves the device while rounds run."""
    X = low_rank(m=64, n=48, dtype=np.float32).nan
    marks: list[int] = []

    def note(record: Any) -> None:
        marks.append(len(seen))

    options = {"max_rounds": 4, "tol": 0, "callbacks": [note], "restarts": 2}
    dmf.factorize(X, 3, device="gpu", drop=False, **options)
    first, last = marks[1], marks[-1]  # each restart has a record a round
    assert last > first
    assert set(seen[first:last]) == {2}  # one number a restart


def test_a_hidden_copy_is_noticed(seen: list[int]) -> None:
    array = strict.asarray(np.ones(3))
    for copied in (np.asarray, list):
        with pytest.raises(HiddenCopyError):
            copied(array)
    for read in (bool, float, int):
        with pytest.raises(HiddenCopyError):
            read(array[0])
    np.testing.assert_array_equal(to_host(array), np.ones(3))
    assert seen == [3]


def test_a_checkpoint_goes_on(seen: list[int], tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_rounds": 6, "tol": 0, "penalty": dmf.NonNegative()}
    whole = dmf.factorize(PROBLEM.nan, 3, device="gpu", **options)
    options |= {"device": "gpu", "checkpoint": tmp_path / "kept", "checkpoint_every": 2}
    stop = interrupt_in(5)
    first = dmf.factorize(PROBLEM.nan, 3, callbacks=[stop], **options)
    assert first.status.code == "interrupted"
    again = dmf.factorize(PROBLEM.nan, 3, resume=True, **options)
    assert same_factors(again, whole)


def test_filled_on_a_device(seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    _, fit = both()
    monkeypatch.setattr("dmf.engine.arrays.FILLED_BYTES", 1000)  # in several parts
    sparse = PROBLEM.sparse()
    for X, mask in ((PROBLEM.nan, None), (PROBLEM.truth, PROBLEM.mask), (sparse, None)):
        found = dmf.impute(X, fit, mask, device="gpu")
        expected = dmf.impute(X, fit, mask, device="cpu")
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[PROBLEM.mask], expected[PROBLEM.mask])
    lazy = dmf.impute(da.from_array(PROBLEM.nan, chunks=CHUNKS), fit, device="gpu")
    np.testing.assert_allclose(
        lazy.compute(scheduler="sync"), dmf.impute(PROBLEM.nan, fit), rtol=1e-5
    )


def test_an_estimator_on_a_device(seen: list[int]) -> None:
    model = dmf.MatrixFactorization(3, device="gpu", max_rounds=5).fit(PROBLEM.nan)
    assert_close(model.factorization_, both(tol=1e-4)[1])
    assert seen


def test_what_is_on_a_device_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are of the kind that X is; what needs the host brings them there."""
    kinds_told_apart(monkeypatch)
    X = on_device(PROBLEM.nan)
    fit = dmf.factorize(X, 3, max_rounds=5, tol=0, offsets="both")
    host = dmf.factorize(PROBLEM.nan, 3, max_rounds=5, tol=0, offsets="both")
    for name in ("W", "H", "row_offsets", "column_offsets"):
        assert isinstance(getattr(fit, name), DeviceArray)
        np.testing.assert_allclose(getattr(fit, name), getattr(host, name), rtol=1e-5)
    filled = dmf.impute(X, fit)
    assert isinstance(filled, DeviceArray)
    np.testing.assert_allclose(filled, dmf.impute(PROBLEM.nan, host), rtol=1e-5)
    assert fit.score(X).rmse == pytest.approx(host.score(PROBLEM.nan).rmse)
    predicted = fit.predict([0, 3], [1, 2])
    assert type(predicted) is np.ndarray
    np.testing.assert_allclose(predicted, host.predict([0, 3], [1, 2]), rtol=1e-5)
    assert isinstance(fit.fold_in(rows=X[:4]).W, DeviceArray)


def form_on(form: str, X: Any) -> Any:
    """Return X as users give it: on the host, or on what stands for a device."""
    if form == "pandas":
        return pd.DataFrame(X)
    if form == "dask":
        return da.from_array(X, chunks=CHUNKS)
    if form == "dask-cupy":
        meta = on_device(np.empty((0, 0), X.dtype))
        return da.from_array(X, chunks=CHUNKS).map_blocks(on_device, meta=meta)
    return on_device(X) if form == "cupy" else X


def kind_of(value: Any) -> tuple[type, ...]:
    """Return the types of a result, and of its blocks if it is lazy."""
    if not isinstance(value, da.Array):
        return (type(value),)
    blocks = [block.compute() for block in value.to_delayed().ravel()]
    return (da.Array, type(value._meta), *{type(block) for block in blocks})


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("numpy", (np.ndarray,)),
        ("pandas", (np.ndarray,)),
        ("dask", (da.Array, np.ndarray, np.ndarray)),
        ("cupy", (DeviceArray,)),
        ("dask-cupy", (da.Array, DeviceArray, DeviceArray)),
    ],
)
def test_results_are_of_the_kind_that_was_given(
    form: str, kind: tuple[type, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds_told_apart(monkeypatch)
    X = form_on(form, PROBLEM.nan)
    fit = dmf.factorize(X, 3, max_rounds=2, offsets="both", device="gpu")
    for name in ("W", "H", "row_offsets", "column_offsets"):
        assert kind_of(getattr(fit, name)) == kind
    filled = dmf.impute(X, fit, device="gpu")
    assert kind_of(filled) == ((pd.DataFrame,) if form == "pandas" else kind)
    assert kind_of(fit.fold_in(rows=form_on(form, PROBLEM.nan[:10])).W) == kind
    # What is asked for by positions is made on the host.
    assert kind_of(fit.predict([0], [1])) == (np.ndarray,)
    model = dmf.MatrixFactorization(3, device="gpu", offsets="both", max_rounds=2)
    W = model.fit_transform(X)
    assert kind_of(W) == kind_of(model.components_) == kind
    assert kind_of(model.inverse_transform(W)) == kind


def test_what_is_excluded_is_brought_to_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds_told_apart(monkeypatch)
    fit, X = both()[1], on_device(PROBLEM.nan)
    expected = fit.recommend([0, 5], 4, exclude=PROBLEM.nan)
    brought: list[Any] = []
    monkeypatch.setattr(DeviceArray, "get", lambda self: brought.append(self) or self)
    found = fit.recommend([0, 5], 4, exclude=X)
    assert [array.shape for array in brought] == [X.shape]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_saved_model_is_one_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kinds_told_apart(monkeypatch)
    fit = dmf.factorize(on_device(PROBLEM.nan), 3, max_rounds=2)
    fit.save(tmp_path / "model.zarr")
    again = dmf.load(tmp_path / "model.zarr")
    assert type(again.W) is np.ndarray
    np.testing.assert_array_equal(again.W, fit.W)


def test_new_rows_and_scores(seen: list[int]) -> None:
    there, here = both()
    assert there.score(PROBLEM.nan).rmse == pytest.approx(here.score(PROBLEM.nan).rmse)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"device": "cuda"},
            'device must be "auto", "cpu" or "gpu", got \'cuda\'',
        ),
        (
            {"precision": "half"},
            'precision must be "float32" or "tf32", got \'half\'',
        ),
        (
            {"precision": "tf32"},
            "precision='tf32' is for GPUs, but this fit runs on processors; leave it "
            "out, or give device='gpu'",
        ),
    ],
)
def test_bad_settings(options: dict[str, Any], said: str, no_tasks: None) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        dmf.factorize(PROBLEM.nan, 3, **options)


def test_a_processor_takes_nothing_from_a_gpu(
    monkeypatch: pytest.MonkeyPatch, no_tasks: None
) -> None:
    kinds_told_apart(monkeypatch)
    said = "X is in the memory of a GPU, but device='cpu'; bring it to the host"
    with pytest.raises(ValueError, match=said):
        dmf.factorize(on_device(PROBLEM.nan), 3, device="cpu")


def without(*names: str) -> str:
    """Return a program's beginning: it imports dmf, but these modules it can't."""
    return (
        f"import sys\nfor name in {names!r}:\n    sys.modules[name] = None\n"
        "import numpy as np, dmf\nX = np.ones((4, 3))\n"
    )


@pytest.mark.parametrize("missing", ["cupy", "numba_cuda"])
@pytest.mark.parametrize("call", ["factorize", "impute"])
def test_without_cupy(missing: str, call: str) -> None:
    """All else works, and whoever asks for the GPU is told what to install."""
    code = without(missing, "cupy") + "fit = dmf.factorize(X, 1)\n"
    given = {"factorize": "X, 1", "impute": "X, fit"}[call]
    code += f"dmf.{call}({given}, device='gpu')\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    said = "ImportError: device='gpu' needs CuPy and numba-cuda: pip install 'dmf[gpu]'"
    assert done.stderr.rstrip().splitlines()[-1] == said


class NoDriverError(RuntimeError):
    """Stands for what CuPy raises."""


def cupy_that_finds(bytes_of: float | None) -> Any:
    """Return what stands for CuPy, with a device of so many bytes, or without any."""

    def info() -> tuple[float, float]:
        if bytes_of is None:
            msg = "cudaErrorNoDevice"
            raise NoDriverError(msg)
        return 0.0, bytes_of

    class Device:
        mem_info = property(lambda self: info())

    runtime = SimpleNamespace(CUDARuntimeError=NoDriverError)
    return SimpleNamespace(cuda=SimpleNamespace(Device=Device, runtime=runtime))


def test_without_a_device(monkeypatch: pytest.MonkeyPatch, no_tasks: None) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy_that_finds(None))
    said = "device='gpu' needs a GPU, but CuPy finds none (cudaErrorNoDevice); use "
    with pytest.raises(ValueError, match=f"^{re.escape(said)}device='cpu'$"):
        dmf.factorize(PROBLEM.nan, 3, device="gpu")


def test_the_plan_knows_the_memory_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy_that_finds(8e10))
    found = dmf.plan(PROBLEM.nan, 3, device="gpu")
    assert (found.memory, found.threads, found.grid) == (8e10, 1, (1, 1))
    assert np.isnan(found.seconds)
    assert "not predicted" in str(found)
    monkeypatch.setitem(sys.modules, "cupy", cupy_that_finds(1e5))
    refused = dmf.plan(PROBLEM.nan, 3, device="gpu").refusal
    assert refused is not None
    assert "but this GPU has 0.1 MB, of which it may use 90%" in refused


def test_the_benchmark_says_what_it_lacks() -> None:
    code = without("cupy") + "from benchmarks import gpu\ngpu.main()\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "nothing was measured: device='gpu' needs CuPy and numba-cuda: pip install "
        "'dmf[gpu]'\n"
    )


class Streams:
    """Stands for CuPy's streams: notes what happens in which order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, int]] = []
        self.work = Stream(self, "work")
        self.current = self.work
        self.events = 0

    def module(self) -> Any:
        cuda = SimpleNamespace(
            Stream=lambda non_blocking: Stream(self, "copies"),
            get_current_stream=lambda: self.current,
        )
        return SimpleNamespace(cuda=cuda, asarray=self.asarray)

    def asarray(self, array: Any) -> Any:
        self.log.append((self.current.name, "copies", int(array[0])))
        return array.copy()


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def record(self) -> Event:
        self.streams.events += 1
        self.streams.log.append((self.name, "records", self.streams.events))
        return Event(self.streams, self.streams.events)

    def wait_event(self, event: Event) -> None:
        self.streams.log.append((self.name, "waits for", event.number))

    def __enter__(self) -> None:
        self.streams.current = self

    def __exit__(self, *error: object) -> None:
        self.streams.current = self.streams.work


class Event:
    def __init__(self, streams: Streams, number: int) -> None:
        self.streams, self.number = streams, number

    def synchronize(self) -> None:
        self.streams.log.append(("host", "waits for", self.number))


def test_blocks_arrive_while_others_are_worked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy waits for the work on the block whose memory it takes, and no other."""
    streams = Streams()
    monkeypatch.setitem(sys.modules, "cupy", streams.module())
    monkeypatch.setattr(device, "ahead", device.Ahead())
    blocks = [
        device.to_device_ahead((np.full(3, float(number)), None)) for number in range(3)
    ]
    for number, (values, nothing) in enumerate(blocks):
        np.testing.assert_array_equal(values, np.full(3, float(number)))
        assert nothing is None
    assert streams.log == [
        ("work", "records", 1),
        ("copies", "copies", 0),
        ("copies", "records", 2),
        ("work", "waits for", 2),
        ("work", "records", 3),  # after all work on the first block
        ("host", "waits for", 1),
        ("copies", "copies", 1),
        ("copies", "records", 4),
        ("work", "waits for", 4),
        ("work", "records", 5),
        ("host", "waits for", 3),  # then the third may take the first one's memory
        ("copies", "copies", 2),
        ("copies", "records", 6),
        ("work", "waits for", 6),
    ]


def test_whatever_is_streamed_is_brought_ahead(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the memory of the host or from a store: each block once in each pass."""
    shapes: list[tuple[int, int]] = []

    def bring(self: device.Ahead, value: Any) -> Any:
        shapes.append(value.block.shape)
        return device.to_device(value)

    monkeypatch.setattr(device.Ahead, "bring", bring)
    m, n = PROBLEM.truth.shape
    halves = Grid((0, m // 2, m), (0, n))
    monkeypatch.setattr("dmf.engine.layout.grid_of_chunks", lambda *_: halves)
    lazy = da.from_array(PROBLEM.nan, chunks=(m // 2, n))
    for X, blocks in ((PROBLEM.nan, [(m, n)]), (lazy, 2 * [(m // 2, n)])):
        counts = []
        for rounds in (1, 4):
            shapes.clear()
            dmf.factorize(X, 3, device="gpu", stream=True, max_rounds=rounds, tol=0)
            assert set(shapes) == set(blocks)
            counts.append(len(shapes))
        # W moves in one pass; so does H if it has one block, else in two.
        passes = 1 + len(blocks)
        assert counts[1] - counts[0] == 3 * passes * len(blocks)


def test_a_process_has_one_precision() -> None:
    """CuPy asks for it once: the second one would go without being noticed."""
    code = without() + (
        "import types\nfrom dmf import device\n"
        "Device = lambda: types.SimpleNamespace(mem_info=(0, 1))\n"
        "cuda = types.SimpleNamespace(Device=Device)\n"
        "sys.modules['cupy'] = types.SimpleNamespace(cuda=cuda)\n"
        "device.Gpu('tf32').memory()\n"
        "import os; print(os.environ['CUPY_TF32'])\n"
        "device.Gpu('float32').memory()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n"
    assert done.stderr.rstrip().splitlines()[-1] == (
        "ValueError: precision='float32', but this process multiplies in tf32 "
        "already; use another process for it"
    )


@pytest.mark.cluster
def test_a_cluster_without_gpus_is_refused_at_once(client: Any) -> None:
    before = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    said = (
        "device='gpu' needs workers that offer a GPU, but none of the 2 workers does; "
        "start them with --resources GPU=1, as in deploy/gpu, or use device='cpu'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        dmf.factorize(PROBLEM.nan, 3, device="gpu", client=client)
    after = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    assert after == before


@pytest.mark.cluster
@pytest.mark.parametrize("form", ["numpy", "dask"])
def test_tasks_run_on_the_workers_that_offer_a_gpu(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers, one has the resource: it alone touches what is on a device."""
    from distributed import Client, Scheduler, SpecCluster, Worker, get_worker

    places: list[str] = []

    def device_array(array: Any) -> Any:
        places.append(get_worker().name)
        return on_device(array)

    kinds_told_apart(monkeypatch)
    monkeypatch.setattr("dmf.device.device_array", device_array)
    alike = {"nthreads": 1, "host": "127.0.0.1", "dashboard": False}
    workers = {
        "plain": {"cls": Worker, "options": alike},
        "gpu": {"cls": Worker, "options": {**alike, "resources": {"GPU": 1}}},
    }
    options = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": ":0"}
    scheduler = {"cls": Scheduler, "options": options}
    expected = dmf.factorize(form_of(PROBLEM, form), 3, max_rounds=4, tol=0)
    expected_W = np.asarray(expected.W)
    # In this process, so that workers see the stand-in.
    with SpecCluster(workers, scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        fit = dmf.factorize(
            form_of(PROBLEM, form), 3, max_rounds=4, tol=0, device="gpu", client=client
        )
        W = np.asarray(fit.W)
    assert set(places) == {"gpu"}
    np.testing.assert_allclose(W, expected_W, rtol=1e-3, atol=1e-5)
