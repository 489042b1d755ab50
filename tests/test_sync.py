"""Sync training over servers equals one process that trains on the workers' joint batches."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.consistency import Sync
from downpour.remote.connect import connect
from tests import torch_rules
from tests.networks import (
    Network,
    assert_same,
    click,
    dense_parameters,
    plain,
    planned,
    random_batches,
    sparse_parameters,
)
from tests.servers import (
    Jittery,
    Trained,
    assert_close,
    assert_same_bits,
    at_once,
    held,
    jitter,
    joined,
    servers,
    train_embedded,
    train_epoch,
    train_on,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LENGTHS = (7, 4, 0)  # batches of the workers: all take part until the last of them is done
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
HALVING = dp.StepDecay(every=2, factor=0.5)


def shares_of(num_workers: int) -> list[list[dp.Batch]]:
    """The batches of each worker, of 2 to 7 samples with bags of 0 to 3 ids."""
    return [random_batches(rank, LENGTHS[rank]) for rank in range(num_workers)]


def network(dtype: torch.dtype = torch.float64) -> Network:
    return Network(dtype=dtype, init=dp.Normal(0.5))


RULES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    **torch_rules.RULES,
    "decay": (
        {"sparse": dp.SGD(0.5, weight_decay=0.2), "dense": dp.Adam(0.05, weight_decay=0.1)},
        lambda p: torch.optim.SGD(p, lr=0.5, weight_decay=0.2),
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    ),
    "schedule": (
        {"sparse": dp.Adagrad(0.5, schedule=HALVING), "dense": dp.Adam(0.1, schedule=HALVING)},
        lambda p: torch.optim.Adagrad(p, lr=0.5, eps=1e-10),
        lambda p: torch.optim.Adam(p, lr=0.1),
    ),
}


def torch_trained(
    model: Any, plan: dp.Plan, name: str, batches: Sequence[dp.Batch], window: int = 1
) -> Any:
    """A copy of the model, of plain torch; `window`: batches between two steps of parameters."""
    theirs = plain(model, dp.embedded(plan))
    rows, dense = (
        make(of(theirs))
        for make, of in zip(RULES[name][1:], (sparse_parameters, dense_parameters), strict=True)
    )
    rates = [torch.optim.lr_scheduler.StepLR(it, 2, 0.5) for it in (rows, dense)]
    for number, batch in enumerate(batches, 1):
        click(theirs, batch).backward()
        rows.step()
        rows.zero_grad()
        if number % window == 0 or number == len(batches):
            dense.step()
            dense.zero_grad()
        for rate in rates if name == "schedule" else ():
            rate.step()
    return theirs


@pytest.fixture(autouse=True)
def quiet_sparse_checks() -> None:
    # torch warns where it is left open whether sparse tensors are checked.
    torch.sparse.check_sparse_tensor_invariants.disable()


def compare(name: str, num_servers: int, num_workers: int, dtype: torch.dtype, **more: Any) -> None:
    """Train on servers, in one process and by plain torch: the same but for rounding."""
    model, shares, rtol = network(dtype), shares_of(num_workers), TOLERANCE[dtype]
    plan = planned(model, **RULES[name][0], **more)
    theirs = torch_trained(model, plan, name, joined(shares), **more)
    one = train_embedded(plan, model, joined(shares))
    with servers(num_servers) as addresses:
        made = train_on(addresses, plan, model, shares)
        with connect(plan, addresses) as ps:
            for own in made.models:
                assert_same(own, ps, theirs, rtol)
    assert_close(made.tables, one.tables, rtol)
    np.testing.assert_allclose(mean_losses(made, shares), one.losses[0], rtol=rtol)


def mean_losses(made: Trained, shares: Sequence[Sequence[dp.Batch]]) -> list[float]:
    """The losses of joint batches: of each step the workers' by their samples."""
    return [
        sum(
            losses[step] * share[step].size / whole.size
            for losses, share in zip(made.losses, shares, strict=True)
            if step < len(share)
        )
        for step, whole in enumerate(joined(shares))
    ]


@pytest.mark.parametrize(("num_servers", "num_workers"), [(2, 1), (1, 2), (3, 2), (2, 3)])
@pytest.mark.parametrize("name", RULES)
def test_workers_learn_as_one_process_and_as_plain_torch(
    name: str, num_servers: int, num_workers: int
) -> None:
    compare(name, num_servers, num_workers, torch.float64)


@pytest.mark.parametrize("name", RULES)
def test_floats_of_four_bytes_are_close_to_plain_torch(name: str) -> None:
    compare(name, 2, 2, torch.float32)


