from collections.abc import Callable
from pathlib import Path

import pytest

from attnforge import cli
from attnforge.cache.document import encode
from attnforge.cache.schema import Toolchain, TunedEntry
from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import DType, Limits, Pass, Schedule, default_config
from attnforge.target import Target
from tests.runtime.cache.entries import ARCH, GPU, a_cache, a_config, a_spec, measured, predicted, put

Explain = Callable[..., tuple[int, dict[str, str], str]]
CALL = ("--shape", "4,16,4096,128", "--causal", "--target", "sm_90")
"""On the problem of the entries, for their spec."""


@pytest.fixture(autouse=True)
def tuned_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's tuned caches; no shipped ones, and no GPU, whatever there is where the tests run."""
    monkeypatch.setenv("ATTNFORGE_CACHE_DIR", str(tmp_path / "user"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made = TunedCacheStore.__init__
    monkeypatch.setattr(TunedCacheStore, "__init__", lambda self, settings: made(self, settings, tmp_path / "shipped"))
    return tmp_path / "user" / "tuned"


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str]) -> Explain:
    """Runs the command: its exit status, what it prints by name, and the error."""

    def run(*arguments: str) -> tuple[int, dict[str, str], str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["explain", *arguments])
        captured = capsys.readouterr()
        lines = (line for line in captured.out.splitlines() if len(line) > 20)
        return int(exit_.value.code or 0), {line[:20].strip(): line[20:] for line in lines}, captured.err

    return run


def write(path: Path, *entries: TunedEntry, target: Target = ARCH) -> None:
    put(path, encode(a_cache(*entries, target=target)))


def test_what_was_never_tuned_gets_the_default_config(explain: Explain, tuned_dir: Path) -> None:
    status, said, _ = explain(*CALL)
    schedule, default = default_config(a_spec(), DType.BF16, Limits("sm_90", 232448))
    assert status == 0
    assert said["spec"] == "forward_d128_causal"
    sizes = "batch 4, heads 16, kv_heads 16, seqlen_q 4096, seqlen_k 4096, dtype bfloat16"
    assert (said["problem"], said["bucket"]) == (sizes, "bfloat16_bh64_q4096_k4096")
    assert said["target"] == "sm_90: 132 SMs, 232448 bytes of shared memory a block"
    assert said["user"] == f"{tuned_dir / 'sm_90.yaml'}: there is none"
    assert said["shipped"].endswith("shipped/sm_90.yaml: there is none")
    assert said["measured, exact"] == said["predicted, nearest"] == "no"
    assert said["default"] == f"yes, {default.name}"
    assert said["decision"].startswith("default: nothing usable is tuned for forward_d128_causal on sm_90")
    assert said["variant"] == f"{schedule}/forward_d128_causal/{default.name}"


def test_a_tuned_entry_is_found_step_by_step(explain: Explain, tuned_dir: Path) -> None:
    near = measured(seqlen=8192, toolchain=Toolchain.installed(Schedule.PORTABLE, Pass.FORWARD))
    write(tuned_dir / "sm_90.yaml", near, predicted(seqlen=4096))
    _, said, _ = explain(*CALL)
    assert said["user"].endswith("sm_90.yaml: read, 2 entries for forward_d128_causal")
    assert (said["measured, exact"], said["measured, bucket"]) == ("no", "no")
    assert said["measured, nearest"] == f"yes, {a_config().name} on bfloat16_bh64_q8192_k8192"
    assert "predicted, exact" not in said
    assert said["decision"].startswith(
        "nearest: measured for the nearest bucket bfloat16_bh64_q8192_k8192, 2 steps away"
    )
    assert said["cache"] == str(tuned_dir / "sm_90.yaml")
    assert said["config"] == "block_m=128, block_n=64, num_warps=8, num_stages=3, head_dim_split=chunks"


def test_options_make_the_problem(explain: Explain) -> None:
    options = ("--kv-heads", "2", "--seqlen-k", "100", "--head-dim-v", "64", "--dtype", "fp16", "--pass", "backward")
    _, said, _ = explain("--shape", "1,8,50,96", "--target", "sm_80", *options)
    assert said["spec"] == "backward_d96x64_full"
    assert said["problem"] == "batch 1, heads 8, kv_heads 2, seqlen_q 50, seqlen_k 100, dtype float16"


