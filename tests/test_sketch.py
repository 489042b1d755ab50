"""Counting different keys in bounded memory."""

import numpy as np
import pytest

from downpour.sketch import BITS, SIZE, DistinctCount


def random_keys(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, num, np.uint64)


def count(keys: np.ndarray) -> int:
    distinct = DistinctCount()
    distinct.add(keys)
    return distinct.estimate()


@pytest.mark.parametrize("num", [10, 100, 1000, 10**4, 3 * 10**4, 10**5, 10**6])
@pytest.mark.parametrize("kind", ["random", "consecutive", "strided"])
def test_it_is_within_5_percent(num: int, kind: str) -> None:
    consecutive = np.arange(num, dtype=np.uint64)
    keys = {
        "random": random_keys(num, 0),
        "consecutive": consecutive,
        "strided": consecutive << np.uint64(40),
    }[kind]
    assert count(keys) == pytest.approx(num, rel=0.05)


def test_no_key_is_none() -> None:
    assert DistinctCount().estimate() == 0
    assert count(np.zeros(0, np.uint64)) == 0


def test_repeats_and_parts_change_nothing() -> None:
    keys = random_keys(5000, 1)
    whole, parts = DistinctCount(), DistinctCount()
    whole.add(keys)
    for part in np.array_split(np.concatenate([keys[::-1], keys]), 7):
        parts.add(np.ascontiguousarray(part))
    assert whole.estimate() == parts.estimate()


def registers_by_numpy(keys: np.ndarray) -> np.ndarray:
    """The kernel's twin: the rank of the first one bit after the first BITS, the largest stays."""
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    registers = np.zeros(SIZE, np.int8)
    for number in mixed.tolist():
        rest = f"{number:064b}"[BITS:]
        rank = rest.find("1") + 1 or len(rest) + 1
        place = number >> (64 - BITS)
        registers[place] = max(registers[place], rank)
    return registers


def test_the_kernel_does_what_numpy_does() -> None:
    keys = np.concatenate([random_keys(3000, 2), np.arange(3000, dtype=np.uint64)])
    distinct = DistinctCount()
    distinct.add(keys)
    assert np.array_equal(distinct._registers, registers_by_numpy(keys))
