import subprocess
import sys
import types

import pytest

from attnforge import __version__, cli
from attnforge.cli.app import COMMANDS
from attnforge.codegen import SpecError
from attnforge.errors import UnsupportedInputError


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


@pytest.fixture
def command(monkeypatch):
    """Puts a function in the place of ``attnforge tune``."""

    def install(function):
        module = types.ModuleType("attnforge.cli.tune")
        module.tune = function
        monkeypatch.setitem(sys.modules, "attnforge.cli.tune", module)

    return install


def test_help_lists_every_command_without_importing_one_or_what_they_need():
    script = (
        "import sys, attnforge.cli\n"
        "try: attnforge.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'triton', 'optuna', 'matplotlib', 'attnforge.cli.tune', 'attnforge.cli.cache'}\n"
        "print('imported:', *sorted(heavy & sys.modules.keys()))\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert shown.stdout.splitlines()[-1].strip() == "imported:"
    for name, summary in COMMANDS.items():
        assert f"{name} " in shown.stdout
        assert summary.split(" ")[0] in shown.stdout


def test_a_command_runs_with_its_options(capsys, command):
    def tune(quick: bool = False) -> None:
        """Tune it."""
        print("quick" if quick else "slow")

    command(tune)
    assert run(capsys, "tune", "--quick") == (0, "quick\n", "")
    assert run(capsys, "tune") == (0, "slow\n", "")
    assert "Tune it." in run(capsys, "tune", "--help")[1]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UnsupportedInputError("q", "[bold]int8", "float16"), "error: q: got [bold]int8; supported: float16\n"),
        (SpecError("head_dim", 7, "16"), "error: spec field 'head_dim': got 7; supported: 16\n"),
    ],
)
def test_an_error_of_our_own_is_one_line_and_exits_2(capsys, command, error, line):
    def tune() -> None:
        raise error

    command(tune)
    assert run(capsys, "tune") == (2, "", line)


def test_a_bug_keeps_its_traceback(command):
    def tune() -> None:
        raise ZeroDivisionError

    command(tune)
    with pytest.raises(ZeroDivisionError):
        cli.main(["tune"])


def test_a_long_error_stays_on_one_line(capsys, command):
    def tune() -> None:
        raise UnsupportedInputError("q", "x" * 500, "float16")

    command(tune)
    assert run(capsys, "tune")[2].count("\n") == 1


def test_a_command_that_does_not_exist_is_refused_with_a_hint(capsys):
    status, out, err = run(capsys, "tun")
    assert (status, out) == (2, "")
    assert "tune" in err


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"attnforge {__version__}\n", "")
