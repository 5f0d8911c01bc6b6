# SPDX-License-Identifier: Apache-2.0
"""Instruction censuses, with a program in nvdisasm's place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from warpsmith.compiler.sass import count, disassemble, global_writes, spills
from warpsmith.errors import ToolchainError

# Prints one instruction for each 16 bytes: the opcode that they spell. "BAD" is refused, as nvdisasm refuses what is no
# instruction; "CRASH" fails whenever several codes are read at once.
NVDISASM = """#!{python}
import sys
data = open(sys.argv[-1], "rb").read()
print("read", len(data), file=open(__file__ + ".log", "a"))
words = [data[i:i + 16].rstrip(b"\\0").decode() for i in range(0, len(data), 16)]
if "BAD" in words or ("CRASH" in words and len(words) > 2):
    sys.exit("nvdisasm error: Illegal instruction found")
print('\\t.headerflags @"EF_CUDA_SM121"')
for i, word in enumerate(words):
    if word != "SILENT":
        print(f"        /*{{16 * i:04x}}*/               {{word}} R1, c[0x0][0x37c] ;   /* 0x0000 */")
"""


@pytest.fixture
def nvdisasm(tmp_path: Path) -> str:
    if sys.platform == "win32":
        pytest.skip("needs a script that can be run like a program")
    path = tmp_path / "nvdisasm"
    path.write_text(NVDISASM.format(python=sys.executable), encoding="ascii")
    path.chmod(0o755)
    return str(path)


def code(*opcodes: str) -> bytes:
    return b"".join(opcode.encode().ljust(16, b"\0") for opcode in opcodes)


def test_each_code_gets_its_own_instructions(nvdisasm: str) -> None:
    first, second = code("LDG.E", "@P0 STG.E", "@!UPT EXIT", "NOP", "BRA"), code("EXIT", "LDG.E", "LDG.E")
    found = disassemble(nvdisasm, "sm_121a", ["a", "b"], [first, second])
    assert found == [
        (("BRA", 1), ("EXIT", 1), ("LDG.E", 1), ("NOP", 1), ("STG.E", 1)),
        (("EXIT", 1), ("LDG.E", 2)),
    ]


def test_one_call_reads_all_codes(nvdisasm: str) -> None:
    codes = [code("EXIT"), code("LDS", "EXIT"), code("EXIT")]
    disassemble(nvdisasm, "sm_80", ["a", "b", "c"], codes)
    assert Path(nvdisasm + ".log").read_text(encoding="ascii") == "read 64\n"


def test_padding_at_the_end_is_not_counted(nvdisasm: str) -> None:
    found = disassemble(nvdisasm, "sm_80", ["a", "b"], [code("NOP", "EXIT", "NOP", "NOP"), code("EXIT")])
    assert found == [(("EXIT", 1), ("NOP", 1)), (("EXIT", 1),)]


def test_offsets_of_more_than_four_digits_are_read(nvdisasm: str) -> None:
    codes = [code(*["LDS"] * 5000), code(*["STS"] * 3000)]
    assert disassemble(nvdisasm, "sm_80", ["a", "b"], codes) == [(("LDS", 5000),), (("STS", 3000),)]


def test_code_that_cannot_be_read_is_named(nvdisasm: str) -> None:
    with pytest.raises(ToolchainError, match=r"^b/c@sm_80: .*status 1.*Illegal instruction"):
        disassemble(nvdisasm, "sm_80", ["a", "b/c@sm_80"], [code("EXIT"), code("BAD")])


def test_a_batch_that_fails_is_read_code_by_code(nvdisasm: str) -> None:
    found = disassemble(nvdisasm, "sm_80", ["a", "b"], [code("EXIT", "EXIT"), code("CRASH")])
    assert found == [(("EXIT", 2),), (("CRASH", 1),)]


def test_a_listing_with_too_few_instructions_is_refused(nvdisasm: str) -> None:
    with pytest.raises(ToolchainError, match="listed 1 instructions where 2 were expected"):
        disassemble(nvdisasm, "sm_80", ["a"], [code("EXIT", "SILENT")])


def test_no_code_needs_no_nvdisasm() -> None:
    assert disassemble("/nowhere/nvdisasm", "sm_80", ["a"], [b""]) == [()]


def test_a_missing_nvdisasm_says_what_to_install() -> None:
    with pytest.raises(ToolchainError, match=r"cannot run /nowhere/nvdisasm.*pip install 'warpsmith\[build\]'"):
        disassemble("/nowhere/nvdisasm", "sm_80", ["a"], [code("EXIT")])


def test_patterns_match_from_the_start_of_the_opcode() -> None:
    census = (("F2FP.SATFINITE.E2M1.F32.PACK_AB", 4), ("HMMA.16816.F32", 2), ("QHMMA.16816.F32", 8))
    assert count(census, r"F2FP\..*E2M1") == 4
    assert count(census, "HMMA") == 2
    assert count(census, "E2M1") == 0


@pytest.mark.parametrize(
    ("opcode", "spill", "write"),
    [
        ("STL.64", True, False),
        ("LDL", True, False),
        ("LDG.E.128", False, False),
        ("STS.128", False, False),
        ("LDS", False, False),
        ("STG.E.128", False, True),
        ("ST.E", False, True),
        ("STSM.16.M88.4", False, False),
        ("ATOMG.E.ADD", False, True),
        ("ATOMS.ADD", False, False),
        ("RED.E.ADD", False, True),
        ("REDUX.SUM", False, False),
        ("UTMASTG.2D", False, True),
        ("UTMALDG.2D", False, False),
    ],
)
def test_spills_and_global_writes_are_told_from_their_neighbours(opcode: str, spill: bool, write: bool) -> None:
    assert (spills(((opcode, 3),)), global_writes(((opcode, 3),))) == (3 * spill, 3 * write)
