import ast
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings

from attnforge.codegen import AttentionSpec, DType, HeadDimSplit, Pass, TemplateSet, Variant, default_config, render
from attnforge.codegen.render import UnsafeValueError
from tests.codegen.strategies import LIMITS, variants

SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=80, head_dim_v=80, causal=True)
VARIANT = Variant(SPEC, *default_config(SPEC, DType.BF16, LIMITS[0]))
HEAD_DIMS = ((16, 16), (40, 40), (72, 72), (80, 80), (112, 112), (128, 128), (192, 128), (96, 224), (256, 256))


def template_that(text: str, folder: Path) -> TemplateSet:
    """A set whose template for VARIANT is ``text``."""
    (folder / "portable_forward.py.jinja").write_text(text)
    return TemplateSet(folder)


@settings(max_examples=30, deadline=None)
@given(variants())
def test_any_variant_renders_to_a_module_that_stands_alone(variant: Variant) -> None:
    text = render(variant)
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    assert names == {"torch", "triton", "triton.language"}
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {"launch", "plan"} <= functions
    header = ast.get_docstring(tree) or ""
    assert variant.name in header
    assert f"digest {TemplateSet.installed().digest_of(variant.definition)}" in header
    assert f"attnforge generate --head-dim {variant.spec.head_dim}" in header


@settings(max_examples=20, deadline=None)
@given(variants())
def test_rendering_is_deterministic(variant: Variant) -> None:
    assert render(variant) == render(variant, TemplateSet(TemplateSet.installed().folder))


def test_rendering_does_not_depend_on_the_process() -> None:
    program = (
        "from tests.codegen.test_render import VARIANT\n"
        "from attnforge.codegen import render\n"
        "import sys; sys.stdout.write(render(VARIANT))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": zone},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }
    assert texts == {render(VARIANT)}


def test_rendered_modules_are_formatted(tmp_path: Path) -> None:
    """Nothing is formatted after rendering, so that the templates alone decide the bytes."""
    for pass_ in Pass:
        for head_dim, head_dim_v in HEAD_DIMS:
            for causal in (False, True):
                spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim_v, causal=causal)
                for limits in (LIMITS[0], LIMITS[2], LIMITS[5]):
                    variant = Variant(spec, *default_config(spec, DType.BF16, limits))
                    (tmp_path / f"{variant.name.replace('/', '__')}.py").write_text(render(variant))
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--no-cache", "--line-length", "120", str(tmp_path)]
    formatted = subprocess.run([*ruff, "format", "--check", *options], capture_output=True, text=True, check=False)
    assert formatted.returncode == 0, formatted.stdout[-2000:]
    linted = subprocess.run(
        [*ruff, "check", "--select", "E,F,W,I", *options], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout[-2000:]


def test_an_undefined_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsafeValueError, match="Undefined"):
        render(VARIANT, template_that("{{ no_such_value }}", tmp_path))
    with pytest.raises(jinja2.UndefinedError):
        render(VARIANT, template_that("{% if spec.no_such_field %}{% endif %}", tmp_path))


@pytest.mark.parametrize(
    "expression", ["'x; import os'", "'a' ~ '.b'", "'\\n'", "['import os']", "1.5", "spec", "config_fields", "lipsum"]
)
def test_what_is_no_number_or_name_is_never_printed(expression: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeValueError):
        render(VARIANT, template_that(f"{{% set value = {expression} %}}{{{{ value }}}}", tmp_path))


def test_enum_members_print_as_literals_and_numbers_as_they_are(tmp_path: Path) -> None:
    text = "{{ spec.pass_ }} {{ config.head_dim_split }} {{ spec.head_dim }} {{ spec.causal }}"
    assert render(VARIANT, template_that(text, tmp_path)) == "'forward' 'chunks' 80 True"


def test_chunks_and_padding_are_different_text() -> None:
    config = VARIANT.config
    texts = {
        render(Variant(SPEC, VARIANT.schedule, type(config)(**{**_fields(config), "head_dim_split": split})))
        for split in HeadDimSplit
    }
    assert len(texts) == 2


def _fields(config: object) -> dict[str, object]:
    return {name: getattr(config, name) for name in type(config).__dataclass_fields__}  # type: ignore[attr-defined]


def test_codegen_imports_neither_torch_nor_triton_nor_clock_nor_environment() -> None:
    folder = Path(__file__).parents[2] / "codegen"
    allowed = {"__future__", "attnforge", "collections", "dataclasses", "enum", "functools", "hashlib", "importlib",
               "jinja2", "pathlib", "re", "textwrap", "typing"}  # fmt: skip
    for source in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, source
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed, source
                if (node.module or "").startswith("attnforge"):
                    assert (node.module or "").startswith("attnforge.codegen"), source
