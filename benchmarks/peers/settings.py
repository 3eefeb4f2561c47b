"""The parameters that tuning chose, and the file that keeps them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.catalog import CATALOG, Variant

SETTINGS = Path(__file__).with_name("settings.toml")


@dataclass(frozen=True)
class Settings:
    """A system's own parameters, and the number of iterations of a whole fit."""

    iterations: int
    own: Variant


def problem_key(data: str, rank: int) -> str:
    return f"{data}-r{rank}"


def read_settings() -> dict[str, dict[str, Settings]]:
    """Return the settings of each problem (`problem_key`) and system."""
    if not SETTINGS.exists():
        return {}
    tables = tomllib.loads(SETTINGS.read_text())
    return {
        problem: {name: settings_of(dict(table)) for name, table in systems.items()}
        for problem, systems in tables.items()
    }


def settings_of(table: Variant) -> Settings:
    return Settings(table.pop("iterations"), table)


def write_settings(settings: dict[str, dict[str, Settings]]) -> None:
    lines = [
        "# Chosen on a random tenth of the training part, never on what is held out:",
        "#     python -m benchmarks.peers.tune",
    ]
    for problem in sorted(settings):
        for name in (name for name in CATALOG if name in settings[problem]):
            found = settings[problem][name]
            lines += ["", f'[{problem}."{name}"]', f"iterations = {found.iterations}"]
            lines += [f"{key} = {toml(value)}" for key, value in found.own.items()]
    SETTINGS.write_text("\n".join(lines) + "\n")


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