def test_a_refused_cache_is_named_with_the_reason(explain: Explain, tuned_dir: Path) -> None:
    path = tuned_dir / "sm_90.yaml"
    write(path, measured())
    path.write_bytes(path.read_bytes()[:-20])
    status, said, _ = explain(*CALL)
    assert status == 0
    assert said["user"] == f"{path}: refused: its content does not match its digest: it was truncated or edited"
    assert said["decision"].startswith("default")


def test_a_tuned_gpu_is_a_target_without_the_gpu(explain: Explain, tuned_dir: Path) -> None:
    write(
        tuned_dir / f"{GPU.slug}.yaml",
        measured(toolchain=Toolchain.installed(Schedule.PORTABLE, Pass.FORWARD)),
        target=GPU,
    )
    _, said, _ = explain(*CALL[:-1], GPU.slug)
    assert said["target"].startswith("sm_90-nvidia-h200: 132 SMs")
    assert said["decision"].startswith("exact: measured on this very problem")


def test_where_the_kernel_comes_from_is_told(explain: Explain) -> None:
    _, said, _ = explain(*CALL)
    assert "forward_d128_causal" in said["kernel"]
    _, said, _ = explain("--shape", "4,16,4096,72", "--target", "sm_90")
    assert said["kernel"] == "no kernel was generated for forward_d72_full: run `attnforge generate --head-dim 72` once"
    with pytest.raises(SystemExit):
        cli.main(["generate", "--head-dim", "72", "--target", "sm_90"])
    _, said, _ = explain("--shape", "4,16,4096,72", "--target", "sm_90")
    assert said["kernel"].endswith("(rendered)")
    assert "/user/kernels/hopper/forward_d72_full/" in said["kernel"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "4,16,4096,128"), "error: torch sees no GPU on this machine: name a target"),
        (("--shape", "4,16,4096", "--target", "sm_90"), "'4,16,4096' is not four numbers"),
        (("--shape", "a,b,c,d", "--target", "sm_90"), "'a,b,c,d' is not four numbers"),
        (("--shape", "0,16,4096,128", "--target", "sm_90"), "error: batch: got 0; supported: at least 1"),
        (
            ("--shape", "4,16,4096,20", "--target", "sm_90"),
            "error: spec field 'head_dim': got 20; supported: a",
        ),
        ((*CALL[:3], "--target", "sm_91"), "error: target 'sm_91' is not known; known targets: sm_80"),
        ((*CALL, "--dtype", "int8"), "'int8' is none of fp16, bf16, fp32"),
        ((*CALL, "--kv-heads", "3"), "error: kv_heads: got 3; supported: a divisor of the 16 heads of q"),
        ((*CALL, "--kv-heads", "0"), "Invalid value for '--kv-heads'"),
        ((*CALL, "--pass", "sideways"), "Invalid value for '--pass'"),
    ],
)
def test_a_mistake_is_one_clear_error(explain: Explain, arguments: tuple[str, ...], message: str) -> None:
    status, said, error = explain(*arguments)
    assert (status, said) == (2, {})
    assert message in error
    assert "Traceback" not in error


def test_beside_a_decision_that_not_every_layout_gets_it_names_what_others_get(explain: Explain) -> None:
    assert "otherwise" not in explain(*CALL[:-1], "sm_80")[1]
    _, said, _ = explain(*CALL)
    assert said["variant"].startswith("hopper/forward_d128_causal/")
    assert said["otherwise"].startswith("for tensors that TMA cannot address: portable/forward_d128_causal/")


def test_a_deterministic_call_gets_the_twin_whose_sums_have_an_order(explain: Explain) -> None:
    call = ("--shape", "2,16,4096,128", "--pass", "backward", "--target", "sm_90")
    assert "ordered=False" in explain(*call)[1]["config"]
    assert "ordered=True" in explain(*call, "--deterministic")[1]["config"]
