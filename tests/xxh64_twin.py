"""The twin of the kernel, from the published description of XXH64."""

from __future__ import annotations

MASK = 2**64 - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def rotate(word: int, count: int) -> int:
    return (word << count | word >> (64 - count)) & MASK


def mixed(state: int, lane: int) -> int:
    return rotate((state + lane * P2) & MASK, 31) * P1 & MASK


def xxh64(text: bytes, seed: int = 0) -> int:
    """XXH64 of a text."""
    lanes = [int.from_bytes(text[i : i + 8], "little") for i in range(0, len(text) // 8 * 8, 8)]
    state, done = (seed + P5) & MASK, 0
    if len(text) >= 32:
        states = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        done = len(text) // 32 * 4
        for i in range(done):
            states[i % 4] = mixed(states[i % 4], lanes[i])
        state = sum(map(rotate, states, (1, 7, 12, 18))) & MASK
        for part in states:
            state = ((state ^ mixed(0, part)) * P1 + P4) & MASK
    state = (state + len(text)) & MASK
    for lane in lanes[done:]:
        state = (rotate(state ^ mixed(0, lane), 27) * P1 + P4) & MASK
    rest = text[len(lanes) * 8 :]
    if len(rest) >= 4:
        word, rest = int.from_bytes(rest[:4], "little"), rest[4:]
        state = (rotate(state ^ word * P1 & MASK, 23) * P2 + P3) & MASK
    for byte in rest:
        state = rotate(state ^ byte * P5 & MASK, 11) * P1 & MASK
    state = (state ^ state >> 33) * P2 & MASK
    state = (state ^ state >> 29) * P3 & MASK
    return state ^ state >> 32
