"""Names and class paths of strategies: what they are here, or why they cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import Namespace

from triune.core.errors import UserError
from triune.core.training.run.strategies import usable

PATH = "lightning.pytorch.strategies."


def path(name: str, **arguments: Any) -> Namespace:
    return Namespace(class_path=PATH + name, init_args=Namespace(**arguments))


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("auto", "auto"), ("ddp", "ddp"), ("DDP", "DDP"), ("fsdp2", "fsdp2"), ("DDPStrategy", "ddp"),
        ("ModelParallelStrategy", "fsdp2"), (PATH + "ModelParallelStrategy", "fsdp2"), (PATH + "DDPStrategy", "ddp"),
        (path("ModelParallelStrategy", tensor_parallel_size=1, data_parallel_size="auto"), "fsdp2"),
        (path("ModelParallelStrategy", tensor_parallel_size="auto"), "fsdp2"), ("fsdp2_sharded", "fsdp2_sharded"),
        (path("ModelParallelStrategy", save_distributed_checkpoint=True), "fsdp2_sharded"),
        (path("ModelParallelStrategy", tensor_parallel_size=2), "fsdp2_tensor2"), ("fsdp2_tensor4", "fsdp2_tensor4"),
        (path("ModelParallelStrategy", tensor_parallel_size=2, save_distributed_checkpoint=True),
         "fsdp2_sharded_tensor2"),
    ],
)  # fmt: skip
def test_what_trains(given: Any, taken: str) -> None:
    assert usable(given) == taken


def test_a_class_with_arguments_and_one_of_ones_own_stay_what_they_are() -> None:
    for given in (path("DDPStrategy", static_graph=True), Namespace(class_path="mine.Strategy")):
        assert usable(given) is given


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ddp_spawn", "is ddp_spawn, but must be auto, ddp .* know nothing of its command line; choose one"),
        ("ddp_fork_find_unused_parameters_true", "know nothing of its command line"),
        ("ddp_notebook", "know nothing of its command line"),
        ("fsdp", "is fsdp, but must be .* flattens the weights"),
        ("FSDPStrategy", "flattens the weights"),
        (path("FSDPStrategy"), "flattens the weights"),
        ("deepspeed_stage_3", "is deepspeed_stage_3, but must be auto"),
        ("dp", "is dp, but must be auto"),
        ("xla", "is xla, but must be auto"),
        (path("DDPStrategy", start_method="spawn"), "know nothing of its command line"),
        (path("ModelParallelStrategy", tensor_parallel_size=0), "tensor_parallel_size is 0, .* at least 1; give 2"),
        (path("ModelParallelStrategy", data_parallel_size=2), "data_parallel_size is 2, .* leave it out"),
    ],
)
def test_what_does_not(given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        usable(given)
