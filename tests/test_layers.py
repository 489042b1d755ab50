"""The list of layers in pyproject.toml, which `make layers` holds, leaves no module out."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def layers() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return {name.strip() for layer in contract["layers"] for name in layer.split("|")}


def modules() -> list[str]:
    source = ROOT / "src"
    return [
        ".".join(path.relative_to(source).with_suffix("").parts)
        for path in source.rglob("*.py")
        if path.name != "__init__.py"
    ]


def test_every_module_stands_in_a_layer() -> None:
    listed = layers()
    left_out = [
        name for name in modules() if not any(f"{name}.".startswith(f"{it}.") for it in listed)
    ]
    assert not left_out


def test_every_layer_is_a_module() -> None:
    source = ROOT / "src"
    paths = [source.joinpath(*name.split(".")) for name in layers()]
    assert not [path for path in paths if not (path.is_dir() or path.with_suffix(".py").is_file())]
