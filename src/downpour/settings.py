"""Settings of frozen values: their defaults, and what was said in place of them."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from itertools import zip_longest
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeGuard

from downpour.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def refuse_unknown(kind: type, given: Iterable[str]) -> None:
    """Raise SettingError for a name that a dataclass does not have, with the nearest one."""
    known = [it.name for it in fields(kind)]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise SettingError(
                f"{kind.__name__} has no setting {name!r}{hint} It has: {', '.join(known)}"
            )


def require_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """Raise SettingError, with all that there is to choose, for what is none of it."""
    if not (isinstance(value, str) and value in choices):
        raise SettingError(f"{what} must be one of {', '.join(choices)}, got {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, a whole one or not, and no bool."""
    return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)


def default_of(field: Field[Any]) -> Any:
    """The default of a field; MISSING where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def said(value: Any) -> dict[str, Any]:
    """The settings of a dataclass that are not the default, by name."""
    own = {it.name: (getattr(value, it.name), default_of(it)) for it in fields(value) if it.init}
    return {
        name: given
        for name, (given, default) in own.items()
        if default is MISSING or given != default
    }


def first_unlike(one: Any, other: Any) -> tuple[Any, Any]:
    """The first parts in which two tuples differ, None where one has no more; else the two."""
    if not (type(one) is type(other) is tuple):
        return one, other
    return next((a, b) for a, b in zip_longest(one, other) if a != b)


def short(value: Any) -> str:
    """A frozen value as one would write it: its first settings, and others than the default.

    What is not to be printed (`repr=False`) is left out.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    others = said(value)
    shown = [
        f"{it.name}={short(getattr(value, it.name))}"
        for it in fields(value)
        if it.init and it.repr and (not it.kw_only or it.name in others)
    ]
    return f"{type(value).__name__}({', '.join(shown)})"
