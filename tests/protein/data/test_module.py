"""Protein data: the built-in set, batches of crops, the order of training and validation, exact resume."""

import pickle
import warnings

import lightning
import numpy as np
import pytest
import torch

from triune.core.errors import UserError
from triune.protein.data.crops import Crops
from triune.protein.data.loader import Batches, ChainsByLength, Draw, ShuffledChains
from triune.protein.data.module import ProteinData
from triune.protein.data.store import Entry, Writer, builtin_set, open_set
from triune.protein.predict.metrics import ContactMetrics, contact_targets
from triune.protein.read.alphabet import GAP, PAD, decode, encode


def entry(name: str, length: int, rows: int = 0, seed: int = 0, profile: bool = True) -> Entry:
    rng = np.random.default_rng([seed, length])
    tokens = rng.integers(0, 20, length).astype(np.uint8)
    cb = rng.normal(0, 10, (length, 3)).astype(np.float32)
    cb[::7] = np.nan
    msa = deletions = None
    if rows:
        msa = rng.integers(0, GAP + 1, (rows, length)).astype(np.uint8)
        msa[0] = tokens
        # The first column of a row tells its number.
        msa[1:, 0] = np.arange(1, rows) % 20
        deletions = rng.integers(0, 12, (rows, length)).astype(np.uint8)
    chances = rng.dirichlet(np.ones(20), length) if profile else None
    positions = np.arange(length) + 5 * (np.arange(length) > 10)
    return Entry(name, tokens, positions, cb, chances, msa, deletions, 17.0 if rows else float("nan"))


def written(folder, entries: list[Entry], val: int = 2):
    folder.mkdir(exist_ok=True)
    writer = Writer(folder)
    for one in entries:
        writer.add(one)
    for row in writer.rows[len(entries) - val :]:
        row["split"] = "val"
    writer.finish({"source": "made up"})
    return folder


@pytest.fixture
def folder(tmp_path):
    """Ten chains of 20 to 110 residues; the last two are for validation."""
    return written(tmp_path / "set", [entry(f"chain{n}", 20 + 10 * n, rows=3 * n, profile=n != 1) for n in range(10)])


# -- sets -------------------------------------------------------------------------------------------------------------


def test_a_set_holds_what_was_written(folder):
    chains = open_set(folder)
    assert len(chains) == 10
    assert chains.of("val").tolist() == [8, 9]
    assert chains.lengths.tolist() == [20 + 10 * n for n in range(10)]
    original = entry("chain4", 60, rows=12)
    here = slice(chains.start[4], chains.start[5])
    assert decode(chains.arrays["tokens"][here]) == decode(original.tokens)
    np.testing.assert_array_equal(chains.arrays["cb"][here], original.cb)
    np.testing.assert_allclose(chains.arrays["profile"][here] / 255, original.profile, atol=0.5 / 255 + 1e-9)
    letters, inserted = chains.alignment(4)
    np.testing.assert_array_equal(letters, original.msa)
    np.testing.assert_array_equal(inserted, np.minimum(original.deletions, 7))
    assert chains.alignment(0) is None
    assert chains.has_profile.tolist() == [True, False] + [True] * 8


def test_a_set_is_opened_anew_in_another_process(folder):
    chains = open_set(folder)
    copied = pickle.dumps(chains)
    assert len(copied) < 1000
    np.testing.assert_array_equal(pickle.loads(copied).arrays["tokens"], chains.arrays["tokens"])


