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
    assert evaluation.notes == ["auc, auc_bucketed are not defined: all labels are of one class"]


@pytest.mark.parametrize(
    ("given", "predict", "message"),
    [
        (batch([1.5], [1]), scores_of, r"must be probabilities in \[0, 1\]"),
        (batch([0.5], [1]), lambda model, batch: 0.5, r"a tensor \[batch\] = \[1\], got float"),
        (batch([0.5], [1]), lambda model, batch: torch.ones(1, 1), r"got \[1, 1\]; give Run a"),
        (batch([], []), scores_of, "evaluated on nothing"),
    ],
)
def test_what_cannot_be_measured_is_said(given: dp.Batch, predict: Any, message: str) -> None:
    with pytest.raises(dp.DataError, match=message):
        evaluate(Given(), [given], predict, None)


def test_a_regression_has_the_metrics_of_numbers() -> None:
    batches = [batch([0.5, 3.0], [0, 1]), batch([4.5, 2.0], [5, 2])]  # the first could be clicks
    evaluation = evaluate(Given(), batches, scores_of, None)
    assert evaluation.results == {
        **dict.fromkeys(["auc", "auc_bucketed", "logloss", "copc"]),
        "rmse": pytest.approx(np.sqrt((0.25 + 4 + 0.25) / 4)),
        "mae": pytest.approx((0.5 + 2 + 0.5) / 4),
    }
    assert evaluation.undefined["auc"] == "labels must be 0 or 1, got 5.0"
    assert "must be probabilities in [0, 1]" in evaluation.undefined["logloss"]
    assert evaluation.calibration == ()
    first, second = evaluation.notes
    assert first == "auc is not defined: labels must be 0 or 1, got 5.0"
    assert second.startswith("auc_bucketed, logloss, copc are not defined: scores must be")


def test_soft_labels_have_a_logloss() -> None:
    evaluation = evaluate(Given(), [batch([0.5, 0.25], [0.25, 1])], scores_of, None)
    logloss = -(0.25 * np.log(0.5) + 0.75 * np.log(0.5) + np.log(0.25)) / 2
    assert evaluation.results["logloss"] == pytest.approx(logloss)
    assert evaluation.results["copc"] == pytest.approx(1.25 / 0.75)
    assert evaluation.results["mae"] == pytest.approx((0.25 + 0.75) / 2)
    assert sum(each.count for each in evaluation.calibration) == 2
    why = "labels must be 0 or 1, got 0.25"
    assert evaluation.undefined == {"auc": why, "auc_bucketed": why}
    over = evaluate(Given(), [batch([1.5, 0.25], [0.25, 1])], scores_of, None)
    assert over.results["logloss"] is None
    assert over.results["mae"] == pytest.approx((1.25 + 0.75) / 2)


def test_sigmoids_are_not_compared_with_other_numbers() -> None:
    evaluation = evaluate(Given(), [batch([2.5], [3])], sigmoid_of_model, None)
    assert set(evaluation.results.values()) == {None}
    assert evaluation.undefined["rmse"] == (
        "labels must be from 0 to 1, got 3.0, as predictions are sigmoids unless Run(predict=) "
        "says otherwise; for a regression give one that returns what the labels are of"
    )


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
