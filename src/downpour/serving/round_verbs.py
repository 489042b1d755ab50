"""The verbs of federated training, as the first server of a federation answers them."""

from __future__ import annotations

import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from downpour.errors import RefusedError, WorkerLostError
from downpour.serving.fields import MAX_NAMES, number, text, texts, whole
from downpour.serving.held import Account
from downpour.serving.one_round import Task
from downpour.serving.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Callable

    from downpour.serving.held import Held
    from downpour.serving.one_round import RoundView

    Verb = Callable[[dict[str, Any]], dict[str, Any]]

MAX_CLIENTS = 1 << 16
MAX_WAIT_S = 60.0
COUNTS = ("samples", "steps", "bytes_sent", "bytes_received")  # of a report, with losses and tables


class RoundVerbs:
    """Keeps the federation under way, or that which was the last.

    committed: gives the number of the last round that the tables have. No number is opened twice,
    also in a later federation: servers may still have what clients have staged for a round that was
    never committed, and would add it to an update of the same number.
    """

    def __init__(self, committed: Callable[[], int], held: Held | None = None) -> None:
        self._committed, self._held = committed, held
        self._lock = threading.Lock()  # guards all of what follows, where it changes
        self._rounds: Rounds | None = None
        self._first = 1  # the number of the federation's first round
        self._opened = 0  # the last that was opened, in any federation

    def verbs(self) -> dict[str, Verb]:
        """Those of clients, and then those of the coordinator."""
        return {
            "enroll": self._enroll,
            "ask": self._ask,
            "report": self._report,
            "client_beat": self._client_beat,
            "client_leave": self._client_leave,
            "begin_federation": self._begin,
            "coordinator_beat": self._coordinator_beat,
            "clients": self._clients,
            "open_round": self._open,
            "watch_round": self._watch,
            "close_round": self._close,
            "end_federation": self._end,
        }

    def check(self) -> None:
        """Drop clients, or a coordinator, that have fallen silent."""
        if self._rounds is not None:
            self._rounds.check()

    @property
    def rounds(self) -> Rounds:
        """Those of the federation. RefusedError before one has begun."""
        if self._rounds is None:
            raise RefusedError("no federation has begun on this server: its coordinator begins it")
        return self._rounds

    # What clients ask.

    def _enroll(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a client one of the federation; `not_yet` says why there is none: ask again."""
        who, settings = _who(request), text(request, "settings")
        if self._rounds is None:
            return {"not_yet": "no federation has begun"}
        try:
            return {"round": self._rounds.enroll(*who, settings)}
        except WorkerLostError as error:  # it is over, and another one may begin
            return {"not_yet": str(error)}

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """A round for the client to train in, or that all is over; `not_yet`: ask again."""
        who, wait_s = _who(request), _wait_s(request)
        answer = self.rounds.ask(*who, wait_s=wait_s)
        match answer:
            case Task():
                return asdict(answer)
            case str():
                return {"over": answer}
        return {"not_yet": True}

    def _report(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hear that a client's update of a round is on all servers."""
        who, at = _who(request), whole(request, "round", least=1)
        self.rounds.report(*who, at, _report_of(request))
        return {}

    def _client_beat(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hear that a client lives; the number of the round under way, or to come."""
        return {"round": self.rounds.beat(*_who(request))}

    def _client_leave(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let a client go: it wants no more rounds, or has failed with an error."""
        error = None if request.get("error") is None else text(request, "error")
        self.rounds.leave(*_who(request), error)
        return {}

    # What the coordinator asks.

    def _begin(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin a federation, unless another one is under way; the number of its first round."""
        incarnation = whole(request, "incarnation")
        num_clients = whole(request, "num_clients", least=1)
        settings, timeout_s = text(request, "settings"), number(request, "timeout_s")
        if num_clients > MAX_CLIENTS or not timeout_s:
            raise RefusedError(
                f"a federation has num_clients in [1, {MAX_CLIENTS}] and timeout_s > 0, got "
                f"{num_clients} and {timeout_s:g}"
            )
        with self._lock:
            rounds = self._rounds
            # Of a process that has ended its own, or lost it, this is a request that came late.
            if rounds is None or (rounds.is_over and rounds.coordinator != incarnation):
                first = max(self._committed(), self._opened) + 1
                if rounds is not None:
                    rounds.account.clear()  # nobody asks for its rounds any more
                rounds = Rounds(
                    num_clients,
                    settings=settings,
                    timeout_s=timeout_s,
                    first_round=first,
                    coordinator=incarnation,
                    account=Account(self._held, "a federation's reports"),
                )
                self._rounds, self._first = rounds, first
            rounds.coordinate(incarnation)
            return {"round": self._first}

    def _coordinator_beat(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hear that the coordinator lives."""
        self.rounds.coordinate(whole(request, "incarnation"))
        return {}

    def _clients(self, request: dict[str, Any]) -> dict[str, Any]:
        """All clients that have enrolled, also those that are gone."""
        views = self.rounds.coordinate(whole(request, "incarnation"))
        return {"clients": [asdict(view) for view in views]}

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin a round with some of the clients."""
        incarnation, at = whole(request, "incarnation"), whole(request, "round", least=1)
        sampled, deadline_s = request.get("sampled"), number(request, "deadline_s")
        if not isinstance(sampled, list) or not all(type(it) is int for it in sampled):
            raise RefusedError(
                f"a round has clients that are sampled, a list of numbers, got {sampled!r:.80}"
            )
        with self._lock:
            self.rounds.open(incarnation, at, sampled, deadline_s)
            self._opened = max(self._opened, at)
        return {}

    def _watch(self, request: dict[str, Any]) -> dict[str, Any]:
        """How the round under way stands, once it could be closed or after a while."""
        incarnation, wait_s = whole(request, "incarnation"), _wait_s(request)
        return _as_json(self.rounds.watch(incarnation, wait_s=wait_s))

    def _close(self, request: dict[str, Any]) -> dict[str, Any]:
        """End a round: no update of it counts from now on."""
        incarnation, at = whole(request, "incarnation"), whole(request, "round", least=1)
        return _as_json(self.rounds.close(incarnation, at))

    def _end(self, request: dict[str, Any]) -> dict[str, Any]:
        """End the federation, and tell its clients why."""
        self.rounds.end(whole(request, "incarnation"), text(request, "reason"))
        return {}


def _who(request: dict[str, Any]) -> tuple[int, int]:
    return whole(request, "client"), whole(request, "incarnation")


def _wait_s(request: dict[str, Any]) -> float:
    return min(number(request, "wait_s"), MAX_WAIT_S)


def _report_of(request: dict[str, Any]) -> dict[str, Any]:
    """What a client tells of its update, and nothing else: a coordinator relies on all of it."""
    report = request.get("report")
    if not isinstance(report, dict):
        raise RefusedError(f"an update comes with a report, a JSON object, got {report!r:.80}")
    losses = report.get("losses")
    if not isinstance(losses, dict) or len(losses) > MAX_NAMES:
        raise RefusedError(
            f"a report has the losses of at most {MAX_NAMES} programs by name, got {losses!r:.80}"
        )
    return {
        **{name: whole(report, name) for name in COUNTS},
        "losses": {program: _finite(program, loss) for program, loss in losses.items()},
        "tables": texts(report, "tables"),
    }


def _finite(program: str, loss: Any) -> float:
    # Compared before it is a float: a whole number may be too large for one.
    if type(loss) not in (int, float) or not abs(loss) <= sys.float_info.max:
        raise RefusedError(
            f"a report has finite losses, numbers, got {loss!r:.80} of program {program!r:.80}"
        )
    return float(loss)


def _as_json(view: RoundView) -> dict[str, Any]:
    return {
        "round": view.number,
        "sampled": list(view.sampled),
        "reports": {str(client): report for client, report in view.reports.items()},
        "dropped": {str(client): why for client, why in view.dropped.items()},
        "is_closed": view.is_closed,
    }
