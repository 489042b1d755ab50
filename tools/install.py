"""Install Downpour into the virtual environment whose Python runs this file; the Makefile calls it.

torch decides how much is downloaded, so it comes first. A torch that fits and is installed already,
in the environment or in the Python that the environment was made from, is used and nothing is
fetched. Otherwise this says which torch is about to come and about how large it is.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"

# Measured with torch 2.13.0 on x86-64 Linux: wheels of 0.19 GB that take 0.77 GB, and with the GPU
# libraries that torch requires 2.7 GB that take 4.7 GB.
CPU_SIZE = "about 200 MB to download, 0.8 GB on disk"
GPU_SIZE = "about 3 GB to download, 5 GB on disk"

SMALLER = f"""\
  Without a GPU PyTorch's CPU build is enough: {CPU_SIZE}.
  To get it, press Ctrl-C and run the same make command with TORCH_INDEX=URL. The URL is that of
  PyTorch's CPU wheel index: PyTorch's installation page shows it, after --index-url, in the command
  for pip and CPU."""

# It imports torch, as a broken one may be installed.
ASK_FOR_TORCH = """
import importlib.metadata, json, pathlib, sysconfig, torch
found = importlib.metadata.distribution("torch")
print(json.dumps({
    "version": found.version,
    "requires": found.requires or [],
    "folder": str(pathlib.Path(torch.__file__).parents[1]),
    "abi": sysconfig.get_config_var("SOABI"),
}))
"""


@dataclass(frozen=True)
class Torch:
    """A torch, installed or to be installed."""

    version: str
    requires: list[str]

    @staticmethod
    def installed() -> Torch | None:
        """The one that this environment has."""
        try:
            found = metadata.distribution("torch")
        except metadata.PackageNotFoundError:
            return None
        return Torch(found.version, found.requires or [])

    @property
    def needs(self) -> set[str]:
        """The packages that it asks for on this machine, without extras."""
        needs = [Requirement(line) for line in self.requires]
        return {
            canonicalize_name(need.name)
            for need in needs
            if need.marker is None or need.marker.evaluate({"extra": ""})
        }

    @property
    def is_for_gpus(self) -> bool:
        """Whether gigabytes of libraries for GPUs come with it."""
        build = Version(self.version).local or "cpu"
        libraries = [name for name in self.needs if name.startswith(("nvidia-", "cuda-"))]
        return bool(libraries) or not build.startswith("cpu")


def torch_range(pyproject: Path = ROOT / "pyproject.toml") -> Requirement:
    """The torch that Downpour needs."""
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    [needed] = (
        need for line in project["dependencies"] if (need := Requirement(line)).name == "torch"
    )
    return needed


def fits(torch: Torch | None) -> bool:
    """Whether Downpour runs with it."""
    return torch is not None and torch_range().specifier.contains(torch.version, prereleases=True)


def torch_of(python: str) -> tuple[Torch, Path] | None:
    """The torch of another Python of the same version, and the folder that has it."""
    command = [*shlex.split(python), "-E", "-P", "-c", ASK_FOR_TORCH]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    said = json.loads(done.stdout.splitlines()[-1])
    if said["abi"] != sysconfig.get_config_var("SOABI"):
        return None
    return Torch(said["version"], said["requires"]), Path(said["folder"])


def constraints_without(torch: Torch, constraints: Path = CONSTRAINTS) -> str:
    """The constraints that let `torch` stay: without its own line, and without what it needs.

    A torch of another version may need another sympy, say, than the one in the constraints.
    """
    free = {"torch", *torch.needs}
    lines = constraints.read_text("utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if name_of(line) not in free)


def name_of(constraint: str) -> str:
    """The package of a line, "" of a comment."""
    return canonicalize_name(re.split("[=<>!~; #]", constraint, maxsplit=1)[0])


def is_pinned(torch: Torch, constraints: Path = CONSTRAINTS) -> bool:
    """Whether the constraints allow this very torch."""
    lines = constraints.read_text("utf-8").splitlines()
    return all(
        Requirement(line).specifier.contains(torch.version, prereleases=True)
        for line in lines
        if name_of(line) == "torch"
    )


def pip(*arguments: str | Path) -> None:
    """Run pip, its progress in view; what it refuses ends this program."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    sys.stdout.flush()
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def torch_to_come(source: list[str]) -> Torch:
    """The torch that pip would install, by its own word; the wheel itself is not downloaded."""
    report = Path(sys.prefix) / "torch.json"
    dry = ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", str(report)]
    pip("install", *dry, *source, "-c", CONSTRAINTS, str(torch_range()))
    [item] = json.loads(report.read_text("utf-8"))["install"]
    found: dict[str, Any] = item["metadata"]
    return Torch(found["version"], found.get("requires_dist", []))


def sizes_of(torch: Torch, *, index_is_named: bool) -> str:
    """What is about to be downloaded, and how to download less."""
    if not torch.is_for_gpus:
        return f"torch {torch.version}, built for the CPU, will be installed: {CPU_SIZE}."
    text = f"torch {torch.version}, with libraries for GPUs, will be installed: {GPU_SIZE}."
    return text if index_is_named else f"{text}\n{SMALLER}"


def use(folder: Path) -> None:
    """Let this environment see the packages of a folder, after its own."""
    site = Path(sysconfig.get_path("purelib"))
    (site / "torch_installed_already.pth").write_text(f"{folder}\n", "utf-8")


def shared_text(torch: Torch, python: str, folder: Path) -> str:
    """What it means that the torch of another Python is used."""
    return (
        f"torch {torch.version} of {python} fits and is used; no torch is downloaded.\n"
        f"  {sys.prefix} now sees all packages in {folder}, behind its own.\n"
        "  To keep them apart, remove it and run the same make command with SHARE_TORCH=no."
    )


def prepare_torch(python: str | None, index: str) -> Path:
    """See to it that there will be a torch that fits; return the constraints to install with."""
    torch = Torch.installed()
    if torch is not None and fits(torch):
        print(f"torch {torch.version} is installed already and stays.")
    elif python and (found := torch_of(python)) and fits(found[0]):
        torch, folder = found
        use(folder)
        print(shared_text(torch, python, folder))
    else:
        print("Asking pip which torch it would install.", flush=True)
        source = ["--index-url", index] if index else []
        print(sizes_of(torch_to_come(source), index_is_named=bool(index)), flush=True)
        if index:  # torch alone: what it needs may not be there, or in other versions
            pip("install", "--no-deps", *source, "-c", CONSTRAINTS, str(torch_range()))
        return CONSTRAINTS
    if is_pinned(torch):
        return CONSTRAINTS
    own = Path(sys.prefix) / "constraints.txt"
    own.write_text(constraints_without(torch), "utf-8")
    return own


def main() -> None:
    """Install as the arguments say."""
    parser = argparse.ArgumentParser(description="Install Downpour into this environment.")
    parser.add_argument("--python", help="A Python whose torch may be used.")
    parser.add_argument("--torch-index", default="", help="The URL of an index that has torch.")
    parser.add_argument("--group", action="append", default=[], help="Of dependencies, too.")
    given = parser.parse_args()
    if given.torch_index and not re.match(r"\w+://", given.torch_index):
        sys.exit(
            "TORCH_INDEX must be the URL of an index of wheels, as https://..., "
            f"got {given.torch_index!r}"
        )
    constraints = prepare_torch(given.python, given.torch_index)
    groups = [word for name in given.group for word in ("--group", name)]
    pip("install", "-c", constraints, "-e", ".", *groups)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
