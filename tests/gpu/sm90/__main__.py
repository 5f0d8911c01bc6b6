# SPDX-License-Identifier: Apache-2.0
"""All checks, or timings, on device 0. Each part runs in a process of its own that is killed when it hangs."""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .kernels import VARIANTS, activates, for_racecheck, tile


def check(variant: str, folder: Path | None, seed: int, budget: float, most: float, results: Any) -> None:
    """All cases of a variant of at most so many multiplications, until the time is up; puts lines of text."""
    from .cases import cases
    from .gemm import problems

    start, count, failed, worst = time.monotonic(), 0, 0, 0.0
    for case in cases(variant.partition("_")[0], tile(variant).m, activates(variant)):
        if time.monotonic() - start > budget:
            break
        if case.multiplications > most:
            continue
        results.put(f"running {case}")
        try:
            found, error = problems(variant, case, folder, seed + count)
        except Exception as raised:
            results.put(f"FAIL {variant} {case}: {type(raised).__name__} {raised}"[:600])
            failed += 1
            if "launch" in str(raised) or "CUDA error" in str(raised):
                break
            continue
        count, failed, worst = count + 1, failed + bool(found), max(worst, error)
        if found and failed < 8:
            results.put(f"FAIL {variant} {case}: {'; '.join(found)}")
    elapsed = time.monotonic() - start
    results.put(f"{variant:18s} {count:4d} cases, {failed} failed, worst error / limit {worst:.2f}, {elapsed:.1f} s")


def time_shapes(plan: list[tuple[str, str, list[tuple[str, int]]]], folder: Path | None, results: Any) -> None:
    """Times of (format, shape as text, [(variant, splits)]); puts rows of a table."""
    import torch

    from .timing import Operands, Shape, Timer, measure, peer_timer, variant_timer

    sms = torch.cuda.get_device_properties(0).multi_processor_count
    for format, text, chosen in plan:
        shape = Shape(*json.loads(text))
        results.put(f"running {format} {shape}")
        operands = Operands(format, shape)
        row: dict[str, Any] = {"format": format, "shape": str(shape), "flops": shape.flops}
        row["bytes"] = shape.bytes(1 if format == "fp8" else 2)
        timers: dict[str, Timer] = {}
        if peer := peer_timer(operands):
            timers["peer"] = peer
        for variant, splits in chosen:
            results.put(f"running {format} {shape} {variant} /{splits}")
            name, _, constant_b = variant.partition("+")
            timer = variant_timer(name, operands, splits, bool(constant_b), folder, sms)
            timers[f"{variant}/{splits}"] = timer
        times = measure(timers)
        results.put(row | {"peer": times.pop("peer", None), "times": times})


def guarded(work: Any, args: tuple[Any, ...], limit: float) -> Iterator[Any]:
    """What a function puts into its last argument, run in a process; killed after `limit` seconds of silence.

    None while it has put nothing new.
    """
    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=work, args=(*args, queue), daemon=True)
    process.start()
    last, deadline = "nothing", time.monotonic() + limit
    while True:
        if queue.empty():
            if not process.is_alive() and queue.empty():
                break
            if time.monotonic() > deadline:
                process.kill()
                yield f"HANG or too slow: killed while {last}"
                break
            time.sleep(0.002)
            yield None
            continue
        item, deadline = queue.get(), time.monotonic() + limit
        if isinstance(item, str) and item.startswith("running "):
            last = item
        else:
            yield item
    process.join(5)
    if process.exitcode not in (0, -9):
        yield f"ended with {process.exitcode} while {last}"


def show(row: dict[str, Any]) -> str:
    """A line for a shape: microseconds, rates, ratios to the peer."""
    peer, flops = row["peer"], row["flops"]
    text = f"{row['format']:5s}{row['shape']:28s}"
    text += f" floor {row['bytes'] / 4.2e12 * 1e6:6.1f} us"
    if peer:
        text += f" | cuBLAS {peer * 1e6:8.1f} us {flops / peer / 1e12:6.0f} T"
    for name, value in sorted(row["times"].items(), key=lambda x: x[1]):
        ratio = f" x{peer / value:.3f}" if peer else ""
        text += f"\n      {name:26s} {value * 1e6:8.1f} us {flops / value / 1e12:6.0f} T{ratio}"
    return text


def main() -> int:
    """1 if a check failed."""
    parser = argparse.ArgumentParser(prog="sm90", description=__doc__)
    parser.add_argument("what", choices=("check", "time"))
    parser.add_argument("--folder", type=Path, help="cubins; what is missing is compiled and put there")
    parser.add_argument("--only", default="", help="a regular expression that the names of variants hold")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for a variant's checks")
    parser.add_argument("--most", type=float, default=1e18, help="multiplications of the largest case")
    parser.add_argument("--racecheck", action="store_true", help="use cubins whose barriers racecheck can follow")
    parser.add_argument("--silence", type=float, default=12.0, help="seconds after which a check counts as hanging")
    parser.add_argument("--plan", type=Path, help="time: a JSON list of [format, shape, [[variant, splits], ...]]")
    parser.add_argument("--out", type=Path, help="time: where to put the rows")
    options = parser.parse_args()
    import torch  # noqa: F401 - once, before the forks

    if options.what == "check":
        if options.racecheck:
            VARIANTS.update({name: (for_racecheck(variant), size) for name, (variant, size) in VARIANTS.items()})
        names = [name for name in VARIANTS if re.search(options.only, name)]
        print("seed", options.seed)
        lines = []
        same = (options.folder, options.seed, options.budget, options.most)
        waiting = [guarded(check, (n, *same), options.silence) for n in reversed(names)]
        active: list[Iterator[Any]] = []
        while waiting or active:
            while waiting and len(active) < options.jobs:
                active.append(waiting.pop())
            for one in list(active):
                line = next(one, one)
                if line is one:
                    active.remove(one)
                elif line is not None:
                    print(line, flush=True)
                    lines.append(line)
        return int(not lines or any("FAIL" in x or "HANG" in x or "ended" in x for x in lines))
    plan = [(f, json.dumps(s), [tuple(c) for c in chosen]) for f, s, chosen in json.loads(options.plan.read_text())]
    rows: list[dict[str, Any]] = []
    while plan:  # what hangs is left out
        done = 1
        for item in guarded(time_shapes, (plan, options.folder), 12.0):
            if item is not None:
                print(show(item) if isinstance(item, dict) else item, flush=True)
            if isinstance(item, dict):
                rows.append(item)
                done += 1
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1))
        plan = plan[done:]
    return 0


if __name__ == "__main__":
    sys.exit(main())
