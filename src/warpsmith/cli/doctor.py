# SPDX-License-Identifier: Apache-2.0
"""``warpsmith doctor``: what is here, what is wrong, and how to mend it."""

from __future__ import annotations

from functools import partial
from typing import Any

from warpsmith.cli import probes
from warpsmith.cli.options import JsonOption
from warpsmith.cli.report import Report, command, progress
from warpsmith.settings import Settings


def doctor(json: JsonOption = False) -> None:
    """Devices, driver, NVRTC, bundles and cache, and what is wrong with them, with the fix. No GPU is no finding."""
    with command(json) as report, progress("looking"):
        examine(report)
        if not report.findings:
            report.text.append("nothing is wrong")


def examine(report: Report) -> None:
    """Run every probe and put what it says into the report."""
    facts: dict[str, Any] = {}

    def look(name: str, probe: Any, *arguments: Any) -> Any:
        result = probes.guarded(name, partial(probe, *arguments))
        report.findings += result.findings
        report.text += [f"{name}", *(f"  {line}" for line in result.lines or ["-"])]
        facts[name] = result.facts
        return result.facts

    look("warpsmith", probes.installation)
    settings = look("settings", probes.settings) or Settings(cache_dir=probes.NOWHERE)
    look("driver", probes.driver)
    devices = look("devices", probes.devices) or []
    toolchain = look("nvrtc", probes.toolchain) or {"error": "the toolchain could not be looked at"}
    places = look("bundles", probes.bundles, settings) or ()
    look("cache", probes.cache, settings)
    refusal = settings.jit_refusal or toolchain.get("error")
    look("kernels", probes.coverage, settings, places, [d for _, d in devices], refusal)
    facts["settings"] = {
        "arch_list": settings.arch_list,
        "bundle_path": [str(p) for p in settings.bundle_path],
        "cache_dir": str(settings.cache_dir),
        "jit": settings.jit,
    }
    facts["devices"] = [
        {"index": i, "name": d.name, "capability": str(d.capability), "multiprocessors": d.sm_count} for i, d in devices
    ]
    facts["bundles"] = [
        {
            "target": str(b.manifest.target),
            "path": str(b.path),
            "cubins": len(b.manifest.cubins),
            "package_version": b.manifest.package_version,
            "found": place.name,
        }
        for place in places
        for b in place.bundles
    ]
    report.extra |= facts
