"""The federations of the question `federated`, where `downpour client` finds them."""

from __future__ import annotations

from dataclasses import replace

import downpour as dp
from benchmarks.quality_torch import load_example


def everyone() -> dp.Federation:
    """That of the example: all 20 clients in every round."""
    federation: dp.Federation = load_example("movielens_federated").federation()
    return federation


def sampled() -> dp.Federation:
    """A quarter of the clients a round, and so more rounds."""
    return replace(everyone(), fraction=0.25, rounds=40)


def momentum() -> dp.Federation:
    """Servers step with momentum: fewer rounds."""
    return replace(everyone(), method=dp.FedAvgM(momentum=0.6))
