import pytest

from attnforge.compilation.resources import Resources, UnreadableReportError, read_amdgcn, read_ptxas_log

CLEAN = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'forward_kernel' for 'sm_90a'
ptxas info    : Function properties for forward_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 242 registers, used 1 barriers
ptxas info    : Compile time = 412.345 ms
"""
SERIALISED = """\
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
non wgmma instructions defining accumulator registers of a wgmma between start and end of the pipeline stage \
in the function 'dkdv_kernel'
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
non wgmma instructions defining accumulator registers of a wgmma between start and end of the pipeline stage \
in the function 'dkdv_kernel'
ptxas info    : (C7519) Something else
"""
AMDGCN = """\
    .sgpr_count:     44
    .sgpr_spill_count: 3
    .symbol:         forward_kernel.kd
    .vgpr_count:     256
    .vgpr_spill_count: 20
"""


def test_a_clean_kernel() -> None:
    assert read_ptxas_log(CLEAN) == Resources(registers=242, spill_bytes=0)


def test_spill_stores_are_counted() -> None:
    log = CLEAN.replace("0 bytes spill stores, 0 bytes spill loads", "596 bytes spill stores, 700 bytes spill loads")
    assert read_ptxas_log(log).spill_bytes == 596


def test_wgmma_serialisation_is_kept_once_in_ptxas_words() -> None:
    (warning,) = read_ptxas_log(SERIALISED + CLEAN).serialised
    assert warning.startswith("(C7510) Potential Performance Loss")
    assert warning.endswith("'dkdv_kernel'")


@pytest.mark.parametrize("code", [f"C751{digit}" for digit in range(6)])
def test_every_code_of_serialisation_is_known(code: str) -> None:
    assert read_ptxas_log(SERIALISED.replace("C7510", code) + CLEAN).serialised


def test_amd_counts_spilled_registers_in_bytes() -> None:
    assert read_amdgcn(AMDGCN) == Resources(registers=256, spill_bytes=80)


@pytest.mark.parametrize("read", [read_ptxas_log, read_amdgcn])
def test_an_unknown_report_is_an_error_and_not_a_clean_kernel(read) -> None:
    with pytest.raises(UnreadableReportError):
        read("nothing that is known")
