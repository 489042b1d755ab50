"""MovieLens-100K as one Arrow table, sorted by time: what examples/movielens.py trains on.

The data is F. Maxwell Harper and Joseph A. Konstan, "The MovieLens Datasets: History and
Context", ACM TiiS 5(4), 2015: cite it where you use it. Its terms forbid redistribution, so it is
no part of this repository: the first `load()` fetches the RecBole wheel, which carries a copy,
and unpacks three files into the cache folder. Importing this module fetches nothing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import csv

from downpour.errors import DataError, SettingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
FILES = ("ml-100k.inter", "ml-100k.user", "ml-100k.item")


def load() -> pa.Table:
    """Every rating in order of time, with what was known of it then; downloads the data once.

    Columns: user, item, age (of the user, in steps of 5 years), gender, occupation, genres (a
    list), year (of the film), likes and dislikes (how much of what the user had rated before),
    taste (their log-odds) and rated (log of 1 + their sum), timestamp (s), stars (1 to 5), liked
    (1.0 from 4 stars on).
    """
    return join(fetch())


def split(table: pa.Table, *shares: float) -> list[pa.Table]:
    """Cut a table that is sorted by time in consecutive slices of these shares of its rows."""
    ends = (np.cumsum([0.0, *shares]) * len(table)).round().astype(int)
    return [table.slice(start, stop - start) for start, stop in pairwise(ends)]


def fetch() -> Path:
    """Return the folder with the three data files; download and unpack them if it lacks any."""
    cache = cache_folder()
    folder = cache / "ml-100k"
    if not all((folder / name).is_file() for name in FILES):
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"cannot make the cache folder {cache} ({error}); set DOWNPOUR_CACHE to another"
            ) from error
        wheel = cache / WHEEL
        unpack(wheel if wheel.is_file() else download(cache), folder)
    return folder


def cache_folder() -> Path:
    """`DOWNPOUR_CACHE` if set, else `downpour` in the user's cache folder on this platform."""
    if chosen := os.environ.get("DOWNPOUR_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "downpour"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "downpour"


def download(folder: Path) -> Path:
    """Have pip put the wheel into `folder` and return its path."""
    print(f"MovieLens-100K: downloading {WHEEL} (2 MB) to {folder}")
    print("MovieLens-100K: not to be redistributed; cite Harper and Konstan 2015", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "recbole==1.2.1", "--dest"]
    with tempfile.TemporaryDirectory(dir=folder) as half:
        done = subprocess.run([*command, half], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise DataError(
                f"MovieLens-100K is not in {folder}, and pip could not download {WHEEL}: {reason}. "
                f"Without a network or pip, put that file from PyPI there by hand, or let "
                f"DOWNPOUR_CACHE name a folder that has it"
            )
        return (Path(half) / WHEEL).replace(folder / WHEEL)  # a wheel that is there is whole


def unpack(wheel: Path, folder: Path) -> None:
    """Check the wheel's SHA-256, then put its data files into `folder`."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise DataError(
            f"{wheel} must have the SHA-256 {WHEEL_SHA256}, got {digest}; delete it and run again"
        )
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder) as half:
        for name in FILES:
            (Path(half) / name).write_bytes(archive.read(f"{WHEEL_FOLDER}/{name}"))
        for name in FILES:
            (Path(half) / name).replace(folder / name)  # a file that is there is whole


def join(folder: Path) -> pa.Table:
    """Join the ratings with users and films, sort them by time and add each user's past."""
    users, films = read(folder / "ml-100k.user"), read(folder / "ml-100k.item")
    table = read(folder / "ml-100k.inter").join(users, "user_id").join(films, "item_id")
    by_time = [("timestamp", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")]
    table = table.sort_by(by_time)
    user, second = (table[name].to_numpy().astype(np.int64) for name in ("user_id", "timestamp"))
    liked = table["rating"].to_numpy() >= 4
    likes, dislikes = past(user, second, liked), past(user, second, ~liked)
    return pa.table(
        {
            "user": user,
            "item": table["item_id"],
            "age": table["age"].to_numpy() // 5,
            "gender": table["gender"],
            "occupation": table["occupation"],
            "genres": [genres.split() for genres in table["class"].to_pylist()],
            "year": table["release_year"],
            "likes": likes.astype(np.float32),
            "dislikes": dislikes.astype(np.float32),
            "taste": np.log((likes + 2) / (dislikes + 2)).astype(np.float32),
            "rated": np.log1p(likes + dislikes).astype(np.float32),
            "timestamp": second,
            "stars": table["rating"].to_numpy().astype(np.float32),
            "liked": liked.astype(np.float32),
        }
    )


def read(path: Path) -> pa.Table:
    """Read one of the tab-separated files; the header's `user_id:token` becomes `user_id`."""
    table = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t", quote_char=False))
    return table.rename_columns([name.partition(":")[0] for name in table.column_names])


def past(
    user: NDArray[np.int64], second: NDArray[np.int64], flag: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Count, for each row, the flagged rows of the same user in strictly earlier seconds.

    A service knows that much at that moment; a rating never counts itself or one sent with it.
    """
    order = np.lexsort((second, user))
    user, second, flag = user[order], second[order], flag[order]
    before: NDArray[np.int64] = np.cumsum(flag) - flag  # flagged rows above this one, of any user
    new_user = np.diff(user, prepend=-1) != 0
    new_second = new_user | (np.diff(second, prepend=-1) != 0)
    row = np.arange(len(user))
    first_of_user, first_of_second = (
        np.maximum.accumulate(np.where(new, row, 0)) for new in (new_user, new_second)
    )
    counts = np.empty(len(user), np.int64)
    counts[order] = before[first_of_second] - before[first_of_user]
    return counts
