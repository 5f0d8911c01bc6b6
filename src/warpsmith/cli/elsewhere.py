# SPDX-License-Identifier: Apache-2.0
"""What a build may use beyond its own machine: a shared compile cache and a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from warpsmith.cli.report import say
from warpsmith.errors import InvalidArgumentError
from warpsmith.settings import Settings

if TYPE_CHECKING:
    from warpsmith.compiler.cache import ByteStore

COPIES = "shared"
"""The folder of the compile cache with copies of shared entries; on-demand compiles and releases do not read it."""

CacheOption = Annotated[
    str, typer.Option("--cache", help="A compile cache shared by machines: s3://…, file:///….", show_default=False)
]
ReleaseOption = Annotated[
    bool, typer.Option("--release", help="Read nothing from the shared cache: compile, or take what is local.")
]
SchedulerOption = Annotated[
    str, typer.Option("--scheduler", help="Compile on the dask cluster at tcp://HOST:PORT.", show_default=False)
]


@contextmanager
def store_and_executor(
    settings: Settings, cache: str, release: bool, scheduler: str, jobs: int | None
) -> Iterator[tuple[ByteStore, Executor | None]]:
    """The compile cache in its layers, and what runs the compiles; None for local workers.

    Raises
    ------
    InvalidArgumentError
        If an option cannot be understood or needs what is not installed.
    WorkerError, ToolchainError
        If the cluster cannot be used.
    """
    from warpsmith.bundle.store import Store

    if scheduler and jobs:
        raise InvalidArgumentError(
            "--jobs bounds the workers of this machine, and with --scheduler there are none; leave one of them out"
        )
    folder = settings.cache_dir
    with ExitStack() as stack:
        local = Store(folder, lambda key, reason: say(f"warning: compile cache entry {key} {reason}"))
        store: ByteStore = local
        if cache:
            from warpsmith.compiler.layers import Layers, Patient
            from warpsmith.compiler.shared import open_shared

            def damaged(key: str, reason: str) -> None:
                say(f"warning: shared compile cache entry {key} {reason}; it is not used")

            shared, copies = Patient(open_shared(cache, damaged)), Store(folder / COPIES, damaged)
            store = stack.enter_context(Layers(local, shared, copies, read_shared=not release))
        executor = None
        if scheduler:
            from warpsmith.compiler.cluster import Cluster

            executor = stack.enter_context(Cluster(scheduler))
        yield store, executor
