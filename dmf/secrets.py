"""Credentials, taken out of whatever is shown, logged or recorded.

They are known by their names (of settings, of variables of the environment, of
parameters in URLs), by their place in a URL, and, if a variable of the environment
holds them, by their value, wherever it turns up.
"""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
_WORDS = (
    r"pass(?:word|wd|phrase)?|secrets?|tokens?|credentials?|signature|sig|sas|"
    r"(?:api|access|account|private)[_-]?keys?"
)
# Names of settings and of parameters in a URL whose values nobody shall read.
# A tls_key is the path of a file.
_SECRET = re.compile(rf"(^|[^a-z])({_WORDS}|(?<!tls_)keys?)($|[^a-z])", re.IGNORECASE)
# In a URL, also with slashes in a password, or where a library names its host alone.
_USER_INFO = re.compile(
    r"(?<=://)[^\s/@:'\"]*:[^\s'\"]*@|(?<=://)[^\s/@'\"]+@|[^\s/@:'\"]+:(?!//)[^\s@'\"]+@"
)
_PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=([^&\s'\"]*)")
# As options are written: password=x, 'secret': 'x', "token": "x".
_ASSIGNED = re.compile(
    rf"(?<![a-z])((?:[\w-]*[_-])?(?:{_WORDS})(?:[_-][\w-]*)?)"
    r"(=|['\"]: ?)(b?'[^']*'|b?\"[^\"]*\"|[^\s'\",;)}\]&]+)",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"\b(Bearer|Basic) +[\w.~+/=-]{8,}")
# Shorter values of variables would also be found in words that are none.
_SHORTEST = 8


def without_secrets(value: Any, name: str = "") -> Any:
    """Return plain values with credentials replaced by asterisks.

    Parameters
    ----------
    value : dict, list, tuple, str, or anything else
        Of a dict, the names tell what is secret; of a text, the parts of URLs, what is
        written as name=value, and the values of variables of the environment.
    name : str
        What the value is called.
    """
    if isinstance(value, dict):
        named = {"name", "value"} <= value.keys()  # as Kubernetes writes variables
        hidden = bool(named and _SECRET.search(str(value["name"])))
        return {
            key: HIDDEN if hidden and key == "value" else without_secrets(item, key)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if value is not None and value != "" and _SECRET.search(str(name)):
        return HIDDEN
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    for secret in _in_environment():
        text = text.replace(secret, HIDDEN)
    text = _USER_INFO.sub(f"{HIDDEN}@", text)
    text = _PARAMETER.sub(_parameter, text)
    text = _ASSIGNED.sub(rf"\1\2{HIDDEN}", text)
    return _AUTHORIZATION.sub(rf"\1 {HIDDEN}", text)


def _parameter(match: re.Match[str]) -> str:
    name, value = match.groups()
    return f"{name}={HIDDEN if _SECRET.search(name) else value}"


def _in_environment() -> list[str]:
    """Return what variables of the environment hold that nobody shall read."""
    return [
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and _SECRET.search(name)
        # The path of a file with credentials helps to find what is wrong with it.
        and not os.path.exists(value)
    ]
