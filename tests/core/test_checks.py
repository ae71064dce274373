"""Types of settings: what is refused with which sentence, and what is accepted; hashes of configurations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from triune.core.adapt.lora import LoRAConfig
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.heads.base import HeadSpec
from triune.core.rotary import RotaryConfig
from triune.core.training.freezing import FreezeConfig
from triune.core.training.optimizers import OptimizerConfig
from triune.core.training.schedules import ScheduleConfig
from triune.protein.language.model import SequenceConfig, SequenceModel
from triune.protein.pair.config import PairConfig
from triune.text.encoder import TextEncoder, TextEncoderConfig
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.sampling import SamplingConfig
from triune.vision.data.augment import AugmentConfig
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.preprocessing import Preprocessing

WRONG: list[tuple[type, dict[str, Any], str]] = [
    (TransformerConfig, {"causal": "no"}, "causal is 'no', but must be true or false"),
    (TransformerConfig, {"causal": 1}, "causal is 1, but must be true or false"),
    (TransformerConfig, {"cross_attention": [True, False]}, r"cross_attention is \[True, False\], but must be true or"),
    (TransformerConfig, {"norm_eps": "1e-5"}, "norm_eps is '1e-5', but must be a number; it is text, .* 1e-05 without"),
    (TransformerConfig, {"norm_eps": True}, "norm_eps is True, but must be a number"),
    (TransformerConfig, {"dim": True}, "dim is True, but must be an integer"),
    (TransformerConfig, {"heads": "4"}, "heads is '4', but must be an integer; it is text, write the number 4"),
    (TransformerConfig, {"window": [1, "a"]}, "window is 'a', but must be an integer or null"),
    (TransformerConfig, {"bias": "q"}, r"bias is 'q', but must be true or false or a list \(each entry text\)"),
    (TransformerConfig, {"rotary": {"base": 1.0}}, "rotary is {'base': 1.0}, but must be settings"),
    (TransformerConfig, {"inner_norm": "ffn"}, "inner_norm is 'ffn', but must be a list"),
    (RotaryConfig, {"base": "10000"}, "rotary.base is '10000', but must be a number"),
    (LanguageModelConfig, {"vocab_size": 8.5}, "vocab_size is 8.5, but must be an integer"),
    (LanguageModelConfig, {"vocab_size": 8, "tied": "yes"}, "tied is 'yes', but must be true or false"),
    (TextEncoderConfig, {"vocab_size": "8"}, "vocab_size is '8', but must be an integer"),
    (VisionTransformerConfig, {"classes": "3"}, "classes is '3', but must be an integer"),
    (SequenceConfig, {"position_offset": None}, "position_offset is None, but must be an integer"),
    (PairConfig, {"depth": "2"}, "depth is '2', but must be an integer"),
    (Preprocessing, {"crop_pct": "1"}, "preprocessing.crop_pct is '1', but must be a number"),
    (LoRAConfig, {"rank": "8"}, "lora.rank is '8', but must be an integer"),
    (TransformerConfig, {"norm_eps": math.inf}, "norm_eps is inf, but must be a finite number"),
    (RotaryConfig, {"attention_factor": math.nan}, "rotary.attention_factor is nan, but must be a finite number"),
    (SamplingConfig, {"top_k": 1.5}, "top_k is 1.5, but must be an integer or null"),
    (SamplingConfig, {"temperature": "0.5"}, "temperature is '0.5', but must be a number"),
    (SamplingConfig, {"temperature": math.inf}, "temperature is inf, but must be a finite number"),
    (HeadSpec, {"kind": "classify", "names": 3}, "head.names is 3, but must be a list"),
    (OptimizerConfig, {"betas": [0.9, 0.95, 0.99]}, r"betas is \[0.9, 0.95, 0.99\], but must be a list of 2 \(each"),
    (OptimizerConfig, {"betas": []}, r"betas is \[\], but must be a list of 2"),
    (Preprocessing, {"mean": [math.nan] * 3}, "preprocessing.mean is nan, but must be a number"),
    (OptimizerConfig, {"lr": "1e-3"}, "optimizer.lr is '1e-3', but must be a number"),
    (ScheduleConfig, {"kind": "cosin"}, r"schedule.kind is 'cosin' \(did you mean 'cosine'\?\), but must be one of"),
    (FreezeConfig, {"blocks": 1.5}, "freeze.blocks is 1.5, but must be an integer or one of all"),
    (AugmentConfig, {"flip": "no"}, "augment.flip is 'no', but must be true or false"),
]


@pytest.mark.parametrize(("kind", "values", "sentence"), WRONG)
def test_a_value_of_another_type_is_refused(kind: type, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        kind(**values)


def test_an_integer_is_a_number_and_a_tuple_a_list() -> None:
    assert RotaryConfig(base=100).base == 100
    assert TransformerConfig(depth=2, window=(3, None)).window_at(0) == 3  # pyright: ignore[reportArgumentType]


def test_equal_configs_have_equal_hashes() -> None:
    one = TransformerConfig(depth=2, window=[3, None], rotary=[RotaryConfig(), None], bias=["q"])
    two = TransformerConfig.from_dict(one.to_dict())
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two, TransformerConfig(depth=2)}) == 2
    assert hash(LanguageModelConfig(8, one)) == hash(LanguageModelConfig(8, two))


def test_models_say_which_tokens_and_images_they_take() -> None:
    core = {"dim": 8, "depth": 1, "heads": 2}
    text = LanguageModel(LanguageModelConfig(vocab_size=5, transformer=TransformerConfig(**core, causal=True)))
    encoder = TextEncoder(TextEncoderConfig(vocab_size=5, segments=0, transformer=TransformerConfig(**core)))
    protein = SequenceModel(SequenceConfig(transformer=TransformerConfig(**core)))
    for model in (text, encoder, protein):
        for wrong in (torch.zeros(3, dtype=torch.long), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool)):
            with pytest.raises(UserError, match=r"tokens is .*, but must be int64 \[batch, tokens\]"):
                model(wrong)
    tokens = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(UserError, match="segments were given, but this model has none"):
        encoder(tokens, segments=tokens)
    some = TextEncoder(TextEncoderConfig(vocab_size=5, segments=2, transformer=TransformerConfig(**core)))
    with pytest.raises(UserError, match=r"segments is int64 \[3\], but must be int64 \[1, 3\]"):
        some(tokens, segments=tokens[0])
    image = VisionTransformer(VisionTransformerConfig(image_size=8, patch_size=4, classes=2))
    with pytest.raises(UserError, match=r"images are uint8 \[1, 3, 8, 8\], but must be float \[batch, 3 channels"):
        image(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
