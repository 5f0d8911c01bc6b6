# SPDX-License-Identifier: Apache-2.0
"""The ELF reader on made-up cubins: what it reads, and that nothing but `ElfError` comes out of any bytes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from bundle_samples import FakeCubin
from hypothesis import given, settings
from hypothesis import strategies as st

from warpsmith.arch import Target, all_targets
from warpsmith.bundle.elf import MAX_CUBIN_BYTES, RECORD_MAGIC, UNBOUNDED_STACK, read_cubin
from warpsmith.catalog.spec import Param
from warpsmith.errors import ElfError

GOOD = FakeCubin().file()


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_every_target_is_decoded(target: Target) -> None:
    info = read_cubin(FakeCubin(target=str(target), static_shared=2048).file())
    assert info.target == target
    assert info.kernels[0].static_shared == 2048  # the reserved kilobyte from 9.0 on is not the kernel's


def test_a_kernel_is_described() -> None:
    info = read_cubin(FakeCubin(stack=UNBOUNDED_STACK, registers=168).file())
    (kernel,) = info.kernels
    assert (info.tool_version, info.record) == ("13.5.37", (RECORD_MAGIC, 4096, 256, 3, 1, 0, 0, 0))
    assert (kernel.entry, kernel.registers, kernel.stack) == ("ws_k", 168, UNBOUNDED_STACK)
    assert (kernel.params, kernel.param_bytes, kernel.param_base) == (((0, 8), (8, 8), (16, 4)), 20, 0x380)
    assert (kernel.code, kernel.code_bytes, kernel.static_shared) == (b"\x11" * 128, 128, 0)


@pytest.mark.parametrize(("target", "offset"), [("sm_80", 32), ("sm_90a", 48), ("sm_121a", 64)])
def test_tensor_maps_are_aligned_to_their_address(target: str, offset: int) -> None:
    params = (Param("x", "ptr"), Param("map", "tensormap"))
    assert read_cubin(FakeCubin(target, params=params).file()).kernels[0].params == ((0, 8), (offset, 128))


def test_a_kernel_may_have_no_parameters_and_no_record() -> None:
    info = read_cubin(FakeCubin(params=(), record=None).file())
    assert (info.record, info.kernels[0].params, info.kernels[0].param_bytes) == (None, (), 0)


@pytest.mark.parametrize(
    ("cubin", "message"),
    [
        (FakeCubin(flags=0x6007802), "say sm_120"),
        (FakeCubin(accelerator=0), ".nv.compat says otherwise"),
        (FakeCubin("sm_120f", accelerator=1), ".nv.compat says otherwise"),
        (FakeCubin(options="-v"), "do not name one target"),
        (FakeCubin(options="-arch sm_121a -arch sm_120a"), "do not name one target"),
        (FakeCubin(options="-arch sm_121b"), "do not name one target"),
        (FakeCubin(options="-arch sm_130"), "unknown target"),
        (FakeCubin("sm_80", options="-arch sm_80a"), "does not exist"),
        (FakeCubin(version="next"), "expected ptxas"),
        (FakeCubin(record=(RECORD_MAGIC, 1, 2, 3)), "eight words"),
        (FakeCubin(skip=(".note.nv.tkinfo",)), "tkinfo"),
        (FakeCubin(skip=(".nv.info",)), ".nv.info"),
        (FakeCubin(skip=(".nv.info.ws_k",)), "lacks its code"),
        (FakeCubin(extra=((".text.ws_k", 1, b""),)), "2 sections .text.ws_k"),
        (FakeCubin(extra=((".nv.shared.ws_k", 8, b""),)), "reserves"),
    ],
)
def test_contradictions_are_refused(cubin: FakeCubin, message: str) -> None:
    with pytest.raises(ElfError, match=message):
        read_cubin(cubin.file())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x7fELF", "ELF header ends"),
        (b"PK\3\4" + GOOD[4:], "not 7f454c46"),
        (GOOD[:4] + b"\1" + GOOD[5:], "little-endian ELF64"),
        (GOOD[:18] + b"\x3e" + GOOD[19:], "machine 190"),
        (GOOD[:7] + b"\x33\x07" + GOOD[9:], "NVRTC 13.0"),
        (GOOD[:40] + b"\xff" * 8 + GOOD[48:], "section table ends"),
        (GOOD[:60] + b"\0\0" + GOOD[62:], "malformed"),
        (GOOD + b"\0" * (MAX_CUBIN_BYTES - len(GOOD) + 1), "more than"),
    ],
)
def test_what_is_no_cubin_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ElfError, match=message):
        read_cubin(data)


def symbol(name: str, data: bytes) -> int:
    """Where a symbol's record lies: type and section of the two that a sample has."""
    kind = {"ws_k": b"\x12\x10\x01\0", "ws_record": b"\x01\0\x02\0"}[name]
    return data.index(kind) - 4


@pytest.mark.parametrize(
    ("name", "offset", "value", "message"),
    [
        ("ws_k", 6, 2, "does not lie in section .text.ws_k"),
        ("ws_k", 6, 99, "does not lie in section .text.ws_k"),
        ("ws_record", 6, 1, "not one array of eight words"),
        ("ws_record", 16, 64, "not one array of eight words"),
        ("ws_record", 8, 4, "reaches past the end"),
        ("ws_record", 8, 2**63, "reaches past the end"),
    ],
)
def test_symbols_that_lead_elsewhere_are_refused(name: str, offset: int, value: int, message: str) -> None:
    data = bytearray(GOOD)
    start = symbol(name, GOOD) + offset
    size = 2 if offset == 6 else 8
    data[start : start + size] = value.to_bytes(size, "little")
    with pytest.raises(ElfError, match=message):
        read_cubin(bytes(data))


def test_kernels_are_listed_by_name() -> None:
    assert [k.entry for k in read_cubin(FakeCubin(twins=("ws_a",)).file()).kernels] == ["ws_a", "ws_k"]


def test_two_kernels_of_one_name_are_refused() -> None:
    data = FakeCubin(twins=("ws_j",)).file()
    with pytest.raises(ElfError, match="two kernels"):
        read_cubin(data.replace(b"ws_j", b"ws_k", 1))


def test_sections_that_share_their_bytes_do_not_multiply_them() -> None:
    """A small file could otherwise claim gigabytes of machine code."""
    cubin = FakeCubin(code=bytes(8192), twins=tuple(f"ws_{i}" for i in range(8)))
    assert len(cubin.file()) < 16384
    with pytest.raises(ElfError, match="more machine code than the file holds"):
        read_cubin(cubin.file())


def refuse_or_read(data: bytes) -> None:
    with suppress(ElfError):
        read_cubin(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=512))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    refuse_or_read(data)
    refuse_or_read(GOOD[:16] + data)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_raise_nothing_else(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for position, value in changes:
        data[position] = value
    refuse_or_read(bytes(data))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 17), st.integers(0, 9), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(GOOD)]))
def test_any_section_header_raises_nothing_else(section: int, field: int, value: int) -> None:
    data = bytearray(GOOD)
    table = int.from_bytes(GOOD[40:48], "little")
    offset, size = ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8))[field]
    start = table + section * 64 + offset
    data[start : start + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    refuse_or_read(bytes(data))


def test_every_truncation_is_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ElfError):
            read_cubin(GOOD[:length])
