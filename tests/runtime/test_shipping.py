import hashlib
import json
from pathlib import Path

import pytest

from attnforge.cache.document import encode
from attnforge.codegen import AttentionSpec, Pass, Schedule, TemplateSet, schedule_of, schedules
from attnforge.errors import CacheRefused
from attnforge.shipping import ARCHS, HEAD_DIMS, Differences, Shipment, default_variants, shipped_specs, tuned_variants
from attnforge.target import Target
from tests.runtime.cache.entries import a_cache, a_config, measured

WANTED = {"kernels/portable/a/x.py": b"x = 1\n", "kernels/portable/b/y.py": b"y = 1\n", "manifest.json": b"{}\n"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_shipped_specs() -> None:
    specs = shipped_specs()
    assert len(set(specs)) == len(specs) == len(HEAD_DIMS) * 2 * 2
    assert {(spec.head_dim, spec.head_dim_v) for spec in specs} == {(d, d) for d in HEAD_DIMS}
    assert {(spec.pass_, spec.causal) for spec in specs} == {(p, c) for p in Pass for c in (False, True)}


def test_default_variants_are_those_of_every_target_and_each_once() -> None:
    specs = shipped_specs()
    both = default_variants(specs, [Target.for_arch(arch) for arch in ARCHS])
    alone = [default_variants(specs, [Target.for_arch(arch)]) for arch in ARCHS]
    assert set(both) == set(alone[0]) | set(alone[1])
    assert len(set(both)) == len(both)
    assert {variant.spec for variant in both} == set(specs)


def test_everything_is_written_once_and_then_left_alone(tmp_path: Path) -> None:
    shipment = Shipment(tmp_path)
    assert shipment.update(WANTED) == Differences(missing=tuple(WANTED), stale=(), extra=())
    assert files_of(tmp_path) == WANTED
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not shipment.update(WANTED)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_each_kind_of_difference_is_found_and_mended(tmp_path: Path) -> None:
    shipment = Shipment(tmp_path)
    shipment.update(WANTED)
    (tmp_path / "__init__.py").write_text("not a kernel\n")
    (tmp_path / "kernels/portable/a/x.py").unlink()
    (tmp_path / "kernels/portable/b/y.py").write_bytes(b"y = 2\n")
    (tmp_path / "kernels/portable/c").mkdir()
    (tmp_path / "kernels/portable/c/old.py").write_bytes(b"")
    expected = Differences(
        missing=("kernels/portable/a/x.py",),
        stale=("kernels/portable/b/y.py",),
        extra=("kernels/portable/c/old.py",),
    )
    assert shipment.differences(WANTED) == expected
    assert shipment.update(WANTED) == expected
    assert not shipment.differences(WANTED)
    assert files_of(tmp_path) == WANTED | {"__init__.py": b"not a kernel\n"}
    assert not (tmp_path / "kernels/portable/c").exists()


def test_what_is_wanted_holds_the_defaults_and_the_manifest_of_all(tmp_path: Path) -> None:
    wanted = Shipment(tmp_path).wanted()
    manifest = json.loads(wanted.pop("manifest.json"))
    defaults = default_variants(shipped_specs(), [Target.for_arch(arch) for arch in ARCHS])
    assert set(wanted) == {f"kernels/{variant.path}" for variant in defaults}
    assert manifest["template_digests"] == {
        f"portable {pass_}": TemplateSet.installed().digest_of(schedule_of(Schedule.PORTABLE, pass_)) for pass_ in Pass
    }
    assert manifest["files"] == {path: hashlib.sha256(content).hexdigest() for path, content in wanted.items()}


def test_beside_a_preferred_default_what_takes_other_layouts_is_shipped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=128, head_dim_v=128, causal=False)
    monkeypatch.setattr(schedules, "preferred_schedule", lambda *_: Schedule.HOPPER)
    variants = default_variants([spec], [Target.for_arch(arch) for arch in ARCHS])
    assert sorted({variant.schedule for variant in variants}) == [Schedule.HOPPER, Schedule.PORTABLE]
    on_sm_90 = default_variants([spec], [Target.for_arch("sm_90")])
    assert [variant.schedule for variant in on_sm_90] == [Schedule.HOPPER, Schedule.PORTABLE]


def test_winners_of_shipped_caches_are_shipped_too(tmp_path: Path) -> None:
    shipment = Shipment(tmp_path)
    before = shipment.wanted()
    entry = measured(config=a_config(block_m=16))
    shipment.tuned_dir.mkdir()
    (shipment.tuned_dir / "sm_90.yaml").write_bytes(encode(a_cache(entry)))
    after = shipment.wanted()
    assert set(after) - set(before) == {f"kernels/{entry.variant.path}"}
    assert f"kernels/{entry.variant.path}" in json.loads(after["manifest.json"])["files"]
    assert tuned_variants(shipment.tuned_dir, "sm_90") == (entry.variant,)
    assert tuned_variants(shipment.tuned_dir, "sm_80") == ()


def test_a_broken_shipped_cache_stops_the_generation(tmp_path: Path) -> None:
    shipment = Shipment(tmp_path)
    shipment.tuned_dir.mkdir()
    (shipment.tuned_dir / "sm_90.yaml").write_text("{")
    with pytest.raises(CacheRefused, match=r"sm_90\.yaml"):
        shipment.wanted()


def test_the_committed_files_are_what_the_templates_say() -> None:
    shipment = Shipment.installed()
    assert shipment.is_in_checkout
    assert shipment.differences(shipment.wanted()) == Differences((), (), ())


def test_a_wheels_folder_is_no_checkout(tmp_path: Path) -> None:
    (tmp_path / "attnforge" / "generated").mkdir(parents=True)
    (tmp_path / "attnforge" / "templates").mkdir()
    assert not Shipment(tmp_path / "attnforge" / "generated").is_in_checkout
