"""Transpiled programs and splits as text that people read: a line an op or a section, aligned."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING

from downpour.plan.program import Compute, PullSparse, PushSparse, WeighSamples
from downpour.plan.text import listed
from downpour.settings import short
from downpour.transpile.ops import (
    Apply,
    ApplyRows,
    Average,
    AverageRows,
    FetchBarrier,
    Initialize,
    Listen,
    LocalStep,
    Recv,
    Send,
    SendBarrier,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from downpour.federated.methods import Weighting
    from downpour.transpile.ops import Op, VariableSection

    Cells: TypeAlias = tuple[str, ...]

MEANS = {"samples": "by samples", "equal": "each alike"}


def op_lines(ops: Sequence[Op]) -> Iterator[str]:
    """A line an op: its kind, then what it names; sections stand below each other."""
    wide = max((len(kind_name(op)) for op in ops), default=0)
    said = [_said(op) for op in ops]
    for op, text in zip(ops, aligned(said), strict=True):
        yield f"{kind_name(op):<{wide}}  {text}"


def aligned(rows: Sequence[Cells]) -> Iterator[str]:
    """Rows of cells with their columns below each other; one cell alone stands over all of them."""
    columns = zip_longest(*(row for row in rows if len(row) > 1), fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield ("  ".join(padded) if len(row) > 1 else row[0]).rstrip()


def kind_name(op: Op) -> str:
    """What Paddle's programs call an op of this kind: "send_barrier"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(op).__name__).lower()


def shape_text(shape: Sequence[object]) -> str:
    """[128, 64]; nothing between brackets for a scalar."""
    return f"[{', '.join(map(str, shape))}]"


def _said(op: Op) -> Cells:
    match op:
        case Initialize(section):
            return (*_place(section), f"on {section.endpoint}")
        case Recv(section):
            return (*_place(section), f"from {section.endpoint}")
        case Send(section):
            return (*_place(section), f"to {section.endpoint}")
        case Average(section, trainers, weighting):
            return (*_place(section), _mean(trainers, weighting))
        case Apply(section, rule):
            return (*_place(section), short(rule))
        case FetchBarrier(endpoints) | SendBarrier(endpoints):
            return (", ".join(endpoints),)
        case Listen(endpoint, trainers, sync_mode):
            when = "in rounds" if sync_mode else "each push as it comes"
            return (f"{endpoint}: {_trainers(trainers)}, {when}",)
        case AverageRows(table, trainers, weighting, over):
            touched = " that touched a row" * (over == "touched")
            return (f"{table}: {_mean(trainers, weighting, touched)}",)
        case ApplyRows(table, accessor):
            return (f"{table}: {', '.join(map(short, dict.fromkeys(accessor.rules)))}",)
        case _:
            return (_trained(op),)


def _trained(op: PullSparse | WeighSamples | Compute | LocalStep | PushSparse) -> str:
    """What an op of the local program says, or of rows."""
    match op:
        case PullSparse(table, features):
            return f"{table}: {listed(features)}"
        case WeighSamples(table, feature, threshold, ratio):
            return f"{table}: {feature}, shown less than {threshold:g} times, ratio {ratio:g}"
        case Compute(loss, no_grad, detached):
            said = [loss, *([f"no gradient for {listed(no_grad)}"] * bool(no_grad))]
            said += [f"output detached of {listed(detached)}"] * bool(detached)
            return ", ".join(said)
        case LocalStep(loss, parameters, tables):
            rows = [f"rows of {listed(tables)}"] * bool(tables)
            return f"{loss}: {', '.join([listed(parameters)] * bool(parameters) + rows)}"
        case PushSparse(table, features, times_batch_size, counts):
            said = [f"{table}: {listed(features)}", *["* batch size"] * times_batch_size]
            said += [f"counts show and click of {listed(counts)}"] * bool(counts)
            return ", ".join(said)


def _place(section: VariableSection) -> Cells:
    end = section.offset + section.size
    return section.name, f"[{section.offset}:{end}]", shape_text(section.shape)


def _mean(trainers: int, weighting: Weighting, which: str = "") -> str:
    return f"mean of {_trainers(trainers)}{which}, {MEANS[weighting]}"


def _trainers(count: int) -> str:
    return f"{count} trainer{'s' * (count != 1)}"
