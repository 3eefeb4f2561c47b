"""Containerfiles without a container: their steps, replayed below a folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Of the base image: what it brings, and what only root can do.
BASE = re.compile(r"^python:3\.\d+-slim$")
AS_ROOT = ("useradd",)
KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Containerfile, and what they are given."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    assert {name for name, _ in pairs} <= KNOWN
    return [(name, given) for name, given in pairs]


@dataclass
class Stage:
    """A stage: where its files are, and what it has set.

    Parameters
    ----------
    root : Path
        What is / in the image. Environments of Python remember where they are, so that
        all stages have the same.
    """

    root: Path
    folder: str = "/"
    user: str = "root"
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def at(self, path: str) -> Path:
        """Return where a path of the image is."""
        return self.root / os.path.join(self.folder, path).lstrip("/")

    def variables(self) -> dict[str, str]:
        """Return the environment of a process: that of the image, and no more.

        But for what says where packages come from, and with which certificates.
        """
        passed = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_", "REQUESTS_")) or "proxy" in name.lower()
        }
        base = f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin"
        found = {"PATH": base, "HOME": str(self.root / "root")} | passed
        for name, value in self.environment.items():
            value = value.replace(f"${name}", found.get(name, ""))
            # Each place of a list of them is below our root.
            found[name] = re.sub(r"(^|:)/(?=opt|tmp)", rf"\g<1>{self.root}/", value)
        return found

    def run(self, *words: str, folder: Path | None = None) -> str:
        """Run a command as a process of the image would."""
        done = subprocess.run(
            words,
            cwd=folder or self.at("."),
            env=self.variables(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


def replay(text: str, root: Path) -> Stage:
    """Do what a Containerfile says; return its last stage."""
    for folder in ("root", "tmp"):
        (root / folder).mkdir()
    stage = Stage(root)
    for name, given in instructions(text):
        match name:
            case "FROM":
                assert BASE.match(given.split()[0])
                stage = Stage(root)
            case "WORKDIR":
                stage.folder = given
                stage.at(".").mkdir(parents=True, exist_ok=True)
            case "ENV":
                stage.environment |= dict(
                    pair.split("=", 1) for pair in shlex.split(given)
                )
            case "USER":
                stage.user = given
            case "COPY":
                _copy(stage, shlex.split(given))
            case "RUN":
                if not given.startswith(AS_ROOT):
                    stage.run("sh", "-c", re.sub(r"(?<!\S)/opt", f"{root}/opt", given))
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(given)
            case "CMD":
                stage.command = json.loads(given)
    return stage


def _copy(stage: Stage, words: list[str]) -> None:
    """Copy from the repository; between stages, all is in one place already."""
    if words[0].startswith("--from="):
        _, source, target = words
        assert source == target
        assert stage.at(source).exists()
        return
    *sources, target = words
    for source in sources:
        path = ROOT / source
        # A folder's contents are copied; files go into a folder.
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, stage.at(target), ignore=ignored)
        else:
            shutil.copy(path, stage.at(target))
