"""What is in deploy/: that it parses, and names nothing that dmf doesn't have."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from dmf import cli
from dmf.jobs.config import CLUSTERS, Job
from dmf.jobs.exits import Exit

DEPLOY = Path(__file__).parent.parent / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
KINDS = {".md", ".cron", ".service", ".timer", ".sbatch", ".yaml", ".toml", ".lock", ""}
# A command begins a line, an item in quotes, a cell of cron, or follows a path.
COMMAND = re.compile(r"(?:^|[`/ ])dmf ([a-z]+\b[^`\n|;]*)", re.MULTILINE)


def id_of(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def named(suffix: str) -> list[Path]:
    return [path for path in FILES if path.suffix == suffix]


def commands_in(text: str) -> list[list[str]]:
    """Return the words of all commands that a text names."""
    joined = text.replace("\\\n", " ")
    # Words of Kubernetes: args: ["run", "/jobs/job.toml"].
    listed = re.findall(r'args: \[("(?:run|factorize|impute)".*)\]', joined)
    found = [yaml.safe_load(f"[{one}]") for one in listed]
    for match in COMMAND.finditer(joined):
        words = shlex.split(match[1], comments=True)
        if words[0] in cli.main.commands:
            found.append(words)
    return found


def options_of(command: click.Command) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def check_command(words: list[str]) -> None:
    """Refuse a command or an option that dmf doesn't have, and unknown settings."""
    name, *rest = words
    known = options_of(cli.main.commands[name])
    for word in rest:
        assert not word.startswith("-") or word.split("=")[0] in known, words
    for option, value in pairwise(rest):
        if option == "--set":
            check_setting(value.partition("=")[0])


def check_setting(name: str) -> None:
    section, key = name.split(".")
    kinds: Any = CLUSTERS.values()
    if section != "cluster":
        kinds = [Job.model_fields[section].annotation]
    assert any(key in kind.model_fields for kind in kinds), name


def test_the_scan_sees_commands() -> None:
    text = "x `dmf run a.toml --set b.c=1`\n0 2 * * * /bin/dmf run j --dry-run\n"
    assert commands_in(text) == [
        ["run", "a.toml", "--set", "b.c=1"],
        ["run", "j", "--dry-run"],
    ]
    with pytest.raises(AssertionError):
        check_command(["run", "a.toml", "--sett", "b.c=1"])
    with pytest.raises(AssertionError):
        check_command(["run", "a.toml", "--set", "model.rnak=1"])


def test_kinds_of_files() -> None:
    assert {path.suffix for path in FILES} <= KINDS
    for folder in (path for path in DEPLOY.iterdir() if path.is_dir()):
        assert (folder / "README.md").is_file()
        assert f"{folder.name}/README.md" in (DEPLOY / "README.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=id_of)
def test_commands_exist(path: Path) -> None:
    commands = commands_in(path.read_text(encoding="utf-8"))
    for words in commands:
        check_command(words)
    runs = {".cron", ".service", ".sbatch"}
    assert commands or path.suffix not in runs


@pytest.mark.parametrize("path", named(".md"), ids=id_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        assert "://" in link or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", named(".md"), ids=id_of)
def test_pieces_of_jobs_are_jobs(path: Path) -> None:
    pieces = re.findall(r"```toml\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    whole = {"input": {"path": "X"}, "model": {"rank": 1}, "output": {"model": "m"}}
    for piece in pieces:
        Job.model_validate(whole | tomllib.loads(piece))


@pytest.mark.parametrize("path", named(".cron"), ids=id_of)
def test_cron(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if "dmf/bin" in line]
    assert lines
    for line in lines:
        *times, command = line.split(maxsplit=5)
        assert all(re.fullmatch(r"[\d*,/-]+", time) for time in times)
        assert command.startswith("/")
        assert "%" not in command  # a new line, to cron


@pytest.mark.parametrize("path", named(".sbatch"), ids=id_of)
def test_scripts_of_slurm(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#!")
    directives = [k for k, line in enumerate(lines) if line.startswith("#SBATCH --")]
    # After the first command, Slurm reads none.
    first = next(k for k, line in enumerate(lines) if line and line[0] != "#")
    assert directives
    assert max(directives) < first
    # srun doesn't pass on how many processors sbatch was asked for.
    assert 'srun --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK"' in path.read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
@pytest.mark.parametrize("path", named(".service") + named(".timer"), ids=id_of)
def test_units_of_systemd(path: Path, tmp_path: Path) -> None:
    for unit in named(".service") + named(".timer"):
        # With a program that is there.
        text = unit.read_text().replace("/srv/dmf/bin/dmf", sys.executable)
        (tmp_path / unit.name).write_text(text.replace("User=dmf", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / path.name)],
        capture_output=True,
        text=True,
    )
    told = [line for line in done.stderr.splitlines() if path.stem in line]
    assert told == []
    # A private folder would hide the locks of models behind URLs from each other.
    assert "PrivateTmp" not in path.read_text()
    codes = re.findall(r"SuccessExitStatus=(.*)", path.read_text())
    for one in " ".join(codes).split():
        assert Exit(int(one))


def test_the_container_copies_what_is_there() -> None:
    text = (DEPLOY / "container" / "Containerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for name in line.split():
            assert (DEPLOY.parent / name).exists(), name
    assert 'ENTRYPOINT ["dmf"]' in text


def locked(name: str) -> dict[str, set[Version]]:
    """Return the versions that a lock names; refuse it if one of them has no hash.

    Of some packages there are several, each for some versions of Python.
    """
    text = (DEPLOY / name).read_text()
    # Where packages come from is the business of whoever installs them.
    assert "://" not in text
    assert "index" not in text
    found: dict[str, set[Version]] = {}
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]:
        (pinned, version) = re.match(r"([\w.-]+)==([^ ;\\]+)", entry).groups()  # type: ignore[union-attr]
        assert "--hash=sha256:" in entry, pinned
        found.setdefault(pinned, set()).add(Version(version))
    return found


def wanted(extras: list[str]) -> list[Requirement]:
    """Return what this package needs, with extras of itself looked into."""
    with open(DEPLOY.parent / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    texts = [*project["dependencies"]]
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    found = [Requirement(text) for text in texts]
    inner = [one for needed in found if needed.name == "dmf" for one in needed.extras]
    others = [needed for needed in found if needed.name != "dmf"]
    return others + (wanted(inner) if inner else [])


def test_the_lock_is_of_these_requirements() -> None:
    """`make lock` makes it anew, after pyproject.toml has changed."""
    makefile = (DEPLOY.parent / "Makefile").read_text()
    (extras,) = re.findall(r"^EXTRAS := (.*)$", makefile, re.M)
    assert set(extras.split()) >= {"jobs", "s3", "kubernetes", "slurm"}
    versions = locked("requirements.lock")
    for needed in wanted(extras.split()):
        assert all(one in needed.specifier for one in versions[needed.name]), needed
    assert "hatchling" in locked("build.lock")
