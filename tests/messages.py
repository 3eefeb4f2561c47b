"""The sentences that code refuses things with, read from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import dmf

PACKAGE = Path(dmf.__file__).parent
GAP = "…"


def sentences(module: str, *kinds: str) -> Iterator[str]:
    """Go through what a module raises and logs as a warning, with … for what varies.

    Parameters
    ----------
    module : str
        A path in the package.
    *kinds : str
        Only errors of these classes. Default: all, and warnings.
    """
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for body in (getattr(node, name, None) for name in ("body", "orelse")):
            if isinstance(body, list):
                yield from _raised(body, kinds)
        if not kinds and isinstance(node, ast.Call):
            yield from _logged(node)


def _raised(body: list[ast.stmt], kinds: tuple[str, ...]) -> Iterator[str]:
    """Go through `msg = …` with `raise Kind(msg)`, or another use, right after it."""
    for first, second in pairwise(body):
        match first:
            case ast.Assign(targets=[ast.Name("msg")], value=value):
                if not kinds or _kind(second) in kinds:
                    yield _text(value)


def _kind(statement: ast.stmt) -> str | None:
    match statement:
        case (
            ast.Raise(exc=ast.Call(func=ast.Name(name)))
            | ast.Return(value=ast.Call(func=ast.Name(name)))
        ):
            return name
    return None


def _logged(call: ast.Call) -> Iterator[str]:
    match call:
        case ast.Call(
            ast.Name("log"), [ast.JoinedStr() | ast.Constant() as said, level]
        ):
            if ast.unparse(level) == "logging.WARNING":
                yield _text(said)
        case ast.Call(ast.Name("JobError"), [_, ast.JoinedStr() as said]):
            yield _text(said)


def _text(value: ast.expr) -> str:
    parts: list[Any] = value.values if isinstance(value, ast.JoinedStr) else [value]
    text = "".join(
        str(part.value) if isinstance(part, ast.Constant) else GAP for part in parts
    )
    return " ".join(re.sub(f"{GAP}+", GAP, text).split())
