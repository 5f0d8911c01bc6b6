# SPDX-License-Identifier: Apache-2.0
"""From names of cubins to checked cubins: taken from the cache, or compiled, disassembled and checked."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from warpsmith.arch import Target
from warpsmith.bundle.elf import CubinInfo, read_cubin
from warpsmith.bundle.manifest import CubinEntry, layout
from warpsmith.catalog.source import SourceUnit, source_unit
from warpsmith.catalog.spec import Catalog, CubinId
from warpsmith.compiler.cache import Artifact, Cache
from warpsmith.compiler.check import problems
from warpsmith.compiler.key import compile_key
from warpsmith.compiler.pool import LocalWorkers, compile_job, default_jobs, inspect_job
from warpsmith.compiler.toolchain import Toolchain
from warpsmith.compiler.unit import Compiled, CompileJob, InspectJob
from warpsmith.errors import CompileError, CubinCheckError, ElfError, ToolchainError

Progress = Callable[[int, int, str], None]
"""Called with (cubins done, cubins in all, what was done last)."""

_BATCH_BYTES = 384 << 10  # nvdisasm takes about as long to start as to read this much
_LOGS_SHOWN = 3


@dataclass(frozen=True)
class Outcome:
    """Checked cubins, each with its row of the manifest.

    Attributes
    ----------
    compiled, cached
        How many were compiled and how many came from the cache; two names of the same cubin count once.
    """

    cubins: Mapping[CubinId, tuple[CubinEntry, bytes]]
    compiled: int
    cached: int


def compile_cubins(
    catalog: Catalog,
    cubins: Sequence[CubinId],
    *,
    toolchain: Toolchain,
    cache: Cache,
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Make cubins: those that the cache lacks are compiled, each once, and all are checked.

    Parameters
    ----------
    cubins
        What to make; names of the same source and target share one compile.
    executor
        Where jobs run; by default in up to `jobs` worker processes of this machine.
    progress
        Called after each cubin that is compiled or found.

    Raises
    ------
    CompileError
        If NVRTC refused sources, with options and full logs; every failed cubin is named.
    CubinCheckError
        If cubins compiled to something else than the catalog asks for; all of them, with everything wrong.
    WorkerError
        If workers died over a cubin twice.
    ToolchainError
        If a worker finds no usable NVRTC or nvdisasm.
    """
    run = _Run(catalog, cubins, toolchain, cache, progress)
    cache.expect([item.key for item in run.items])
    missing = [item for item in run.items if not run.take_cached(item)]
    if missing:
        workers = min(jobs or default_jobs(), len(missing))
        with nullcontext(executor) if executor else LocalWorkers(workers, toolchain) as chosen:
            run.compile(missing, chosen)
    run.raise_failures()
    return Outcome(run.made, len(missing), len(run.items) - len(missing))


@dataclass(frozen=True)
class _Item:
    """One thing to compile, and the cubins that it is."""

    key: str
    unit: SourceUnit
    cubins: tuple[CubinId, ...]

    @property
    def target(self) -> Target:
        return self.cubins[0].target


@dataclass(frozen=True)
class _Raw:
    """A compiled item before its code is read."""

    item: _Item
    compiled: Compiled
    info: CubinInfo

    @property
    def code(self) -> bytes:
        return b"".join(k.code for k in self.info.kernels)


