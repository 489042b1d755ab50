"""The pages and the program cannot disagree."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

import downpour as dp
from downpour.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and text of each fenced block of a page."""
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.S | re.M):
        yield match[1], match[2]


def write_clicks(path: Path, seed: int, rows: int) -> None:
    """A log as the pages tell of it."""
    random = np.random.default_rng(seed)
    lines = ["user,item,tags,price,click"]
    for _ in range(rows):
        user, item = random.integers(0, 50), random.integers(0, 30)
        tags = "|".join(f"tag{number}" for number in range(item % 4))
        click = int(random.random() < 0.2 + 0.6 * ((user + item) % 2))
        lines.append(f"{user},{item},{tags},{item / 30:.2f},{click}")
    path.write_text("\n".join(lines) + "\n")


def run_command(line: str) -> None:
    """Run `downpour ...  # comment` in this process."""
    done = CliRunner().invoke(main, line.partition("#")[0].split()[1:])
    assert done.exit_code == 0, f"{line}: {done.output}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with the two logs; modules imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_clicks(tmp_path / "clicks.csv", 0, rows=2000)
    write_clicks(tmp_path / "later.csv", 1, rows=500)
    yield tmp_path
    sys.modules.pop("clicks", None)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_code_of_a_page_runs(page: str, folder: Path) -> None:
    """Python up to the first `downpour` command is clicks.py; the rest goes on in its names."""
    module: ModuleType | None = None
    source = ""
    for language, text in blocks(ROOT / page):
        if language == "python" and module is None:
            source += text
        elif language == "python" and module is not None:
            exec(compile(text, page, "exec"), vars(module))
        elif language == "sh" and text.startswith("downpour"):
            if module is None:
                (folder / "clicks.py").write_text(source)
                module = importlib.import_module("clicks")
            for line in text.splitlines():
                run_command(line)
    assert (folder / "scores.parquet").is_file()


def cli_help() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_help", ROOT / "docs" / "cli_help.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_commands_page_has_the_help_of_every_command() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert cli_help().renewed(page) == page, "run: python docs/cli_help.py"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_of_a_command_has_an_example(name: str) -> None:
    assert f"Example: downpour {name} " in cli_help().help_of(f"downpour {name}")


def test_public_names_are_sorted_and_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: downpour\.(\w+)$", page, re.M))
    assert documented == set(dp.__all__)
    assert dp.__all__ == sorted(dp.__all__, key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        name, _, anchor = target.partition("#")
        if name.startswith("https:"):
            continue
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
