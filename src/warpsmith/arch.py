# SPDX-License-Identifier: Apache-2.0
"""Targets and capabilities: parsing, formatting, and the exact rules of what runs where.

A *capability* is what a device has (``12.1``). A *target* is what machine code is made for: plain (``sm_80``: runs
on the same major with the same or a higher minor), family-specific (``sm_120f``: runs on the whole family) or
architecture-specific (``sm_121a``: runs on exactly that capability). Sources: CUDA Programming Guide, "Compute
Capabilities" and "Feature Set Compiler Targets"; CUDA 13 release notes for the minimum driver.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from warpsmith.errors import TargetError

Suffix = Literal["", "f", "a"]


class Capability(NamedTuple):
    """A compute capability, such as 12.1."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parse(cls, text: str) -> Capability:
        """Read ``"12.1"``; only capabilities in `CAPABILITIES` are accepted.

        Raises
        ------
        TargetError
            If the text is not a known capability.
        """
        match = re.fullmatch(r"([0-9]+)\.([0-9])", text.strip())
        found = cls(int(match[1]), int(match[2])) if match else None
        if found is None or found not in CAPABILITIES:
            raise TargetError(
                f"unknown compute capability {text!r}; expected one of {', '.join(map(str, CAPABILITIES))}"
            )
        return found


class _Facts(NamedTuple):
    """What is known of one capability."""

    shared_memory: int  # bytes one block may use, opted in
    default: Suffix  # what a plain capability becomes
    family: bool  # whether sm_XYf exists
    specific: bool  # whether sm_XYa exists
    nvrtc: tuple[int, int]  # first NVRTC that knows the plain target
    integrated: bool = False  # a system-on-chip part: no binary compatibility across the desktop line


_KB = 1024
_FACTS: dict[Capability, _Facts] = {
    Capability(8, 0): _Facts(163 * _KB, "", False, False, (11, 0)),
    Capability(8, 6): _Facts(99 * _KB, "", False, False, (11, 1)),
    Capability(8, 7): _Facts(163 * _KB, "", False, False, (11, 4), integrated=True),
    Capability(8, 8): _Facts(99 * _KB, "", False, False, (13, 0), integrated=True),
    Capability(8, 9): _Facts(99 * _KB, "", False, False, (11, 8)),
    Capability(9, 0): _Facts(227 * _KB, "a", False, True, (11, 8)),
    Capability(10, 0): _Facts(227 * _KB, "f", True, True, (12, 8)),
    Capability(10, 3): _Facts(227 * _KB, "a", True, True, (12, 9)),
    Capability(11, 0): _Facts(227 * _KB, "f", True, True, (13, 0)),
    Capability(12, 0): _Facts(99 * _KB, "f", True, True, (12, 8)),
    Capability(12, 1): _Facts(99 * _KB, "a", True, True, (12, 9)),
}

CAPABILITIES: tuple[Capability, ...] = tuple(sorted(_FACTS))
"""Every compute capability that Warpsmith knows, in order."""

CUDA13_DRIVER = 13000
"""`cuDriverGetVersion` of the first driver (R580) that loads cubins made by CUDA 13."""

_FAMILY_NVRTC = (12, 9)


