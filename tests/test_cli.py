"""The command line: it does what the library does, and says what is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from click.testing import CliRunner, Result

import dmf
from dmf import cli
from dmf.engine.losses import WorkersLost
from dmf.io.matrices import open_matrix
from tests.devices import kinds_told_apart
from tests.problems import low_rank

PROBLEM = low_rank(30, 20)
GPU = ("--device", "gpu")


def dmf_command(*arguments: Any, code: int = 0) -> Result:
    """Run a command in this process; check its exit code."""
    result = CliRunner().invoke(cli.main, [str(one) for one in arguments])
    unexpected = result.exception if result.exit_code not in (0, 1, 2, 130) else None
    assert result.exit_code == code, (result.output, unexpected)
    return result


def error_of(*arguments: Any) -> str:
    """Run a command that must fail with one line on standard error; return it."""
    result = dmf_command(*arguments, code=1)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with X as .npy, .npz and .zarr, and masks M for it."""
    monkeypatch.chdir(tmp_path)
    np.save("X.npy", PROBLEM.nan)
    np.save("full.npy", PROBLEM.truth)
    np.save("M.npy", PROBLEM.mask)
    sp.save_npz("X.npz", PROBLEM.sparse())
    sp.save_npz("M.npz", PROBLEM.sparse(PROBLEM.weights))
    zarr.create_array("X.zarr", data=PROBLEM.nan, chunks=(15, 10))
    return tmp_path


# ------------------------------------------------------------------- factorize, impute


@pytest.mark.parametrize(
    ("matrix", "mask"),
    [
        ("X.npy", None),
        ("X.npz", None),
        ("X.zarr", None),
        ("full.npy", "M.npy"),
        ("X.zarr", "M.npy"),
        ("X.npz", "M.npz"),
    ],
)
@pytest.mark.parametrize("output", ["filled.npy", "filled.zarr"])
def test_factorize_and_impute(
    folder: Path, matrix: str, mask: str | None, output: str
) -> None:
    masked = [] if mask is None else ["--mask", mask]
    dmf_command("factorize", matrix, "--rank", 3, "-o", "model.zarr", *masked)
    M = None if mask is None else open_matrix(mask)
    expected = dmf.factorize(open_matrix(matrix), 3, mask=M)
    fit = dmf.load("model.zarr")
    np.testing.assert_array_equal(fit.W, expected.W, strict=True)
    np.testing.assert_array_equal(fit.H, expected.H, strict=True)

    dmf_command("impute", matrix, "--model", "model.zarr", "-o", output, *masked)
    filled = open_matrix(output).compute()
    assert filled[PROBLEM.mask].tobytes() == PROBLEM.truth[PROBLEM.mask].tobytes()
    np.testing.assert_allclose(
        filled[~PROBLEM.mask], np.asarray(fit.W @ fit.H)[~PROBLEM.mask], rtol=1e-12
    )


def test_options_reach_the_library(folder: Path) -> None:
    options = "--ridge 0.25 --ridge-by-count --solver exact --max-rounds 7 --tol 0"
    more = "--seed 5 --restarts 2 -o model.zarr"
    dmf_command("factorize", "X.npy", "--rank", 2, *options.split(), *more.split())
    fit = dmf.load("model.zarr")
    expected = dmf.factorize(
        PROBLEM.nan,
        2,
        penalty=dmf.Ridge(0.25, by_count=True),
        solver=dmf.NormalizedGradient("global", dmf.Exact()),
        max_rounds=7,
        tol=0,
        seed=5,
        restarts=2,
    )
    assert (fit.penalty, fit.solver, fit.seed, fit.status, fit.objectives) == (
        expected.penalty,
        expected.solver,
        expected.seed,
        expected.status,
        expected.objectives,
    )
    np.testing.assert_array_equal(fit.W, expected.W)


