"""A table of CTR rows in plain Python and numpy, all in float64: a dictionary and the formulas.

The row's formulas are those of Paddle's ctr_accessor.cc (a883f87f), the rules' those of its
sparse_sgd_rule.cc (0610216b).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from downpour import rules
from downpour.accessor import CtrAccessor, EmbeddingAccessor
from downpour.tables import SparseTable


@dataclass
class TwinRow:
    w: np.ndarray
    w_state: np.ndarray
    embedx: np.ndarray | None = None
    embedx_state: np.ndarray | None = None
    show: float = 0.0
    click: float = 0.0
    delta_score: float = 0.0  # rounded to float32
    slot: int = -1


def g2sum(rule: Any, lr: float, w: np.ndarray, s: np.ndarray, h: np.ndarray) -> None:
    """State: g2sum, one number or one an element."""
    w -= lr * h * np.sqrt(rule.initial_g2sum / (rule.initial_g2sum + s))
    s += h**2 if rule.per_element else np.mean(h**2)


def adagrad(rule: Any, lr: float, w: np.ndarray, s: np.ndarray, h: np.ndarray) -> None:
    """State: the sum of squares, one an element or one a row."""
    s += h**2 if isinstance(rule, rules.Adagrad) else np.mean(h**2)
    w -= lr * h / (np.sqrt(s) + rule.eps)


def adam(rule: Any, lr: float, w: np.ndarray, s: np.ndarray, g: np.ndarray) -> None:
    """State: m, v (of each element, or one of each that all share), then the powers of b1, b2."""
    b1, b2 = rule.betas
    m, v = np.split(s[:-2], 2)
    new_m, new_v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    w -= lr * math.sqrt(1 - s[-1]) / (1 - s[-2]) * new_m / (np.sqrt(new_v) + rule.eps)
    shared = isinstance(rule, rules.SharedAdam)
    m[:], v[:] = (new_m.mean(), new_v.mean()) if shared else (new_m, new_v)
    s[-2:] *= rule.betas


def move(rule: Any, lr: float, w: np.ndarray, s: np.ndarray, g: np.ndarray, places: float) -> None:
    """`places` is the scale, 0 where there is none."""
    if isinstance(rule, rules.G2SumAdagrad):
        g2sum(rule, lr, w, s, g / places if places > 0 else g)
    elif isinstance(rule, rules.Adagrad | rules.RowwiseAdagrad):
        adagrad(rule, lr, w, s, g / places if places > 0 else g)
    elif isinstance(rule, rules.SGD):
        w -= lr * g
    else:
        adam(rule, lr, w, s, g)


def initial_rows(name: str, dim: int, accessor: CtrAccessor, init: Any, seed: int) -> SparseTable:
    """What a table of plain rows has for a key when new."""
    plain = EmbeddingAccessor(dim=dim, rule=rules.SGD(0.1), init=init, dtype=accessor.dtype)
    return SparseTable(name, plain, seed=seed)


class CtrTwin:
    def __init__(self, name: str, accessor: CtrAccessor, seed: int = 0) -> None:
        self.accessor = accessor
        self.rows = dict[int, TwinRow]()
        self.first_w = initial_rows(name, 1, accessor, accessor.init, seed)
        dim, init = accessor.dim - 1, accessor.embedx_init
        self.first_embedx = initial_rows(f"{name}/embedx", dim, accessor, init, seed)

    def push(self, keys: np.ndarray, pushes: np.ndarray, *, lr: tuple[float, float]) -> None:
        merged = dict[int, np.ndarray]()
        for key, push in zip(keys.tolist(), pushes, strict=True):
            total = merged.get(key, np.zeros(push.size))
            merged[key] = np.concatenate([push[:1], total[1:] + push[1:]])
        for key, push in merged.items():
            self.apply(key, push, lr)

    def apply(self, key: int, push: np.ndarray, lr: tuple[float, float]) -> None:
        accessor, row = self.accessor, self.rows.get(key)
        if row is None:
            row = self.rows[key] = self.new_row(key)
        slot, show, click, places = push[:4].tolist()
        row.show += show
        row.click += click
        row.delta_score = float(np.float32(row.delta_score + self.score(show, click)))
        if accessor.slots and slot >= 0:
            row.slot = int(slot)
        scale = places if accessor.show_scale else 0.0
        rule, embedx_rule = accessor.rules
        move(rule, lr[0], row.w, row.w_state, push[4:5], scale)
        self.bound(row.w, accessor.bounds)
        if row.embedx is not None:
            move(embedx_rule, lr[1], row.embedx, row.embedx_state, push[5:], scale)
            self.bound(row.embedx, accessor.embedx_bounds)
        elif self.score(row.show, row.click) >= accessor.embedx_threshold:
            row.embedx = self.first_embedx.pull(np.array([key], np.uint64))[0]
            self.bound(row.embedx, accessor.embedx_bounds)
            row.embedx_state = embedx_rule.initial_state(accessor.dim - 1)

    def new_row(self, key: int) -> TwinRow:
        w = self.first_w.pull(np.array([key], np.uint64))[0]
        self.bound(w, self.accessor.bounds)
        return TwinRow(w, self.accessor.rules[0].initial_state(1))

    def score(self, show: float, click: float) -> float:
        return (show - click) * self.accessor.nonclk_coeff + click * self.accessor.click_coeff

    def bound(self, weight: np.ndarray, bounds: Any) -> None:
        if bounds is not None:
            np.clip(weight, *bounds, out=weight)

    def export(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[Any, ...]]]:
        """As `CtrTable.export`, with zeros where there is no embedx."""
        keys = sorted(self.rows)
        split = self.accessor.rules[0].state_dim(1)
        weights = np.zeros((len(keys), self.accessor.dim))
        state = np.zeros((len(keys), self.accessor.state_dim))
        statistics = []
        for i, row in enumerate(self.rows[key] for key in keys):
            weights[i, :1], state[i, :split] = row.w, row.w_state
            if row.embedx is not None:
                weights[i, 1:], state[i, split:] = row.embedx, row.embedx_state
            has_embedx = row.embedx is not None
            statistics.append((row.show, row.click, row.delta_score, 0, row.slot, has_embedx))
        return np.array(keys, np.uint64), weights, state, statistics
