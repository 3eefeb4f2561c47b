"""Jobs for tests: small matrices, files that describe what to do with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from dmf import cli
from tests.problems import low_rank

# Of rows 0 to 99 it is the same, however many there are.
PROBLEM = low_rank(120, 30, 3)
BASE: dict[str, dict[str, Any]] = {
    "input": {"path": "X.npy"},
    "model": {"rank": 3, "validation": 0.1},
    "output": {"model": "model.zarr", "matrix": "filled.npy", "mask": "imputed.npy"},
}


def job_file(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write a job: the sections of `BASE`, with these keys added or replaced."""
    both = {
        name: BASE.get(name, {}) | sections.get(name, {})
        for name in {**BASE, **sections}
    }
    lines = []
    for name, keys in both.items():
        lines.append(f"[{name}]")
        lines += [f"{k} = {_toml(v)}" for k, v in keys.items() if v is not None]
    path = folder / "job.toml"
    path.write_text("\n".join(lines))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def write_rows(folder: Path, rows: int = 100, X: Any = None) -> Any:
    """Write the first rows of a matrix as X.npy; return them."""
    X = (PROBLEM.nan if X is None else X)[:rows]
    np.save(folder / "X.npy", X)
    return X


def run_job(path: Path, *options: Any, code: int = 0) -> Result:
    """Run a job in this process; check its exit code."""
    arguments = ["run", str(path), *map(str, options)]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def told(result: Result) -> str:
    """Return the last line of a run's log, without its time and fields."""
    line = result.stderr.splitlines()[-1]
    return line[20:].removeprefix("ERROR: ").rsplit(" code=", 1)[0]


def manifest_in(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "model.zarr.manifest.json").read_text())
    return read


def start_run(path: Path, *options: str) -> subprocess.Popen[str]:
    """Start a run as a process of its own, with a log of JSON lines on its stderr."""
    command = [sys.executable, "-m", "dmf.cli", "run", path.name, *options]
    return subprocess.Popen(
        [*command, "--set", "log.format=json", "--set", "log.level=debug"],
        cwd=path.parent,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # As a service starts it: Ctrl-C isn't ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def stop_at(
    process: subprocess.Popen[str], lines: int, by: int
) -> list[dict[str, Any]]:
    """Send a signal after so many lines of the log; return all lines, as read."""
    read = []
    assert process.stderr is not None
    for line in process.stderr:
        read.append(json.loads(line))
        if len(read) == lines:
            process.send_signal(by)
    process.wait(timeout=60)
    process.stderr.close()
    return read
