"""A client's loop: the batches of its rounds, what it raises, and what it leaves alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.engine.client_process import RoundBatches
from downpour.federated.local import LocalModel
from tests.federations import Progress, Turning, data_of, federate, federation
from tests.networks import a_batch, click, random_batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

EVERYONE = [0, 1, 2]
GIVEN = random_batches(3, 3)
FIRST, SECOND, THIRD = GIVEN


def batches_of(method: dp.FedAvg, rounds: list[int]) -> list[list[dp.Batch]]:
    """The batches of each of these rounds; an epoch begins with the next one of three."""
    batches = RoundBatches(Turning(GIVEN), method)
    return [[*batches.of_round(number)] for number in rounds]


def test_a_round_of_epochs_has_those_of_its_number() -> None:
    assert batches_of(dp.FedAvg(), [1, 3]) == [[FIRST, SECOND, THIRD], [THIRD, FIRST, SECOND]]
    assert batches_of(dp.FedAvg(local_epochs=2), [2])[0] == [THIRD, FIRST, SECOND, *GIVEN]


def test_a_round_of_steps_has_those_that_come_next_whatever_its_number() -> None:
    rounds = batches_of(dp.FedAvg(local_steps=2), [1, 5, 6])
    assert rounds == [[FIRST, SECOND], [THIRD, SECOND], [THIRD, FIRST]]
    assert len(batches_of(dp.FedAvg(local_steps=7), [1])[0]) == 7


def test_batches_without_a_sample_are_left_out() -> None:
    empty = a_batch([], [])
    batches = RoundBatches(Turning([empty, FIRST]), dp.FedAvg(local_steps=2))
    assert batches.of_round(1) == [FIRST, FIRST]


@pytest.mark.parametrize("method", [dp.FedAvg(), dp.FedAvg(local_steps=2)], ids=["epoch", "steps"])
def test_a_client_without_a_sample_is_told_so(method: dp.FedAvg) -> None:
    batches = RoundBatches(Turning([a_batch([], [])]), method)
    with pytest.raises(dp.DataError, match=r"a client trains on nothing: .* gave no sample"):
        batches.of_round(1)


def test_labels_that_evaluation_cannot_tell_apart_are_refused() -> None:
    two = dp.Batch(features={"user": [1], "item": [[2]]}, labels={"label": [1], "stars": [5]})

    class Stars(Turning):
        def batches(self, epoch: int = 0) -> Iterator[dp.Batch]:
            yield from super().batches(epoch) if epoch == 0 else [two]

    make = partial(federation, eval_data=data_of(5, 6))
    others = {1: {"data": lambda client, clients: Stars(data_of(client, clients).given)}}
    ours = federate(make, others=others, fails=[1])
    assert isinstance(ours.errors[1], dp.DataError)
    assert "the labels label, stars; say which one is predicted" in str(ours.errors[1])
    assert ours.heard_from == [EVERYONE, [0, 2], [0, 2]]


def test_it_trains_a_model_that_was_set_to_evaluate() -> None:
    modes: list[bool] = []

    def noting(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
        modes.append(model.training)
        return click(model, batch)

    model = federation().model.eval()
    federate(federation, others={0: {"losses": {"click": noting}, "model": model}})
    assert modes[-1]


def test_what_servers_refuse_twice_ends_a_client_with_their_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send, progress = LocalModel.send, Progress()

    def refused(local: Any) -> float:
        if local.client.rank == 2 and progress.closed == 1:
            raise dp.RefusedError("a message of 300 MB is too large")
        return send(local)

    monkeypatch.setattr(LocalModel, "send", refused)
    ours = federate(federation, fails=[2], progress=progress)
    assert ours.rounds[1]["dropped"] == {
        2: "failed: RefusedError: a message of 300 MB is too large"
    }
    assert ours.heard_from == [EVERYONE, [0, 1], [0, 1]]
