"""Schedulers that ask for certificates: who has one fits, who hasn't is turned away."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from click.testing import CliRunner

import dmf
from dmf import cli
from dmf.engine.tls import Tls
from dmf.jobs.exits import Exit
from tests.certificates import Authority
from tests.jobs import job_file, run_job, told, write_rows

NEEDS = "--tls-ca, --tls-cert and --tls-key (in a job: tls_* of [cluster])"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.new(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.new(tmp_path_factory.mktemp("certificates") / "theirs")


def files_of(authority: Authority, name: str = "client") -> dict[str, str]:
    cert, key = authority.member(name)
    return {"ca": str(authority.ca), "cert": str(cert), "key": str(key)}


def settings_of(files: dict[str, str]) -> dict[str, str]:
    return {f"tls_{name}": path for name, path in files.items()}


def options_of(files: dict[str, str]) -> list[str]:
    return [word for name, path in files.items() for word in (f"--tls-{name}", path)]


@contextmanager
def dask_process(what: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A scheduler or a worker of Dask, as its command starts it."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard"]
    with subprocess.Popen(
        [*command, *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def scheduler(ours: Authority) -> Iterator[str]:
    """The address of a scheduler with TLS, and with one worker."""
    files = {**files_of(ours, "server")}
    files["ca-file"] = files.pop("ca")
    secure = ("--protocol", "tls", *options_of(files))
    at_any_port = ("--host", "127.0.0.1", "--port", "0")
    with dask_process("scheduler", *at_any_port, *secure) as process:
        assert process.stderr is not None
        (address,) = next(
            found
            for line in process.stderr
            if (found := re.findall(r"Scheduler at: +(tls://\S+)", line))
        )
        one = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1")
        with dask_process("worker", address, *one, *secure):
            yield address


@pytest.mark.cluster
def test_who_has_a_certificate_fits(
    scheduler: str, ours: Authority, tmp_path: Path
) -> None:
    X = write_rows(tmp_path)
    cluster = {"kind": "scheduler", "address": scheduler}
    path = job_file(
        tmp_path,
        model={"validation": None},
        cluster=cluster | settings_of(files_of(ours)),
    )
    assert told(run_job(path)).startswith("done")
    fit = dmf.load(tmp_path / "model.zarr")
    with dask.config.set(scheduler="threads"):
        expected = dmf.factorize(X, 3)
    np.testing.assert_array_equal(fit.W, expected.W)
    np.testing.assert_array_equal(fit.H, expected.H)


@pytest.mark.cluster
def test_commands_take_certificates(
    scheduler: str, ours: Authority, tmp_path: Path
) -> None:
    write_rows(tmp_path)
    X, model, filled = (str(tmp_path / n) for n in ("X.npy", "m.zarr", "f.npy"))
    where = ["--scheduler", scheduler, *options_of(files_of(ours))]
    for command in (
        ["plan", X, "--rank", "3"],
        ["factorize", X, "--rank", "3", "-o", model],
        ["impute", X, "--model", model, "-o", filled],
    ):
        done = CliRunner().invoke(cli.main, [*command, *where])
        assert done.exit_code == 0, done.output
    assert not np.isnan(np.load(filled)).any()


@pytest.mark.cluster
@pytest.mark.parametrize("who", ["without", "of others", "of others, trusting ours"])
def test_others_are_turned_away(
    scheduler: str, ours: Authority, theirs: Authority, who: str, tmp_path: Path
) -> None:
    """One sentence, the exit code for clusters, and nothing is published."""
    write_rows(tmp_path)
    cluster = {"kind": "scheduler", "address": scheduler}
    if who == "without":
        cluster["address"] = scheduler.replace("tls://", "tcp://")
    else:
        cluster |= settings_of(files_of(theirs))
    if who == "of others, trusting ours":
        cluster["tls_ca"] = str(ours.ca)
    result = run_job(job_file(tmp_path, cluster=cluster), code=Exit.CLUSTER_LOST)
    assert re.fullmatch(
        rf"can't connect to a Dask scheduler at {cluster['address']} \(.+\); check the "
        "address, that the scheduler runs, and whether it asks for TLS",
        told(result),
    )
    assert "Traceback" not in result.output
    assert not (tmp_path / "model.zarr").exists()


def unfit(ours: Authority, folder: Path) -> dict[str, dict[str, Any]]:
    """Return files that don't do, by what is said about them."""
    files = files_of(ours)
    text = folder / "text.pem"
    text.write_text("no certificate")
    _, other = ours.member("other")
    locked = dict(zip(("cert", "key"), ours.member("locked", b"phrase"), strict=True))
    gone = folder / "gone.pem"
    return {
        "TLS needs three files, but tls_key isn't given; give " + NEEDS: {"key": None},
        f"there is no file {gone}; check tls_ca": {"ca": gone},
        f"{text} holds no certificate (": {"ca": text},
        f"{text} and {files['key']} aren't a certificate and its pri": {"cert": text},
        "its private key (KEY_VALUES_MISMATCH); check tls_cert and tls_": {
            "key": other
        },
        "key (the key has a passphrase); check tls_cert and tls_key": locked,
    }


@pytest.mark.parametrize("which", range(6))
def test_files_are_checked_before_anybody_is_asked(
    ours: Authority, tmp_path: Path, which: int
) -> None:
    """By jobs and by commands, in the same words; nobody listens at the address."""
    sentence, change = list(unfit(ours, tmp_path).items())[which]
    files = {
        name: str(path)
        for name, path in (files_of(ours) | change).items()
        if path is not None
    }
    write_rows(tmp_path)
    address = "tls://127.0.0.1:1"
    cluster = {"kind": "scheduler", "address": address} | settings_of(files)
    path = job_file(tmp_path, cluster=cluster)
    assert sentence in told(run_job(path, code=Exit.BAD_CONFIGURATION))
    assert sentence in run_job(path, "--dry-run", code=Exit.BAD_CONFIGURATION).stderr
    plan = ["plan", str(tmp_path / "X.npy"), "--rank", "3", "--scheduler", address]
    done = CliRunner().invoke(cli.main, [*plan, *options_of(files)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def test_addresses_and_files_go_together(ours: Authority) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"asks for certificates; give {NEEDS}")
    ):
        Tls().check("tls://10.0.0.5:8786")
    sentence = (
        "certificates are for addresses such as tls://10.0.0.5:8786, got "
        f"tcp://10.0.0.5:8786; change the address, or leave out {NEEDS}"
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Tls(**files_of(ours)).check("tcp://10.0.0.5:8786")
    Tls().check("tcp://10.0.0.5:8786")


def test_certificates_of_dasks_own_configuration_count(ours: Authority) -> None:
    files = files_of(ours)
    client = {"cert": files["cert"], "key": files["key"]}
    with dask.config.set(
        {
            "distributed.comm.tls.ca-file": files["ca"],
            "distributed.comm.tls.client": client,
        }
    ):
        Tls().check("tls://10.0.0.5:8786")
    assert Tls().security() is None


def test_certificates_need_a_scheduler(ours: Authority) -> None:
    done = CliRunner().invoke(
        cli.main, ["plan", "X.npy", "--rank", "3", *options_of(files_of(ours))]
    )
    assert done.exit_code == 2
    assert "--tls-ca, --tls-cert and --tls-key need --scheduler" in done.stderr
