"""The folder of a run: what is in it, whose it may be, and who writes there now."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Self

from downpour.errors import SettingError

if TYPE_CHECKING:
    from typing import IO

RUNS = Path("runs")
METRICS, PLAN, REPORT, EVENTS, MODEL = "metrics.json", "plan.txt", "report.html", "events", "model"
LOGS = "logs"  # of servers and workers
CONTENT = (METRICS, PLAN, REPORT, EVENTS, MODEL, LOGS)
TELLING = (METRICS, PLAN, REPORT)  # what tells of a model
EARLIER = "earlier"  # where they are while `model` is that of an earlier run
LOCK = ".lock"
NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)


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
    """Raise SettingError for a folder that a run cannot have: the folder stays as it was.

    It may hold an earlier run and nothing else, must be writable, and no run may write there now.
    """
    try:
        if folder.is_dir():
            _require_run(folder)
        elif folder.exists():
            raise SettingError(f"--out {folder} is a file; name a folder")
        _require_writable(folder)
    except OSError as error:
        raise SettingError(
            f"--out {folder} cannot be written: {error.strerror or error}; name another folder"
        ) from error
    if (folder / LOCK).is_file():
        Lock(folder).close()


def start_over(folder: Path) -> None:
    """Make the folder, without what an earlier run left in it but for its model.

    That stays until this run has one of its own (`forget_earlier`), and what tells of it is in
    `earlier/` until then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MODEL / "manifest.json").is_file():
        _remove(folder, *CONTENT, EARLIER)
        return
    if _run_of(folder / MODEL / "manifest.json") == _run_of(folder / METRICS):
        _remove(folder, EARLIER)
        (folder / EARLIER).mkdir()
        for name in TELLING:
            with contextlib.suppress(FileNotFoundError):
                (folder / name).rename(folder / EARLIER / name)
    _remove(folder, *TELLING, EVENTS, LOGS)  # else of a run that has left no model


def forget_earlier(folder: Path) -> None:
    """Remove what told of an earlier run's model, which another one has replaced."""
    _remove(folder, EARLIER)


class Lock:
    """Held by the one run that writes into a folder; the system ends it with the process.

    Raises SettingError, which names the process, where another one holds it. A file system that has
    no locks has none here either.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: IO[str] | None = None
        while self._file is None:
            file = self._path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                with file:
                    if error.errno not in NO_LOCKS:
                        raise self._refusal(file) from None
                return
            if self._is_of(file):
                self._file = file
            else:  # it was removed meanwhile, by a run that has ended
                file.close()
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            with self._file, contextlib.suppress(OSError):  # the folder may be gone by now
                self._path.unlink()
            self._file = None

    def _is_of(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _refusal(self, file: IO[str]) -> SettingError:
        file.seek(0)
        pid = file.read().strip()
        return SettingError(
            f"--out {self._path.parent}: another run writes there now"
            f"{f', process {pid}' if pid else ''}; wait until it has ended, or name another folder"
        )


def _require_run(folder: Path) -> None:
    content = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if content and not any((folder / name / PLAN).is_file() for name in ("", EARLIER)):
        some = ", ".join([*sorted(content)[:3], *["..."][: len(content) - 3 > 0]])
        raise SettingError(
            f"--out {folder} holds other files ({some}) and no run; "
            "name a new folder, or one of an earlier run, which is then replaced"
        )


def _require_writable(folder: Path) -> None:
    """Raise OSError where no file can be made in a folder, which is left as it was."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / f".probe-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _run_of(path: Path) -> object:
    """Which run a JSON file is of; None where that is not known."""
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("run") if isinstance(content, dict) else None
