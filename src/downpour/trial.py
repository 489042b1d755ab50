"""One evaluation before the first step, so that its mistakes are found before work is spent."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from downpour.client import embedded
from downpour.evaluate import evaluate, own_results
from downpour.lookup import table_keys
from downpour.nn import connected
from downpour.transfer import Transfer, device_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from downpour.features import Batch
    from downpour.lookup import TableKeys
    from downpour.plan.plan import Plan
    from downpour.run import Run

FOUND = "found by evaluating a batch before the first step; nothing was trained"


def try_evaluation(run: Run, plan: Plan) -> dict[str, float | None]:
    """Evaluate the first batch of `eval_data`, and call `evaluate` once; the results by name.

    The model has rows that are made for it and belong to no table, and stays as it was. Raises what
    an evaluation raises, with a note.
    """
    results: dict[str, float | None] = {}
    if run.eval_data is None and run.evaluate is None:
        return results
    try:
        with connected(run.model, _FreshRows(plan, run.model, run.device)):
            if run.eval_data is not None:
                first = _first(run.eval_data.batches(0))
                results |= evaluate(run.model, first, run.predict, run.label, run.device).results
            if run.evaluate is not None:
                results |= own_results(run.evaluate, run.model)
    except Exception as error:
        error.add_note(FOUND)
        raise
    return results


def _first(batches: Iterator[Batch]) -> list[Batch]:
    """The first batch that has a sample."""
    try:
        return [next(batch for batch in batches if batch.size)]
    except StopIteration:
        return []
    finally:
        if isinstance(batches, Generator):  # it may have opened a file
            batches.close()


class _FreshRows:
    """Gives each id its initial row, as an unknown one has in evaluation."""

    def __init__(self, plan: Plan, model: torch.nn.Module, device: str | torch.device) -> None:
        self._client = embedded(plan)
        self._transfer = Transfer(device_of(model, device))

    def rows(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        """See nn.RowSource."""
        keys = table_keys(self._client.plan.sparse_table(table), features, batch)
        located = self._client.locate(table, keys.unique, create=False)
        return self._transfer.to_device(self._client.read(located)), keys
