import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from attnforge.cache import strict_yaml
from attnforge.cache.strict_yaml import StrictYamlError, parse

BILLION_LAUGHS = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"

REFUSED = {
    "empty": ("", "empty"),
    "comment only": ("# nothing\n", "empty"),
    "alias": ("a: 1\nb: *a\n", "alias"),
    "billion laughs": (BILLION_LAUGHS, "anchors and aliases"),
    "unused anchor": ("a: &x 1\n", "anchors and aliases"),
    "python tag": ("a: !!python/object/apply:os.system ['true']\n", "tags"),
    "harmless tag": ("a: !!int 3\n", "tags"),
    "non-specific tag": ("a: ! 3\n", "tags"),
    "directive": ("%YAML 1.1\n---\na: 1\n", "directives"),
    "tag directive": ("%TAG ! tag:example.com,2026:\n---\na: 1\n", "directives"),
    "two documents": ("a: 1\n---\na: 2\n", "second document"),
    "duplicate key": ("a: 1\nb: 2\na: 3\n", "line 3: duplicate key 'a'"),
    "duplicate key in flow": ("x: {a: 1, a: 1}\n", "duplicate key 'a'"),
    "duplicate key, quoted differently": ("a: 1\n'a': 2\n", "duplicate key 'a'"),
    "merge key": ("<<: {a: 1}\n", "means different things"),
    "number as key": ("1: a\n", "keys must be strings"),
    "list as key": ("? [a]\n: 1\n", "keys must be strings"),
    "deep lists": ("[" * 100_000, "nested|nesting"),  # libyaml 0.2.6 looks ahead, and has a limit of its own
    "deep mappings": ("{a: " * 1000, "nested"),
    "deep blocks": ("- " * 9 + "x", "nested"),
    "unclosed": ("{a: 1", "line [12]"),
    "tab": ("a:\n\t- 1\n", "line 2"),
    "control character": ("a: \x00\n", "not allowed|control"),
    **{
        f"plain {word}": (f"a: {word}\n", "line 1: .* means different things")
        for word in (
            *("NO", "no", "No", "yes", "on", "OFF", "True", "TRUE", "FALSE"),
            *("1:30", "1:30:59", "190:20:30.15"),
            *("010", "0x1F", "0b1", "1_000", "+1", "-0x1", "1234567890123456789"),
            *("~", "Null", "", "=", ".inf", "-.inf", ".nan", "1.", ".5", "1_0.5", "1.0e+999", "01.5"),
            *("2026-01-01", "2026-01-01T00:00:00Z"),
        )
    },
}


@pytest.fixture(params=["libyaml", "python"])
def parser(request, monkeypatch):
    """PyYAML's two parsers; the second serves where libyaml is missing."""
    if request.param == "python":
        monkeypatch.setattr(strict_yaml, "_LOADER", yaml.SafeLoader)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_hostile_or_ambiguous_is_refused(text, reason):
    with pytest.raises(StrictYamlError, match=reason):
        parse(text)


@pytest.mark.usefixtures("parser")
def test_values_mean_what_they_say():
    text = (
        "a: 1\nb: -2.5\nc: 1.0e-05\nd: true\ne: null\n"
        "f: plain text\ng: 'NO'\nh: \"1:30\"\ni: [0, false]\nj: {k: 3.6.0}\n"
    )
    assert parse(text) == {
        "a": 1,
        "b": -2.5,
        "c": 1e-05,
        "d": True,
        "e": None,
        "f": "plain text",
        "g": "NO",
        "h": "1:30",
        "i": [0, False],
        "j": {"k": "3.6.0"},
    }


# At most four leaves nest less deep than the limit.
plain_data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        ["NO", "1:30", "~", "<<", "0x1F", "null", "true", "1", "2026-01-01", "&a", "*a", "!x", "- a", "# a"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=4,
)


@settings(deadline=None)
@given(plain_data)
def test_what_pyyaml_writes_is_read_back(data):
    parsed = parse(yaml.safe_dump(data, default_flow_style=None, sort_keys=False))
    assert parsed == data
    assert repr(parsed) == repr(data)  # 1 and True are equal too
