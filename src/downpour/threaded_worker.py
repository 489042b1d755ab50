"""A worker that trains on several batches at a time, each on a thread with a copy of the model."""

from __future__ import annotations

import contextlib
import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

import torch

from downpour.errors import SettingError
from downpour.no_grad import uncompiled
from downpour.plan.program import Compute
from downpour.remote.half_async import HalfAsyncClient, ReleasedError, Threads
from downpour.transfer import HOST
from downpour.worker import StepResult, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downpour.features import Batch
    from downpour.lookup import TableKeys
    from downpour.plan.plan import Plan
    from downpour.remote.half_async import ThreadClient
    from downpour.step import Step

T = TypeVar("T")


class ThreadedWorker:
    """Trains `model` by a client of `HalfAsync`, on as many batches at a time as it has threads.

    In `step_many` each thread computes the gradients of one batch on the same dense values; merged,
    means weighted by samples, they are one push, one step of each table's rules, and the next step
    reads once it is acknowledged. So it equals a `Worker` on the batches joined into one, as sync
    training of as many workers does and with the same exceptions. What other workers push may come
    between the reads of two threads.

    The first thread is the caller's and trains the model itself, whose buffers, as BatchNorm's, are
    thus those of a share of the batches. The others train copies made here, in the mode (training
    or not) that the model is in. Losses are called by all threads at once, so they must compute
    with the model that they are given. Dropout draws from torch's one generator, in whatever order
    the threads come to it. torch's own threads are divided among these until `close`.

    Rows and batches go to the model's device, as a Worker's. A step is atomic, too: where one
    thread raises an error, nothing is pushed. Raises SettingError for another client, and for a
    model that cannot be copied.
    """

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        client: HalfAsyncClient,
        *,
        device: str | torch.device = HOST,
    ) -> None:
        if not isinstance(client, HalfAsyncClient):
            raise SettingError(
                "ThreadedWorker needs a client of connect(consistency=HalfAsync(...)), got "
                f"{type(client).__name__}; take Worker for others"
            )
        self.plan, self.model, self.client = plan, model, client
        self._threads = Threads(client)
        first, *others = self._threads.clients
        self._workers = [_ThreadWorker(plan, model, first, device=device)]
        started = replace(plan, startup=None)  # a copy has the values that it gave the model
        self._workers += [
            _ThreadWorker(started, _copied(model, client), it, device=device) for it in others
        ]
        self.phases_s = self._workers[0].phases_s  # of the first thread
        self.gradient_norms = self._workers[0].gradient_norms
        self._modes: list[bool] = []
        self._pool = ThreadPoolExecutor(max(len(others), 1), "downpour thread")
        self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(max(self._torch_threads // client.threads, 1))
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Push what windows have left, leave the tables' values in the model, end the threads."""
        if self._is_closed:
            return
        try:
            self.flush()
            self.pull_dense()
        finally:
            self._end(wait=True)

    def step_many(
        self, program: str, batches: Sequence[Batch | None], *, goes_on: bool = True
    ) -> list[StepResult]:
        """Run a program on batches, one a thread; the result of each, in their order.

        There may be fewer batches than threads, at the end of the data; None stands for no batch
        and has no result. goes_on: as in Worker.step. Raises what Worker.step does.
        """
        if len(batches) > len(self._workers):
            raise SettingError(
                f"step_many: {len(batches)} batches are too many for {len(self._workers)} threads; "
                "give one a thread, or connect with HalfAsync(threads=...)"
            )
        self._follow_mode()
        none = [None] * (len(self._workers) - len(batches))
        calls = [
            partial(worker.train, program, batch)
            for worker, batch in zip(self._workers, [*batches, *none], strict=True)
        ]
        with self._as_compiled(program):
            results = self._at_once(calls)
        return [result for result in results if result is not None]

    def idle(self, program: str) -> None:
        """Take part in a step without a batch."""
        self.step_many(program, [], goes_on=False)

    def prefetch(self, program: str, batch: Batch) -> None:
        """Do nothing: rows are read when the push before is acknowledged, and the threads find the
        keys of their batches at the same time.
        """

    def flush(self) -> None:
        """Push the dense gradients of windows that are not full; new ones begin with a pull."""
        self._at_once([worker.flush for worker in self._workers])

    def pull_dense(self) -> None:
        """Read the dense parameters of all programs into the model."""
        self._threads.begin_step()
        for worker in self._workers:
            worker.pull_dense()

    def rows(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        """See nn.RowSource."""
        return self._workers[0].rows(table, features, batch)

    def _at_once(self, calls: Sequence[Callable[[], T]]) -> list[T | None]:
        """What a call of each thread gives, None where it was released; raises the first error."""
        self._threads.begin_step()
        try:
            waiting = [self._pool.submit(self._guarded, call) for call in calls[1:]]
            results = [self._guarded(calls[0]), *(it.result() for it in waiting)]
        except BaseException as error:  # as Ctrl-C while others compute: they end when they have
            self._threads.fail(error)
            self._end(wait=False)
            raise
        self._threads.check()
        return results

    def _end(self, *, wait: bool) -> None:
        self._is_closed = True
        self._pool.shutdown(wait=wait, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    def _guarded(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except ReleasedError:
            return None
        except BaseException as error:  # noqa: BLE001 (raised by `check`)
            self._threads.fail(error)
            return None

    def _follow_mode(self) -> None:
        """Put the copies into the model's mode, module by module."""
        modes = [module.training for module in self.model.modules()]
        if modes != self._modes:
            for worker in self._workers[1:]:
                for module, mode in zip(worker.model.modules(), modes, strict=True):
                    module.training = mode
            self._modes = modes

    def _as_compiled(self, program: str) -> contextlib.AbstractContextManager[object]:
        """Where outputs are detached, nothing compiled may run. That holds for all threads, so that
        it must not end with the first of them that has computed.
        """
        ops = self.plan.program(program).ops_of(Compute)
        return uncompiled() if any(op.detached for op in ops) else contextlib.nullcontext()


class _ThreadWorker(Worker):
    """The worker of one thread: it pushes nothing before all threads have computed."""

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        client: ThreadClient,
        *,
        device: str | torch.device,
    ) -> None:
        super().__init__(plan, model, client, device=device)
        self._threads = client.threads

    def train(self, program: str, batch: Batch | None) -> StepResult | None:
        """Take part in a step of all threads, with a batch or without."""
        if batch is not None:
            return self.step(program, batch)
        self.idle(program)
        return None

    def idle(self, program: str) -> None:
        """Take part without a batch."""
        self._threads.end_compute()
        super().idle(program)

    def _compute(self, op: Compute, work: Step) -> None:
        super()._compute(op, work)
        with self._timed("wait for workers"):
            self._threads.end_compute()


def _copied(model: torch.nn.Module, client: HalfAsyncClient) -> torch.nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise SettingError(
            f"HalfAsync(threads={client.threads}) trains copies of the model, and copy.deepcopy "
            f"cannot copy this one: {error}; take threads=1 or another consistency"
        ) from error
