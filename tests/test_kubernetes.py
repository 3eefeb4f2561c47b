"""Manifests for Kubernetes: valid, without rights, and their commands are run."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jsonschema
import kubernetes_validate
import numpy as np
import pytest
import yaml
import zarr
from dask.config import collect_env

import dmf
from dmf.jobs.config import Job
from dmf.jobs.exits import Exit
from tests.kubernetes import Document, applied, named, pods_of
from tests.problems import low_rank

FOLDER = Path(__file__).parent.parent / "deploy" / "kubernetes"
BUILT = {
    name: applied(FOLDER / name)
    for name in ("base", "overlays/small", "overlays/large", "overlays/gpu", "once")
}
ALL = [
    *((name, document) for name, built in BUILT.items() for document in built),
    *(
        ("rbac", document)
        for document in yaml.safe_load_all((FOLDER / "rbac.yaml").read_text())
    ),
]
PODS = [
    pytest.param(name, pod, document, id=f"{name}-{document['kind']}-{pod}")
    for name, document in ALL
    for pod, _ in pods_of(document)
]
# The first version that knows all of it, and the last one.
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def id_of(value: Any) -> str:
    return f"{value[0]}-{value[1]['kind']}"


# ------------------------------------------------------------------------------ schemas


def schemas_of_dask() -> dict[str, Any]:
    """Return the schemas of the operator's resources, by their kinds."""
    folder = files("dask_kubernetes") / "operator/deployment/helm"
    found = {}
    for path in (folder / "dask-kubernetes-operator/crds").iterdir():
        described = yaml.safe_load(path.read_text())["spec"]
        (version,) = described["versions"]
        kind = f"{described['group']}/{version['name']}", described["names"]["kind"]
        found[kind] = strict(version["schema"]["openAPIV3Schema"])
    return found


def strict(schema: Any) -> Any:
    """Return a schema that refuses what Kubernetes would leave out without a word."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    return found | {"additionalProperties": False} if closed else found


DASK = schemas_of_dask()
ANYWHERE = {"apiVersion": {}, "kind": {}, "metadata": {}}


def check(document: Document, version: str) -> None:
    """Refuse a document that Kubernetes or Dask's operator would."""
    kind = document["apiVersion"], document["kind"]
    if kind not in DASK:
        kubernetes_validate.validate(document, version, strict=True)
        return
    schema = DASK[kind]
    properties = schema["properties"] | ANYWHERE
    jsonschema.validate(document, schema | {"properties": properties})
    # Of pods they check less than Kubernetes does when the operator asks for them.
    for _, pod in pods_of(document):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": pod},
            version,
            strict=True,
        )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("one", ALL, ids=id_of)
def test_documents_are_valid(one: tuple[str, Document], version: str) -> None:
    check(one[1], version)


