import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnforge.cache.document import decode, encode
from attnforge.cache.schema import Conditions, GpuState, Throttle, Toolchain
from attnforge.codegen import AttentionSpec, DType, Limits, Pass, Schedule, default_config
from attnforge.errors import CacheRefused, CorruptCacheRefused, NewerCacheRefused
from attnforge.problem import Bucket, Problem
from tests.runtime.cache.entries import ARCH, GPU, a_cache, measured, predicted, signed

PATH = Path("sm_90.yaml")
VALID = encode(a_cache(measured(64), measured(128), predicted(128, seqlen=1024)))
BODY = VALID.partition(b"\n")[2]


STATES = st.builds(
    GpuState,
    sm_mhz=st.none() | st.integers(0, 5000),
    temperature_c=st.none() | st.integers(-20, 120),
    power_w=st.none() | st.floats(0, 2000),
    throttled=st.none() | st.lists(st.sampled_from(Throttle), unique=True).map(tuple),
    other_processes=st.none() | st.integers(0, 9),
)


@st.composite
def entries(draw):
    spec = AttentionSpec(
        pass_=draw(st.sampled_from(Pass)),
        head_dim=draw(st.sampled_from(range(16, 257, 8))),
        head_dim_v=draw(st.sampled_from(range(16, 257, 8))),
        causal=draw(st.booleans()),
    )
    sizes = st.integers(1, 2**20)
    kv_heads = draw(st.integers(1, 64))
    problem = Problem(
        batch=draw(st.integers(1, 1000)),
        heads=kv_heads * draw(st.integers(1, 8)),
        kv_heads=kv_heads,
        seqlen_q=draw(sizes),
        seqlen_k=draw(sizes),
        dtype=draw(st.sampled_from(DType)),
    )
    schedule, config = default_config(spec, problem.dtype, Limits("sm_90", 232448))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(["NO", "1:30", "null"])
    return measured(
        spec=spec,
        problem=problem,
        bucket=Bucket.of(problem),
        schedule=schedule,
        config=config,
        median_ms=draw(st.floats(1e-6, 1e6)),
        gain=draw(st.none() | st.floats(1e-3, 1e3)),
        trials=draw(st.integers(1, 10**6)),
        created=draw(st.datetimes(max_value=datetime(9000, 12, 31), timezones=st.just(UTC))),
        noise=tuple(draw(st.lists(text, max_size=4))),
        conditions=draw(st.none() | st.builds(Conditions, before=STATES, after=STATES).map(lambda each: (each, each))),
    )


@settings(deadline=None)
@given(st.lists(entries(), max_size=3, unique_by=lambda entry: entry.key))
def test_a_cache_is_read_as_it_was_written(entries):
    cache = decode(encode(a_cache(*entries, target=GPU)), PATH)
    assert cache.target == GPU
    assert {entry.key: entry for entry in cache.entries} == {entry.key: entry for entry in entries}


def test_the_bytes_do_not_depend_on_the_order_of_entries():
    one, other = measured(64), predicted(128)
    assert encode(a_cache(one, other)) == encode(a_cache(other, one))


def test_entries_of_before_conditions_were_recorded_are_read():
    assert b"conditions" not in VALID
    assert [entry.conditions for entry in decode(VALID, PATH).entries] == [None] * len(decode(VALID, PATH).entries)


def test_bytes_are_for_people_too():
    text = VALID.decode()
    assert "- spec: {pass: forward, head_dim: 64, head_dim_v: 64, causal: true}\n" in text
    assert "  config: {block_m: 128, block_n: 64, num_warps: 8, num_stages: 3, head_dim_split: chunks}\n" in text
    assert "&" not in text


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(VALID) - 1))
def test_every_truncation_is_refused(length):
    with pytest.raises(CacheRefused):
        decode(VALID[:length], PATH)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(VALID) - 1), st.integers(1, 255))