@pytest.mark.parametrize(
    ("options", "penalty"),
    [
        ([], dmf.factorize(PROBLEM.nan, 1, max_rounds=1).penalty[0]),
        (["--ridge", 0], dmf.Ridge(0.0)),
        (["--ridge", 0.5], dmf.Ridge(0.5)),
        (["--ridge", 0.5, "--ridge-plain"], dmf.Ridge(0.5)),
    ],
)
def test_ridge(folder: Path, options: list[Any], penalty: dmf.Ridge) -> None:
    dmf_command("factorize", "X.npy", "--rank", 1, "-o", "model.zarr", *options)
    assert dmf.load("model.zarr").penalty == (penalty, penalty)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("plane", dmf.NormalizedGradient()),
        ("exact", dmf.NormalizedGradient("global", dmf.Exact())),
        ("als", dmf.AlternatingLeastSquares()),
    ],
)
def test_solvers(folder: Path, name: str, solver: Any) -> None:
    dmf_command("factorize", "X.npy", "--rank=1", "-o", "m.zarr", "--solver", name)
    assert dmf.load("m.zarr").solver == solver


def test_summary(folder: Path) -> None:
    arguments = ("factorize", "X.npz", "--rank", 2, "-o", "model.zarr")
    result = dmf_command(*arguments)
    fit = dmf.load("model.zarr")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines == {
        "matrix": f"30 × 20, {PROBLEM.mask.mean():.3g} of it stored",
        "rank": "2",
        "rounds": f"{len(fit.history)}",
        "objective": f"{fit.objective:.6g}",
        "RMSE": f"{fit.history.rmse[-1]:.6g} on the observed entries",
        "status": str(fit.status),
        "model": "model.zarr",
    }
    assert result.stderr == ""


def test_quiet(folder: Path) -> None:
    fit = ("factorize", "X.npy", "--rank", 2, "-o", "model.zarr", "--quiet")
    fill = ("impute", "X.npy", "--model", "model.zarr", "-o", "f.npy", "--quiet")
    assert dmf_command(*fit).output == dmf_command(*fill).output == ""
    assert (folder / "f.npy").exists()


def test_overwrite(folder: Path) -> None:
    fit = ("factorize", "X.npy", "-o", "model.zarr", "--overwrite", "--rank")
    fill = ("impute", "--model", "model.zarr", "-o", "X.npy", "--overwrite", "X.npy")
    dmf_command(*fit, 1)
    dmf_command(*fit, 2)
    assert dmf.load("model.zarr").rank == 2
    result = dmf_command(*fill)
    assert result.stdout == "X.npy: 30 × 20, float64, filled from model.zarr\n"
    assert not np.isnan(np.load("X.npy")).any()