def test_the_check_sees_slips() -> None:
    built = copy.deepcopy(BUILT["overlays/large"])
    cronjob, cluster = named(built, "CronJob"), named(built, "DaskCluster")
    cronjob["spec"]["jobTemplate"]["spec"]["backofLimit"] = 2
    cluster["spec"]["worker"]["replica"] = 2
    pod = copy.deepcopy(named(BUILT["once"], "DaskJob"))
    pod["spec"]["job"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    wrong = copy.deepcopy(named(BUILT["once"], "DaskJob"))
    wrong["spec"]["cluster"]["spec"]["worker"]["replicas"] = "two"
    for one in (cronjob, cluster, pod, wrong):
        with pytest.raises(
            (jsonschema.ValidationError, kubernetes_validate.ValidationError)
        ):
            check(one, VERSIONS[-1])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
@pytest.mark.parametrize("name", BUILT)
def test_kubectl_builds_the_same(name: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / name)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = list(yaml.safe_load_all(done.stdout))

    def by_name(one: Document) -> tuple[str, str]:
        return one["kind"], one["metadata"]["name"]

    assert sorted(found, key=by_name) == sorted(BUILT[name], key=by_name)


# ----------------------------------------------------------------------------- security


@pytest.mark.parametrize(("name", "pod", "document"), PODS)
def test_pods_have_no_rights(name: str, pod: str, document: Document) -> None:
    spec = dict(pods_of(document))[pod]
    whole = spec["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in own
        limits, requests = (container["resources"][k] for k in ("limits", "requests"))
        assert {"cpu", "memory"} <= limits.keys() & requests.keys()
        assert limits["memory"] == requests["memory"]
        # Credentials come from a secret; no manifest holds one.
        assert container["envFrom"] == [
            {"secretRef": {"name": "dmf-store", "optional": True}}
        ]
        for variable in container.get("env", ()):
            assert variable["name"].startswith("DASK_DISTRIBUTED__WORKER__")
    if pod == "run":
        assert spec["serviceAccountName"] == "dmf"
    else:
        assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("name", "pod", "document"), PODS)
def test_volumes_are_there(name: str, pod: str, document: Document) -> None:
    spec = dict(pods_of(document))[pod]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for container in spec["containers"]:
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert set(mounts.values()) == volumes.keys()
        # The only place that may be written to, besides the data.
        assert "emptyDir" in volumes[mounts["/tmp"]]
    base = BUILT["base"]
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert claim == named(base, "PersistentVolumeClaim")["metadata"]["name"]
        if "configMap" in volume:
            name = volume["configMap"]["name"]
            assert name == named(base, "ConfigMap")["metadata"]["name"]


def test_only_pods_of_dmf_reach_a_scheduler() -> None:
    policy = named(BUILT["base"], "NetworkPolicy")["spec"]
    ours = {"app.kubernetes.io/name": "dmf"}
    assert policy["podSelector"]["matchLabels"] == ours
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": ours}}]
    for _, document in ALL:
        for _ in pods_of(document):
            # Dask's operator gives them to pods; a CronJob's template has its own.
            labelled = document
            if document["kind"] == "CronJob":
                labelled = document["spec"]["jobTemplate"]["spec"]["template"]
            assert ours.items() <= labelled["metadata"]["labels"].items()


def test_exit_codes_that_another_try_would_not_change() -> None:
    spec = named(BUILT["base"], "CronJob")["spec"]["jobTemplate"]["spec"]
    (rule,) = (r for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r)
    assert [Exit(code) for code in rule["onExitCodes"]["values"]] == [
        *(Exit.BAD_CONFIGURATION, Exit.BAD_INPUT, Exit.NOT_CONVERGED, Exit.REFUSED)
    ]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_services_lead_to_schedulers() -> None:
    for name, kind in (("overlays/large", "DaskCluster"), ("once", "DaskJob")):
        document = named(BUILT[name], kind)
        spec = document["spec"]
        spec = spec["cluster"]["spec"] if kind == "DaskJob" else spec
        service = spec["scheduler"]["service"]
        selected = service["selector"]["dask.org/cluster-name"]
        assert selected == document["metadata"]["name"]
        (container,) = spec["scheduler"]["spec"]["containers"]
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports


def test_workers_stay_below_the_memory_of_their_pods() -> None:
    """Dask would have them pause and spill before Kubernetes kills them."""
    units = {"Gi": 2**30, "GiB": 2**30}

    def size(text: str) -> float:
        number, unit = re.fullmatch(r"(\d+)(Gi|GiB)", text).groups()  # type: ignore[union-attr]
        return int(number) * units[unit]

    for _, document in ALL:
        for pod, spec in pods_of(document):
            if pod == "worker":
                (container,) = spec["containers"]
                args = container["args"]
                given = size(args[args.index("--memory-limit") + 1])
                limit = size(container["resources"]["limits"]["memory"])
                assert 0.8 * limit < given < limit


def test_workers_with_gpus_spill_nothing_that_is_on_them() -> None:
    (worker,) = (
        spec
        for document in BUILT["overlays/gpu"]
        for pod, spec in pods_of(document)
        if pod == "worker"
    )
    (container,) = worker["containers"]
    given = {one["name"]: one["value"] for one in container["env"]}
    config = collect_env(given)
    target = config["distributed"]["worker"]["memory"]["target"]
    assert target is False


def test_images_are_of_this_version() -> None:
    for _, document in ALL:
        for _, spec in pods_of(document):
            for container in spec["containers"]:
                assert container["image"].removesuffix("-gpu") == (
                    f"dmf:{dmf.__version__}"
                )


# ----------------------------------------------------------------------------- commands


@contextmanager
def started(
    container: Document, folder: Path, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Start what a container runs, in an environment with nothing else."""
    with subprocess.Popen(
        command_of(container, folder, variables),
        env=environment(folder) | variables,
        cwd=folder / "tmp",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def command_of(
    container: Document, folder: Path, variables: dict[str, str]
) -> list[str]:
    """Return a command, at free ports and in folders of ours; by default it is dmf."""
    words = [*container.get("command", ["dmf"]), *container["args"]]
    for name, value in variables.items():
        words = [word.replace(f"$({name})", value) for word in words]
    assert not any("$(" in word for word in words), words
    words = [re.sub(r"^(:?)878[678]$", r"\g<1>0", word) for word in words]
    words = [re.sub(r"^/jobs/", f"{folder}/jobs/", word) for word in words]
    return [str(Path(sys.executable).parent / words[0]), *words[1:]]


def environment(folder: Path) -> dict[str, str]:
    """As in the image, but that compiled loops are those of this checkout."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(Path(dmf.__file__).parent.parent),
        "HOME": str(folder / "tmp"),
        "TMPDIR": str(folder / "tmp"),
        "MPLCONFIGDIR": str(folder / "tmp" / "matplotlib"),
    }


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """The folders that pods mount, with the job of the config map and its input."""
    for name in ("data", "jobs", "tmp"):
        (tmp_path / name).mkdir()
    (text,) = named(BUILT["base"], "ConfigMap")["data"].values()
    Job.model_validate(tomllib.loads(text))
    job = text.replace('"/data/', f'"{tmp_path}/data/')
    (tmp_path / "jobs" / "job.toml").write_text(job)
    X = low_rank(60, 40, 3).nan
    zarr.save_array(str(tmp_path / "data" / "X.zarr"), X)
    return tmp_path


def run_in(pod: Path, container: Document, **variables: str) -> str:
    done = subprocess.run(
        command_of(container, pod, variables),
        env=environment(pod) | variables,
        cwd=pod / "tmp",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def container_of(name: str, kind: str, pod: str) -> Document:
    (container,) = dict(pods_of(named(BUILT[name], kind)))[pod]["containers"]
    return container


def check_filled(pod: Path) -> None:
    X = zarr.open_array(pod / "data" / "X.zarr")[...]
    filled = zarr.open_array(pod / "data" / "filled.zarr")[...]
    assert np.isnan(X).any()
    assert not np.isnan(filled).any()
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])
    # Besides data and scratch nothing may be written.
    assert sorted(os.listdir(pod)) == ["data", "jobs", "tmp"]
    assert os.listdir(pod / "jobs") == ["job.toml"]