def test_every_flipped_byte_is_refused(position, flip):
    flipped = bytearray(VALID)
    flipped[position] ^= flip
    with pytest.raises(CacheRefused):
        decode(bytes(flipped), PATH)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    for content in (garbage, signed(garbage)):
        with pytest.raises(CorruptCacheRefused):
            decode(content, PATH)


@settings(deadline=None)
@given(st.integers(0, len(BODY)), st.integers(0, 40), st.binary(max_size=8))
def test_an_edit_with_a_right_digest_is_refused_or_means_a_cache(position, length, inserted):
    """Whoever signs their edit can say what a cache can say, and no more."""
    content = signed(BODY[:position] + inserted + BODY[position + length :])
    try:
        cache = decode(content, PATH)
    except CacheRefused:
        return
    assert decode(encode(cache), PATH) == cache


def test_a_truncation_that_is_still_yaml_is_refused_for_its_digest():
    shorter = VALID[: VALID.rindex(b"\n- spec") + 1]
    assert decode(signed(shorter.partition(b"\n")[2]), PATH).entries  # it would have been accepted
    with pytest.raises(CorruptCacheRefused, match="digest"):
        decode(shorter, PATH)


EDITS = {
    "causal NO": (b"causal: true", b"causal: NO", "'NO' means different things"),
    "seqlen 1:30": (b"seqlen_q: 4096", b"seqlen_q: 1:30", "'1:30' means different things"),
    "octal": (b"block_n: 64", b"block_n: 0100", "'0100' means different things"),
    "bool for int": (b"head_dim: 64", b"head_dim: true", "head_dim"),
    "float for int": (b"head_dim: 64", b"head_dim: 64.0", "head_dim"),
    "int for bool": (b"causal: true", b"causal: 1", "causal"),
    "head dim": (b"head_dim: 64", b"head_dim: 65", r"entries\[0\]: .*head_dim.*multiple of 8"),
    "code for pass": (b"pass: forward", b"pass: __import__('os')", "pass"),
    "unknown pass": (b"pass: forward", b"pass: sideways", "sideways"),
    "unknown schedule": (b"schedule: portable", b"schedule: /tmp/evil.py", "evil"),
    "unknown field": (b"attnforge: 0.1.0", b"attnforge: 0.1.0\nmodule: os", "module"),
    "unknown entry field": (b"  schedule: portable", b"  template: x\n  schedule: portable", "template"),
    "unknown spec field": (b"causal: true", b"causal: true, window: 5", "window"),
    "unknown target field": (b"sm_count: 132", b"sm_count: 132, sms: 1", "sms"),
    "duplicate key": (b"trials: 40", b"trials: 40\n  trials: 41", "duplicate key 'trials'"),
    "duplicate entry": (b"seqlen_q: 1024, seqlen_k: 1024", b"seqlen_q: 4096, seqlen_k: 4096", "2 entries for .*d128"),
    "bucket of another problem": (b"batch_heads: 64", b"batch_heads: 32", "bucket"),
    "edge": (b"batch_heads: 64", b"batch_heads: 60", "power of two"),
    "size 0": (b"batch: 4", b"batch: 0", "batch"),
    "huge size": (b"batch: 4", b"batch: 999999999999999999", "batch"),
    "negative time": (b"median_ms: 1.25", b"median_ms: -1.25", "median_ms"),
    "infinite time": (b"median_ms: 1.25", b"median_ms: .inf", "means different things"),
    "predicted with a time": (b"source: measured", b"source: predicted", "median_ms"),
    "no later date": (b"'2026-01-01T00:00:00Z'", b"'9999-12-31T23:59:59Z'", "year 9999"),
    "no zone": (b"'2026-01-01T00:00:00Z'", b"'2026-01-01T00:00:00'", "timezone"),
    "arch": (b"arch: sm_90", b"arch: ../sm_90", "arch"),
    "entries is a mapping": (b"entries:\n", b"entries: {}\nrest:\n", "rest|entries"),
}  # fmt: skip

