"""Plan the losses of a run with the first batch of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.errors import DataError
from downpour.evaluate import label_of

if TYPE_CHECKING:
    from downpour.features import Batch
    from downpour.plan.plan import Plan
    from downpour.run import Run


def check_labels(run: Run, batch: Batch) -> None:
    """The label that evaluation will read must be in training, too. Raises DataError."""
    if run.eval_data is not None:
        label_of(batch, run.label)


def make_plan(run: Run) -> Plan:
    """Plan a run's losses with its first batch. DataError where there is none."""
    return plan_with(run, first_batch(run))


def first_batch(run: Run) -> Batch:
    """The first batch of a run's data that has a sample. DataError where there is none."""
    for batch in run.data.batches(0):
        if batch.size:
            return batch
    raise DataError(f"trained on nothing: {run.data!r} gave no sample")


def plan_with(run: Run, example: Batch) -> Plan:
    """Plan a run's losses with an example batch, the model on the run's device from then on."""
    run.model.to(run.device)
    return run.optimizer.minimize(
        run.losses,
        model=run.model,
        example=example.to(run.device),
        startup=run.startup,
        parameter_list=run.parameter_list,
        no_grad_set=run.no_grad_set,
        strategy=run.strategy,
        seed=run.seed,
    )