def test_the_pod_of_the_cron_job_does_its_job(pod: Path) -> None:
    shown = run_in(pod, container_of("overlays/small", "CronJob", "run"))
    assert "done: a full run" in shown
    check_filled(pod)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "kind", "job"),
    [
        ("overlays/large", "DaskCluster", "CronJob"),
        pytest.param("once", "DaskJob", "DaskJob", marks=pytest.mark.slow),
    ],
)
def test_the_cluster_does_the_job(name: str, kind: str, job: str, pod: Path) -> None:
    """Scheduler, worker and run, as their pods start them; and what probes ask."""
    scheduler, worker = (container_of(name, kind, n) for n in ("scheduler", "worker"))
    with started(scheduler, pod) as process:
        (address,) = found_in(process, r"Scheduler at: +(tcp://\S+)")
        (port,) = found_in(process, r"dashboard at: +http://\S+:(\d+)/")
        for probe in ("readinessProbe", "livenessProbe"):
            path = scheduler[probe]["httpGet"]["path"]
            with urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.status == 200
        variables = {"DASK_SCHEDULER_ADDRESS": address, "DASK_WORKER_NAME": "one"}
        with started(worker, pod, **variables) as process:
            (port,) = found_in(process, r"dashboard at: +\S+:(\d+)")
            path = worker["livenessProbe"]["httpGet"]["path"]
            with urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.status == 200
            run = copy.deepcopy(container_of(name, job, "run"))
            run["args"] = [
                word.replace("tcp://dmf-scheduler:8786", address)
                for word in run["args"]
            ]
            shown = run_in(pod, run, **variables)
    assert "done: a full run" in shown
    (record,) = pod.glob("data/runs/*/run.json")
    assert json.loads(record.read_text())["settings"]["cluster"] == {
        **{"kind": "scheduler", "address": address},
        **dict.fromkeys(("tls_ca", "tls_cert", "tls_key")),
    }
    check_filled(pod)


def found_in(process: subprocess.Popen[str], pattern: str) -> Any:
    """Return the first match in what a process says, and let it say more."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.findall(pattern, line):
            return found
    pytest.fail("".join(said))


def test_the_account_of_clusters_may_no_more_than_it_needs() -> None:
    rules = named([one for _, one in ALL if _ == "rbac"], "Role")["rules"]
    for rule in rules:
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
        assert "secrets" not in rule["resources"]