# ------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("factorize no.npy --rank 2 -o m.zarr", "there is no file *no.npy; check the"),
        ("factorize X.npy --rank 21 -o m.zarr", "rank must be at most min(m, n) = 20"),
        ("factorize X.npy --rank 2 -o m.zarr --ridge -1", "at least 0, got -1"),
        ("factorize X.npy --rank 2 -o m.zarr --tol nan", "tol must be finite and at"),
        ("factorize X.npy --rank 2 -o m.zarr --mask X.npz", "mask is sparse, but X is"),
        ("factorize X.npy --rank 2 -o m.zarr --mask T.npy", "mask has shape (20, 30)"),
        ("factorize X.npy --rank 2 -o no/m.zarr", "there is no folder *no; create it"),
        ("factorize X.npy --rank 2 -o X.zarr", "X.zarr exists; choose another path"),
        ("factorize X.npy --rank 2 -o X.zarr --overwrite", "isn't a model of dmf, so"),
        ("factorize inf.npy --rank 2 -o m.zarr", "X is infinite in row 3, column 4"),
        ("impute X.npy --model no.zarr -o f.npy", "there is nothing at *no.zarr; che"),
        ("impute X.npy --model X.zarr -o f.npy", "X.zarr isn't a model of dmf; give"),
        (
            "impute X.npy --model m.zarr -o f.txt",
            "its name must end in .npy or .zarr or, for",
        ),
        ("impute X.npy --model m.zarr -o M.npy", "M.npy exists; choose another path"),
        ("impute T.npy --model ok.zarr -o f.npy", "X has shape (20, 30), but the fact"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, arguments: str, message: str) -> None:
    np.save("T.npy", PROBLEM.nan.T)
    infinite = PROBLEM.nan.copy()
    infinite[3, 4] = np.inf
    np.save("inf.npy", infinite)
    dmf.factorize(PROBLEM.nan, 1, max_rounds=1).save("ok.zarr")
    before = sorted(os.listdir())
    error = error_of(*arguments.split())
    place = error
    for part in message.split("*"):
        assert part in place
        place = place.partition(part)[2]
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "factorize no.npy --rank 2 -o X.zarr",
        "impute no.npy --model no.zarr -o X.zarr",
    ],
)
def test_outputs_are_checked_first(folder: Path, arguments: str) -> None:
    # Before any worker starts, and before the input is opened.
    error = error_of(*arguments.split(), "--scheduler", "tcp://127.0.0.1:1")
    assert "X.zarr exists; choose another path" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("factorize X.npy -o m.zarr", "Missing option '--rank'"),
        ("factorize X.npy --rank 2", "Missing option '-o'"),
        ("factorize X.npy --rank 2 -o m --solver sgd", "'sgd' is not one of 'plane',"),
        ("factorize X.npy --rank 2 -o m --ridge-by-count", "need --ridge"),
        ("factorize X.npy --rank 2 -o m --ridge-plain", "need --ridge"),
        ("factorize X.npy --rank 2 -o m --workers 0", "0 is not in the range x>=1"),
        (
            "factorize X.npy --rank 2 -o m --workers 2 --scheduler tcp://127.0.0.1:1",
            "--scheduler and --workers exclude each other",
        ),
        (
            "impute X.npy --model m -o f --workers 2 --scheduler tcp://127.0.0.1:1",
            "--scheduler and --workers exclude each other",
        ),
    ],
)
def test_usage_errors(folder: Path, arguments: str, message: str) -> None:
    assert message in dmf_command(*arguments.split(), code=2).stderr


def test_scheduler_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmf.engine.cluster.CONNECT_SECONDS", 0.5)
    fit = ("factorize", "X.npy", "--rank", 2, "-o", "model.zarr", "--scheduler")
    # Bound, and so nobody else's, but not listening.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{bound.getsockname()[1]}"
        error = error_of(*fit, address)
    assert error.startswith(f"can't connect to a Dask scheduler at {address} (")
    assert error.endswith(
        "; check the address, that the scheduler runs, and whether it asks for TLS"
    )
    assert "can't connect to a Dask scheduler at nowhere (" in error_of(*fit, "nowhere")


@pytest.mark.parametrize("error", [OSError("disk\nfull"), WorkersLost("disk full")])
def test_the_outside_world_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(dmf, "factorize", _raises(error))
    fit = ("factorize", "X.npy", "--rank", 2, "-o", "model.zarr")
    assert error_of(*fit) == "disk full"


def test_a_bug_keeps_its_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = ZeroDivisionError("a bug")
    monkeypatch.setattr(dmf, "factorize", _raises(bug))
    fit = ("factorize", "X.npy", "--rank", 2, "-o", "model.zarr")
    shown = dmf_command(*fit, code=1).stderr
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.endswith("ZeroDivisionError: a bug\n")


def _raises(error: BaseException) -> Any:
    def function(*arguments: Any, **options: Any) -> None:
        raise error

    return function


# --------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize(
    ("command", "function", "message"),
    [
        ("factorize X.npy --rank 2", "factorize", "before the model was saved"),
        ("impute X.npy --model ok.zarr", "impute", "interrupted; out.zarr was not wr"),
    ],
)
def test_interrupted_before_there_is_anything_to_save(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    function: str,
    message: str,
) -> None:
    dmf.factorize(PROBLEM.nan, 1, max_rounds=1).save("ok.zarr")
    before = sorted(os.listdir())
    monkeypatch.setattr(dmf, function, _raises(KeyboardInterrupt()))
    result = dmf_command(*command.split(), "-o", "out.zarr", code=130)
    assert message in result.stderr
    assert sorted(os.listdir()) == before


