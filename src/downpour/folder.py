"""The folder of a run: what is in it, and whose it may be."""

from __future__ import annotations

import shutil
from pathlib import Path

from downpour.errors import SettingError

RUNS = Path("runs")
METRICS, PLAN, REPORT, EVENTS, MODEL = "metrics.json", "plan.txt", "report.html", "events", "model"
LOGS = "logs"  # of servers and workers
CONTENT = (METRICS, PLAN, REPORT, EVENTS, MODEL, LOGS)


def default_folder(target: str) -> Path:
    """`runs/NAME` after the file or module that is trained; NAME-2, NAME-3 where that is taken."""
    where = target.partition(":")[0]
    name = Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]
    folder, number = RUNS / name, 1
    while folder.exists():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return folder


def require_free(folder: Path) -> None:
    """Raise SettingError for a folder that holds anything but an earlier run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SettingError(f"--out {folder} is a file; name a folder")
    content = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if content and PLAN not in content:
        some = ", ".join([*sorted(content)[:3], *["..."][: len(content) - 3 > 0]])
        raise SettingError(
            f"--out {folder} holds other files ({some}) and no run; "
            "name a new folder, or one of an earlier run, which is then replaced"
        )


def start_over(folder: Path) -> None:
    """Make the folder, without what an earlier run left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CONTENT:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
