"""Initial rows: a function of seed, table, key and element; the numpy twin of the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from downpour.accessor import EmbeddingAccessor
from downpour.errors import SettingError
from downpour.init import Constant, Normal, Uniform, table_salt
from downpour.rules import SGD
from downpour.tables import SparseTable

KEYS = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64)


def mix(key: np.ndarray) -> Any:
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def uniforms(stream: np.ndarray, dim: int) -> np.ndarray:
    places = np.arange(0, dim, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = mix(stream[:, None] + places)
    halves = np.stack([bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)], axis=-1)
    return (halves.reshape(stream.size, -1)[:, :dim] + 0.5) * 2.0**-32


def rows(init: Any, dim: int = 5, name: str = "t", seed: int = 0, **kwargs: Any) -> np.ndarray:
    accessor = EmbeddingAccessor(dim=dim, rule=SGD(0.1), init=init, dtype="float64")
    return SparseTable(name, accessor, seed=seed).pull(KEYS, **kwargs)


@pytest.mark.parametrize("init", [Uniform(0.3), Uniform(low=-1.0, high=0.5), Normal(0.2, 1.0)])
def test_equals_the_numpy_twin(init: Any) -> None:
    stream = mix(KEYS ^ table_salt(7, "t"))
    u, v = uniforms(stream, 5), uniforms(~stream, 5)
    expected = np.empty_like(u)
    init.fill(expected.reshape(-1), u.reshape(-1), v.reshape(-1), np.array(init.params()))
    np.testing.assert_allclose(rows(init, seed=7), expected, rtol=1e-12)


@pytest.mark.parametrize("init", [Uniform(0.3), Normal(0.2)])
def test_depends_on_seed_table_key_and_element_alone(init: Any) -> None:
    base = rows(init)
    np.testing.assert_array_equal(base, rows(init, create=False))
    np.testing.assert_array_equal(base, rows(init, dim=8)[:, :5])
    assert not np.any(base == rows(init, seed=1))
    assert not np.any(base == rows(init, name="u"))
    assert np.unique(base).size == base.size


def test_moments() -> None:
    uniform, normal = rows(Uniform(low=1.0, high=3.0)), rows(Normal(2.0, -1.0))
    assert uniform.min() >= 1.0
    assert uniform.max() <= 3.0
    assert uniform.mean() == pytest.approx(2.0, abs=0.02)
    assert uniform.std() == pytest.approx(2.0 / np.sqrt(12.0), abs=0.02)
    assert normal.mean() == pytest.approx(-1.0, abs=0.08)
    assert normal.std() == pytest.approx(2.0, abs=0.06)
    assert abs(np.corrcoef(normal[:, 0], normal[:, 1])[0, 1]) < 0.08
    np.testing.assert_array_equal(rows(Constant(0.25)), 0.25)


def test_uniform_has_one_meaning_however_said() -> None:
    assert Uniform(0.5) == Uniform(low=-0.5, high=0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(), "takes a bound, or low and high"),
        (lambda: Uniform(0.1, low=0.0, high=1.0), "got bound=0.1, low=0.0"),
        (lambda: Uniform(low=1.0, high=0.0), "low must be <= high"),
        (lambda: Uniform(-1.0), r"got \[1.0, -1.0\]"),
        (lambda: Normal(-1.0), "std must be finite and >= 0"),
        (lambda: Constant(float("inf")), "value must be finite"),
    ],
)
def test_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
