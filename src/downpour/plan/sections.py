"""How dense tables are split over servers: parameters in parts, and each server's share of them."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from downpour.errors import SettingError
from downpour.settings import require_choice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from downpour.plan.specs import DenseTableSpec
    from downpour.rules import Rule
    from downpour.tables.dense import Section

    Floats: TypeAlias = NDArray[np.floating]

PLACEMENTS = ("round_robin", "hash")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sections:
    """How dense tables are split over servers; it changes no result.

    `split`: whether parameters are split at all, or each is whole on one server. `min_size`:
    elements below which one is not split further. `placement`: parts go to the servers in turn, or
    each to the one that the hash of its name gives. In turn, parameters that stay whole go in a
    shuffled order, since sorted names alternate between weights and biases. All servers of a run
    and all their clients must have the same. Raises SettingError.
    """

    min_size: int = 8192
    placement: Literal["round_robin", "hash"] = "round_robin"
    split: bool = True

    def __post_init__(self) -> None:
        if type(self.min_size) is not int or self.min_size < 1:
            raise SettingError(f"Sections.min_size must be an int >= 1, got {self.min_size!r}")
        require_choice("Sections.placement", self.placement, PLACEMENTS)
        if type(self.split) is not bool:
            raise SettingError(f"Sections.split must be True or False, got {self.split!r}")


DEFAULT_SECTIONS = Sections()


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Whole rows of a parameter on one server: elements offset to offset + size of the table.

    `index` counts the parameter's parts from 0; `of` is how many it has.
    """

    parameter: str
    index: int
    of: int
    offset: int
    size: int
    shape: tuple[int, ...]
    server: int

    @property
    def span(self) -> slice:
        """Its elements in the table's block."""
        return slice(self.offset, self.offset + self.size)

    @property
    def name(self) -> str:
        """The parameter, and which part where it has several."""
        return self.parameter if self.of == 1 else f"{self.parameter}:{self.index}"


def split(
    spec: DenseTableSpec, num_servers: int, sections: Sections = DEFAULT_SECTIONS
) -> tuple[Part, ...]:
    """The parts of a dense table, in its order.

    A parameter has at most one part on each server. All parts but its last are of one size,
    `min_size` at least; the last has the rest. In turn, the parts go to servers from the table's id
    on, so that many small tables spread; by hash, each goes where the CRC-32 of its name says. A
    rule that mixes the elements of a parameter keeps it whole.
    """
    if type(num_servers) is not int or num_servers < 1:
        raise SettingError(f"split: num_servers must be an int >= 1, got {num_servers!r}")
    is_whole = not sections.split or (num_servers > 1 and not moves_by_element(spec.rule))
    most = 1 if is_whole else num_servers
    parts = [part for section in spec.sections for part in _parts(section, most, sections.min_size)]
    turns = _turns(len(parts), is_shuffled=not sections.split)
    return tuple(
        replace(part, server=_server(part, spec.id + turn, sections) % num_servers)
        for part, turn in zip(parts, turns, strict=True)
    )


def _parts(section: Section, most: int, min_size: int) -> Iterator[Part]:
    """The parts of one parameter, on no server yet."""
    block = _block_size(section, most, min_size)
    count = max(1, math.ceil(section.size / block))
    for index in range(count):
        size = min(block, section.size - index * block)
        yield Part(
            parameter=section.name,
            index=index,
            of=count,
            offset=section.offset + index * block,
            size=size,
            shape=_shape(section, size) if count > 1 else section.shape,
            server=-1,
        )


def _server(part: Part, turn: int, sections: Sections) -> int:
    return zlib.crc32(part.name.encode()) if sections.placement == "hash" else turn


def _turns(count: int, *, is_shuffled: bool) -> list[int]:
    """When each part has its turn.

    Shuffled as Paddle's transpiler does it, with numpy's generator of seed 0, whose stream numpy
    has promised to keep.
    """
    if not is_shuffled:
        return [*range(count)]
    order = np.random.RandomState(0).permutation(count)
    turns = [0] * count
    for turn, part in enumerate(order.tolist()):
        turns[part] = turn
    return turns


