"""The generated part of cli.md: `python docs/cli_help.py` puts each command's help into it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from downpour.cli import main

PAGE = Path(__file__).with_name("cli.md")
COMMANDS = ["downpour", *(f"downpour {name}" for name in main.commands)]


def help_of(command: str) -> str:
    """What `COMMAND --help` prints on a terminal of 80 columns."""
    program, *words = command.split()
    asked = [*words, "--help"]
    return CliRunner().invoke(main, asked, prog_name=program, terminal_width=80).output.rstrip()


def renewed(page: str) -> str:
    """The page with every command's help between its markers, and a section for a new one."""
    for command in COMMANDS:
        begin, end = f"<!-- help: {command} -->", "<!-- end -->"
        block = f"{begin}\n```text\n$ {command} --help\n{help_of(command)}\n```\n{end}"
        before, there, after = page.partition(begin)
        if there:
            page = before + block + after.partition(end)[2]
        else:
            page = f"{page.rstrip()}\n\n## {command}\n\n{block}\n"
    return page


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