def test_damaged_and_foreign_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is no prepared set of chains"):
        open_set(tmp_path / "nothing")
    with (folder / "cb").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="set is damaged, prepare it again"):
        open_set(folder)
    (folder / "meta.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="has format 99"):
        open_set(folder)


def test_the_built_in_set_is_proteins():
    chains = builtin_set()
    assert (len(chains.of("train")), len(chains.of("val"))) == (480, 60)
    assert chains.lengths.min() >= 50
    assert chains.lengths.max() <= 128
    assert len(set(chains.cluster)) == len(chains)
    assert chains.arrays["tokens"].max() < 20
    np.testing.assert_allclose(chains.arrays["profile"].sum(1) / 255, 1, atol=0.05)
    # Neighbours along the chain are 4 to 7 Å apart, and the chain folds.
    here = slice(chains.start[3], chains.start[4])
    cb = torch.from_numpy(chains.arrays["cb"][here])
    steps = (cb[1:] - cb[:-1]).norm(dim=1)
    assert 4.5 < float(steps.mean()) < 6.5
    targets = contact_targets(cb, torch.ones(len(cb), dtype=torch.bool))
    assert 2 < float((targets == 1).sum() / len(cb)) < 12


def test_no_built_in_chain_is_of_the_shared_test_or_validation_split(data_folder):
    lines = (data_folder / "protein" / "split.tsv").read_text().splitlines()[1:]
    split = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
    assert {split[name] for name in builtin_set().names.tolist()} == {"train"}


# -- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_cut_filled_up_and_masked(folder):
    chains = open_set(folder)
    batch = Crops(chains, rows=5)[Draw(np.array([9, 1, -1]), 64, position=3)]
    for name, shape, dtype in (
        ("tokens", (3, 64), torch.int64),
        ("residue_index", (3, 64), torch.int64),
        ("mask", (3, 64), torch.bool),
        ("resolved", (3, 64), torch.bool),
        ("cb", (3, 64, 3), torch.float32),
        ("profile", (3, 64, 20), torch.float32),
        ("msa", (3, 5, 64), torch.int64),
        ("deletions", (3, 5, 64), torch.uint8),
        ("neff", (3,), torch.float32),
    ):
        assert (tuple(batch[name].shape), batch[name].dtype) == (shape, dtype), name
    assert batch["name"] == ["chain9", "chain1", ""]
    assert batch["mask"].sum(1).tolist() == [64, 30, 0]
    assert (batch["tokens"][1, 30:] == PAD).all()
    assert batch["has_profile"].tolist() == [True, False, False]
    assert not batch["profile"][1].any()
    assert not batch["resolved"][2].any()
    assert torch.isfinite(batch["cb"]).all()
    # The stretch of the long chain is one stretch of all arrays.
    original = entry("chain9", 110, rows=27)
    first = decode(original.tokens).index(decode(batch["tokens"][0].numpy()))
    assert first > 0
    assert batch["residue_index"][0].tolist() == original.positions[first : first + 64].tolist()
    resolved = ~np.isnan(original.cb[first : first + 64, 0])
    np.testing.assert_array_equal(batch["resolved"][0].numpy(), resolved)
    np.testing.assert_array_equal(batch["cb"][0][resolved].numpy(), original.cb[first : first + 64][resolved])
    assert torch.equal(batch["msa"][0, 0], batch["tokens"][0])
    stretch = {
        decode(row): inserted
        for row, inserted in zip(original.msa[:, first : first + 64], original.deletions[:, first : first + 64])
    }
    rows = [decode(row.numpy()) for row in batch["msa"][0]]
    assert len(set(rows)) == 5
    for row, inserted in zip(rows, batch["deletions"][0]):
        np.testing.assert_array_equal(inserted.numpy(), np.minimum(stretch[row], 7))


def test_a_chain_without_alignment_has_itself_as_the_only_row(folder):
    batch = Crops(open_set(folder), rows=3)[Draw(np.array([0]), 32)]
    assert torch.equal(batch["msa"][0, 0], batch["tokens"][0])
    assert (batch["msa"][0, 1:] == PAD).all()
    short = Crops(open_set(folder), rows=20)[Draw(np.array([2]), 64)]
    assert (short["msa"][0, :, 0] != PAD).sum() == 6


def test_crops_differ_between_epochs_and_are_the_same_for_the_same_position(folder):
    crops = Crops(open_set(folder), rows=4)
    one, same, other = (crops[Draw(np.array([9]), 32, position)] for position in (1, 1, 2))
    assert torch.equal(one["tokens"], same["tokens"])
    assert torch.equal(one["msa"], same["msa"])
    assert not torch.equal(one["tokens"], other["tokens"])
    validation = [crops[Draw(np.array([9]), 128)] for _ in range(2)]
    assert torch.equal(validation[0]["msa"], validation[1]["msa"])
    assert validation[0]["mask"].sum() == 110


def test_padding_and_unresolved_residues_have_no_part_in_the_scores(folder):
    crops = Crops(open_set(folder))
    metrics = [ContactMetrics(), ContactMetrics()]
    for draws, metric in zip(
        ([Draw(np.array([9, 5, -1]), 128)], [Draw(np.array([9]), 110), Draw(np.array([5]), 70)]), metrics
    ):
        for draw in draws:
            batch = crops[draw]
            targets = contact_targets(batch["cb"], batch["resolved"])
            assert ((targets >= 0) == (batch["resolved"][:, :, None] & batch["resolved"][:, None])).all()
            scores = -(batch["residue_index"][:, None] - batch["residue_index"][:, :, None]).abs().float()
            metric.update(scores, targets, batch["resolved"].sum(1), batch["neff"], batch["name"])
    whole, single = (metric.compute() for metric in metrics)
    assert whole.keys() == single.keys()
    for key, value in whole.items():
        assert value == pytest.approx(single[key], abs=1e-6), key


# -- order ------------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_every_chain_once_and_ranks_share_it():
    numbers = np.arange(100, 124)
    for world in (1, 2, 3):
        orders = [ShuffledChains(numbers, 64, 4, rank, world, seed=1) for rank in range(world)]
        seen = [chain for order in orders for draw in order for chain in draw.chains.tolist()]
        assert sorted(seen) == numbers.tolist()
        again = [chain for order in orders for draw in order for chain in draw.chains.tolist()]
        assert sorted(again) == numbers.tolist()
        assert again != seen


def test_training_goes_on_at_a_position():
    whole = ShuffledChains(np.arange(20), 64, 4, seed=3)
    first = [whole.batch(position) for position in range(12)]
    resumed = iter(ShuffledChains(np.arange(20), 64, 4, seed=3, position=lambda: 7))
    for expected in first[7:]:
        draw = next(resumed)
        assert draw.position == expected.position
        assert draw.chains.tolist() == expected.chains.tolist()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_visits_every_chain_once_and_ranks_run_in_step(world):
    rng = np.random.default_rng(world)
    numbers = np.arange(50, 87)
    lengths = rng.integers(20, 300, len(numbers))
    known = dict(zip(numbers.tolist(), lengths.tolist()))
    orders = [list(ChainsByLength(numbers, lengths, 4 * 128**2, rank=rank, world=world)) for rank in range(world)]
    seen = [chain for order in orders for draw in order for chain in draw.chains.tolist() if chain >= 0]
    assert sorted(seen) == numbers.tolist()
    for draws in zip(*orders, strict=True):
        assert len({(len(draw.chains), draw.size) for draw in draws}) == 1
        size, width = draws[0].size, len(draws[0].chains)
        assert width == 1 or width * size**2 <= 4 * 128**2
        for draw in draws:
            assert all(size - 32 < known[chain] <= size for chain in draw.chains.tolist() if chain >= 0)


def test_workers_give_the_same_batches(folder):
    chains = open_set(folder)
    order = ShuffledChains(chains.of("train"), 48, 2, seed=0)
    here = [
        batch["tokens"] for batch in Batches(Crops(chains, rows=3), ShuffledChains(chains.of("train"), 48, 2, seed=0))
    ]
    there = [batch["tokens"] for batch in Batches(Crops(chains, rows=3), order, workers=1)]
    assert len(here) == len(there) == 4
    assert all(torch.equal(one, other) for one, other in zip(here, there))


# -- the data module --------------------------------------------------------------------------------------------------


def test_the_module_works_without_any_setting():
    data = ProteinData()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (8, 128)
    assert data.figures()["val_chains"] == 60
    names = [name for batch in data.val_dataloader() for name in batch["name"] if name]
    assert len(names) == len(set(names)) == 60
    assert len(data.test_dataloader()) == len(data.val_dataloader())


def test_chains_may_be_named_to_learn_them_by_heart(folder):
    data = ProteinData(str(folder), only=["chain3"], batch_size=1, crop=64)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert [batch["name"] for batch in loader] == [["chain3"]]
    with pytest.raises(UserError, match="has no chain named chain77"):
        ProteinData(str(folder), only=["chain77"]).setup()


def test_long_chains_are_cut_in_validation(folder):
    data = ProteinData(str(folder), max_length=64)
    data.setup()
    assert max(batch["tokens"].shape[1] for batch in data.val_dataloader()) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 5}, "data.crop is 5, but must be at least 16"),
        ({"batch_size": 0}, "data.batch_size is 0, but must be at least 1"),
        ({"msa_rows": -1}, "data.msa_rows is -1, but must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ProteinData(**options)


def test_what_the_set_lacks_is_said(tmp_path):
    with pytest.raises(UserError, match=r"the built-in set has no alignments; leave --data\.msa_rows at 0"):
        ProteinData(msa_rows=4).setup()
    alone = written(tmp_path / "alone", [entry("only", 40)], val=0)
    with pytest.raises(UserError, match="alone' has no val chain"):
        ProteinData(str(alone)).setup()
    few = written(tmp_path / "few", [entry(f"c{n}", 40, seed=n) for n in range(4)])
    data = ProteinData(str(few))
    data.setup()
    with pytest.raises(UserError, match="there are 2 training chains, fewer than one batch of 8"):
        data.train_dataloader()


# -- resume -----------------------------------------------------------------------------------------------------------


class Recorder(lightning.LightningModule):
    """Notes the chains it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple] = []

    def training_step(self, batch, index):
        self.seen.append((*batch["name"], *batch["residue_index"][:, 0].tolist()))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(folder, tmp_path, steps: int, checkpoint: str | None = None, **options) -> tuple[Recorder, lightning.Trainer]:
    module = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=tmp_path,
        limit_val_batches=0,
        enable_checkpointing=False,
        **quiet,
    )
    data = ProteinData(str(folder), batch_size=3, crop=32, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    return module, trainer


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_training_resumes_exactly(folder, tmp_path, stop):
    whole, _ = run(folder, tmp_path, 6)
    first, trainer = run(folder, tmp_path, stop)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    second, _ = run(folder, tmp_path, 6, str(tmp_path / "stop.ckpt"))
    assert first.seen + second.seen == whole.seen
    assert len(set(whole.seen)) == 6


def test_resuming_with_other_settings_is_refused(folder, tmp_path):
    _, trainer = run(folder, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    with pytest.raises(UserError, match="msa_rows was 0, now 2"):
        run(folder, tmp_path, 3, str(tmp_path / "stop.ckpt"), msa_rows=2)


def test_encode_is_what_a_set_holds(folder):
    chains = open_set(folder)
    tokens = chains.arrays["tokens"][: chains.start[1]]
    np.testing.assert_array_equal(encode(decode(tokens)), tokens)
