"""Reads what a compiled kernel needs, in the words of ptxas and of the AMD assembler."""

from __future__ import annotations

import re
from dataclasses import dataclass

REGISTER_BYTES = 4

_PTXAS_REGISTERS = re.compile(r"\bUsed (\d+) registers")
_PTXAS_SPILLS = re.compile(r"(\d+) bytes spill stores")
_WGMMA_SERIALISED = re.compile(r"\(C751[0-5]\).*")


class UnreadableReportError(ValueError):
    """The assembler's words are not the ones this module knows: a new version may have changed them."""

    def __init__(self, what: str, text: str) -> None:
        super().__init__(f"no {what} in the assembler's report: {text[:500]!r}")


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one thread, plus the assembler's warnings."""

    registers: int
    spill_bytes: int
    serialised: tuple[str, ...] = ()


def read_ptxas_log(log: str) -> Resources:
    """From the output of ``ptxas -v`` for one kernel. Raises UnreadableReportError."""
    registers = _PTXAS_REGISTERS.search(log)
    if registers is None:
        raise UnreadableReportError("register count", log)
    spills = _PTXAS_SPILLS.search(log)
    warnings = dict.fromkeys(_WGMMA_SERIALISED.findall(log))
    return Resources(int(registers[1]), int(spills[1]) if spills else 0, tuple(warnings))


def read_amdgcn(assembly: str) -> Resources:
    """From the metadata at the end of a kernel's amdgcn text. Raises UnreadableReportError."""

    def metadata(key: str) -> int:
        found = re.search(rf"^\s*\.{key}:\s*(\d+)\s*$", assembly, re.MULTILINE)
        if found is None:
            raise UnreadableReportError(key, assembly[-500:])
        return int(found[1])

    # Spilled SGPRs go to lanes of VGPRs; only spilled VGPRs reach memory.
    return Resources(metadata("vgpr_count"), metadata("vgpr_spill_count") * REGISTER_BYTES)