@dataclass(frozen=True)
class Target:
    """A real architecture that machine code is made for, such as ``sm_120f``.

    Raises
    ------
    TargetError
        If no such target exists (``sm_80a``, ``sm_90f``, an unknown capability).
    """

    capability: Capability
    suffix: Suffix = ""

    def __post_init__(self) -> None:
        facts = _FACTS.get(self.capability)
        if facts is None:
            raise TargetError(f"unknown target {self}; known capabilities are {', '.join(map(str, CAPABILITIES))}")
        if (self.suffix == "f" and not facts.family) or (self.suffix == "a" and not facts.specific):
            kind = "family" if self.suffix == "f" else "architecture"
            raise TargetError(
                f"{self} does not exist: {self.capability} has no {kind}-specific target; "
                f"use {default_target(self.capability)}"
            )

    def __str__(self) -> str:
        return f"sm_{self.capability.major}{self.capability.minor}{self.suffix}"

    def runs_on(self, device: Capability) -> bool:
        """Whether a cubin for this target loads on a device of that capability."""
        own = self.capability
        if self.suffix == "a" or own == device:
            return own == device
        if own.major != device.major or device.minor < own.minor:
            return False
        return not (_FACTS[own].integrated or _FACTS[device].integrated)

    @property
    def serves(self) -> tuple[Capability, ...]:
        """The known capabilities that this target's cubins run on, in order."""
        return tuple(c for c in CAPABILITIES if self.runs_on(c))

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory one block may use on every capability that the target serves."""
        return min(_FACTS[c].shared_memory for c in self.serves)

    @property
    def min_nvrtc(self) -> tuple[int, int]:
        """(major, minor) of the first NVRTC that knows the target."""
        first = _FACTS[self.capability].nvrtc
        return max(first, _FAMILY_NVRTC) if self.suffix == "f" else max(first, (12, 0)) if self.suffix else first

    @property
    def min_driver(self) -> int:
        """The `cuDriverGetVersion` value that a cubin built with CUDA 13 for this target needs."""
        return CUDA13_DRIVER

    def provides(self, feature: Suffix) -> bool:
        """Whether code that needs `feature` ("" < "f" < "a") compiles for this target."""
        if feature == "f" and self.suffix == "a":
            return _FACTS[self.capability].family  # sm_121a has all of its family's features
        return feature in ("", self.suffix)


def all_targets() -> tuple[Target, ...]:
    """Every target that exists for the known capabilities, in order."""
    found = []
    for capability, facts in sorted(_FACTS.items()):
        found.append(Target(capability))
        if facts.specific:
            found.append(Target(capability, "a"))
        if facts.family:
            found.append(Target(capability, "f"))
    return tuple(found)


def default_target(capability: Capability) -> Target:
    """What a plain capability becomes: ``12.0`` → ``sm_120f``, ``12.1`` → ``sm_121a``, ``8.6`` → ``sm_86``."""
    return Target(capability, _FACTS[capability].default)


@lru_cache(maxsize=64)
def candidates(device: Capability) -> tuple[Target, ...]:
    """The targets that run on a device, best first: specific, then family, then plain; newest version first."""
    rank = {"a": 0, "f": 1, "": 2}
    running = [t for t in all_targets() if t.runs_on(device)]
    return tuple(sorted(running, key=lambda t: (rank[t.suffix], -t.capability.major, -t.capability.minor)))


_SPELLING = re.compile(r"(?P<prefix>sm_?|compute_?)?(?P<number>[0-9]+)(?:\.(?P<minor>[0-9]))?(?P<suffix>[af]?)")


def parse(text: str) -> Target:
    """Read one target in any spelling in use.

    ``12.1`` and ``121`` are capabilities and become their default target; ``12.1a``, ``120f``, ``sm_121a``,
    ``compute_90a`` and ``sm_120`` name a target exactly; ``12x`` is the one target that serves every 12.* device.

    Raises
    ------
    TargetError
        If the text is not a target; the message says what was expected.
    """
    word = text.strip().lower()
    if "+" in word:
        raise TargetError(
            f"{text!r} asks for PTX, which Warpsmith does not ship: PTX is compiled on the user's machine by "
            f"whatever driver is there, so what runs would be neither audited nor tested; "
            f"name the target alone: {word.split('+')[0]!r}"
        )
    generation = re.fullmatch(r"(?:sm_?)?([0-9]+)\.?x", word)
    if generation:
        return _whole_generation(int(generation[1]), text)
    match = _SPELLING.fullmatch(word)
    if match is None or (match["minor"] is None and len(match["number"]) < 2):
        raise TargetError(
            f"cannot read {text!r} as a target; write a capability (12.1), a target (sm_121a, 120f) "
            "or a generation (12x)"
        )
    if match["minor"] is not None:
        capability = Capability(int(match["number"]), int(match["minor"]))
    else:
        capability = Capability(int(match["number"][:-1]), int(match["number"][-1]))
    if capability not in _FACTS:
        known = ", ".join(map(str, CAPABILITIES))
        raise TargetError(f"unknown compute capability {capability} in {text!r}; known are {known}")
    if match["suffix"]:
        return Target(capability, "a" if match["suffix"] == "a" else "f")
    return Target(capability) if match["prefix"] else default_target(capability)


def _whole_generation(major: int, text: str) -> Target:
    members = [c for c in CAPABILITIES if c.major == major]
    if not members:
        known = ", ".join(f"{m}x" for m in sorted({c.major for c in CAPABILITIES}))
        raise TargetError(f"unknown generation {text!r}; known are {known}")
    first = Target(members[0], "f") if _FACTS[members[0]].family else default_target(members[0])
    unserved = [str(c) for c in members if not first.runs_on(c) and not _FACTS[c].integrated]
    if unserved:
        raise TargetError(f"{text!r}: {first} does not run on {', '.join(unserved)}; name the targets one by one")
    return first


def parse_list(text: str) -> tuple[Target, ...]:
    """Read targets separated by spaces, commas or semicolons; duplicates are dropped, order is kept.

    Raises
    ------
    TargetError
        If the list is empty or one of its words is not a target.
    """
    words = [w for w in re.split(r"[\s,;]+", text) if w]
    if not words:
        raise TargetError("the architecture list is empty; write for example '9.0 12.0 12.1'")
    return tuple(dict.fromkeys(parse(w) for w in words))
