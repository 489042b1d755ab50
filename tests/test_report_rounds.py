from __future__ import annotations

import re
from typing import Any

import pytest

from downpour.report import render_report
from tests.test_report import run_metrics, text_of

ROUND_COLUMNS = [
    *("Round", "Sampled", "Heard from", "Dropped", "Samples", "Loss", "AUC", "Log loss"),
    *("Sent", "Received", "Time"),
]


def round_told(number: int, **changes: Any) -> dict[str, Any]:
    """What metrics.json tells of a round that all of three clients took part in."""
    return {
        "round": number,
        "sampled": [0, 1, 4],
        "heard_from": [0, 1, 4],
        "dropped": {},
        "is_committed": True,
        "samples": 5120,
        "loss": 0.61,
        "auc": 0.71,
        "logloss": 0.6,
        "bytes_sent": 3 * 2**20,
        "bytes_received": 2**19,
        "seconds": 2.31,
    } | changes


def federated_metrics(*rounds: dict[str, Any]) -> dict[str, Any]:
    """A federation's run of the given rounds; three of them by default, the second too small."""
    late = {"0": "late: no update within 30 s", "4": "lost: silent for 12.1 s"}
    told = rounds or (
        round_told(1),
        round_told(2, heard_from=[1], dropped=late, is_committed=False, auc=0.79),
        round_told(3, auc=0.7812),
    )
    metrics = run_metrics() | {"rounds": list(told), "curves": {"loss": [[50, 0.6], [100, 0.5]]}}
    metrics["epochs"] = [metrics["epochs"][0] | {"epoch": each["round"]} for each in told]
    metrics["settings"]["federation"] = {
        "clients": 20,
        "rounds": 20,
        "method": "FedAvg(local_steps=None, local_epochs=1)",
        "fraction": 0.15,
        "quorum": 0.5,
        "deadline_s": 30.0,
        "outgoing": [],
    }
    return metrics


def rounds_section(metrics: dict[str, Any]) -> list[str]:
    """The texts of the section of rounds; of its charts only what is not drawn."""
    page = render_report(metrics)
    section = page[page.index("<h2>Rounds</h2>") : page.index("<h2>Calibration</h2>")]
    undrawn = re.sub(r"<svg.*?</svg>", "", section, flags=re.DOTALL)
    return [text.strip() for text in re.findall(r">([^<>]+)<", undrawn) if text.strip()]


def test_rounds_are_told_in_a_grid() -> None:
    texts = rounds_section(federated_metrics())
    assert texts[1] == (
        "A federation of 20 clients by FedAvg. Sampled: 15.0 % of those present. "
        "Quorum: 50.0 % of those sampled. Deadline: 30.0 s."
    )
    grid = [texts[start : start + 11] for start in range(2, 2 + 4 * 11, 11)]
    numbers = ["5,120", "0.6100", "0.7100", "0.6000", "3 MiB", "512 KiB", "2.3 s"]
    assert grid[0] == ROUND_COLUMNS
    assert grid[1] == ["1", "3", "3", "0", *numbers]
    assert grid[2][:4] == ["2 (not counted)", "3", "1", "2"]
    assert grid[3][6] == "0.7812"


def test_the_best_round_that_counts_is_set_apart() -> None:
    page = render_report(federated_metrics())
    assert re.findall(r'class="best">\s*<th scope="row">([^<]*)<', page) == ["3"]
    assert "Set apart: the round of the best AUC. Not counted: too few clients" in page
    assert "Best: 0.7812 in round 3." in page


def test_the_round_that_early_stop_keeps_is_set_apart() -> None:
    told = {
        "best": {"metric": "logloss", "value": 0.6, "epoch": 1, "step": 3},
        "model": {"epoch": 1, "step": 3, "is_best": True},
    }
    page = render_report(federated_metrics() | told)
    assert re.findall(r'class="best">\s*<th scope="row">([^<]*)<', page) == ["1"]
    assert "Set apart: the round of the best Log loss, whose model is kept." in page


def test_features_of_clients_are_not_counted_and_that_is_said() -> None:
    page = render_report(federated_metrics() | {"features": {}})
    assert "Not counted: the data of clients stays with them." in page


def test_one_round_is_not_set_apart() -> None:
    text = "\n".join(rounds_section(federated_metrics(round_told(1))))
    assert "Set apart" not in text
    assert "Not counted" not in text
    assert "Best" not in text


def test_charts_show_auc_and_bytes_by_round() -> None:
    page = render_report(federated_metrics())
    for expected in ['aria-label="AUC over rounds"', 'aria-label="MiB sent over rounds"']:
        assert expected in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_rounds_without_evaluation_say_so() -> None:
    texts = rounds_section(federated_metrics(*(round_told(n, auc=None) for n in (1, 2))))
    assert (
        "No AUC by round was recorded: it was not defined, as where all labels are of one class."
    ) in texts
    assert "Set apart" not in "".join(texts)