def interrupt_early(
    folder: Path, *options: str, by: int = signal.SIGINT
) -> tuple[int, str, str]:
    """Start a fit without end on a terminal of its own, and press Ctrl-C soon after.

    Returns
    -------
    exit code, standard output, and what the terminal has shown
    """
    import pty

    terminal, its_end = pty.openpty()
    command = "factorize big.npy --rank 8 -o model.zarr --tol 0 --max-rounds 1000000"
    process = subprocess.Popen(
        [sys.executable, "-m", "dmf.cli", *command.split(), *options],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=its_end,
        # A group of its own: as a terminal does, the signal goes to all of the group.
        start_new_session=True,
        # Whoever was started in the background by a shell ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(its_end)
    shown = b""
    pressed = False
    try:
        while part := _read(terminal):
            shown += part
            # The first line that is drawn may be of any round.
            if not pressed and b" round " in shown:
                os.killpg(process.pid, by)
                pressed = True
        output, _ = process.communicate(timeout=60)
    finally:
        os.close(terminal)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output.decode(), shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that nobody holds the other end any more
        return b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("--workers", "2"), marks=[pytest.mark.slow, pytest.mark.cluster]),
    ],
    ids=["threads", "workers"],
)
def test_ctrl_c_saves_the_factors(tmp_path: Path, options: tuple[str, ...]) -> None:
    np.save(tmp_path / "big.npy", low_rank(500, 400, 3).nan)
    code, output, shown = interrupt_early(tmp_path, *options)
    assert code == 130, shown
    fit = dmf.load(tmp_path / "model.zarr")
    assert fit.status.code == "interrupted"
    assert fit.status.round == len(fit.history) >= 1
    assert str(fit.status) in output
    assert f"{fit.status}; saved as model.zarr" in shown
    assert "Traceback" not in shown
    assert np.isfinite(np.asarray(fit.W)).all()
    assert sorted(os.listdir(tmp_path)) == ["big.npy", "model.zarr"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_sigterm_saves_as_ctrl_c_does(tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", low_rank(500, 400, 3).nan)
    saved = ("--checkpoint", "saved")
    code, _, shown = interrupt_early(tmp_path, *saved, by=signal.SIGTERM)
    assert code == 130, shown
    assert dmf.load(tmp_path / "model.zarr").status.code == "interrupted"
    assert len(os.listdir(tmp_path / "saved")) in (1, 2)


# ----------------------------------------------------------------------------- clusters


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("matrix", ["X.zarr", "X.npz", "X.npy"])
@pytest.mark.usefixtures("keep_chunks")
def test_workers_give_the_same_bits(folder: Path, matrix: str) -> None:
    fit = ("factorize", matrix, "--rank", 3, "--max-rounds", 10)
    dmf_command(*fit, "-o", "threads.zarr")
    dmf_command(*fit, "-o", "workers.zarr", "--workers", 2)
    threads, workers = dmf.load("threads.zarr"), dmf.load("workers.zarr")
    np.testing.assert_array_equal(threads.W, workers.W, strict=True)
    np.testing.assert_array_equal(threads.H, workers.H, strict=True)

    fill = ("impute", matrix, "--model", "workers.zarr")
    dmf_command(*fill, "-o", "threads.npy")
    dmf_command(*fill, "-o", "workers.npy", "--workers", 2)
    assert (folder / "threads.npy").read_bytes() == (
        folder / "workers.npy"
    ).read_bytes()


@pytest.mark.cluster
@pytest.mark.usefixtures("keep_chunks")
def test_scheduler(folder: Path, cluster: Any) -> None:
    where = ("--scheduler", cluster.scheduler_address)
    short = ("--rank", 3, "--max-rounds", 10)
    dmf_command("factorize", "X.zarr", *short, "-o", "model.zarr", *where)
    expected = dmf.factorize(da.from_zarr("X.zarr"), 3, max_rounds=10)
    fit = dmf.load("model.zarr")
    np.testing.assert_array_equal(fit.W, expected.W, strict=True)
    dmf_command("impute", "X.npy", "--model", "model.zarr", "-o", "f.zarr", *where)
    np.testing.assert_array_equal(open_matrix("f.zarr"), dmf.impute(PROBLEM.nan, fit))


@pytest.mark.cluster
def test_workers_end_also_after_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import default_client

    processes: list[int] = []

    def fails(*arguments: Any, **options: Any) -> None:
        processes.extend(default_client().run(os.getpid).values())
        msg = "bad input"
        raise ValueError(msg)

    monkeypatch.setattr(dmf, "factorize", fails)
    fit = ("factorize", "X.npy", "--rank", 3, "-o", "model.zarr", "--workers", 2)
    assert error_of(*fit) == "bad input"
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    with pytest.raises(ValueError, match="No clients found"):
        default_client()


# ----------------------------------------------------------------- help, version, demo


def test_version() -> None:
    assert dmf_command("--version").stdout == f"dmf, version {dmf.__version__}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str) -> None:
    listed = dmf_command(flag).stdout
    for name, command in cli.main.commands.items():
        assert name in listed
        shown = " ".join(dmf_command(name, flag).stdout.split())
        assert f"Example: dmf {name}" in shown
        assert command.epilog in shown


@pytest.mark.parametrize("name", ["factorize", "impute"])
def test_examples_in_the_help_parse(name: str, folder: Path) -> None:
    example = cli.main.commands[name].epilog.removeprefix("Example: dmf ").split()
    # The files aren't there: the one complaint must be about that.
    assert "there is no" in error_of(*example)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dmf.demo

    asked: list[Path] = []
    monkeypatch.setattr(dmf.demo, "run_demo", asked.append)
    monkeypatch.chdir(tmp_path)
    dmf_command("demo")
    dmf_command("demo", "--output", "other.png")
    assert asked == [Path("demo.png"), Path("other.png")]


def test_demo_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    import dmf.demo

    missing = ImportError("pictures need matplotlib; install it")
    monkeypatch.setattr(dmf.demo, "run_demo", _raises(missing))
    assert error_of("demo") == "pictures need matplotlib; install it"


# ------------------------------------------------------------------------------ devices


@pytest.mark.parametrize(
    "arguments",
    [
        "factorize X.npy --rank 2 -o m.zarr --device gpu",
        "impute X.npy --model ok.zarr -o f.npy --device gpu",
        "plan X.npy --rank 2 --device gpu",
    ],
)
def test_a_device_that_is_not_there(
    folder: Path, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    dmf.factorize(PROBLEM.nan, 1, max_rounds=1).save("ok.zarr")
    before = sorted(os.listdir())
    said = "device='gpu' needs CuPy and numba-cuda: pip install 'dmf[gpu]'"
    assert error_of(*arguments.split()) == said
    assert sorted(os.listdir()) == before


def test_commands_on_a_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds_told_apart(monkeypatch)
    dmf_command("factorize", "X.npy", "--rank", 3, "-o", "here.zarr", "--max-rounds", 5)
    dmf_command(
        "factorize", "X.npy", "--rank", 3, "-o", "m.zarr", "--max-rounds", 5, *GPU
    )
    there, here = dmf.load("m.zarr"), dmf.load("here.zarr")
    np.testing.assert_allclose(there.W, here.W, rtol=1e-9)
    dmf_command("impute", "X.npy", "--model", "m.zarr", "-o", "filled.npy", *GPU)
    expected = dmf.impute(PROBLEM.nan, here)
    np.testing.assert_allclose(np.load("filled.npy"), expected, rtol=1e-9)
    told = dmf_command("plan", "X.npy", "--rank", 3, *GPU).stdout
    assert "a round        not predicted, " in told
