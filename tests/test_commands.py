"""The door of the `ark` command."""

from __future__ import annotations

from pkgutil import resolve_name

import pytest
from commands import ark

from ark.__main__ import FUNCTIONS, HELP, OF_ARGUMENTS

COMMANDS = FUNCTIONS | OF_ARGUMENTS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_in_the_help(name: str) -> None:
    assert callable(resolve_name(COMMANDS[name]))
    listed = " ".join(line[:17] for line in HELP.splitlines()[2:]).replace(",", "").split()
    assert name in listed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_explains_itself(name: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        ark(name, "--help")
    assert f"usage: ark {name}" in capsys.readouterr().out


def test_an_unknown_command_is_answered_with_those_there_are(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        ark("frobnicate")
    said = capsys.readouterr()
    assert said.out == HELP
    assert said.err == "ark: error: unknown command 'frobnicate'\n"
