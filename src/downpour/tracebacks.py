"""Errors of a user's own code, shown by that code's frames alone."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

OURS = Path(__file__).resolve().parent
LIBRARIES = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})
SETTING = "DOWNPOUR_TRACEBACK"  # of the environment: "full" leaves out nothing
LEFT_OUT = f"(frames of Downpour and of libraries are left out; {SETTING}=full shows them)"


def is_users(error: BaseException) -> bool:
    """Whether an error comes from the user's code, or from what it called."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return _is_users_file(error.filename)
    return any(map(_is_users_file, _files(error.__traceback__)))


def users_text(error: BaseException) -> str:
    """The traceback of an error and of those before it, with the user's frames alone."""
    if os.environ.get(SETTING) == "full":
        return "".join(traceback.format_exception(error)).rstrip()
    told = traceback.TracebackException.from_exception(error)
    _leave_users_frames(told)
    return f"{LEFT_OUT}\n{''.join(told.format()).rstrip()}"


def _leave_users_frames(told: traceback.TracebackException) -> None:
    frames = [frame for frame in told.stack if _is_users_file(frame.filename)]
    told.stack = traceback.StackSummary.from_list(frames)
    before = [it for it in (told.__cause__, told.__context__) if it is not None]
    for other in [*before, *(told.exceptions or ())]:
        _leave_users_frames(other)


def _files(trace: TracebackType | None) -> list[str]:
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]


def _is_users_file(file: str) -> bool:
    return not _is_library(file) and not Path(file).resolve().is_relative_to(OURS)


def _is_library(file: str) -> bool:
    if file.startswith("<"):  # as <frozen importlib._bootstrap>
        return True
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & {*path.parts} and not path.is_relative_to(OURS):
        return True
    return any(path.is_relative_to(folder) for folder in LIBRARIES) and not path.is_relative_to(
        OURS
    )
