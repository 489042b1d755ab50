"""How good is a model that 20 clients train without showing their ratings? By round, plotted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import downpour as dp
from benchmarks import federated_runs
from benchmarks.quality_torch import load_example
from benchmarks.results import Result
from downpour.engine.cluster import Cluster
from downpour.engine.coordinator import Coordinator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

QUESTION = (
    "How good is DeepFM on the last 20% of MovieLens-100K's time, trained on the rest by 20 "
    "clients with the ratings of their own users alone, beside one process that has all ratings?"
)
LIMIT = 0.01  # by how much the AUC may stay behind that of central training
CENTRAL_EPOCHS = 20
FEDERATIONS = {
    "all 20 clients a round": "everyone",
    "5 of 20 clients a round": "sampled",
    "all 20, FedAvgM": "momentum",
}
PICTURE = Path(__file__).parents[1] / "docs" / "federated.svg"


def run(*, quick: bool = False) -> Result:
    """Train centrally and as each federation, and draw the curves."""
    central = train_centrally(2 if quick else CENTRAL_EPOCHS)
    best = max(central["auc_by_round"])
    figures: dict[str, Any] = {"central": {**central, "rounds": len(central["auc_by_round"])}}
    for name, function in FEDERATIONS.items():
        figures[name] = federate(function, best, quick=quick)
    gaps = {
        f"AUC of central training less that of {name}": best - figures[name]["auc"]
        for name in FEDERATIONS
    }
    if not quick:
        draw({name: figure["auc_by_round"] for name, figure in figures.items()})
    return Result(
        name="federated",
        question=QUESTION,
        command="python -m benchmarks federated",
        figures=figures,
        ratios=gaps,
        checks={f"every federation within {LIMIT} of central": max(gaps.values()) <= LIMIT},
    )


def train_centrally(epochs: int) -> dict[str, Any]:
    """The model of examples/movielens.py on all ratings, evaluated after each epoch."""
    run = replace(load_example("movielens").run(), epochs=epochs)
    metrics = dp.Trainer(run, quiet=True).train()
    results = [epoch["eval"] for epoch in metrics["epochs"]]
    best = max(results, key=lambda result: result["auc"])
    aucs = [result["auc"] for result in results]
    return {"auc": best["auc"], "logloss": best["logloss"], "auc_by_round": aucs}


def federate(function: str, central: float, *, quick: bool) -> dict[str, Any]:
    """Run a federation, each client a process: its last round, and the first within the limit."""
    federation = getattr(federated_runs, function)()
    changes: list[str] = []
    if quick:
        federation, changes = replace(federation, rounds=2), ["--rounds", "2"]
    coordinator = Coordinator(
        f"benchmarks.federated_runs:{function}",
        federation,
        cluster=Cluster(servers=2),
        changes=changes,
        quiet=True,
    )
    rounds: list[dict[str, Any]] = coordinator.train()["rounds"]
    aucs = [each["auc"] for each in rounds]
    near = [place for place, auc in enumerate(aucs, start=1) if auc >= central - LIMIT]
    return {
        "auc": aucs[-1],
        "logloss": rounds[-1]["logloss"],
        "rounds": len(rounds),
        f"first round within {LIMIT}": near[0] if near else "none",
        "MB sent a round": sum(each["bytes_sent"] for each in rounds) / len(rounds) / 1e6,
        "seconds a round": sum(each["seconds"] for each in rounds[1:]) / max(len(rounds) - 1, 1),
        "auc_by_round": aucs,
    }


def draw(curves: Mapping[str, Sequence[float]]) -> None:
    """Each curve over rounds, and the best of central training, as docs/federated.svg."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(curves.items()):
        axes.plot(range(1, len(values) + 1), values, color=f"C{place}", label=name, linewidth=1.8)
    best = max(curves["central"])
    axes.axhspan(best - LIMIT, best, color="C0", alpha=0.12, label=f"within {LIMIT} of its best")
    axes.set(xlabel="round (of central training: epoch)", ylabel="AUC on later ratings")
    axes.set_ylim(0.66, None)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(PICTURE, format="svg", metadata={"Date": None, "Creator": None})