@pytest.mark.parametrize("window", [2, 3, 9])
def test_windows_learn_as_in_plain_torch(window: int) -> None:
    compare("adam", 2, 3, torch.float64, window=window)


@pytest.mark.parametrize("num_servers", [1, 2, 3])
@pytest.mark.parametrize("name", RULES)
def test_a_worker_alone_learns_bit_for_bit_as_embedded(name: str, num_servers: int) -> None:
    model, (share,) = network(torch.float32), shares_of(1)
    plan = planned(model, **RULES[name][0])
    with servers(num_servers) as addresses:
        made = train_on(addresses, plan, model, [share])
    assert_same_bits(made, train_embedded(plan, model, share))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_prefetching_changes_no_bit(num_workers: int) -> None:
    model, shares = network(torch.float32), shares_of(num_workers)
    plan = planned(model, **RULES["adam"][0])
    with servers(2) as addresses:
        never = train_on(addresses, plan, model, shares)
    with servers(2) as addresses:
        assert_same_bits(train_on(addresses, plan, model, shares, prefetch=True), never)


@pytest.mark.parametrize("num_servers", [1, 3])
def test_no_bit_depends_on_who_is_late(num_servers: int) -> None:
    model, shares = network(torch.float32), shares_of(3)
    plan = planned(model, **RULES["adam"][0], window=2)
    with servers(num_servers) as addresses:
        prompt = train_on(addresses, plan, model, shares)
    for _ in range(2):
        with servers(num_servers, Jittery) as addresses:
            late = train_on(addresses, plan, model, shares, prefetch=True, pause=jitter)
        assert_same_bits(late, prompt)


@pytest.mark.parametrize("num_servers", [2, 3])
def test_the_number_of_servers_changes_no_bit(num_servers: int) -> None:
    model, shares = network(torch.float32), shares_of(2)
    plan = planned(model, **RULES["adagrad"][0])
    made = []
    for number in (1, num_servers):
        with servers(number) as addresses:
            made.append(train_on(addresses, plan, model, shares))
    assert_same_bits(*made)


# In the first epoch the second worker has a batch less, in the second one two more. Without a
# flush it then begins in the middle of a window.
@pytest.mark.parametrize("flushes", [True, False], ids=["flushed", "through"])
@pytest.mark.parametrize("window", [1, 3])
def test_epochs_end_together_however_many_batches_each_has(window: int, flushes: bool) -> None:
    model = network()
    plan = planned(model, **RULES["adam"][0], window=window)
    epochs = [[random_batches(1, 4), random_batches(2, 3)]]
    epochs.append([random_batches(3, 2), random_batches(4, 4)])

    def learn(ps: dp.Client, shares: Sequence[Sequence[dp.Batch]]) -> None:
        with dp.Worker(plan, copy.deepcopy(model), ps) as worker:
            for share in shares:
                train_epoch(worker, share)
                if flushes:
                    worker.flush()

    def work(rank: int, addresses: Sequence[str]) -> None:
        with connect(plan, addresses, consistency=Sync(), rank=rank, num_workers=2) as ps:
            learn(ps, [shares[rank] for shares in epochs])

    with dp.embedded(plan) as one:
        learn(one, [joined(shares) for shares in epochs])
    with servers(2) as addresses:
        at_once([lambda: work(0, addresses), lambda: work(1, addresses)])
        with connect(plan, addresses) as ps:
            assert_close(held(ps), held(one), rtol=1e-9)


def test_a_run_goes_on_where_another_has_ended() -> None:
    model, shares = network(), shares_of(2)
    plan = planned(model, **RULES["schedule"][0])
    one = train_embedded(plan, model, joined(shares) * 2)
    with servers(2) as addresses:
        train_on(addresses, plan, model, shares)
        made = train_on(addresses, plan, model, shares)
    assert_close(made.tables, one.tables, rtol=1e-9)


def fragile(model: Any, batch: dp.Batch) -> torch.Tensor:
    if float(batch.label.max()) > 1:
        raise ValueError("no such label")
    return click(model, batch)


def test_the_error_of_a_worker_stops_the_others() -> None:
    model, shares = network(), shares_of(2)
    plan = planned(model, {"fragile": fragile}, **RULES["sgd"][0])
    features = shares[1][2].features
    shares[1][2] = dp.Batch(features=features, labels=np.full(shares[1][2].size, 2.0))
    with servers(2) as addresses, pytest.raises(ExceptionGroup) as raised:
        train_on(addresses, plan, model, shares)
    stopped, failed = raised.value.exceptions
    assert isinstance(failed, ValueError)
    assert isinstance(stopped, dp.WorkerLostError)
    assert "worker 1 failed" in str(stopped)
    assert "ValueError: no such label" in str(stopped)
