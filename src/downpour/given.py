"""Ids, rows and blocks that a client is given, checked before any server sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from downpour.bags import bags_of
from downpour.errors import DataError, NonFiniteError, SettingError, TableError
from downpour.ids import Reading
from downpour.lookup import stored_keys
from downpour.tables.batches import is_finite

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import ArrayLike

    from downpour.arrow import Column
    from downpour.plan.plan import Plan
    from downpour.plan.sections import Layout
    from downpour.plan.specs import SparseTableSpec
    from downpour.transport import Floats, Keys


def stored_ids(
    spec: SparseTableSpec, keys: Column, feature: str | None, hashed: bool | None = None
) -> Keys:
    """The stored keys of raw ids [n] of a feature, which a table of one id space need not name.

    Ids are read as those of a feature are. Raises TableError for what holds no id an entry, [n],
    and for a feature that is none of the table.
    """
    table = spec.name
    try:
        bags = bags_of(keys, reading=Reading(hashed))
    except (DataError, SettingError) as error:
        raise TableError(f"table {table!r}: keys: {error}") from error
    if bags.there is not None:
        entry = int(bags.there.argmin())
        raise TableError(f"table {table!r}: keys must be ids [n], and entry {entry} is missing")
    if bags.offsets is not None:
        raise TableError(f"table {table!r}: keys must be ids [n], one each, got bags of ids")
    if feature is None:
        if len({it.space for it in spec.features}) > 1:
            names = ", ".join(it.name for it in spec.features)
            raise TableError(
                f"table {table!r} has several id spaces; say whose ids these are with "
                f"feature=, one of: {names}"
            )
        feature = spec.features[0].name
    elif feature not in [it.name for it in spec.features]:
        raise TableError(
            f"table {table!r} is not read by feature {feature!r}; it is by: "
            f"{', '.join(it.name for it in spec.features)}"
        )
    return stored_keys(bags.values, spec.feature(feature).space)


def checked_rows(
    spec: SparseTableSpec, what: str, values: ArrayLike, shape: tuple[int, int]
) -> Floats:
    """A row a key, [n, width], in the table's dtype. Raises TableError or NonFiniteError."""
    floats = np.asarray(values)
    if floats.shape != shape or floats.dtype.kind not in "iuf":
        raise TableError(
            f"table {spec.name!r}: {what} must be numbers {list(shape)}, a row a key, got "
            f"{floats.dtype} {list(floats.shape)}"
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        floats = np.ascontiguousarray(floats, spec.accessor.numpy_dtype)
    if not is_finite(floats):
        raise NonFiniteError(
            f"table {spec.name!r}: {what} hold NaN or infinity; nothing was changed"
        )
    return cast("Floats", floats)


def dense_values(plan: Plan, name: str, values: Any) -> tuple[str, Floats, list[str]]:
    """A dense table, its block [size], and the parameters in it that the values are of.

    name: of a table, whose values are [size], or of a parameter, whose values have its shape. What
    the block holds for other parameters means nothing. Raises TableError or NonFiniteError.
    """
    if hasattr(values, "detach"):  # a tensor, of any device
        values = values.detach().cpu()
    for spec in plan.dense:
        sections = {section.name: section for section in spec.sections}
        if name != spec.name and name not in sections:
            continue
        chosen = [sections[name]] if name in sections else [*spec.sections]
        shape = sections[name].shape if name in sections else (spec.size,)
        floats = np.asarray(values)
        if floats.shape != shape or floats.dtype.kind not in "iuf":
            raise TableError(
                f"the values of {name!r} must be numbers {list(shape)}, got {floats.dtype} "
                f"{list(floats.shape)}"
            )
        flat = np.zeros(spec.size, spec.dtype)
        span = sections[name].span if name in sections else slice(None)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            flat[span] = floats.reshape(-1)
        return spec.name, flat, [section.name for section in chosen]
    tables = [spec.name for spec in plan.dense]
    names = [section.name for spec in plan.dense for section in spec.sections]
    raise TableError(
        f"no dense table or parameter {name!r}; there are the tables {', '.join(tables) or 'none'} "
        f"and the parameters {', '.join(names) or 'none'}"
    )


def checked_block(
    layout: Layout, what: str, flat: Floats, names: Collection[str] | None = None
) -> Floats:
    """A dense table's block, contiguous; refused here, so that no server has what another refuses.

    `names` are the parameters whose elements must be finite (None: all). Raises TableError or
    NonFiniteError.
    """
    spec, flat = layout.spec, np.asarray(flat)
    if flat.dtype != spec.dtype or flat.shape != (spec.size,):
        raise TableError(
            f"dense table {spec.name!r}: {what} must be {spec.dtype} [{spec.size}], got "
            f"{flat.dtype} {list(flat.shape)}"
        )
    for name in names or ():
        if name not in layout.parts:
            raise TableError(
                f"dense table {spec.name!r} has no section {name!r}, it has: "
                f"{', '.join(layout.parts)}"
            )
    flat = np.ascontiguousarray(flat)
    if is_finite(flat):
        return flat
    for section in spec.sections:
        if (names is None or section.name in names) and not is_finite(flat[section.span]):
            raise NonFiniteError(
                f"dense table {spec.name!r}: NaN or infinity in the {what} of "
                f"{section.name!r}; nothing was applied"
            )
    return flat
