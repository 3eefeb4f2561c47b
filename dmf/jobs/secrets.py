"""Credentials, taken out of whatever is shown, logged or recorded."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
# Names of settings and of parameters in a URL whose values nobody shall read.
_SECRET = re.compile(
    r"(^|[^a-z])(pass(word|wd|phrase)?|secrets?|tokens?|(api|access|account)?keys?|"
    r"credentials?|signature|sig|sas)($|[^a-z])",
    re.IGNORECASE,
)
# In a URL, or where some library names its host alone.
_USER_INFO = re.compile(r"(?<=://)[^\s/@'\"]+@|[^\s/@:'\"]+:[^\s/@:'\"]+@")
_PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=([^&\s'\"]*)")


def without_secrets(value: Any, name: str = "") -> Any:
    """Return plain values with credentials replaced by asterisks.

    Parameters
    ----------
    value : dict, list, tuple, str, or anything else
        Of a dict, the names tell what is secret; of a text, the parts of URLs.
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
    text = _USER_INFO.sub(f"{HIDDEN}@", text)
    return _PARAMETER.sub(_parameter, text)


def _parameter(match: re.Match[str]) -> str:
    name, value = match.groups()
    return f"{name}={HIDDEN if _SECRET.search(name) else value}"
