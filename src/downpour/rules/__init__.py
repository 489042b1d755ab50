"""Row update rules: frozen values that say how a row moves when a gradient arrives."""

from downpour.rules.adagrad import Adagrad, G2SumAdagrad, RowwiseAdagrad
from downpour.rules.adam import Adam, RowAdam, SharedAdam, UncorrectedAdam
from downpour.rules.adam_d2sum import AdamD2Sum
from downpour.rules.base import BaseRule, Rule
from downpour.rules.ftrl import Ftrl
from downpour.rules.momentum import Momentum
from downpour.rules.sgd import SGD
from downpour.rules.summary import Summary

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamD2Sum",
    "BaseRule",
    "Ftrl",
    "G2SumAdagrad",
    "Momentum",
    "RowAdam",
    "RowwiseAdagrad",
    "Rule",
    "SharedAdam",
    "Summary",
    "UncorrectedAdam",
]
