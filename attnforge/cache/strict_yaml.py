"""The small, unambiguous part of YAML that tuned caches use.

YAML proper has aliases that blow up in memory, tags that name classes, and plain words that turn into something else
(``NO`` is false, ``1:30`` is 90, ``010`` is 8). PyYAML's parser delivers events; everything of that kind is refused
here, before a single value is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import yaml

MAX_DEPTH = 8
"""Nested collections; a tuned cache needs four."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+(e[+-][0-9]+)?")
_STRING_TAG = "tag:yaml.org,2002:str"


class StrictYamlError(ValueError):
    """Text that is not YAML, or not the part of it that is accepted."""

    def __init__(self, line: int | None, problem: str) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")


def parse(text: str) -> object:
    """The one document in ``text`` as dicts, lists, strings, ints, finite floats, bools and None.

    Raises StrictYamlError on anything else: see the module.
    """
    events = _events(text)
    next(events)  # the stream's start
    start = next(events)
    if not isinstance(start, yaml.DocumentStartEvent):
        raise StrictYamlError(None, "it is empty")
    if start.version or start.tags:
        raise _error(start, "directives are not accepted")
    document = _build(next(events), events, depth=0)
    next(events)  # the document's end
    following = next(events)
    if not isinstance(following, yaml.StreamEndEvent):
        raise _error(following, "a second document is not accepted")
    return document


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise StrictYamlError(mark.line + 1 if mark else None, error.problem or "not YAML") from error
    except yaml.YAMLError as error:
        raise StrictYamlError(None, " ".join(str(error).split())) from error


def _error(event: yaml.Event, problem: str) -> StrictYamlError:
    return StrictYamlError(event.start_mark.line + 1 if event.start_mark else None, problem)


def _build(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> object:
    """The value that starts with ``event``; the rest of it is taken from ``events``."""
    if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) or event.anchor is not None:
        raise _error(event, "anchors and aliases are not accepted")
    if event.tag is not None:
        raise _error(event, f"tags are not accepted ({event.tag})")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if depth == MAX_DEPTH:
        raise _error(event, f"more than {MAX_DEPTH} nested collections")
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events, depth + 1)
    return _sequence(events, depth + 1)


def _mapping(events: Iterator[yaml.Event], depth: int) -> dict[str, object]:
    built: dict[str, object] = {}
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            return built
        key = _build(event, events, depth)
        if not isinstance(key, str):
            raise _error(event, f"keys must be strings, not {key!r}")
        if key in built:
            raise _error(event, f"duplicate key {key!r}")
        built[key] = _build(next(events), events, depth)
    raise AssertionError("the parser closes what it opens")


def _sequence(events: Iterator[yaml.Event], depth: int) -> list[object]:
    built: list[object] = []
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            return built
        built.append(_build(event, events, depth))
    raise AssertionError("the parser closes what it opens")


def _scalar(event: yaml.ScalarEvent) -> str | int | float | bool | None:
    text = event.value
    is_plain = event.implicit[0]
    if not is_plain or _resolved_tag(text) == _STRING_TAG:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    raise _error(event, f"{text!r} means different things to different readers: quote it or write it out")


def _resolved_tag(text: str) -> str:
    """What PyYAML, a YAML 1.1 reader, takes a plain scalar for."""
    tag: str = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return tag
