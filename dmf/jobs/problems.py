"""Job files read and checked; what is wrong with one, a sentence for each problem."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dmf.jobs.config import CLUSTERS, Job
from dmf.jobs.exits import Exit, JobError
from dmf.jobs.overrides import read_settings
from dmf.secrets import without_secrets

MOST_SHOWN = 60

# What pydantic calls an error, and what we say; the ones with a bound name it.
SENTENCES = {
    "missing": "is missing; give it a value",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text, in quotes",
    "bool_type": "must be true or false",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "dict_type": "must be a table",
    "list_type": "must be a list",
    "finite_number": "must be finite",
    "string_too_short": "must not be empty",
    "string_unicode": "must be a text",
    "string_pattern_mismatch": "must match {pattern}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "int_parsing_size": "is too large",
}


def read_job(path: Path, environ: Mapping[str, str], given: Iterable[str] = ()) -> Job:
    """Read a job file with its overrides, and check it.

    Parameters
    ----------
    path, environ, given
        As for `read_settings`.

    Raises
    ------
    JobError
        With one line for each problem.
    """
    settings, origins = read_settings(path, environ, given)
    try:
        context = {"folder": path.parent, "file": os.path.abspath(path)}
        return Job.model_validate(settings, context=context)
    except ValidationError as error:
        told = [_sentence(one, settings, origins) for one in error.errors()]
    lines = (" ".join(f"{path}: {one}".split()) for one in told)
    raise JobError(Exit.BAD_CONFIGURATION, "\n".join(lines))


def _sentence(error: Any, settings: dict[str, Any], origins: dict[str, str]) -> str:
    keys = _keys(error["loc"])
    name = ".".join(keys)
    origin = f" (from {origins[name]})" if name in origins else ""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        # A table that isn't known may come from a key in it.
        inner = (key for key in origins if key.startswith(f"{name}."))
        origin = origin or next((f" (from {origins[key]})" for key in inner), "")
        return f"{name} isn't a known key{origin}; {_nearest(keys, settings)}"
    if kind == "union_tag_not_found":
        return f"{name}.kind is missing; give one of {_listed(CLUSTERS)}"
    if kind == "union_tag_invalid":
        return _choice(f"{name}.kind", context["tag"], list(CLUSTERS), origin)
    if kind == "literal_error":
        # The options, as the type lists them.
        options = [one.strip("'") for one in _options(context["expected"])]
        return _choice(name, error["input"], options, origin)
    if kind == "value_error":
        told = str(context["error"])
        if not told.startswith("must "):
            # A check of several keys says all of it.
            return f"[{name}] {told}{origin}" if name else f"{told}{origin}"
    else:
        told = SENTENCES.get(kind, error["msg"]).format(**context)
    if kind == "missing":
        return f"{name} {told}"
    return f"{name} {told}, got {_shown(error['input'], keys[-1:])}{origin}"


def _keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys that lead to an error; pydantic names the cluster's kind too."""
    keys = [str(one) for one in location]
    if len(keys) > 1 and keys[0] == "cluster" and keys[1] in CLUSTERS:
        del keys[1]
    return keys


def _options(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _choice(name: str, value: Any, options: list[str], origin: str) -> str:
    near = get_close_matches(str(value), options, 1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return (
        f"{name} must be one of {_listed(options)}, got {_shown(value)}{origin}{hint}"
    )


def _listed(options: Iterable[str]) -> str:
    return ", ".join(f'"{one}"' for one in options)


def _nearest(keys: list[str], settings: dict[str, Any]) -> str:
    """Say which key may be meant: one of the same table, else of another one."""
    *tables, wrong = keys
    known = _known(tables, settings)
    near = get_close_matches(wrong, known, 1)
    if near:
        return f"did you mean {'.'.join([*tables, near[0]])}?"
    for section, field in Job.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and wrong in getattr(kind, "model_fields", ()):
            return f"did you mean {section}.{wrong}?"
    place = f"[{'.'.join(tables)}]" if tables else "a job"
    return f"{place} takes {', '.join(known)}"


def _known(tables: list[str], settings: dict[str, Any]) -> list[str]:
    """Return the keys of a table of a job."""
    if tables[:1] == ["cluster"]:
        return list(CLUSTERS[settings["cluster"]["kind"]].model_fields)
    kind: Any = Job
    for name in tables:
        annotation = kind.model_fields[name].annotation
        inner = [one for one in (annotation, *_parts(annotation)) if _is_section(one)]
        kind = inner[0]
    return list(kind.model_fields)


def _parts(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _shown(value: Any, name: list[str] | None = None) -> str:
    text = repr(without_secrets(value, *(name or [])))
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"
