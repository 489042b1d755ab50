"""The verbs by which the members of a run find each other, meet, and tell that they live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from downpour.errors import RefusedError
from downpour.serving.fields import flag, number, text, whole
from downpour.serving.members import CHIEF

if TYPE_CHECKING:
    from collections.abc import Callable

    from downpour.serving.runs import Runs

    Verb = Callable[[dict[str, Any]], dict[str, Any]]

ANY_TEXT = "surrogatepass"  # JSON has texts that are no UTF-8


class MemberVerbs:
    """The verbs of the run under way."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def verbs(self) -> dict[str, Verb]:
        """In the order in which a member calls them, and then those of who watches or stops it."""
        return {
            "join": self._join,
            "beat": self._beat,
            "leave": self._leave,
            "meet": self._meet,
            "members": self._list_members,
            "halt": self._halt,
        }

    def _join(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a worker or the chief a member of the run, the first one says of which."""
        self._runs.join(
            text(request, "run"),
            *_who(request),
            num_workers=whole(request, "num_workers"),
            timeout_s=number(request, "timeout_s"),
            on_loss=text(request, "on_loss"),
        )
        return {}

    def _beat(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hear that a member lives, and what it reports; tell it whether to stop."""
        report = request.get("report")
        if not isinstance(report, dict):
            raise RefusedError("a beat brings a report, a JSON object")
        return {"stop": self._runs.members.beat(*_who(request), report)}

    def _leave(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let a member go: it has finished, or failed with an error."""
        error = None if request.get("error") is None else text(request, "error")
        self._runs.members.leave(*_who(request), error)
        return {}

    def _meet(self, request: dict[str, Any]) -> dict[str, Any]:
        """A barrier with an exchange; `not_yet` where it has to be asked again."""
        payload = request.get("payload", "")
        if not isinstance(payload, str):
            raise RefusedError("what is brought to a meeting must be a text")
        met = self._runs.members.meet(
            text(request, "name"),
            *_who(request),
            payload.encode(errors=ANY_TEXT),
            with_chief=flag(request, "with_chief"),
            wait_s=min(number(request, "wait_s"), 60.0),
        )
        if met is None:
            return {"not_yet": True}
        brought = {str(rank): data.decode(errors=ANY_TEXT) for rank, data in met.items()}
        return {"payloads": brought}

    def _list_members(self, request: dict[str, Any]) -> dict[str, Any]:
        """The members of the run with their last reports."""
        return {"members": [_member(it) for it in self._runs.members.snapshot()]}

    def _halt(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the workers of the run to stop after their step."""
        self._runs.members.request_stop(text(request, "reason"))
        return {}


def _who(request: dict[str, Any]) -> tuple[int, int]:
    return whole(request, "rank", least=CHIEF), whole(request, "incarnation")


def _member(member: Any) -> dict[str, Any]:
    return {
        "rank": member.rank,
        "incarnation": member.incarnation,
        "state": member.state,
        "seen_s_ago": member.seen_s_ago,
        "report": member.report,
        "error": member.error,
    }
