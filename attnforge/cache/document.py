"""A tuned cache as the bytes of its file, and back.

The first line holds the format and a digest of everything after it, so that a truncation which is still valid YAML is
detected, as is an edit. The rest is YAML for people to read and for ``strict_yaml`` to parse.

Only configs differ between templates: an entry of other templates whose config the installed ones cannot have is set
apart and written as it was read. Whatever else is added to entries is a new format, once a version was released.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct

from attnforge.cache.schema import FORMAT, Entry, Provenance, ShortText, TunedCache, TunedEntry, UnfitEntry
from attnforge.cache.strict_yaml import parse
from attnforge.codegen import AttentionSpec, Config, Pass, TemplateSet, config_type, schedule_of
from attnforge.errors import CorruptCacheRefused, NewerCacheRefused
from attnforge.target import Target

_FIRST_LINE = re.compile(rb"# attnforge tuned cache, format ([1-9][0-9]{0,5}), sha256 ([0-9a-f]{64})")


class _SpecRecord(Struct, frozen=True, forbid_unknown_fields=True, rename={"pass_": "pass"}):
    pass_: Pass
    head_dim: int
    head_dim_v: int
    causal: bool


class _EntryRecord(Provenance, frozen=True, kw_only=True, forbid_unknown_fields=True):
    spec: _SpecRecord
    config: Annotated[dict[ShortText, bool | int | ShortText], Meta(max_length=64)]


class _CacheRecord(Struct, frozen=True, forbid_unknown_fields=True):
    target: Target
    attnforge: ShortText
    entries: tuple[_EntryRecord, ...]


def encode(cache: TunedCache) -> bytes:
    """The bytes of a cache's file; equal caches give equal bytes."""
    plain = {
        "target": msgspec.to_builtins(cache.target),
        "attnforge": cache.attnforge,
        "entries": [_plain_entry(entry) for entry in sorted(cache.all_entries, key=_order)],
    }
    # default_flow_style None: innermost mappings take one line each. Without allow_unicode, what is not ASCII is
    # escaped: PyYAML 6 writes U+0085 in single quotes otherwise, and reads it back as a space.
    text: str = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)
    body = text.encode()
    return f"# attnforge tuned cache, format {FORMAT}, sha256 {hashlib.sha256(body).hexdigest()}\n".encode() + body


def decode(content: bytes, path: Path) -> TunedCache:
    """The cache in a file's bytes; ``path`` is for the error's message.

    Raises NewerCacheRefused on a format of the future, CorruptCacheRefused on everything else that ``encode`` would not
    write.
    """
    line, _, body = content.partition(b"\n")
    head = _FIRST_LINE.fullmatch(line)
    if head is None:
        raise CorruptCacheRefused(path, "its first line is not that of a tuned cache")
    if int(head[1]) > FORMAT:
        raise NewerCacheRefused(path, f"its format is {int(head[1])}, this attnforge reads up to {FORMAT}")
    if hashlib.sha256(body).hexdigest().encode() != head[2]:
        raise CorruptCacheRefused(path, "its content does not match its digest: it was truncated or edited")
    try:
        # The first line is a comment: parsed along, it keeps the line numbers of messages right.
        record = msgspec.convert(parse(content.decode()), _CacheRecord)
        found = [_entry(index, entry) for index, entry in enumerate(record.entries)]
        return TunedCache.of(record.target, record.attnforge, found)
    except UnicodeDecodeError as error:
        raise CorruptCacheRefused(path, "it is not UTF-8 text") from error
    except ValueError as error:  # of strict_yaml, msgspec, codegen and the schema
        raise CorruptCacheRefused(path, str(error)) from error


def _order(entry: Entry) -> tuple[object, ...]:
    astuple = msgspec.structs.astuple
    return (dataclasses.astuple(entry.spec), astuple(entry.bucket), astuple(entry.toolchain))


def _plain_entry(entry: Entry) -> dict[str, object]:
    """What was found first, then how it was found."""
    plain: dict[str, Any] = msgspec.to_builtins(entry)
    plain.pop("reason", None)  # an unfit entry's, which is the reader's to find
    spec = plain.pop("spec")
    found = {
        "spec": {"pass": spec.pop("pass_"), **spec},
        "bucket": plain.pop("bucket"),
        "schedule": plain.pop("schedule"),
        "config": plain.pop("config"),
    }
    return found | plain


def _entry(index: int, record: _EntryRecord) -> TunedEntry | UnfitEntry:
    """Raises ValueError, which names the entry, on a spec or config that cannot be."""
    values = {field: getattr(record, field) for field in Provenance.__struct_fields__}
    try:
        spec = AttentionSpec(**msgspec.structs.asdict(record.spec))
        try:
            return TunedEntry(spec=spec, config=_config(record, spec.pass_), **values)
        except ValueError as error:
            installed = TemplateSet.installed().digest_of(schedule_of(record.schedule, spec.pass_))
            if record.toolchain.templates == installed:
                raise
            return UnfitEntry(spec=spec, config=record.config, reason=str(error), **values)
    except ValueError as error:
        raise ValueError(f"entries[{index}]: {error}") from error


def _config(record: _EntryRecord, pass_: Pass) -> Config:
    expected = config_type(record.schedule, pass_)
    unknown = record.config.keys() - {field.name for field in dataclasses.fields(expected)}
    if unknown:
        raise ValueError(f"config has unknown fields: {', '.join(sorted(unknown))}")
    return msgspec.convert(record.config, expected)
