"""What a batch draws by chance is what its version says; see core/training/versions.py.

A test that fails here means that runs which began with the code before would go on with other batches: raise the
version beside the code, and put in the numbers that the new code draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from triune.core import masking
from triune.core.errors import UserError
from triune.core.labelled import table
from triune.core.training import by_length, permutation
from triune.core.training.data import Draw, ResumableData
from triune.core.training.versions import check_draws
from triune.protein.data import crops
from triune.protein.data.loader import Draw as ChainDraw
from triune.protein.data.store import builtin_set
from triune.protein.language import data as sequences
from triune.text import labels as text_labels
from triune.text.masked.data import MaskedWindows
from triune.text.specials import with_mask
from triune.text.tokenizer import Tokenizer
from triune.vision.data import augment
from triune.vision.data.draws import augmented
from triune.vision.masked import data as masked
from triune.vision.preprocessing import Preprocessing


def order() -> list[int]:
    feistel = permutation.Feistel(1000, np.random.default_rng(3))[np.arange(4)]
    drawn = permutation.permutation(1000, np.random.default_rng(3))[np.arange(4)]
    return [*feistel.tolist(), *drawn.tolist()]


def by_length_order() -> list[int]:
    lengths = np.arange(40) % 7
    return by_length.PooledByLength(lengths, 4, 0, 1, 5).permutation(1)[:8].tolist()


def balanced() -> list[int]:
    return table.drawn(np.random.default_rng(3), 8, np.array([0, 0, 0, 0, 0, 1, 1, 2])).tolist()


def texts_learned_from() -> list[str]:
    texts = [str(i) * 1000 for i in range(7)]
    return [*(text[0] for text in text_labels.enough_of(texts, 2)), text_labels.enough_of(texts, 4)[0][0]]


def hidden() -> list[int]:
    tokens = torch.arange(40)[None]
    changed, targets = masking.hide_tokens(
        tokens, tokens > 1, 99, torch.arange(50, 60), torch.Generator().manual_seed(3)
    )
    places = (targets[0] >= 0).nonzero()[:, 0]
    return [*places.tolist(), *changed[0, places].tolist()]


def crops_of_chains() -> list[int]:
    batch = crops.Crops(builtin_set(), 0, 3)[ChainDraw(np.array([0, 1, 2]), 16, 7)]
    return [*batch["residue_index"][:, 0].tolist(), round(batch["recycling"][0] * 1e6)]


def crops_of_sequences() -> list[int]:
    chain = np.arange(200, dtype=np.uint8) % 20
    batch = sequences.Masked([chain], 16, 3)[Draw(7, np.array([0, 0]))]
    return [*batch["tokens"][0].tolist(), *(batch["targets"][1] >= 0).nonzero()[:, 0].tolist()]


def changed(**options: Any) -> list[float]:
    pixels = (torch.arange(4 * 3 * 12 * 12).reshape(4, 3, 12, 12) * 37 % 251).to(torch.uint8)
    batch = {"images": pixels, "labels": torch.tensor([0, 1, 2, 0]), "index": torch.arange(4), "slot": 0, "position": 5}
    config = augment.AugmentConfig(**options)
    found = augmented(batch, config, Preprocessing(mean=[0.0], std=[1.0]), [3, 1, 0, 5], 4, 4, True, False, 3)
    return found["images"].double().mean((1, 2, 3)).tolist() + found["images"][:, 0, 3, 4].double().tolist()


def hidden_patches() -> list[float]:
    return [*masked.noise_at(3, 7, 2, 4).flatten().tolist()]


class Stream:
    """Tokens as `MaskedWindows` opens them."""

    def open(self) -> Any:
        return np.arange(300) % 250, np.array([0, 300])


def hidden_in_windows() -> list[int]:
    windows = MaskedWindows(Stream(), 64, Tokenizer(with_mask(Tokenizer.bytes().backend)), 3)  # pyright: ignore
    batch = windows[Draw(7, np.array([0, 100]))]
    return [*batch["places"][:8].tolist(), *batch["targets"][:4].tolist()]


DRAWN: list[tuple[str, tuple[int, int], Callable[[], list[Any]], list[Any]]] = [
    ("order", (permutation.VERSION, 2), order, [441, 561, 589, 817, 334, 618, 590, 388]),
    ("order by length", (by_length.VERSION, 1), by_length_order, [19, 26, 33, 6, 27, 20, 34, 13]),
    ("texts of a tokenizer", (text_labels.VERSION, 2), texts_learned_from, ["0", "2", "4", "6", "0"]),
    ("balanced", (table.VERSION, 1), balanced, [1, 3, 7, 6, 1, 5, 5, 2]),
    (
        "hidden",
        (masking.VERSION, 1),
        hidden,
        [3, 5, 12, 14, 23, 28, 29, 32, 33, 34, 37, 99, 99, 99, 14, 99, 99, 99, 99, 99, 34, 54],
    ),
    ("windows", (masking.VERSION, 1), hidden_in_windows, [11, 13, 14, 24, 28, 29, 31, 33, 11, 13, 14, 24]),
    ("chains", (crops.VERSION, 1), crops_of_chains, [59, 16, 93, 625875]),
    (
        "sequences",
        (sequences.VERSION, 1),
        crops_of_sequences,
        [0, 9, 18, 6, 32, 12, 15, 4, 20, 17, 14, 16, 10, 8, 11, 7, 22, 2, 4],
    ),
    (
        "patches",
        (masked.VERSION, 1),
        hidden_patches,
        [
            0.085729400366,
            0.231030090997,
            0.435455301325,
            0.026651426101,
            0.345675810192,
            0.178036013642,
            0.809180093872,
            0.340512012509,
        ],
    ),
]
CHANGED: list[tuple[dict[str, Any], list[float]]] = [
    ({}, [0.448756, 0.445851, 0.492012, 0.412409, 0.654902, 0.164706, 0.254902, 0.313726]),
    (
        {"crop": "resized", "rotate": 10, "zoom": 0.1, "color_jitter": 0.3},
        [0.527927, 0.511835, 0.561273, 0.564074, 0.261578, 0.696051, 0.442208, 0.534128],
    ),
    ({"policy": "three"}, [0.409178, 0.231354, 0.214715, 0.44758, 0.964706, 0.164706, 0.172549, 0.331181]),
    ({"policy": "rand"}, [0.354591, 0.4566, 0.546206, 0.298797, 0.219824, 0.188132, 0.690196, 0.457343]),
    ({"policy": "trivial", "crop": "none"}, [0.263825, 0.492316, 0.618281, 0.082453, 0.117647, 0.456641, 0.33902, 0.0]),
    (
        {"erasing": 0.7, "mixup": 0.4, "cutmix": 0.5},
        [0.448756, 0.378159, 0.375884, 0.372576, 0.654902, 0.164706, 0.165498, 0.313726],
    ),
]
"""Of version 1: means of four images, and a pixel of each."""


@pytest.mark.parametrize(("versions", "draw", "drew"), [row[1:] for row in DRAWN], ids=[row[0] for row in DRAWN])
def test_each_version_draws_what_it_drew(
    versions: tuple[int, int], draw: Callable[[], list[Any]], drew: list[Any]
) -> None:
    version, known = versions
    assert version == known, "put in what the new version draws"
    assert draw() == pytest.approx(drew, abs=1e-9)


@pytest.mark.parametrize(("options", "drew"), CHANGED, ids=range(len(CHANGED)))
def test_each_version_changes_images_as_it_did(options: dict[str, Any], drew: list[float]) -> None:
    assert augment.VERSION == 1, "put in what the new version draws"
    assert changed(**options) == pytest.approx(drew, abs=2e-3)  # a bit in a rounding moves a pixel by a level


class Toy(ResumableData):
    """Three examples."""

    batch_size = 2
    examples: tuple[str, ...] = ("a", "b", "c")

    def order_settings(self) -> dict[str, Any]:
        return {"examples": len(self.examples)}

    def learned(self) -> tuple[str, ...]:
        return self.examples

    def draws(self) -> dict[str, int]:
        return {"the hidden tokens": 2}


@pytest.mark.parametrize(
    ("draws", "words"),
    [
        ({"the hidden tokens": 2}, ""),
        ({"the hidden tokens": 3}, "a newer version of triune, which drew the hidden tokens in another way"),
        ({"the hidden tokens": 1}, "an earlier version of triune, which drew the hidden tokens in another way"),
        (None, "an earlier version of triune, which drew the hidden tokens in another way"),
        ({"the hidden tokens": 2, "the crops": 1}, ""),
        ({"the hidden tokens": 2, "the crops": 2}, "a newer version of triune, which drew the crops in another way"),
    ],
)
def test_a_run_goes_on_with_its_own_draws_only(draws: dict[str, int] | None, words: str) -> None:
    data = Toy()
    state = data.state_dict() if draws is None else data.state_dict() | {"draws": draws}
    if draws is None:
        del state["draws"]
    data.load_state_dict(state)
    if not words:
        data.check_resumed()
        return
    with pytest.raises(UserError, match=f"^This run began with {words}, so its batches would be others; continue it"):
        data.check_resumed()


def test_checkpoints_of_before_there_were_versions_go_on_with_the_first() -> None:
    check_draws({}, {"the hidden tokens": 1, "the crops": 1})


@pytest.mark.parametrize("examples", [("a", "b", "x"), ("b", "a", "c"), ("ab", "", "c")])
def test_as_many_other_examples_are_not_those_of_the_run(examples: tuple[str, ...]) -> None:
    data, other = Toy(), Toy()
    other.examples = examples
    other.load_state_dict(data.state_dict())
    with pytest.raises(UserError, match="the same number of training examples, but not the same ones, or in another o"):
        other.check_resumed()
    old = data.state_dict()
    del old["learned"]  # of an earlier version, which did not look
    other.load_state_dict(old)
    other.check_resumed()
