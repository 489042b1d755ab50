"""Run refuses what cannot be, when it is made."""

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

import downpour as dp
from downpour.run import sigmoid_of_model
from tests.small_runs import Net, click, frame, small_run


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(dp.SettingError, match=r"no setting 'epoch'; did you mean 'epochs'\?"):
        small_run(epoch=2)
    with pytest.raises(dp.SettingError, match=r"'xyz'\. It has: model, losses, data"):
        replace(small_run(), xyz=2)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("model", Net, "model must be a torch.nn.Module, made, not its class"),
        ("losses", 5, "losses must be a function, a list or"),
        ("data", [1, 2], "data must be a Source, such as downpour.Files or downpour.Frame"),
        ("optimizer", "sgd", "optimizer must be a DownpourSGD"),
        ("eval_data", "test.csv", "eval_data must be a Source or None"),
        ("predict", "sigmoid", "predict must be a function"),
        ("label", 3, "label must be a label's name or None"),
        ("evaluate", {"auc": 1}, "evaluate must be a function"),
        ("early_stop", True, "early_stop must be an EarlyStop or None"),
        ("epochs", 0, "epochs must be an int >= 1, got 0"),
        ("epochs", None, "epochs must be an int >= 1, got None"),
        ("epochs", True, "epochs must be an int >= 1, got True"),
        ("eval_every", 1.5, r"eval_every must be an int >= 1, got 1\.5"),
        ("seed", -1, "seed must be an int >= 0, got -1"),
    ],
)
def test_a_bad_value_is_refused(setting: str, value: Any, message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        small_run(**{setting: value})


@pytest.mark.parametrize("losses", [[], [lambda model, batch: 0], [click, click], {"click": 1}])
def test_losses_must_be_named_functions(losses: Any) -> None:
    with pytest.raises(dp.PlanError):
        small_run(losses=losses)


@pytest.mark.parametrize("setting", [{"eval_every": 10}, {"early_stop": dp.EarlyStop()}])
def test_what_looks_at_evaluations_needs_one(setting: dict[str, Any]) -> None:
    with pytest.raises(
        dp.SettingError, match=f"Run.{next(iter(setting))} needs eval_data or evaluate"
    ):
        small_run(**setting)
    small_run(**setting, eval_data=frame())
    small_run(**setting, evaluate=lambda model: {"auc": 1.0})


@pytest.mark.parametrize("setting", [{"metric": ""}, {"patience": 0}, {"mode": "up"}])
def test_early_stop_refuses_bad_values(setting: dict[str, Any]) -> None:
    with pytest.raises(dp.SettingError, match=f"EarlyStop.{next(iter(setting))} must be"):
        dp.EarlyStop(**setting)


def test_early_stop_needs_a_metric_that_there_will_be() -> None:
    recall = dp.EarlyStop(metric="recall")
    with pytest.raises(dp.SettingError, match="of auc, auc_bucketed, logloss, copc, rmse, mae, or"):
        small_run(eval_data=frame(), early_stop=recall)
    small_run(eval_data=frame(), early_stop=recall, evaluate=lambda model: {"recall": 1.0})


def test_lists_that_are_gone_through_once_are_kept() -> None:
    run = small_run(
        parameter_list=(name for name in ["top.weight"]), no_grad_set=iter(["embedding"])
    )
    for _ in range(2):
        plan = run.optimizer.minimize(
            run.losses,
            model=run.model,
            example=next(iter(run.data.batches())),
            parameter_list=run.parameter_list,
            no_grad_set=run.no_grad_set,
        )
        assert plan.programs["click"].parameters == ("top.weight",)


def test_a_run_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        small_run().epochs = 3  # type: ignore[misc]


def test_settings_are_json() -> None:
    optimizer = dp.DownpourSGD(learning_rate=0.25, sparse={"embedding": dp.SGD(0.1)})
    settings = small_run(optimizer=optimizer, eval_data=frame()).settings()
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    assert settings["losses"] == ["click"]
    assert settings["predict"] == sigmoid_of_model.__name__
    assert settings["optimizer"]["learning_rate"] == 0.25
    assert "SGD" in settings["optimizer"]["sparse"]["embedding"]
