"""Training of the pair model: the loss, its units, the metrics, and that one chain can be learned by heart."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import pytest
import torch
import torch.nn.functional as F

from triune.core.errors import UserError
from triune.core.training.groups import build_optimizer
from triune.core.training.optimizers import OptimizerConfig
from triune.protein.data.module import ProteinData
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel, PairOutput, distance_classes
from triune.protein.pair.task import PairTask, pair_loss
from triune.protein.predict.metrics import distances


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def chains(count: int = 2, residues: int = 40) -> dict[str, torch.Tensor]:
    """Smooth curves in a ball, so that there are contacts at all distances; the second chain ends in padding."""
    time = torch.linspace(0, 2 * torch.pi, residues)[:, None] * torch.arange(1, 5)
    waves = torch.cat([time.sin(), time.cos()], dim=1)
    coordinates = waves @ torch.randn(count, 8, 3) * 5.0
    mask = torch.ones(count, residues, dtype=torch.bool)
    mask[1:, -5:] = False
    resolved = mask.clone()
    resolved[:, 3] = False
    return {
        "tokens": torch.randint(20, (count, residues)).masked_fill(~mask, 23),
        "profile": torch.rand(count, residues, 20).softmax(-1),
        "residue_index": torch.arange(residues).expand(count, -1),
        "mask": mask,
        "resolved": resolved,
        "cb": coordinates,
    }


def test_loss_by_loops() -> None:
    batch = chains(2, 14)
    output = PairOutput(torch.randn(2, 14, 14), torch.randn(2, 14, 14, 64))
    distance = distances(batch["cb"])
    total, count = pair_loss(output, distance, batch["resolved"], batch["residue_index"], 0.7, 0.3, local_weight=0.25)
    expected = units = 0.0
    for b in range(2):
        for i in range(14):
            for j in range(14):
                if i == j or not (batch["resolved"][b, i] and batch["resolved"][b, j]):
                    continue
                weight = 1.0 if abs(i - j) >= 6 else 0.25
                contact = float((batch["cb"][b, i] - batch["cb"][b, j]).norm() < 8.0)
                log = F.logsigmoid(output.contacts[b, i, j] * (1 if contact else -1))
                label = distance_classes(distance[b, i, j])
                entropy = -output.distogram[b, i, j].log_softmax(-1)[label]
                expected += weight * (0.3 * entropy - 0.7 * log)
                units += weight
    assert torch.allclose(total, torch.as_tensor(expected), rtol=1e-5)
    assert float(count) == pytest.approx(units)


def test_padding_and_unresolved_residues_have_no_gradient() -> None:
    batch = chains()
    contacts = torch.randn(2, 40, 40, requires_grad=True)
    output = PairOutput(contacts, torch.randn(2, 40, 40, 64))
    pair_loss(output, distances(batch["cb"]), batch["resolved"], batch["residue_index"]).total.backward()
    known = batch["resolved"][:, :, None] & batch["resolved"][:, None]
    assert contacts.grad is not None
    assert not contacts.grad[~known].any()
    assert contacts.grad[known].count_nonzero() == known.sum() - batch["resolved"].sum()  # all but the diagonal


def test_nan_coordinates_are_ignored() -> None:
    batch = chains()
    batch["cb"][0, 7] = torch.nan  # declared resolved, yet without a position
    contacts = torch.randn(2, 40, 40, requires_grad=True)
    output = PairOutput(contacts, torch.randn(2, 40, 40, 64))
    loss = pair_loss(output, distances(batch["cb"]), batch["resolved"], batch["residue_index"])
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert contacts.grad is not None
    assert torch.isfinite(contacts.grad).all()
    assert not contacts.grad[0, 7].any()


def test_two_chains_weigh_as_their_pairs() -> None:
    """The sum over a batch is the sum over its chains, so that any split into micro-batches is the same."""
    task, batch = PairTask("tiny", {"recycles": 0}), chains()
    task.configure_model()
    task.eval()
    whole = task.loss(batch)
    parts = [task.loss({name: value[i : i + 1] for name, value in batch.items()}) for i in range(2)]
    assert torch.allclose(whole.total, parts[0].total + parts[1].total, rtol=1e-4)
    assert torch.allclose(whole.count, parts[0].count + parts[1].count)


def test_one_chain_is_learned_by_heart() -> None:
    """The first step of the ladder."""
    batch = {name: value[:1] for name, value in chains(1, 32).items()}
    model = PairModel(PairConfig.preset("fast", dim=16, depth=2, sequence_dim=32, sequence_depth=1, dropout_pair=0.0))
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.02, adamw_lr=0.003))
    distance = distances(batch["cb"])
    inputs = {name: batch[name] for name in ("tokens", "profile", "residue_index")}
    losses = []
    for _ in range(80):
        total, count = pair_loss(model(**inputs), distance, batch["resolved"], batch["residue_index"])
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append(float(total.detach() / count))
    model.eval()
    with torch.no_grad():
        predicted = model(**inputs).contacts[0] > 0
    i, j = torch.triu_indices(32, 32, 6)
    known = batch["resolved"][0, i] & batch["resolved"][0, j]
    truth = distance[0, i, j][known] < 8
    right = (predicted[i, j][known] & truth).sum()
    assert losses[-1] < 0.3 * losses[0]
    assert truth.sum() > 5
    assert right >= 0.95 * truth.sum()


class Chains(lightning.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.batches = [chains(2, 45) for _ in range(2)]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)  # pyright: ignore[reportArgumentType]

    val_dataloader = train_dataloader


def test_training_reports_the_metrics(tmp_path: Path) -> None:
    task, data = PairTask("tiny", optimizer=OptimizerConfig(lr=0.01)), Chains()
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, data)
    metrics = trainer.validate(task, data, verbose=False)[0]
    for name in ("long_p_at_l", "long_p_at_l5", "medium_p_at_l", "short_p_at_l"):
        chance, ceiling = metrics[f"val_{name}_chance"], metrics[f"val_{name}_ceiling"]
        assert 0 <= metrics[f"val_{name}"] <= ceiling <= 1
        assert 0 < chance < ceiling
    assert not task.metrics.values.numel()  # ready for the next evaluation
    task.export(tmp_path / "model")
    assert PairModel.from_pretrained(tmp_path / "model").config == task.config
    assert task.slots(data.batches[0]) == 2 * 45 * 45


def test_settings_change_the_preset() -> None:
    assert PairTask("fast", {"depth": 7}).config.depth == 7
    assert PairTask().config == PairConfig.preset("fast")
    with pytest.raises(UserError, match="did you mean 'dim'"):
        PairTask("fast", {"dimm": 7})


def test_the_exported_model_says_which_inputs_it_knows(tmp_path: Path) -> None:
    task, data = PairTask("tiny"), ProteinData()
    data.setup()
    task.model = task.build_model(data)
    task.export(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["inputs"] == {"profiles": 1.0, "msa_rows": 0}  # every built-in chain has a profile, none an alignment
    assert PairModel.from_pretrained(tmp_path).config == task.config


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"contact_weight": -1.0}, "model.contact_weight is -1.0, but must be at least 0."),
        ({"local_weight": -0.1}, "model.local_weight is -0.1, but must be at least 0."),
        ({"contact_weight": 0.0, "distogram_weight": 0.0}, "must be above 0 where model.distogram_weight is 0."),
    ],
)
def test_weights_that_train_uphill_or_nothing_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        PairTask(**values)
    assert sentence in str(error.value)
