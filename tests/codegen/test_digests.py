import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import jinja2
import jinja2.meta
import pytest

import attnforge.codegen
from attnforge.codegen import AttentionSpec, DType, Limits, Schedule, ScheduleDefinition, TemplateSet, Variant, render
from attnforge.codegen import digests as digests_module
from attnforge.codegen.digests import rendering_digest, templates_of
from attnforge.codegen.schedules import DEFINITIONS

SM_90 = Limits("sm_90", 232448)
CODEGEN = Path(attnforge.codegen.__file__).parent
ALL = [pytest.param(definition, id=" ".join(key)) for key, definition in DEFINITIONS.items()]


class Installation:
    """A copy of the templates and of codegen, which the digests are then made of."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.templates = shutil.copytree(TemplateSet.installed().folder, folder / "templates")
        self.codegen = shutil.copytree(CODEGEN, folder / "codegen")
        monkeypatch.setattr(digests_module, "files", lambda package: self.codegen)

    def digests(self) -> dict[tuple[str, str], str]:
        return {key: rendering_digest(definition, self.templates) for key, definition in DEFINITIONS.items()}

    def changed_by(self, path: Path) -> set[tuple[str, str]]:
        """The schedules and passes whose digest another byte in a file changes."""
        before, content = self.digests(), path.read_bytes()
        path.write_bytes(content + b"\n")
        after = self.digests()
        path.write_bytes(content)
        return {key for key in before if before[key] != after[key]}


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    return Installation(tmp_path, monkeypatch)


def test_a_copy_of_everything_has_the_same_digests(installation: Installation) -> None:
    installed = {key: TemplateSet.installed().digest_of(definition) for key, definition in DEFINITIONS.items()}
    assert installation.digests() == installed
    assert len(set(installed.values())) == len(installed)


@pytest.mark.parametrize("definition", ALL)
def test_an_edit_of_a_template_changes_its_own_schedule_and_pass_alone(
    definition: ScheduleDefinition, installation: Installation
) -> None:
    own = {(definition.schedule, definition.pass_)}
    assert installation.changed_by(installation.templates / definition.template) == own


def test_an_edit_of_a_shared_part_changes_those_that_include_it(installation: Installation) -> None:
    for part in (installation.templates / "parts").iterdir():
        name = part.relative_to(installation.templates).as_posix()
        including = {key for key, each in DEFINITIONS.items() if name in templates_of(each, installation.templates)}
        assert installation.changed_by(part) == including, name
        assert including, f"{name} is of no use"


def test_an_edit_of_codegen_changes_what_it_renders(installation: Installation) -> None:
    schedules = installation.codegen / "schedules"
    of_hopper = {key for key in DEFINITIONS if key[0] is Schedule.HOPPER}
    assert installation.changed_by(schedules / "hopper" / "config.py") == of_hopper
    assert installation.changed_by(schedules / "hopper" / "constraints.py") == of_hopper
    assert installation.changed_by(installation.codegen / "render.py") == set(DEFINITIONS)
    for name in ("hopper/space.py", "portable/space.py", "__init__.py"):
        assert installation.changed_by(schedules / name) == set(), "where to look is not what is rendered"


def test_a_new_file_of_a_schedule_counts(installation: Installation) -> None:
    before = installation.digests()
    (installation.codegen / "schedules" / "hopper" / "more.py").write_text("")
    after = installation.digests()
    assert {key[0] for key in before if before[key] != after[key]} == {Schedule.HOPPER}


@pytest.mark.parametrize("definition", ALL)
def test_every_template_that_jinja_loads_is_found(definition: ScheduleDefinition) -> None:
    folder = TemplateSet.installed().folder
    for name in templates_of(definition, folder):
        tree = jinja2.Environment(autoescape=False).parse((folder / name).read_text())
        referenced = set(jinja2.meta.find_referenced_templates(tree))
        assert None not in referenced, "a name that is computed cannot be followed"
        assert referenced <= set(templates_of(definition, folder))


def run_files(variant: Variant) -> set[str]:
    """The files of codegen of which some code runs while a variant is rendered."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(CODEGEN):
            seen.add(path.relative_to(CODEGEN).as_posix())

    render(variant)  # what is imported at the first rendering is no part of it
    sys.setprofile(note)
    try:
        render(variant)
    finally:
        sys.setprofile(None)
    return seen


def specs_of(definition: ScheduleDefinition) -> Iterator[AttentionSpec]:
    for head_dim in (72, 128):
        for causal in (False, True):
            yield AttentionSpec(pass_=definition.pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)


def missed(definition: ScheduleDefinition, installation: Installation) -> set[str]:
    """Files whose code runs in a rendering, and which the digest does not follow.

    But for the table that finds the definition, and the digest itself.
    """
    key = (definition.schedule, definition.pass_)
    files = set[str]()
    for spec in specs_of(definition):
        files |= run_files(Variant(spec, definition.schedule, definition.default(spec, DType.BF16, SM_90)))
    assert "render.py" in files
    assert any(file.startswith(f"schedules/{definition.schedule}/") for file in files)
    files -= {"schedules/__init__.py", "digests.py"}
    return {file for file in files if key not in installation.changed_by(installation.codegen / file)}


@pytest.mark.parametrize("definition", ALL)
def test_all_code_that_runs_in_a_rendering_is_in_the_digest(
    definition: ScheduleDefinition, installation: Installation
) -> None:
    assert missed(definition, installation) == set()


def test_code_that_the_digest_does_not_follow_is_noticed(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = tuple(name for name in digests_module.SHARED_SOURCES if name != "head_dims.py")
    monkeypatch.setattr(digests_module, "SHARED_SOURCES", followed)
    for definition in DEFINITIONS.values():
        assert missed(definition, installation) == {"head_dims.py"}
