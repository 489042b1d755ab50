"""Copies between the host and a model's device, and which device that is."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from downpour import transfer
from downpour.errors import SettingError
from downpour.jagged import one_each
from downpour.transfer import HOST, Transfer, checked_device, device_of, moved, placed
from tests.devices import GPU, any_device, has_gpu, needs_gpu

device = any_device  # a fixture
ROWS = np.arange(12.0, dtype=np.float32).reshape(3, 4)


def test_on_the_host_nothing_is_copied() -> None:
    here = Transfer()
    tensor = here.to_device(ROWS)
    assert np.shares_memory(tensor.numpy(), ROWS)
    assert np.shares_memory(here.to_host(tensor.requires_grad_()), ROWS)
    assert np.shares_memory(here.send(ROWS).tensor().detach().numpy(), ROWS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (0, 4)], ids=str)
def test_what_comes_back_is_what_was_sent(
    device: torch.device, shape: tuple[int, ...], dtype: Any
) -> None:
    there, array = Transfer(device), np.full(shape, 7, dtype)
    tensor = there.to_device(array)
    assert tensor.device == device
    back = there.to_host(tensor)
    assert back.dtype == dtype
    assert np.array_equal(back, array)


def test_an_array_may_change_once_it_is_sent(device: torch.device) -> None:
    there, array = Transfer(device), ROWS.copy()
    sent = there.send(array)
    array[:] = -1.0
    assert np.array_equal(there.to_host(sent.tensor()), ROWS)


def test_what_was_fetched_is_the_callers(device: torch.device) -> None:
    there = Transfer(device)
    tensor = there.to_device(ROWS)
    fetched = there.fetch(tensor)
    fetched.array()[0] = -1.0
    assert (fetched.array()[0] == -1.0).all()
    assert np.array_equal(there.to_host(tensor), ROWS)


def test_what_was_fetched_is_as_of_then(device: torch.device) -> None:
    there = Transfer(device)
    tensor = there.to_device(ROWS)
    fetched = there.fetch(tensor)
    tensor.zero_()
    assert np.array_equal(fetched.array(), ROWS)


def test_arrays_that_may_not_be_written_are_placed(device: torch.device) -> None:
    for where in (HOST, device):
        tensor = placed(one_each(4), where)
        assert tensor.device == where
        assert Transfer(where).to_host(tensor).tolist() == [0, 1, 2, 3, 4]


def test_a_tensor_that_is_there_is_not_moved(device: torch.device) -> None:
    tensor = moved(torch.from_numpy(ROWS), device)
    assert tensor.device == device
    assert moved(tensor, device) is tensor
    assert np.array_equal(moved(tensor, HOST).numpy(), ROWS)


class Noted:
    """Stands in for a tensor, a stream and an event of a GPU, and notes what is asked of it."""

    device, shape, dtype = torch.device("cuda", 0), (3, 4), torch.float32

    def __init__(self, name: str, notes: list[str]) -> None:
        self._name, self._notes = name, notes

    def __getattr__(self, what: str) -> Any:
        def note(*others: Any, **_: Any) -> Any:
            names = [other._name for other in others if isinstance(other, Noted)]
            self._notes.append(" ".join([self._name, what, *names]))
            return Noted("end", self._notes) if what == "record_event" else self

        return note


def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[Transfer, list[str]]:
    """A transfer to it, and what is asked of its streams and tensors."""
    notes: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Noted("copies", notes))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Noted("compute", notes))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Noted("pinned", notes))
    monkeypatch.setattr(transfer, "placed", lambda *_: Noted("rows", notes))
    return Transfer(torch.device("cuda", 0)), notes


def test_what_computes_waits_for_rows_and_the_host_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, notes = pretended_gpu(monkeypatch)
    sent = gpu.send(ROWS)
    assert notes == ["copies record_event"]
    notes.clear()
    sent.tensor()
    assert notes == ["compute wait_event end", "rows record_stream compute"]


def test_the_host_waits_for_gradients_only_when_it_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, notes = pretended_gpu(monkeypatch)
    gradient: Any = Noted("gradient", notes)
    fetched = gpu.fetch(gradient)
    assert notes == [
        "gradient detach", "copies wait_stream compute", "pinned copy_ gradient",
        "gradient record_stream copies", "copies record_event",
    ]  # fmt: skip
    notes.clear()
    fetched.array()
    fetched.array()
    assert notes == ["end synchronize", "pinned numpy", "pinned numpy"]


@needs_gpu
def test_many_copies_on_their_way_do_not_mix() -> None:
    gpu = Transfer(GPU)
    busy, array = torch.ones(2048, 2048, device=GPU), np.empty((1000, 64), np.float32)
    sent, fetched = [], []
    for i in range(100):
        array[:] = i
        sent.append(gpu.send(array))
    for each in sent:
        busy = busy @ busy * 1e-4  # so that what is computed is behind
        fetched.append(gpu.fetch(each.tensor() * 2 + busy[0, 0] * 0))
    sent.clear()
    assert all((each.array() == 2 * i).all() for i, each in enumerate(fetched))


@needs_gpu
def test_memory_of_copies_is_used_again() -> None:
    gpu = Transfer(GPU)
    for _ in range(3):
        gpu.to_host(gpu.to_device(ROWS))
    before = torch.cuda.memory_reserved(GPU)
    for _ in range(100):
        gpu.to_host(gpu.to_device(ROWS))
    assert torch.cuda.memory_reserved(GPU) <= before


@pytest.mark.parametrize("given", ["cpu", "cpu:0", HOST])
def test_the_cpu_is_a_device(given: Any) -> None:
    assert checked_device("device", given) == HOST


@pytest.mark.parametrize("given", ["gpu", "", "meta", "cuda:-1", "cuda:x", 0, None, True])
def test_what_is_no_device_is_refused(given: Any) -> None:
    with pytest.raises(SettingError, match=r"Run.device must be 'cpu', 'cuda', 'cuda:N' or"):
        checked_device("Run.device", given)


@pytest.mark.skipif(has_gpu, reason="needs a machine without a GPU")
@pytest.mark.parametrize("given", ["cuda", "cuda:1", torch.device("cuda", 0)], ids=str)
def test_a_gpu_must_be_there(given: Any) -> None:
    with pytest.raises(SettingError, match=r"Run.device is 'cuda.*finds no GPU; use 'cpu'"):
        checked_device("Run.device", given)


def test_a_gpu_is_known_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checked_device("device", "cuda") == torch.device("cuda", 1)
    assert checked_device("device", "cuda:0") == torch.device("cuda", 0)
    with pytest.raises(SettingError, match=r"is 'cuda:2', and torch finds 2 GPUs, numbered from 0"):
        checked_device("device", "cuda:2")


def test_a_model_is_where_its_tensors_are(device: torch.device) -> None:
    layer, norm = torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(2, affine=False)
    assert device_of(layer) == HOST
    assert device_of(layer.to(device)) == device_of(norm.to(device)) == device
    assert device_of(torch.nn.ReLU()) == HOST
    assert device_of(torch.nn.ReLU(), device) == device


def test_a_model_is_on_one_device(device: torch.device) -> None:
    split = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1).to(device))
    with pytest.raises(SettingError, match=rf"the model is on cpu, {device}; it must be on one"):
        device_of(split)
