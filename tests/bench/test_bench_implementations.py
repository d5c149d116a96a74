"""The peers: which take part, and that each is called in its own layout; our decisions for each cell."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attnforge.bench.case import Case, grid
from attnforge.bench.implementations import PEERS, UnknownPeerError, implementations
from attnforge.bench.ours import Decisions, problem_of
from attnforge.bench.results import OURS, Failure, Measurement
from attnforge.bench.run import Inputs, disagreement, prepare, run_case
from attnforge.cache.schema import Toolchain
from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import DType, Pass, Schedule
from attnforge.dispatch.surroundings import Surroundings
from attnforge.kernels import Kernels
from attnforge.settings import Settings
from tests.runtime.cache.entries import ARCH, measured

CPU = torch.device("cpu")


def names(peers=None):
    return [each.name for each in implementations(peers)]


@pytest.fixture
def without_fa4(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)


@pytest.fixture
def with_fa4(monkeypatch, tmp_path):
    """An importable flash_attn.cute.interface that does what FlashAttention-4 does, on (B, S, H, D)."""
    folder = tmp_path / "flash_attn" / "cute"
    folder.mkdir(parents=True)
    (folder / "interface.py").write_text(
        "from torch.nn.functional import scaled_dot_product_attention\n"
        "def flash_attn_func(q, k, v, causal=False):\n"
        "    q, k, v = (t.transpose(1, 2) for t in (q, k, v))\n"
        "    out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)\n"
        "    return out.transpose(1, 2), None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        del sys.modules[name]


def test_flash_attention_4_takes_part_when_it_is_importable(with_fa4):
    assert names() == [OURS, "flash", "cudnn", "flex", "fa4"]


def test_flash_attention_4_stays_out_when_it_is_not(without_fa4):
    assert names() == [OURS, "flash", "cudnn", "flex"]
    assert names("fa4") == [OURS, "fa4"], "asked for by name: its failure is reported"


def test_peers_by_name():
    assert names("none") == [OURS]
    assert names("cudnn, flash,cudnn") == [OURS, "cudnn", "flash"]
    with pytest.raises(UnknownPeerError, match="'fa2': supported: flash, cudnn, flex, fa4"):
        implementations("flash,fa2")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["flash", "flex", "fa4"])
def test_a_peer_computes_grouped_causal_attention(name, with_fa4, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # C++ for the CPU would take a minute
    case = Case(batch=1, heads=4, kv_heads=2, seqlen=64, head_dim=32, causal=True, dtype=DType.FP32)
    inputs = Inputs.of(case, CPU)
    prepared = prepare(PEERS[name], case, inputs, [Pass.FORWARD])
    expected = scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, is_causal=True, enable_gqa=True)
    assert disagreement(prepared.results[Pass.FORWARD], (expected,)) < 1e-5


@pytest.fixture
def surroundings(tmp_path):
    """Those of a user who has no tuned cache yet."""
    store = TunedCacheStore(Settings(cache_dir=tmp_path / "user"), shipped_dir=tmp_path / "shipped")
    return Surroundings(Kernels.installed(), store, interpreted=False)


def test_an_untuned_cell_is_recorded_as_a_default(surroundings):
    case = grid(head_dims=[64], seqlens=[1024], causal=[True])[0]
    record = Decisions(ARCH, surroundings).record(case, Pass.BACKWARD)
    assert (record.kind, record.cache) == ("default", None)
    assert "backward_d64_causal" in record.variant


def test_a_tuned_cell_is_recorded_with_its_cache_unless_its_variant_failed_to_launch(surroundings):
    path = surroundings.store.write(
        ARCH, [measured(128, 4096, toolchain=Toolchain.installed(Schedule.PORTABLE, Pass.FORWARD))]
    )
    (case,) = grid(head_dims=[128], seqlens=[4096], causal=[True])
    decisions = Decisions(ARCH, surroundings)
    record = decisions.record(case, Pass.FORWARD)
    assert (record.kind, record.cache) == ("exact", str(path))
    surroundings.failed[ARCH, DType.BF16] = {decisions.of(case, Pass.FORWARD).variant}
    assert decisions.record(case, Pass.FORWARD).kind == "default"


def test_cells_are_decided_on_the_case_that_is_timed():
    (case,) = grid(head_dims=[128], seqlens=[4096], causal=[False], kv_heads=4)
    problem = problem_of(case)
    assert (problem.batch, problem.heads, problem.kv_heads) == (4, 16, 4)
    assert (problem.seqlen_q, problem.seqlen_k, problem.dtype) == (4096, 4096, DType.BF16)


def test_compiling_ahead_fills_tritons_cache(surroundings, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (case,) = grid(head_dims=[64], seqlens=[1024], causal=[False])
    Decisions(ARCH, surroundings).compile_ahead([(case, Pass.FORWARD)])
    assert list(tmp_path.rglob("forward_kernel.cubin"))


def test_a_flash_attention_that_cannot_be_imported_is_a_failure_of_its_cells_alone(with_fa4, tmp_path):
    (tmp_path / "flash_attn" / "cute" / "interface.py").write_text("raise RuntimeError('no driver')")
    assert names()[-1] == "fa4"
    case = Case(batch=1, heads=1, kv_heads=1, seqlen=8, head_dim=16, causal=False, dtype=DType.FP32)
    peers = [PEERS["flash"], PEERS["fa4"]]
    timer = SimpleNamespace(measure=lambda calls: {name: [1.0, 1.0] for name in calls})
    (cell,) = run_case(case, [Pass.FORWARD], peers, timer, lambda case, pass_: None, CPU)
    assert isinstance(cell.outcomes["flash"], Measurement)
    assert cell.outcomes["fa4"] == Failure(kind="error", reason="RuntimeError: no driver")
