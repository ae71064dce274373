"""What a change of each option of a run means."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from triune.core.errors import UserError
from triune.core.training.run.changes import FREE, RULES, STATES, Change, accept, changes
from triune.core.training.run.folder import RunFolder


def run(tmp_path: Path, **options: object) -> RunFolder:
    (tmp_path / "config.yaml").write_text("# triune toy fit\n" + yaml.safe_dump(options))
    return RunFolder(tmp_path)


def found(tmp_path: Path, before: dict, now: dict, default: dict | None = None) -> list[Change]:
    return changes(run(tmp_path, **before), yaml.safe_dump(now), yaml.safe_dump(default or {}))


def test_groups_that_come_and_go_are_seen(tmp_path: Path) -> None:
    lora = {"model": {"lora": {"rank": 8, "alpha": 16}}}
    assert found(tmp_path, lora, lora) == []
    assert found(tmp_path, {"model": {"lora": None}}, lora) == [
        Change("model.lora.alpha", None, 16), Change("model.lora.rank", None, 8)
    ]  # fmt: skip
    assert found(tmp_path, lora, {"model": {"lora": None}}) == [
        Change("model.lora.alpha", 16, None), Change("model.lora.rank", 8, None)
    ]  # fmt: skip


def test_an_option_that_is_younger_than_the_run_had_its_default(tmp_path: Path) -> None:
    assert found(tmp_path, {}, {"model": {"new": 1}}, {"model": {"new": 1}}) == []
    assert found(tmp_path, {}, {"model": {"new": 2}}, {"model": {"new": 1}}) == [Change("model.new", 1, 2)]


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("trainer.max_steps", False), ("trainer.logger.init_args.name", False), ("threads", False),
        ("trainer.devices", False), ("model.optimizer.lr", False), ("model.optimizer.betas", False),
        ("model.schedule.warmup", False), ("model.transformer.attention_dropout", False), ("data.workers", False),
        ("model.optimizer.name", True), ("model.optimizer.layer_decay", True), ("model.transformer.dim", True),
        ("model.pretrained", True), ("trainer.precision", True), ("trainer.accumulate_grad_batches", True),
        ("trainer.limit_train_batches", True), ("trainer.plugins", True), ("seed_everything", True),
        ("data.batch_size", False), ("data.files", True), ("data.augment.flip", True), ("anything", True),
    ],
)  # fmt: skip
def test_what_may_change(tmp_path: Path, name: str, refused: bool) -> None:
    change = Change(name, 1, 2)
    if refused:
        with pytest.raises(UserError, match=rf"--{name} is 2, but this run was trained with 1: .*--model.pretrained"):
            accept([change], run(tmp_path), "toy")
    else:
        assert f"{name} was 1, now 2" in accept([change], run(tmp_path), "toy")


def test_averages_may_move_at_another_rate_but_not_begin_or_end() -> None:
    assert not Change("model.ema", 0.9, 0.99).rule.refused
    assert Change("model.ema", None, 0.9).rule.refused
    assert Change("model.ema", 0.9, None).rule.refused


def test_several_changes_are_refused_or_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data.seed is 2.*; --model.dim is 2.*Leave them out"):
        accept([Change("data.seed", 1, 2), Change("model.dim", 1, 2), Change("threads", 1, 2)], run(tmp_path), "toy")
    said = accept([Change("model.optimizer.lr", 1, 2), Change("model.optimizer.eps", 1, 2)], run(tmp_path), "toy")
    assert said.count("from the next step on") == 1
    assert accept([], run(tmp_path), "toy") == ""


def test_no_rule_stands_behind_one_that_takes_all_its_options() -> None:
    names = list(RULES)
    assert names[-1] == "*" and RULES["*"] is STATES and RULES["threads"] is FREE
    for index, name in enumerate(names):
        earlier = [wide for wide in names[:index] if wide.endswith("*") and name.startswith(wide[:-1])]
        assert not earlier, f"{name} is never reached: {earlier}"
