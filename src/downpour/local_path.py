"""Paths of this machine: what users may write for one, and what is refused by name."""

from __future__ import annotations

import re
from os import fspath
from pathlib import Path
from urllib.parse import unquote

from downpour.errors import SettingError

READ_ELSEWHERE = (
    "copy or mount it first (aws s3 sync, gcsfuse, rclone mount ...), or read it with pyarrow or "
    "polars and give what they read to a Frame or a Source of your own"
)
WRITE_ELSEWHERE = "name a folder of this machine, and copy it there afterwards"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # two letters: C:/ is a drive


def local_path(path: str | Path, who: str, way_out: str = READ_ELSEWHERE) -> Path:
    """A path of this machine: `~` is the user's home, `file:///a/b` is /a/b.

    Raises SettingError, naming `who`, for any other scheme (s3://, hdfs://, https://) and for the
    home of a user that there is not.
    """
    text = fspath(path)
    scheme = _SCHEME.match(text)
    if scheme is not None and not Path(text).exists():
        if scheme[1].lower() != "file":
            raise SettingError(
                f"{who}: {text!r}: {scheme[1]}:// is not supported, only paths of this machine "
                f"are; {way_out}"
            )
        text = "/" + unquote(text[scheme.end() :])
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SettingError(
            f"{who}: {text!r} names a user whose home is not known; for a file of that name write "
            f"./{text}"
        ) from error
