"""What Kubernetes would be given: kustomizations applied, and looked into.

`applied` knows what those in deploy/ use: resources, patches by RFC 6902 and config
maps of files. Where there is a kubectl, a test compares it with the real one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
KNOWN = {
    *("apiVersion", "kind", "resources", "patches"),
    *("configMapGenerator", "generatorOptions"),
}


def applied(folder: Path) -> list[Document]:
    """Return the documents that a folder with a kustomization stands for."""
    given = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert given.keys() <= KNOWN, f"{folder} uses what this doesn't know"
    documents: list[Document] = []
    for name in given["resources"]:
        path = folder / name
        if path.is_dir():
            documents += applied(path)
        else:
            # Aliases in YAML are copies, of which one may be patched.
            read = yaml.safe_load_all(path.read_text())
            documents += [_unshared(one) for one in read]
    documents += [
        _config_map(folder, one, given.get("generatorOptions", {}))
        for one in given.get("configMapGenerator", [])
    ]
    for patch in given.get("patches", []):
        wanted = (patch["target"]["kind"], patch["target"]["name"])
        found = [one for one in documents if _name(one) == wanted]
        assert len(found) == 1, wanted
        for step in yaml.safe_load(patch["patch"]):
            _patch(found[0], **step)
    return documents


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return copy.copy(value)


def _name(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def _config_map(folder: Path, given: Document, options: Document) -> Document:
    assert options.get("disableNameSuffixHash") is True
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": given["name"], "labels": options.get("labels", {})},
        "data": {name: (folder / name).read_text() for name in given["files"]},
    }


def _patch(document: Any, op: str, path: str, value: Any) -> None:
    """Make one step of a JSON patch."""
    *keys, last = (
        key.replace("~1", "/").replace("~0", "~") for key in path[1:].split("/")
    )
    for key in keys:
        document = document[int(key) if isinstance(document, list) else key]
    if isinstance(document, list):
        if op == "add":
            at = len(document) if last == "-" else int(last)
            document.insert(at, value)
            return
        assert int(last) < len(document), path
        document[int(last)] = value
        return
    assert op == "add" or last in document, path
    document[last] = value


def pods_of(document: Document) -> Iterator[tuple[str, Document]]:
    """Go through the names and the specs of the pods that a document asks for."""
    kind, spec = document["kind"], document.get("spec", {})
    if kind == "CronJob":
        yield "run", spec["jobTemplate"]["spec"]["template"]["spec"]
    if kind == "DaskJob":
        yield "run", spec["job"]["spec"]
        spec = spec["cluster"]["spec"]
    if kind in ("DaskCluster", "DaskJob"):
        yield "worker", spec["worker"]["spec"]
        yield "scheduler", spec["scheduler"]["spec"]


def named(documents: list[Document], kind: str) -> Document:
    """Return the document of a kind of which there is one."""
    (found,) = (one for one in documents if one["kind"] == kind)
    return found