def _block_size(section: Section, most: int, min_size: int) -> int:
    """The elements of each part but the last: whole rows. At least 1."""
    # As Paddle's slice_variable: distribute_transpiler.py, 000ba1ac
    count = max(1, min(most, section.size // min_size))
    row = max(1, math.prod(section.shape[1:]))
    return max(1, math.ceil(math.ceil(section.size / count) / row) * row)


def _shape(section: Section, size: int) -> tuple[int, ...]:
    rest = section.shape[1:]
    return (size // math.prod(rest), *rest)


def moves_by_element(rule: Rule) -> bool:
    """Whether a rule moves each weight by its own gradient and state alone.

    It is tried: a user's rule need not say it, and one that looks at a whole parameter, as at the
    norm of its gradient, must not see a part of it.
    """
    num_states, weights = rule.state_dim(1), np.array([0.5, -1.5, 2.5])
    if rule.state_dim(weights.size) != num_states * weights.size:
        return False
    hyper = np.array(rule.dense_hyper(1, rule.lr), np.float64)

    def moved(weight: Floats, columns: slice) -> Floats:
        weight, state = weight.copy(), rule.initial_state(weight.size).astype(np.float64)
        for grads in ([3.0, -0.25, 40.0], [-7.0, 0.5, 1.5]):
            rule.update(weight, state, np.array(grads[columns]), hyper)
        return np.vstack([weight, state.reshape(num_states, weight.size)])

    with np.errstate(all="ignore"):
        whole = moved(weights, slice(None))
        each = [moved(weights[i : i + 1], slice(i, i + 1)) for i in range(weights.size)]
    return np.array_equal(whole, np.hstack(each), equal_nan=True)


class Share:
    """The parts of a dense table that one server holds, one after the other: a block [size]."""

    def __init__(self, server: int, parts: Sequence[Part]) -> None:
        self.server = server
        self.parts = tuple(parts)
        self.size = sum(part.size for part in parts)
        self._runs, self._places = _runs(parts)

    @property
    def run(self) -> slice | None:
        """Where the table's block has all of the share in one piece; None: it has it in several."""
        return self._runs[0] if len(self._runs) == 1 else None

    def take(self, whole: Floats) -> Floats:
        """The share of a table's block; a view where it is one piece."""
        if self.run is not None:
            return whole[self.run]
        return np.concatenate([whole[run] for run in self._runs])

    def put(self, own: Floats, whole: Floats) -> None:
        """Write a share to its places in a table's block."""
        for run, place in zip(self._runs, self._places, strict=True):
            whole[run] = own[place]


def _runs(parts: Sequence[Part]) -> tuple[list[slice], list[slice]]:
    """Where the pieces of a share are in the table's block and in its own; neighbours are one."""
    runs: list[slice] = []
    places: list[slice] = []
    end = 0
    for part in parts:
        start, end = end, end + part.size
        if runs and part.offset == runs[-1].stop:
            runs[-1] = slice(runs[-1].start, part.span.stop)
            places[-1] = slice(places[-1].start, end)
        else:
            runs.append(part.span)
            places.append(slice(start, end))
    return runs, places


class Layout:
    """Which server has what of one dense table: the shares, by rising server, none of them empty.

    State of a rule is k numbers an element: first the first of each, then the second of each. So a
    parameter's state is cut and joined by columns of [k, size].
    """

    def __init__(self, spec: DenseTableSpec, num_servers: int, sections: Sections) -> None:
        self.spec = spec
        parts = split(spec, num_servers, sections)
        by_server: dict[int, list[Part]] = {}
        self.parts: dict[str, list[Part]] = {section.name: [] for section in spec.sections}
        for part in parts:
            by_server.setdefault(part.server, []).append(part)
            self.parts[part.parameter].append(part)
        self.shares = tuple(Share(server, by_server[server]) for server in sorted(by_server))

    def cut_state(self, state: Mapping[str, Floats]) -> dict[Part, Floats]:
        """The state of each part, of that of each parameter."""
        cut: dict[Part, Floats] = {}
        for name, parts in self.parts.items():
            if len(parts) == 1:
                cut[parts[0]] = state[name]
                continue
            columns = state[name].reshape(-1, sum(part.size for part in parts))
            ends = np.cumsum([part.size for part in parts])[:-1]
            for part, piece in zip(parts, np.split(columns, ends, axis=1), strict=True):
                cut[part] = piece.reshape(-1)
        return cut

    def join_state(self, state: Mapping[Part, Floats]) -> dict[str, Floats]:
        """The state of each parameter, of that of each part."""
        return {
            name: state[parts[0]]
            if len(parts) == 1
            else np.hstack([state[part].reshape(-1, part.size) for part in parts]).reshape(-1)
            for name, parts in self.parts.items()
        }