class _Run:
    """One run of `compile_cubins`."""

    def __init__(
        self,
        catalog: Catalog,
        cubins: Iterable[CubinId],
        toolchain: Toolchain,
        cache: Cache,
        progress: Progress | None,
    ) -> None:
        self.catalog, self.toolchain, self.cache = catalog, toolchain, cache
        self.items = _items(catalog, cubins, toolchain)
        self.made: dict[CubinId, tuple[CubinEntry, bytes]] = {}
        self.failures: dict[str, CompileError] = {}
        self._progress, self._done = progress, 0
        self._completed: SimpleQueue[Future[Any]] = SimpleQueue()
        self._pending: dict[Future[Any], _Item | list[_Raw]] = {}

    def take_cached(self, item: _Item) -> bool:
        """Use the cache's artifact if there is one and it passes the checks."""
        artifact = self.cache.get(item.key, self.toolchain.disassembler)
        if artifact is None:
            return False
        try:
            wrong = self._accept(item, artifact, read_cubin(artifact.cubin))
        except ElfError as error:
            wrong = [str(error)]
        if wrong:
            self.cache.reject(item.key, f"{item.cubins[0]}: {'; '.join(wrong)}")
            return False
        self._report(f"{item.cubins[0]} from the cache")
        return True

    def compile(self, items: Sequence[_Item], executor: Executor) -> None:
        """Compile and disassemble side by side: a target's code is read while the next target compiles."""
        left = Counter(item.target for item in items)
        unread: dict[Target, list[_Raw]] = defaultdict(list)
        try:
            for item in items:
                self._submit(
                    executor, compile_job, CompileJob.of(item.cubins[0], item.unit, self.toolchain.compiler), item
                )
            while self._pending:
                future = self._completed.get()
                subject = self._pending.pop(future)
                if isinstance(subject, list):
                    self._read(subject, future.result())
                    continue
                raw = self._compiled(subject, future)
                self._report(str(subject.cubins[0]))
                left[subject.target] -= 1
                batch = unread[subject.target]
                batch += [raw] if raw else []
                if batch and (not left[subject.target] or sum(len(r.code) for r in batch) >= _BATCH_BYTES):
                    self._submit(executor, inspect_job, self._inspection(unread.pop(subject.target)), batch)
        finally:
            for future in self._pending:
                future.cancel()

    def raise_failures(self) -> None:
        """Raise one error for all that failed, in the plan's order."""
        failures = [self.failures[item.key] for item in self.items if item.key in self.failures]
        if not failures:
            return
        checks = [f for f in failures if isinstance(f, CubinCheckError)]
        others = [f for f in failures if not isinstance(f, CubinCheckError)]
        kind = type(others[0]) if others else CubinCheckError
        lines = [f"{len(failures)} of {len(self.items)} cubins failed"]
        lines += [str(f) for f in (*checks, *others[:_LOGS_SHOWN])]
        if others[_LOGS_SHOWN:]:
            names = ", ".join(str(f).split(": ", 1)[0] for f in others[_LOGS_SHOWN:])
            lines.append(f"and likewise, to be seen in full once the above are mended: {names}")
        raise kind("\n".join(lines))

    def _submit(self, executor: Executor, run: Callable[..., Any], job: object, subject: _Item | list[_Raw]) -> None:
        future = executor.submit(run, job)
        self._pending[future] = subject
        future.add_done_callback(self._completed.put)

    def _inspection(self, batch: Sequence[_Raw]) -> InspectJob:
        names = tuple(str(raw.item.cubins[0]) for raw in batch)
        codes = tuple(raw.code for raw in batch)
        return InspectJob(batch[0].item.target, names, codes, self.toolchain.disassembler)

    def _compiled(self, item: _Item, future: Future[Compiled]) -> _Raw | None:
        try:
            compiled = future.result()
            return _Raw(item, compiled, read_cubin(compiled.cubin))
        except ToolchainError:
            raise  # it would be the same for every other cubin
        except CompileError as error:
            self.failures[item.key] = error
        except ElfError as error:
            self.failures[item.key] = CubinCheckError(f"{item.cubins[0]}: {error}")
        return None

    def _read(self, batch: Sequence[_Raw], censuses: Sequence[tuple[tuple[str, int], ...]]) -> None:
        for raw, census in zip(batch, censuses, strict=True):
            artifact = Artifact(raw.compiled.cubin, raw.compiled.log, census, self.toolchain.disassembler)
            wrong = self._accept(raw.item, artifact, raw.info)
            if wrong:
                names = ", ".join(map(str, raw.item.cubins))
                self.failures[raw.item.key] = CubinCheckError(f"{names}: {'; '.join(wrong)}")
            else:
                self.cache.put(raw.item.key, artifact)

    def _accept(self, item: _Item, artifact: Artifact, info: CubinInfo) -> list[str]:
        """Check an artifact for every cubin that it is; what is wrong, or nothing and it is made."""
        rows = {c: self.catalog.kernel(c.kernel) for c in item.cubins}
        version = self.toolchain.nvrtc_version
        wrong: list[str] = []
        for cubin, kernel in rows.items():
            variant = kernel.variant(cubin.variant)
            wrong += problems(kernel, variant, cubin.target, info, artifact.log, artifact.census, version)
        if not wrong:
            for cubin in item.cubins:
                self.made[cubin] = (_entry(self.catalog, cubin, item.unit, artifact, info), artifact.cubin)
        return list(dict.fromkeys(wrong))

    def _report(self, what: str) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, len(self.items), what)


def _items(catalog: Catalog, cubins: Iterable[CubinId], toolchain: Toolchain) -> list[_Item]:
    units: dict[tuple[str, str], SourceUnit] = {}
    names: dict[str, list[CubinId]] = defaultdict(list)
    for cubin in dict.fromkeys(cubins):
        kernel = catalog.kernel(cubin.kernel)
        source = (cubin.kernel, cubin.variant)
        if source not in units:
            units[source] = source_unit(kernel, kernel.variant(cubin.variant))
        names[compile_key(toolchain.nvrtc_version, cubin.target, units[source])].append(cubin)
    return [_Item(key, units[same[0].kernel, same[0].variant], tuple(same)) for key, same in names.items()]


def _entry(catalog: Catalog, cubin: CubinId, unit: SourceUnit, artifact: Artifact, info: CubinInfo) -> CubinEntry:
    kernel, compiled, record = catalog.kernel(cubin.kernel), info.kernels[0], info.record or (0,) * 8
    return CubinEntry(
        kernel=cubin.kernel,
        variant=cubin.variant,
        module=kernel.module,
        entry=kernel.entry,
        sha256=hashlib.sha256(artifact.cubin).hexdigest(),
        size=len(artifact.cubin),
        source_digest=unit.digest,
        registers=compiled.registers,
        stack=compiled.stack,
        static_shared=compiled.static_shared,
        dynamic_shared=record[1],
        threads=record[2],
        flags=record[4],
        params=layout(kernel.params, compiled.param_base),
        instructions=artifact.census,
    )