def test_dropped_clients_are_named_with_the_reason() -> None:
    texts = rounds_section(federated_metrics())
    assert texts[-3:] == [
        "Dropped clients",
        "Round 2: client 0 was dropped: late: no update within 30 s",
        "Round 2: client 4 was dropped: lost: silent for 12.1 s",
    ]
    assert "Dropped clients" not in rounds_section(federated_metrics(round_told(1)))


@pytest.mark.parametrize(
    ("num_dropped", "last"),
    [
        (20, "Round 2: client 9 was dropped: left"),
        (21, "And 1 more."),
        (2_020, "And 2,000 more."),
    ],
)
def test_many_dropped_clients_are_counted(num_dropped: int, last: str) -> None:
    first = {str(client): "left" for client in range(10)}
    second = {str(client): "left" for client in range(num_dropped - 10)}
    texts = rounds_section(
        federated_metrics(round_told(1, dropped=first), round_told(2, dropped=second))
    )
    assert texts[-1] == last
    assert len(texts) - texts.index("Dropped clients") - 1 == min(num_dropped, 21)


def test_a_federation_speaks_of_rounds_not_epochs() -> None:
    text = text_of(federated_metrics())
    assert "Trained to its end in 6.0 s: 3 rounds, 150 steps, 15,000 samples." in text
    assert "Dotted: ends of rounds." in text
    assert "epoch" not in text.replace("local_epochs", "").lower()


def test_a_federation_tells_no_staleness_of_steps() -> None:
    assert "Pulled rows lagged" in text_of(run_metrics())
    assert "Pulled rows lagged" not in text_of(federated_metrics())


def test_a_run_without_rounds_has_no_such_section() -> None:
    for metrics in (run_metrics(), run_metrics() | {"rounds": []}):
        assert "<h2>Rounds</h2>" not in render_report(metrics)
        assert "2 epochs" in text_of(metrics)


def test_a_federation_that_failed_at_once_says_so() -> None:
    metrics = federated_metrics() | {"rounds": [], "epochs": [], "stopped": "failed: no client"}
    page = render_report(metrics)
    assert "<h2>Rounds</h2>" not in page
    assert "Not one round was finished. no client" in page
    assert "No round was finished." in page


def test_values_of_rounds_are_escaped() -> None:
    evil = "<script>alert('x')</script>"
    metrics = federated_metrics(round_told(1, dropped={evil: evil}))
    metrics["settings"]["federation"]["method"] = evil
    assert "<script" not in render_report(metrics)
    assert f"Round 1: client {evil} was dropped: {evil}" in text_of(metrics)


@pytest.mark.parametrize("part", sorted(round_told(1)))
def test_each_part_of_a_round_may_be_missing_or_odd(part: str) -> None:
    whole = round_told(2) | {"auc": None, "bytes_sent": None}  # drawn in the other tests
    without = {name: whole[name] for name in whole if name != part}
    metrics = federated_metrics(round_told(1)) | {"curves": {}, "calibration": []}
    odd = [None, True, "x", [None], {"a": None}, -1, 10**400, float("nan")]
    for each in (without, *(whole | {part: value} for value in odd)):
        assert "Deadline: 30.0 s." in rounds_section(metrics | {"rounds": [each]})[1]


@pytest.mark.parametrize("odd", [[None, 3, {}], {"a": {"round": 1}}, "rounds", 7], ids=repr)
def test_odd_rounds_are_no_rounds(odd: object) -> None:
    assert "<h2>Rounds</h2>" not in render_report(federated_metrics() | {"rounds": odd})


@pytest.mark.parametrize(
    ("federation", "expected"),
    [
        (None, "No setting of the federation was recorded."),
        ([1], "No setting of the federation was recorded."),
        ({"clients": 1}, "A federation of 1 client."),
        ({"method": "FedProx(mu=0.1)"}, "A federation by FedProx."),
        ({"clients": "x", "method": 3, "quorum": 1}, "Quorum: 100.0 % of those sampled."),
        ({"deadline_s": 600.0, "fraction": None}, "Deadline: 10 min 0 s."),
    ],
    ids=repr,
)
def test_the_setting_is_told_as_far_as_known(federation: object, expected: str) -> None:
    metrics = federated_metrics(round_told(1)) | {"settings": {"federation": federation}}
    assert rounds_section(metrics)[1] == expected


@pytest.mark.parametrize(
    ("auc", "num_bytes"), [(0.5, 0), (-1e-300, -5), (1e299, 1e299), (0.0, 2**40)], ids=repr
)
def test_any_number_of_a_round_can_be_drawn(auc: float, num_bytes: float) -> None:
    rounds = [round_told(n, auc=auc, bytes_sent=num_bytes) for n in (3, 2, 2)]
    assert "by round" in "".join(rounds_section(federated_metrics(*rounds)))
