"""Accessors: what a row of a sparse table holds, what a pull gives of it and a push takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from downpour.errors import SettingError
from downpour.init import Constant, Init, Uniform
from downpour.rules import BaseRule
from downpour.settings import is_number

if TYPE_CHECKING:
    from downpour.rules import Rule

DTYPES = ("float32", "float64")
Bounds: TypeAlias = tuple[float, float]
Rates: TypeAlias = float | tuple[float, ...]  # of each part of a row; a number is of all
Counts = TypeVar("Counts", float, NDArray[np.float64])


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLayout:
    """Where the parts of a stored row begin, in bytes from its start; the key is at 0.

    A row is the key (8 bytes), `dim` weights, `state_dim` numbers of rule state and, for a table
    with weight decay, the float64 `log_decay` of the row's last touch (`decay_offset` is -1
    without it). `num_bytes` is a multiple of 8.
    """

    item_bytes: int
    weight_offset: int
    weight_bytes: int
    state_offset: int
    state_dim: int
    decay_offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingAccessor:
    """A row is a vector of weights and the rule's state.

    `dim`: numbers a row, >= 1. `rule`: a rule that may sit on a sparse table. `init`: the value
    before the first update. `bounds`: (low, high) to clamp weights to when new and after each
    update. `dtype`: "float32", or "float64" for comparisons. Raises SettingError.
    """

    dim: int
    rule: Rule
    init: Init = field(default_factory=lambda: Uniform(0.01))
    bounds: Bounds | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        who = "EmbeddingAccessor"
        _make_tuples(self, "bounds")
        if type(self.dim) is not int or self.dim < 1:
            raise SettingError(f"{who}.dim must be an int >= 1, got {self.dim!r}")
        _check_dtype(who, self.dtype)
        _check_rule(f"{who}.rule", self.rule)
        _check_bounds(f"{who}.bounds", self.bounds, self.rule.weight_decay)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of a row's parts; a push brings a learning rate for each."""
        return (self.rule,)

    @property
    def pull_dim(self) -> int:
        """Numbers that a pull gives of a row: its weights."""
        return self.dim

    @property
    def push_dim(self) -> int:
        """Numbers that a push brings for a row: a gradient a weight."""
        return self.dim

    @property
    def state_dim(self) -> int:
        """Numbers of rule state a row."""
        return self.rule.state_dim(self.dim)

    @property
    def numpy_dtype(self) -> np.dtype[np.floating]:
        """`dtype` as numpy has it."""
        return np.dtype(self.dtype)

    @property
    def layout(self) -> RowLayout:
        """Where the parts of a stored row are."""
        item = self.numpy_dtype.itemsize
        state_offset = 8 + self.dim * item
        end = _whole_words(state_offset + self.state_dim * item)
        decays = self.rule.weight_decay > 0.0
        return RowLayout(
            item_bytes=item,
            weight_offset=8,
            weight_bytes=self.dim * item,
            state_offset=state_offset,
            state_dim=self.state_dim,
            decay_offset=end if decays else -1,
            num_bytes=end + 8 * decays,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifecycle:
    """How a CTR row ages: the reference's settings for its daily decay, deletion and saves.

    Part of the plan and its description. `Client.shrink` lets a day pass: show and click are
    multiplied by `show_click_decay_rate`; then a row goes when its score is below
    `delete_threshold` or it was not pushed for more than `delete_after_unseen_days`. Nothing acts
    on the others yet: a base save takes rows of score >= `base_threshold` seen within
    `delta_keep_days`, a delta those of them whose score has risen by `delta_threshold`. Raises
    SettingError.
    """

    base_threshold: float = 1.5
    delta_threshold: float = 0.25
    delta_keep_days: float = 16.0
    show_click_decay_rate: float = 0.98
    delete_threshold: float = 0.8
    delete_after_unseen_days: float = 30.0
    ssd_unseenday_threshold: int = 1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _check_number(f"Lifecycle.{name}", getattr(self, name), least=0.0)
        if self.ssd_unseenday_threshold != int(self.ssd_unseenday_threshold):
            raise SettingError(
                "Lifecycle.ssd_unseenday_threshold must be a whole number, got "
                f"{self.ssd_unseenday_threshold}"
            )
        if self.show_click_decay_rate > 1.0:
            raise SettingError(
                f"Lifecycle.show_click_decay_rate must be at most 1, got "
                f"{self.show_click_decay_rate}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CtrAccessor:
    """A row for click-through data: how often its id was shown and clicked, a weight w, and a
    vector embedx that it gets once its score is high enough.

    score(show, click) = (show - click) * nonclk_coeff + click * click_coeff. A row whose score has
    reached `embedx_threshold` gets its embedx after the push that brought it there, which does not
    train it. Until then embedx is zero and takes no memory.

    A pull gives show, click, w, embedx: 3 + embedx_dim numbers. A push brings slot, show, click,
    places and the gradients of w and embedx: 5 + embedx_dim. Its show and click are added to the
    row's; places is how often the id stands in the batch, whichever program counts it. A
    SparseEmbedding of such a table has `dim` = embedx_dim + 3 with `use_cvm`, and embedx_dim + 1
    without.

    Args:
        embedx_dim: numbers in embedx, >= 1; None is what the SparseEmbedding's `dim` leaves.
        rule, init, bounds: of w. It begins at 0, the reference's `zero_init`. Without a rule it is
            `G2SumAdagrad` with DownpourSGD's learning_rate.
        embedx_rule, embedx_init, embedx_bounds: of embedx; the rule and the bounds are those of w
            unless given.
        embedx_threshold: the score from which a row has an embedx.
        show_scale: Adagrad's rules see the gradient divided by the push's places, the mean over an
            id's places in the batch (see `Rule.takes_mean`).
        slots: whether a row keeps the number of the feature that last pushed it.
        click: the label that counts as click; None is the batch's only one.
        counted_by: the program that counts show and click of the features it pushes, where others
            push them too; the rest, and all with None, are counted by the first that pushes them.
        lifecycle: how rows age.
        dtype: "float32", or "float64" for comparisons. Show and click are float64 always.

    Raises SettingError.
    """

    embedx_dim: int | None = None
    rule: Rule | None = None
    init: Init = field(default_factory=Constant)
    bounds: Bounds | None = (-10.0, 10.0)
    embedx_rule: Rule | None = None
    embedx_init: Init = field(default_factory=lambda: Uniform(1e-4))
    embedx_bounds: Bounds | None = None
    embedx_threshold: float = 10.0
    nonclk_coeff: float = 0.1
    click_coeff: float = 1.0
    show_scale: bool = True
    slots: bool = True
    click: str | None = None
    counted_by: str | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _make_tuples(self, "bounds", "embedx_bounds")
        if self.embedx_rule is None:
            object.__setattr__(self, "embedx_rule", self.rule)
        if self.embedx_bounds is None:
            object.__setattr__(self, "embedx_bounds", self.bounds)
        who, dim = "CtrAccessor", self.embedx_dim
        if dim is not None and (type(dim) is not int or dim < 1):
            raise SettingError(f"{who}.embedx_dim must be an int >= 1 or None, got {dim!r}")
        _check_dtype(who, self.dtype)
        for name, rule in (("rule", self.rule), ("embedx_rule", self.embedx_rule)):
            if rule is None:
                continue
            _check_rule(f"{who}.{name}", rule)
            if rule.weight_decay or rule.batch_l2:
                raise SettingError(
                    f"{who}: its rules take neither weight_decay nor batch_l2, got {rule!r}; "
                    "bounds keep weights small here"
                )
        _check_bounds(f"{who}.bounds", self.bounds, 0.0)
        _check_bounds(f"{who}.embedx_bounds", self.embedx_bounds, 0.0)
        for name in ("embedx_threshold", "nonclk_coeff", "click_coeff"):
            _check_number(f"{who}.{name}", getattr(self, name), least=0.0)
        for name in ("init", "embedx_init"):
            if not hasattr(getattr(self, name), "fill"):
                raise SettingError(
                    f"{who}.{name} must be an initialiser such as Uniform(0.01), got "
                    f"{getattr(self, name)!r}"
                )
        if not isinstance(self.lifecycle, Lifecycle):
            raise SettingError(f"{who}.lifecycle must be a Lifecycle, got {self.lifecycle!r}")
        for name in ("show_scale", "slots"):
            if type(getattr(self, name)) is not bool:
                raise SettingError(f"{who}.{name} must be a bool, got {getattr(self, name)!r}")
        for name in ("click", "counted_by"):
            value: object = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise SettingError(f"{who}.{name} must be a name or None, got {value!r}")

    def score(self, show: Counts, click: Counts) -> Counts:
        """How much an id matters: (show - click) * nonclk_coeff + click * click_coeff."""
        return (show - click) * self.nonclk_coeff + click * self.click_coeff

    @property
    def rules(self) -> tuple[Rule, Rule]:
        """The rules of w and of embedx; a push brings a learning rate for each."""
        assert self.rule is not None, "a planned accessor has its rules"
        assert self.embedx_rule is not None
        return (self.rule, self.embedx_rule)

    @property
    def dim(self) -> int:
        """Weights of a whole row: w and embedx."""
        assert self.embedx_dim is not None, "a planned accessor has its embedx_dim"
        return 1 + self.embedx_dim

    @property
    def pull_dim(self) -> int:
        """Numbers that a pull gives of a row: show, click, w, embedx."""
        return 2 + self.dim

    @property
    def push_dim(self) -> int:
        """Numbers that a push brings for a row: slot, show, click, places, a gradient a weight."""
        return 4 + self.dim

    @property
    def state_dim(self) -> int:
        """Numbers of rule state of a whole row, those of w before those of embedx."""
        first, second = self.rules
        return first.state_dim(1) + second.state_dim(self.dim - 1)

    @property
    def numpy_dtype(self) -> np.dtype[np.floating]:
        """`dtype` as numpy has it."""
        return np.dtype(self.dtype)

    @property
    def layout(self) -> RowLayout:
        """Where the parts of a short row are: key, statistics, w and its state.

        The statistics are show and click (float64, at 8 and 16), delta_score (float32, 24),
        unseen_days (int32, 28), slot + 1 (int32, 32) and the number + 1 of the row's embedx in an
        arena of its own (uint32, 36; 0: it has none).
        """
        item = self.numpy_dtype.itemsize
        state_dim = self.rules[0].state_dim(1)
        return RowLayout(
            item_bytes=item,
            weight_offset=CTR_WEIGHT_OFFSET,
            weight_bytes=item,
            state_offset=CTR_WEIGHT_OFFSET + item,
            state_dim=state_dim,
            decay_offset=-1,
            num_bytes=_whole_words(CTR_WEIGHT_OFFSET + item + state_dim * item),
        )

    @property
    def embedx_layout(self) -> RowLayout:
        """Where the parts of an embedx are: its weights and their state."""
        item, dim = self.numpy_dtype.itemsize, self.dim - 1
        state_dim = self.rules[1].state_dim(dim)
        return RowLayout(
            item_bytes=item,
            weight_offset=0,
            weight_bytes=dim * item,
            state_offset=dim * item,
            state_dim=state_dim,
            decay_offset=-1,
            num_bytes=_whole_words((dim + state_dim) * item),
        )


Accessor: TypeAlias = EmbeddingAccessor | CtrAccessor
CTR_WEIGHT_OFFSET = 40
NUM_COUNTS = 2  # show and click, with which a pulled CTR row begins


def _make_tuples(value: object, *names: str) -> None:
    """Bounds may be given as lists, as in JSON; values compare as tuples."""
    for name in names:
        if isinstance(given := getattr(value, name), list):
            object.__setattr__(value, name, tuple(given))


def _whole_words(num_bytes: int) -> int:
    return -(-num_bytes // 8) * 8


def _check_dtype(who: str, dtype: str) -> None:
    if dtype not in DTYPES:
        raise SettingError(f"{who}.dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def _check_rule(name: str, rule: Rule) -> None:
    if not isinstance(rule, BaseRule):
        raise SettingError(f"{name} must be a rule such as Adagrad(lr=0.05), got {rule!r}")
    if not rule.on_sparse:
        raise SettingError(
            f"{name}: {type(rule).__name__} updates dense tables only, got it on a sparse one; "
            "take Adam or Adagrad there"
        )


def _check_bounds(name: str, bounds: Bounds | None, weight_decay: float) -> None:
    if bounds is None:
        return
    given: Any = bounds
    numbers = isinstance(given, tuple) and all(map(is_number, given))
    if not (numbers and len(given) == 2 and given[0] < given[1]):
        raise SettingError(f"{name} must be finite (low, high), low < high, got {given!r}")
    low, high = bounds
    if weight_decay > 0.0 and not low <= 0.0 <= high:
        raise SettingError(
            f"{name} must hold 0 with weight_decay, got {bounds}: decay between two updates would "
            "leave them"
        )


def _check_number(name: str, value: object, *, least: float) -> None:
    if not (is_number(value) and value >= least):
        raise SettingError(f"{name} must be a finite number >= {least}, got {value!r}")