CONFIG_EDITS = {
    "quoted int": (b"block_n: 64", b"block_n: '64'", "block_n"),
    "unknown config field": (b"block_n: 64", b"block_n: 64, block_k: 64", r"entries\[0\]: .*unknown fields: block_k"),
    "missing config field": (b"block_n: 64, ", b"", r"entries\[0\]: .*block_n"),
    "config value": (b"block_n: 64", b"block_n: 63", r"entries\[0\]: .*block_n.*power of two"),
    "config enum": (b"head_dim_split: chunks", b"head_dim_split: slices", "slices"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "reason"), EDITS.values(), ids=EDITS)
def test_a_signed_edit_that_no_cache_would_say_is_refused_with_its_reason(old, new, reason):
    edited = BODY.replace(old, new)
    assert edited != BODY
    with pytest.raises(CorruptCacheRefused, match=reason):
        decode(signed(edited), PATH)


def body_of(*entries):
    return encode(a_cache(*entries)).partition(b"\n")[2]


@pytest.mark.parametrize(("old", "new", "reason"), CONFIG_EDITS.values(), ids=CONFIG_EDITS)
def test_a_config_that_its_own_templates_do_not_have_is_refused(old, new, reason):
    edited = body_of(measured(64, toolchain=Toolchain.installed(Schedule.PORTABLE, Pass.FORWARD))).replace(old, new)
    with pytest.raises(CorruptCacheRefused, match=reason):
        decode(signed(edited), PATH)


@pytest.mark.parametrize(("old", "new", "reason"), CONFIG_EDITS.values(), ids=CONFIG_EDITS)
def test_a_config_that_only_other_templates_have_is_set_apart_and_written_as_it_was(old, new, reason):
    body = body_of(measured(64), measured(128))
    cache = decode(signed(body.replace(old, new, 1)), PATH)
    assert cache.entries == (measured(128),)
    (unfit,) = cache.unfit
    assert unfit.spec == measured(64).spec
    assert re.search(reason.removeprefix(r"entries\[0\]: "), unfit.reason)
    again = decode(encode(cache), PATH)
    assert again == cache
    assert encode(again) == encode(cache)


def test_a_spec_that_cannot_be_is_refused_whatever_the_templates():
    edited = body_of(measured(64)).replace(b"head_dim_v: 64", b"head_dim_v: 63").replace(b"block_n", b"block_k")
    with pytest.raises(CorruptCacheRefused, match="head_dim_v"):
        decode(signed(edited), PATH)


def test_line_numbers_are_those_of_the_file():
    edited = BODY.replace(b"causal: true", b"causal: NO", 1)
    line = signed(edited).split(b"causal: NO")[0].count(b"\n") + 1
    with pytest.raises(CorruptCacheRefused, match=f"line {line}:"):
        decode(signed(edited), PATH)


def test_not_utf8_is_refused():
    with pytest.raises(CorruptCacheRefused, match="UTF-8"):
        decode(signed(BODY + b"# \xff\n"), PATH)


def test_a_newer_format_is_refused_before_its_content_is_judged():
    with pytest.raises(NewerCacheRefused, match="upgrade attnforge"):
        decode(signed(b"anything", file_format=2), PATH)


def test_toolchains_are_told_apart_by_triton_minor_and_templates():
    toolchain = measured().toolchain
    for change, differences in (
        ({"triton": "3.6.1"}, 0),
        ({"torch": "2.12.0"}, 0),
        ({"triton": "3.9.0"}, 1),
        ({"triton": "3.9.0", "templates": "f" * 16}, 2),
    ):
        assert len(toolchain.differences(msgspec.structs.replace(toolchain, **change))) == differences


def test_the_target_of_an_arch_alone_and_of_a_gpu_survive():
    for target in (ARCH, GPU):
        assert decode(encode(a_cache(target=target)), PATH).target == target
