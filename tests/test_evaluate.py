"""Measuring a model on held-back batches."""

from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.evaluate import evaluate, inference, label_of
from downpour.run import sigmoid_of_model


def batch(scores: list[float], labels: list[float], **more: Any) -> dp.Batch:
    return dp.Batch(dense={"score": np.array(scores)}, labels={"click": np.array(labels)}, **more)


class Given(torch.nn.Module):
    """Gives the score that the batch holds."""

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return batch.dense["score"]


def scores_of(model: Any, batch: dp.Batch) -> torch.Tensor:
    scores: torch.Tensor = model(batch)
    return scores


def test_results_are_over_all_batches() -> None:
    batches = [batch([0.9, 0.2], [1, 0]), batch([], []), batch([0.4, 0.6], [1, 0])]
    evaluation = evaluate(Given(), batches, scores_of, "click")
    assert evaluation.samples == 4
    assert evaluation.results["auc"] == 0.75
    assert evaluation.results["copc"] == pytest.approx(2 / 2.1)
    assert sum(each.count for each in evaluation.calibration) == 4
    assert evaluation.seconds > 0


def test_sample_weights_count() -> None:
    weighted = batch([0.9, 0.2, 0.4], [1, 0, 0], weights=[1.0, 1.0, 0.0])
    evaluation = evaluate(Given(), [weighted], scores_of, None)
    without = evaluate(Given(), [batch([0.9, 0.2], [1, 0])], scores_of, None)
    assert evaluation.results == pytest.approx(without.results)


def test_one_class_has_no_auc() -> None:
    evaluation = evaluate(Given(), [batch([0.5, 0.4], [1, 1])], scores_of, None)
    assert evaluation.results["auc"] is None
    assert evaluation.results["logloss"] is not None


@pytest.mark.parametrize(
    ("given", "predict", "message"),
    [
        (batch([0.5], [2]), scores_of, "labels must be 0 or 1, got 2.0 at sample 0"),
        (batch([1.5], [1]), scores_of, r"must be probabilities in \[0, 1\]"),
        (batch([0.5], [1]), lambda model, batch: 0.5, r"a tensor \[batch\] = \[1\], got float"),
        (batch([0.5], [1]), lambda model, batch: torch.ones(1, 1), r"got \[1, 1\]; give Run a"),
        (batch([], []), scores_of, "evaluated on nothing"),
    ],
)
def test_what_cannot_be_measured_is_said(given: dp.Batch, predict: Any, message: str) -> None:
    with pytest.raises(dp.DataError, match=message):
        evaluate(Given(), [given], predict, None)


def test_the_label_is_the_only_one_or_the_named_one() -> None:
    two = dp.Batch(labels={"click": [1, 0], "buy": [0, 0]})
    assert label_of(two, "buy").tolist() == [0, 0]
    with pytest.raises(dp.DataError, match=r"labels click, buy; say which .* with Run\(label=\)"):
        label_of(two, None)
    with pytest.raises(dp.DataError, match="has no label 'like'; it has: click, buy"):
        label_of(two, "like")
    with pytest.raises(dp.DataError, match="no label"):
        label_of(dp.Batch(dense={"x": [1.0]}), None)


def test_inference_leaves_the_modes_as_they_were() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2))
    model[1].eval()
    with inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model] == [True, False]
    assert torch.is_grad_enabled()


def test_the_default_prediction_is_the_sigmoid() -> None:
    assert sigmoid_of_model(Given(), batch([0.0], [1])).tolist() == [0.5]
