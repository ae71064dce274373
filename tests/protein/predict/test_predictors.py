"""What a model predicts of a chain, a complex, or a chain that is cut into windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from triune.core.errors import UserError
from triune.protein.language.contact_head import HEAD, ContactHead
from triune.protein.language.model import SequenceConfig, SequenceModel, esm_tokens, esm_transformer
from triune.protein.pair.config import PairConfig
from triune.protein.pair.memory import check_attention, choose_chunk, estimate, estimate_attention
from triune.protein.pair.model import PairModel
from triune.protein.predict import predictors
from triune.protein.predict.distogram import agreement, below_contact, bin_edges, expected_distances
from triune.protein.predict.predictors import PairPredictor, Windowed, predictor_for
from triune.protein.read.alphabet import AMINO_ACIDS, encode
from triune.protein.read.profile import profile

GENERATOR = np.random.default_rng(0)
SEQUENCE, OTHER, *ROWS = ("".join(GENERATOR.choice(list(AMINO_ACIDS), length)) for length in (60, 48, *[60] * 9))
ROWS = [SEQUENCE, *ROWS]


def pair_model(**changes: Any) -> PairModel:
    torch.manual_seed(0)
    model = PairModel(PairConfig.preset("tiny", **changes)).eval()
    torch.nn.init.normal_(model.head.logits.weight, std=0.5)  # a fresh head predicts the same for all pairs
    return model


def predicted(inputs: dict[str, Any], profile: Any, msa: Any) -> Tensor:
    model = pair_model()
    with torch.no_grad():
        return model(torch.from_numpy(encode(SEQUENCE).astype(np.int64))[None], profile, msa).contacts[0].sigmoid()


def batch(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows.astype(np.int64))[None]


def test_a_lone_sequence_gets_the_profile_its_model_knows_best() -> None:
    tokens = encode(SEQUENCE)
    expected = torch.from_numpy(profile(tokens[None]))[None]
    cases = [
        ({"profiles": 1.0, "msa_rows": 0}, expected, None, "BLOSUM62"),
        ({"profiles": 0.5, "msa_rows": 0}, torch.zeros(1, 60, 20), None, "had none either"),
        ({"profiles": 0.0, "msa_rows": 0}, torch.zeros(1, 60, 20), None, None),
        ({"profiles": 1.0, "msa_rows": 4}, expected, batch(tokens[None]), "BLOSUM62"),
    ]
    for inputs, columns, msa, note in cases:
        found = PairPredictor(pair_model(), inputs).predict(tokens)
        assert torch.allclose(found.contacts, predicted(inputs, columns, msa), atol=1e-6)
        assert (note in found.notes[0]) if note else not found.notes


def test_of_an_alignment_a_model_sees_what_it_was_trained_on() -> None:
    tokens, rows = encode(SEQUENCE), np.stack([encode(row) for row in ROWS])
    columns = torch.from_numpy(profile(rows))[None]
    found = PairPredictor(pair_model(), {"profiles": 1.0, "msa_rows": 20}).predict(tokens, None, rows)
    assert torch.allclose(found.contacts, predicted({}, columns, batch(rows)), atol=1e-6)
    assert not found.notes
    without = PairPredictor(pair_model(), {"profiles": 1.0, "msa_rows": 0}).predict(tokens, None, rows)
    assert torch.allclose(without.contacts, predicted({}, columns, None), atol=1e-6)
    assert "sees the profile only" in without.notes[0]
    neither = PairPredictor(pair_model(), {"profiles": 0.0, "msa_rows": 0}).predict(tokens, None, rows)
    assert torch.allclose(neither.contacts, predicted({}, torch.zeros(1, 60, 20), None), atol=1e-6)
    assert "alignment is not used" in neither.notes[0]
    given = PairPredictor(pair_model(), {"profiles": 1.0, "msa_rows": 0}).predict(tokens, columns[0].numpy())
    assert torch.allclose(given.contacts, without.contacts, atol=1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, model = encode(SEQUENCE), pair_model(dim=64, transition=4, recycles=0)
    predictor = PairPredictor(model, {"profiles": 1.0, "msa_rows": 0})
    whole = predictor.predict(tokens)
    needed = estimate(predictor.model.config, 60)
    monkeypatch.setattr(predictors, "free_memory", lambda _: int(0.8 * needed / predictors.SHARE))
    assert choose_chunk(predictor.model.config, 60, int(0.8 * needed)) is not None
    chunked = predictor.predict(tokens)
    assert whole.distances is not None and chunked.distances is not None
    assert torch.allclose(whole.contacts, chunked.contacts, atol=1e-5)
    assert torch.allclose(whole.distances, chunked.distances, atol=1e-3)


def test_memory_of_attention_maps() -> None:
    check_attention(1000, estimate_attention(1000))
    with pytest.raises(UserError, match=r"10,000 residues need about 2\.2 GiB .* at most [\d,]+ residues"):
        check_attention(10_000, 1 << 30)


def test_an_allocation_that_fails_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = PairPredictor(pair_model(), {"profiles": 1.0, "msa_rows": 0})

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(predictor.model, "forward", full)
    with pytest.raises(UserError, match="60 residues need about"):
        predictor.predict(encode(SEQUENCE))


def test_expected_distances() -> None:
    logits = torch.full((3, 3, 64), -50.0)
    logits[0, 1, 0] = logits[1, 1, 20] = logits[2, 2, 63] = 50.0
    found = expected_distances(logits, rows=2)
    width = 0.3125
    assert found[0, 1] == pytest.approx(2.3125 - width / 2, abs=1e-4)
    assert found[1, 1] == pytest.approx(2.3125 + 19.5 * width, abs=1e-4)
    assert found[2, 2] == pytest.approx(21.6875 + width / 2, abs=1e-4)
    assert found[0, 0] == pytest.approx(12.0, abs=1e-4)  # the middle, when nothing is known


def test_the_distogram_has_edges_a_mean_and_a_probability_of_contacts() -> None:
    predictor = PairPredictor(pair_model(), {"profiles": 1.0, "msa_rows": 0})
    assert predictor.predict(encode(SEQUENCE)).distogram is None
    predictor.with_distogram = True
    found = predictor.predict(encode(SEQUENCE))
    classes = found.distogram
    assert classes is not None and found.distances is not None
    edges = bin_edges(classes.shape[-1])
    assert len(edges) == classes.shape[-1] - 1 and float(edges[0]) == 2.3125 and float(edges[-1]) == 21.6875
    torch.testing.assert_close(classes.sum(-1), torch.ones(60, 60))
    torch.testing.assert_close(classes, classes.transpose(0, 1))
    width = float(edges[1] - edges[0])
    middles = torch.tensor(
        [float(edges[0]) - width / 2, *((edges[1:] + edges[:-1]) / 2).tolist(), float(edges[-1]) + width / 2]
    )
    torch.testing.assert_close((classes * middles).sum(-1), found.distances, atol=1e-4, rtol=0)
    below, edge = below_contact(classes)
    assert edge <= 8.0 < edge + width
    torch.testing.assert_close(below, classes[..., : int((edges <= 8).sum())].sum(-1))
    difference = [abs(float(found.contacts[i, j] - below[i, j])) for i in range(60) for j in range(i + 6, 60)]
    assert (
        f"{np.mean(difference):.3f} from the contact" in found.notes[-1]
        and f"{max(difference):.3f} at most" in found.notes[-1]
    )
    with pytest.raises(UserError, match="--windows"):
        Windowed(predictor, 64).predict(np.tile(encode(SEQUENCE), 2))
    assert "no pair" in agreement(found.contacts[:5, :5], classes[:5, :5])


def test_a_language_model_with_its_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SequenceModel(SequenceConfig(transformer=esm_transformer("tiny"))).eval()
    folder = tmp_path / "lm"
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"has no contact head.*triune protein pretrain"):
        predictor_for(folder)
    head = ContactHead(2, 2)
    head.save_pretrained(folder / HEAD)
    with pytest.raises(UserError, match="is empty"):
        predictor_for(folder)
    head.weight.copy_(torch.tensor([[1.0, 0.0], [-0.5, 2.0]]))
    head.save_pretrained(folder / HEAD)
    tokens = encode(SEQUENCE)
    found = predictor_for(folder).predict(tokens, None, np.stack([tokens, tokens]))
    expected = head(model, esm_tokens(torch.from_numpy(tokens.astype(np.int64))[None]))[0].sigmoid()
    assert torch.allclose(found.contacts, expected, atol=1e-6)
    assert found.distances is None
    assert "reads the sequence only" in found.notes[0]


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"library": "triune", "architecture": "LanguageModel"}))
    with pytest.raises(UserError, match="describes LanguageModel, but PairModel or SequenceModel was expected"):
        predictor_for(tmp_path)


def test_a_language_model_joins_chains_by_a_linker_and_cuts_it_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SequenceModel(SequenceConfig(transformer=esm_transformer("tiny"))).eval()
    head = ContactHead(2, 2)
    head.weight.copy_(torch.tensor([[1.0, 0.0], [-0.5, 2.0]]))
    predictor = predictors.LanguagePredictor(model, head, all_letters=True)
    letters = SEQUENCE + OTHER
    found = predictor.predict(encode(letters), letters=letters, chains=(60, 48))
    whole = predictor.predict(encode(SEQUENCE + "G" * 25 + OTHER), letters=SEQUENCE + "G" * 25 + OTHER).contacts
    kept = [*range(60), *range(85, 133)]
    assert torch.allclose(found.contacts, whole[kept][:, kept], atol=1e-6)
    assert "joined by 25 G" in found.notes[0]
    long = SEQUENCE * 18
    assert "1,080 residues are more than the 1,022" in predictor.predict(encode(long), letters=long).notes[0]
    assert not predictor.predict(encode(SEQUENCE), letters=SEQUENCE).notes


def test_windows_agree_with_the_predictions_of_their_parts() -> None:
    predictor = PairPredictor(pair_model(), {"profiles": 0.0, "msa_rows": 0})
    tokens = encode((SEQUENCE + OTHER)[:100])
    found = predictors.Windowed(predictor, 64).predict(tokens)
    parts = {start: predictor.predict(tokens[start : start + 64]).contacts for start in (0, 32, 36)}
    assert torch.allclose(found.contacts[:32, :32], parts[0][:32, :32], atol=1e-6)
    assert torch.allclose(found.contacts[33, 35], (parts[0][33, 35] + parts[32][1, 3]) / 2, atol=1e-6)
    assert found.contacts[0, 90] == 0
    assert "predicted in windows of 64: " in found.notes[-1]
    short = predictors.Windowed(predictor, 100).predict(tokens)
    assert torch.equal(short.contacts, predictor.predict(tokens).contacts)
    with pytest.raises(UserError, match="--windows is 20, but must be at least 64"):
        predictors.Windowed(predictor, 20)
