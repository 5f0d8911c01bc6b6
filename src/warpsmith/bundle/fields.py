# SPDX-License-Identifier: Apache-2.0
"""Reading JSON strictly: a field that is missing, unknown or out of bounds is an error that names it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from warpsmith.errors import ManifestError

NAME = re.compile(r"[0-9A-Za-z_.,+=:-]{1,200}")
A_NAME = "a name of letters, digits and _.,+=:-"
DAMAGED = "the manifest is damaged or was edited: build the bundle again"
_ZEROS, _DIGITS = b"0" * 65, bytes.maketrans(b"123456789", b"0" * 9)


class Fields:
    """The fields of one JSON object, read with their types and bounds."""

    def __init__(self, where: str, given: object, names: Sequence[str]) -> None:
        if not isinstance(given, dict):
            fail(where, given, "an object")
        self.where, self.values = where, given
        if len(given) == len(names) and all(map(given.__contains__, names)):
            return
        for keys, problem in ((set(names) - set(given), "is missing"), (set(given) - set(names), "is unknown")):
            if keys:
                raise ManifestError(f"{where}: the field {_show(min(keys))} {problem}; {DAMAGED}")

    def text(self, name: str, pattern: re.Pattern[str], expected: str) -> str:
        """A string that matches a pattern."""
        value = self.values[name]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            fail(f"{self.where}.{name}", value, expected)
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number within bounds (JSON's true and 1.0 are none)."""
        value = self.values[name]
        if type(value) is not int or not low <= value <= high:
            fail(f"{self.where}.{name}", value, f"a whole number from {low} to {high}")
        return value

    def items(self, name: str, limit: int) -> list[Any]:
        """A list of at most `limit` items."""
        value = self.values[name]
        if not isinstance(value, list) or len(value) > limit:
            fail(f"{self.where}.{name}", value, f"a list of at most {limit} items")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """A list of names, each once."""
        found = self.items(name, 1000)
        if not all(isinstance(n, str) and NAME.fullmatch(n) for n in found) or len(set(found)) != len(found):
            fail(f"{self.where}.{name}", found, f"a list of different names ({A_NAME})")
        return tuple(found)


def decode(text: bytes) -> object:
    """The document that a text of JSON holds; `ManifestError` if it is none, or says a field twice."""
    try:
        # No digest has 65 digits in a row: only where something has, each number is looked at before it is made.
        read = _integer if _ZEROS in text.translate(_DIGITS) else None
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_int=read, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ManifestError(f"not UTF-8 at byte {error.start}; {DAMAGED}") from error
    except json.JSONDecodeError as error:
        raise ManifestError(f"not JSON: {error}; {DAMAGED}") from error


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ManifestError(f"the field {_show(twice)} is there twice; {DAMAGED}")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20:
        _no_number(digits)
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise ManifestError(f"the number {_show(text)} is none that a manifest has; {DAMAGED}")


def _show(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def fail(where: str, given: object, expected: str) -> NoReturn:
    """Refuse a value."""
    raise ManifestError(f"{where}: given {_show(given)}, expected {expected}; {DAMAGED}")
