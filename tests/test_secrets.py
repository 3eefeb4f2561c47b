"""Credentials are planted wherever they may come from, and looked for everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

import dmf
from dmf import cli
from dmf.jobs.exits import Exit
from dmf.jobs.manifest import Paths
from dmf.jobs.problems import read_job
from dmf.secrets import HIDDEN, without_secrets
from tests.jobs import PROBLEM, job_file, run_job

# Not one of them may be found in anything that is shown, logged or kept.
PLANTED = {
    "password": "pass+word/hunter2",
    "token": "tok3n-of-the-query",
    "environment": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "option": "an-0ption-of-the-store",
}
BUCKET = f"memory://me:{PLANTED['password']}@host/q?token={PLANTED['token']}&f="
# As an error of some library could tell all of them.
TELLTALE = (
    f"403 for {BUCKET}X.npy with {{'key': 'me', 'secret': '{PLANTED['option']}'}}, "
    f"secret={PLANTED['option']} and {PLANTED['environment']}"
)


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Variables with secrets, and a store whose URLs have them; its files."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED["environment"])
    monkeypatch.setenv("FSSPEC_MEMORY_TOKEN", PLANTED["option"])
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def put(files: Any, name: str, X: Any) -> None:
    with files.open(f"{BUCKET}{name}", "wb") as file:
        np.save(file, X)


def secrets_in(text: str) -> list[str]:
    return [name for name, secret in PLANTED.items() if secret in text]


def check_nothing_is_told(folder: Path, files: Any, *shown: str) -> list[str]:
    """Look for what is planted; return the names of the files that were looked into."""
    for text in shown:
        assert secrets_in(text) == [], text
    looked = []
    for path in folder.rglob("*"):
        # The job itself may hold credentials: that is where they come from.
        if path.is_file() and path.name != "job.toml":
            assert secrets_in(path.read_bytes().decode(errors="replace")) == [], path
            assert secrets_in(path.name) == []
            looked.append(path.name)
    for name, file in files.store.items():
        content = file.getvalue().decode(errors="replace")
        assert secrets_in(content) == [], name
        looked.append(name.rsplit("&f=", 1)[-1])
    return looked


def url_job(folder: Path, form: str = "json", **sections: Any) -> Path:
    return job_file(
        folder,
        input={"path": f"{BUCKET}X.npy"},
        output={
            "model": f"{BUCKET}model.zarr",
            "matrix": f"{BUCKET}filled.npy",
            "mask": None,
        },
        report={"folder": "runs", "prometheus": "dmf.prom"},
        log={"format": form, "level": "debug", "file": "run.log"},
        **sections,
    )


@pytest.mark.parametrize("form", ["json", "human"])
def test_a_run_behind_urls_tells_no_secret(
    form: str, tmp_path: Path, planted: Any
) -> None:
    """In log, record, report, metrics and manifest, also of one with nothing to do."""
    put(planted, "X.npy", PROBLEM.nan)
    path = url_job(tmp_path, form)
    shown = [run_job(path, "--dry-run").output, run_job(path).output]
    shown += [run_job(path).output, run_job(path, "--dry-run").output]
    assert "nothing to do" in shown[-1]
    looked = check_nothing_is_told(tmp_path, planted, *shown)
    for name in ("run.log", "run.json", "report.html", "dmf.prom"):
        assert name in looked
    assert "model.zarr.manifest.json" in looked
    assert f"memory://{HIDDEN}@host/q?token={HIDDEN}&f=X.npy" in shown[0]


def test_new_credentials_are_no_new_input(tmp_path: Path, planted: Any) -> None:
    """Signed URLs differ from night to night: the manifest compares them without."""
    put(planted, "X.npy", PROBLEM.nan)
    path = url_job(tmp_path)
    run_job(path)
    for name in list(planted.store):
        other = name.replace(PLANTED["token"], "another")
        planted.store[other] = planted.store[name]
    given = path.read_text().replace(PLANTED["token"], "another")
    path.write_text(given)
    assert "nothing to do: input and settings" in run_job(path, "--dry-run").stdout


@pytest.mark.parametrize("changed", [False, True])
def test_a_journal_holds_no_secret_and_is_finished_all_the_same(
    changed: bool, tmp_path: Path, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places come from the job; of places that have changed, all is done anew."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    put(planted, "X.npy", PROBLEM.nan)
    path = url_job(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("dmf.jobs.publish._finish", _dies)
        run_job(path, code=Exit.INTERRUPTED)
    assert "model.zarr.publishing" not in planted.store
    (journal,) = tmp_path.rglob("*.publishing")
    check_nothing_is_told(tmp_path, planted)
    matrix = "other.npy" if changed else "filled.npy"
    run_job(path, "--set", f"output.matrix={BUCKET}{matrix}")
    told_last = (tmp_path / "run.log").read_text()
    assert ("the job no longer names memory://***@" in told_last) == changed
    assert ("finished what a killed run" in told_last) == (not changed)
    assert not journal.exists()
    with planted.open(f"{BUCKET}{matrix}") as file:
        assert not np.isnan(np.load(file)).any()
    check_nothing_is_told(tmp_path, planted)


def _dies(*arguments: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["json", "human"])
def test_a_bug_tells_no_secret(
    form: str, tmp_path: Path, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback is in the log, with whatever the error says."""

    def fails(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(TELLTALE)

    put(planted, "X.npy", PROBLEM.nan)
    monkeypatch.setattr(dmf, "factorize", fails)
    shown = run_job(url_job(tmp_path, form), code=Exit.UNEXPECTED).output
    check_nothing_is_told(tmp_path, planted, shown)
    text = (tmp_path / "run.log").read_text()
    assert "Traceback" in text
    assert f"403 for memory://{HIDDEN}@host" in text


@pytest.mark.parametrize("key", ["input.path", "output.model", "checkpoint.path"])
def test_an_error_tells_no_secret(key: str, tmp_path: Path, planted: Any) -> None:
    """Each place in turn is one that can't be reached, or isn't there."""
    put(planted, "X.npy", PROBLEM.nan)
    place = BUCKET.replace("memory", "nosuch") + "x.zarr"
    path = url_job(tmp_path)
    result = CliRunner().invoke(cli.main, ["run", str(path), "--set", f"{key}={place}"])
    assert result.exit_code in (Exit.BAD_CONFIGURATION, Exit.BAD_INPUT)
    check_nothing_is_told(tmp_path, planted, result.output)
    assert f"nosuch://{HIDDEN}@host/q?token={HIDDEN}" in result.stderr


def test_a_job_that_is_wrong_tells_no_secret(tmp_path: Path, planted: Any) -> None:
    token = PLANTED["token"]
    path = job_file(
        tmp_path,
        input={"path": f"{BUCKET}X.npy", "row": "a"},
        cluster={"kind": "threads", "password": token},
    )
    shown = run_job(path, "--set", f"model.token={token}", code=2).stderr
    assert "cluster.password isn't a known key" in shown
    check_nothing_is_told(tmp_path, planted, shown)


COMMANDS = {
    "factorize": [
        "factorize",
        f"{BUCKET}X.npy",
        "--rank",
        "2",
        "-o",
        f"{BUCKET}m.zarr",
    ],
    "plan": ["plan", f"{BUCKET}X.npy", "--rank", "2"],
    "no input": ["plan", f"{BUCKET}none.npy", "--rank", "2"],
    "no output": ["factorize", f"{BUCKET}X.npy", "--rank", "2", "-o", f"{BUCKET}X.npy"],
    "no model": [
        *("impute", f"{BUCKET}X.npy", "--model", f"{BUCKET}none.zarr"),
        *("-o", f"{BUCKET}f.npy"),
    ],
    "no scheduler": [
        *("plan", f"{BUCKET}X.npy", "--rank", "2"),
        *("--scheduler", f"tcp://me:{PLANTED['password']}@127.0.0.1:1"),
    ],
}


@pytest.mark.parametrize("which", COMMANDS)
def test_commands_tell_no_secret(
    which: str, tmp_path: Path, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmf.engine.cluster.CONNECT_SECONDS", 0.5)
    put(planted, "X.npy", PROBLEM.nan)
    result = CliRunner().invoke(cli.main, COMMANDS[which])
    assert result.exit_code == ("no " in which)
    assert not (result.exit_code and "Traceback" in result.output)
    check_nothing_is_told(tmp_path, planted, result.output)


def test_a_bug_in_a_command_tells_no_secret(
    tmp_path: Path, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(TELLTALE)

    put(planted, "X.npy", PROBLEM.nan)
    monkeypatch.setattr(dmf, "factorize", fails)
    result = CliRunner().invoke(cli.main, COMMANDS["factorize"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert f"403 for memory://{HIDDEN}@host" in result.stderr
    check_nothing_is_told(tmp_path, planted, result.output)


@pytest.mark.cluster
def test_workers_of_ours_tell_no_secret(tmp_path: Path, planted: Any) -> None:
    """Dask logs on standard error what fails in a task: here, a part of the input."""
    code = f"""
import fsspec, numpy as np
from dmf import cli
files = fsspec.filesystem("memory")
with files.open("{BUCKET}X.npy", "wb") as file:
    np.save(file, np.ones((30, 20)))
# The workers have a memory of their own, where nothing is.
fit = ["factorize", "{BUCKET}X.npy", "--rank", "2", "-o", "m.zarr"]
cli.main([*fit, "--workers", "1"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "there is nothing at memory://" in done.stderr
    check_nothing_is_told(tmp_path, planted, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (PLANTED["environment"], HIDDEN),
        (f"s3://AKIA:{PLANTED['environment']}@b/x", f"s3://{HIDDEN}@b/x"),
        ("s3://me:a/b@c@host/x", f"s3://{HIDDEN}@host/x"),
        ("password=a, b", f"password={HIDDEN}, b"),
        ("{'secret': 'a b', 'c': 1}", f"{{'secret': {HIDDEN}, 'c': 1}}"),
        ('{"client_secret": "a", "c": 1}', f'{{"client_secret": {HIDDEN}, "c": 1}}'),
        ("Authorization: Bearer abcdefgh.x", f"Authorization: Bearer {HIDDEN}"),
        # What is none stays.
        ("as in model.rank=8, section.key=value", None),
        ("unexpected token: x; a passage=1", None),
        ("tcp://10.0.0.5:8786 (timed out)", None),
        ("local=tls://127.0.0.1:1 remote=tls://127.0.0.1:2", None),
        ("/data/a@b/X.npy and s3://bucket/X.zarr", None),
    ],
)
def test_what_is_taken_out_of_texts(text: str, shown: str | None) -> None:
    found = without_secrets(text)
    assert found == (text if shown is None else shown)
    assert without_secrets(found) == found


def test_paths_of_keys_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where credentials are is what one needs to know if they don't work."""
    key = tmp_path / "private.key"
    key.write_text("x")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    assert without_secrets(f"can't read {key}") == f"can't read {key}"
    assert without_secrets({"tls_key": str(key)}) == {"tls_key": str(key)}


def test_folders_of_locks_are_our_own(
    tmp_path: Path, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a URL they are among temporary files, where others may write."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = url_job(tmp_path)
    paths = Paths.of(read_job(path, {}))
    folder = Path(paths.lock).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert secrets_in(json.dumps(os.listdir(tmp_path))) == []
    folder.chmod(0o777)
    sentence = f"others may write to {folder}, where locks are kept; remove it, or set"
    assert sentence in run_job(path, "--dry-run", code=2).stderr
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert sentence in run_job(path, "--dry-run", code=2).stderr
