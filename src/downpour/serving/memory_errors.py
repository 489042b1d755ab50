"""A server that has no memory for a request: a typed answer, and not the end of a stream."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from downpour.errors import DownpourError, OutOfMemoryError, TableError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def typed_memory(op: object, table: object) -> Iterator[None]:
    """Turn a MemoryError into OutOfMemoryError, and another OSError of the system into TableError.

    Both say that nothing was changed: tables undo what a request that raises has changed.
    """
    try:
        yield
    except DownpourError:
        raise
    except (MemoryError, OSError) as error:
        what, why = f"{op!r:.80} of table {table!r:.80}", f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise TableError(f"{what} failed here ({why}); nothing was changed") from error
        raise OutOfMemoryError(
            f"there is no memory for {what} here ({why}); nothing was changed. Send fewer keys at "
            "once, or use more servers, or machines with more memory"
        ) from error
