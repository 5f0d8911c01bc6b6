# SPDX-License-Identifier: Apache-2.0
"""Each thing that can be wrong with a cubin is found, alone, and nothing is found in a good one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from warpsmith.arch import Capability, parse
from warpsmith.bundle.elf import RECORD_MAGIC, UNBOUNDED_STACK, CubinInfo, KernelInfo
from warpsmith.catalog.spec import Instructions, Kernel, Param, Variant
from warpsmith.compiler.check import problems

TARGET, VERSION = parse("sm_120f"), "13.5.37"
PARAMS = (Param("out", "ptr"), Param("n", "i32"), Param("map", "tensormap"))
VARIANT = Variant("a", (), (), (), instructions=(Instructions((r"OMMA\.SF",), (Capability(12, 0),), "f"),))
KERNEL = Kernel("k", "m", "o", "k/k.cuh", "ws_k", (Capability(12, 0),), PARAMS, (VARIANT,))
COMPILED = KernelInfo(
    entry="ws_k",
    params=((0, 8), (8, 4), (64, 128)),
    param_bytes=192,
    registers=168,
    stack=0,
    static_shared=1024,
    code_bytes=16,
    code=b"\0" * 16,
    param_base=0x380,
)
RECORD = (RECORD_MAGIC, 100 * 1024 - 2048, 384, 3, 1, 128, 128, 128)
GOOD = CubinInfo(TARGET, VERSION, (COMPILED,), RECORD)
LOG = "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
CENSUS = (("ACQBULK", 1), ("EXIT", 1), ("OMMA.SF.16864.F32", 32), ("STG.E.128", 8))


def found(
    info: CubinInfo = GOOD,
    *,
    kernel: Kernel = KERNEL,
    variant: Variant = VARIANT,
    log: str = LOG,
    without: str = "",
    extra: str = "",
) -> list[str]:
    census = tuple(row for row in CENSUS if row[0] != without) + (((extra, 2),) if extra else ())
    return problems(kernel, variant, TARGET, info, log, census, VERSION)


def compiled(**changes: object) -> CubinInfo:
    return GOOD._replace(kernels=(COMPILED._replace(**changes),))  # type: ignore[arg-type]


def record(index: int, value: int) -> CubinInfo:
    return GOOD._replace(record=(*RECORD[:index], value, *RECORD[index + 1 :]))


def test_nothing_is_wrong_with_a_good_cubin() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (found(GOOD._replace(target=parse("sm_121a"))), "made for sm_121a, not for sm_120f"),
        (found(GOOD._replace(tool_version="13.0.88")), "made by NVRTC 13.0.88, not by 13.5.37"),
        (found(GOOD._replace(kernels=())), "its entries are none; expected ws_k alone"),
        (found(compiled(entry="_Z4ws_kPf")), "its entries are _Z4ws_kPf; expected ws_k alone"),
        (found(GOOD._replace(kernels=(COMPILED, COMPILED._replace(entry="ws_l")))), "its entries are ws_k, ws_l"),
        (found(compiled(params=((0, 8), (8, 4)))), r"\(0, 8\) \(8, 4\); .*map: tensormap make .*\(64, 128\)"),
        (found(compiled(params=((0, 8), (8, 8), (64, 128)))), r"\(8, 8\)"),
        (found(compiled(params=())), r"its parameters \(offset, size\) are none; the catalog's out: ptr, n: i32"),
        (found(GOOD._replace(record=None)), "exports no ws_record"),
        (found(record(0, 0x57530002)), "ws_record starts with 0x57530002, expected 0x57530001"),
        (found(record(1, 100 * 1024 - 2047)), r"101377 bytes of shared memory \(1024 static, 100353 dynamic\).*101376"),
        (found(compiled(static_shared=1025)), "101377 bytes of shared memory"),
        (found(record(2, 0)), "0 threads a block; expected 1 to 1024"),
        (found(record(2, 1056), kernel=KERNEL), "1056 threads a block"),
        (found(compiled(registers=169)), "384 threads of 169 registers need 67584 of 65536"),
        (found(compiled(stack=8)), "8 bytes of stack, 0 bytes of spill stores and 0 of spill loads, and 0 instr"),
        (found(compiled(stack=UNBOUNDED_STACK)), "an unbounded stack"),
        (found(log=LOG.replace("0 bytes spill stores", "12 bytes spill stores")), "12 bytes of spill stores"),
        (found(log=LOG.replace("0 bytes spill loads", "4 bytes spill loads") * 2), "8 of spill loads"),
        (found(extra="LDL.64"), "2 instructions that use local memory"),
        (found(without="STG.E.128"), "writes no global memory: its body is empty"),
        (found(without="OMMA.SF.16864.F32"), r"no instruction OMMA\\.SF, which the catalog asks for on sm_120f"),
        (found(without="ACQBULK"), "says that it waits for its predecessor, and there is no instruction ACQBULK"),
        (found(record(4, 0)), "says that it does not wait for its predecessor, and there is an instruction ACQBULK"),
    ],
)
def test_each_fault_is_found(wrong: list[str], says: str) -> None:
    assert len(wrong) == 1
    assert re.search(says, wrong[0])


def test_a_kernel_that_may_spill_may() -> None:
    spilling = compiled(stack=16)
    log = LOG.replace("0 bytes spill stores", "12 bytes spill stores")
    assert found(spilling, kernel=replace(KERNEL, may_spill=True), log=log, extra="STL") == []


def test_instructions_are_asked_for_only_where_the_catalog_says() -> None:
    family_only = replace(VARIANT, instructions=(Instructions(("OMMA",), (Capability(12, 0),), "a"),))
    elsewhere = replace(VARIANT, instructions=(Instructions(("OMMA",), (Capability(12, 1),)),))
    for variant in (family_only, elsewhere):
        assert found(variant=variant, without="OMMA.SF.16864.F32") == []


def test_all_faults_of_a_cubin_are_listed() -> None:
    wrong = found(
        compiled(stack=8, registers=250, params=())._replace(record=record(1, 1 << 20).record), without="EXIT"
    )
    assert len(wrong) == 4
