"""Settings of a job from its file, the environment and the command line.

`--set` wins over the environment, which wins over the file. Both name a key by the
tables it is in: `--set model.rank=8` and `DMF_MODEL__RANK=8`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dmf.jobs.exits import Exit, JobError

PREFIX = "DMF_"
SEPARATOR = "__"


def read_settings(
    path: Path, environ: Mapping[str, str], given: Iterable[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return all settings of a job, unchecked.

    Parameters
    ----------
    path : Path
        Of a TOML file.
    environ : mapping
        Of the process: variables such as DMF_MODEL__RANK.
    given : iterable of str
        What `--set` was given: "model.rank=8".

    Returns
    -------
    settings : dict
    origins : dict of str to str
        By the full name of a setting that isn't from the file, where it is from.

    Raises
    ------
    JobError
        The file isn't there or isn't TOML; what was given isn't a setting.
    """
    settings = _read(path)
    origins: dict[str, str] = {}
    for name, text in sorted(environ.items()):
        keys = name.removeprefix(PREFIX).lower().split(SEPARATOR)
        # Others without a section, such as DMF_DATA, aren't about jobs.
        if name.startswith(PREFIX) and len(keys) > 1:
            _put(settings, origins, keys, text, f"the variable {name}")
    for one in given:
        name, sign, text = one.partition("=")
        keys = name.strip().split(".")
        if not sign or len(keys) < 2 or not all(keys):
            msg = (
                f"--set takes section.key=value, as in model.rank=8, got {one!r}; "
                "`dmf init` writes a file with all keys"
            )
            raise JobError(Exit.BAD_CONFIGURATION, msg)
        _put(settings, origins, keys, text, f"--set {name.strip()}")
    return settings, origins


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        msg = f"there is no file {path}; `dmf init {path}` writes one to begin with"
    except (ValueError, RecursionError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        msg = f"{path} isn't TOML ({told}); correct it there"
    except OSError as error:
        msg = f"{path} can't be read ({error.strerror}); name a file"
    raise JobError(Exit.BAD_CONFIGURATION, msg)


def _put(
    settings: dict[str, Any],
    origins: dict[str, str],
    keys: list[str],
    text: str,
    origin: str,
) -> None:
    table = settings
    *sections, last = keys
    for section in sections:
        inner = table.setdefault(section, {})
        if not isinstance(inner, dict):
            # As in penalty = "auto": what is given instead is a table.
            inner = table[section] = {}
        table = inner
    table[last] = _value(text)
    origins[".".join(keys)] = origin


def _value(text: str) -> Any:
    """Return what a text means in TOML; text that means nothing there is itself."""
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if read.keys() == {"value"} else text
