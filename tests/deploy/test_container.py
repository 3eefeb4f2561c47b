"""The image: its steps work, from the locks alone, and what is in it works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

import dmf
from tests.deploy.containerfile import ROOT, Stage, instructions, replay
from tests.jobs import job_file, write_rows
from tests.kubernetes import applied, named, pods_of
from tests.problems import low_rank

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TEXT = (ROOT / "deploy" / "container" / "Containerfile").read_text()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return replay(TEXT, tmp_path_factory.mktemp("image"))


def test_nothing_is_installed_but_what_the_locks_name(image: Stage) -> None:
    listed = image.run("pip", "list", "--format=json", "--disable-pip-version-check")
    found = {
        re.sub(r"[-_.]+", "-", one["name"].lower()): one["version"]
        for one in json.loads(listed)
    }
    assert found.pop("dmf") == dmf.__version__
    locked = (ROOT / "deploy" / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([a-z0-9][\w.-]*)==([^ \\;]+)", locked, re.M))
    own = {"pip", "setuptools"}  # what an empty environment has
    assert {one for one in found.items() if one[0] not in own} <= pinned
    assert len(found) > len(own) + 80
    assert "No broken requirements found" in image.run("pip", "check")


def test_it_runs_as_nobody_in_particular(image: Stage) -> None:
    """By a number: Kubernetes can tell that it isn't root."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user)
    user, group = map(int, image.user.split(":"))
    cronjob = named(applied(ROOT / "deploy" / "kubernetes" / "base"), "CronJob")
    ((_, pod),) = pods_of(cronjob)
    own = pod["securityContext"]
    assert (own["runAsUser"], own["runAsGroup"]) == (user, group)
    assert any(f"useradd --uid {user} " in given for _, given in instructions(TEXT))


def test_its_entry_point_is_dmf(image: Stage) -> None:
    assert image.command == ["--help"]
    assert "Commands:" in image.run(*image.entrypoint, *image.command)
    assert dmf.__version__ in image.run(*image.entrypoint, "--version")
    program = image.run("sh", "-c", "command -v dmf").strip()
    assert program == str(image.root / "opt" / "dmf" / "bin" / "dmf")


def test_a_job_runs_in_it(image: Stage, tmp_path: Path) -> None:
    """With the package that it has, not with this checkout's."""
    X = write_rows(tmp_path)
    path = job_file(tmp_path, report={"folder": "runs"})
    shown = image.run(*image.entrypoint, "run", str(path), folder=tmp_path)
    assert "done: a full run" in shown
    filled = np.load(tmp_path / "filled.npy")
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])
    assert not np.isnan(filled).any()
    assert list(tmp_path.glob("runs/*/report.html"))
    where = "import dmf; print(dmf.__file__)"
    assert str(image.root) in image.run("python", "-c", where, folder=tmp_path)


def test_it_has_what_the_manifests_run(image: Stage) -> None:
    """And what jobs on clusters and stores need: the extras."""
    folder = ROOT / "deploy" / "kubernetes"
    programs = {
        container.get("command", image.entrypoint)[0]
        for name in ("base", "overlays/gpu", "once")
        for document in applied(folder / name)
        for _, pod in pods_of(document)
        for container in pod["containers"]
    }
    assert programs == {"dmf", "dask"}
    for words in (["dask", "scheduler"], ["dask", "worker"]):
        assert "Usage:" in image.run(*words, "--help")
    modules = "s3fs, dask_kubernetes, dask_jobqueue, matplotlib, pyarrow, xarray, h5py"
    image.run("python", "-W", "ignore", "-c", f"import {modules}")


def test_workers_of_it_fill_a_matrix(image: Stage, tmp_path: Path) -> None:
    X = low_rank(60, 40, 3).nan
    zarr.save_array(str(tmp_path / "X.zarr"), X)
    fit = ["factorize", "X.zarr", "-o", "m.zarr", "--rank", "3", "--workers", "1"]
    image.run(*image.entrypoint, *fit, folder=tmp_path)
    fill = ["impute", "X.zarr", "--model", "m.zarr", "-o", "filled.zarr"]
    image.run(*image.entrypoint, *fill, folder=tmp_path)
    assert not np.isnan(zarr.open_array(tmp_path / "filled.zarr")[...]).any()
