"""The masked autoencoder, beside that of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.rotary import RotaryConfig
from triune.vision.masked.model import (
    AutoencoderConfig,
    MaskedAutoencoder,
    images_of,
    masks_of,
    normalised,
    patches_of,
    take,
)
from triune.vision.model import VisionTransformerConfig

CORE = TransformerConfig(dim=24, depth=2, heads=3, position="none", norm_eps=1e-6, ffn_dim=40)
ENCODER = VisionTransformerConfig(image_size=[8, 12], patch_size=[2, 4], classes=0, transformer=CORE, pool="class")
CONFIG = AutoencoderConfig(ENCODER, replace(CORE, dim=16, heads=2, depth=1, ffn_dim=32))


def block_weights(ours: str, theirs: str) -> dict[str, str]:
    """Names of transformers' weights by ours, of one block."""
    attention = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    names = {f"attn.{a}": f"attention.{b}" for a, b in attention.items()}
    names |= {"norm1": "layernorm_before", "norm2": "layernorm_after", "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"}
    return {f"{ours}.{a}.{kind}": f"{theirs}.{b}.{kind}" for a, b in names.items() for kind in ("weight", "bias")}


def weights_of(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The weights of `ViTMAEForPreTraining` by our names."""
    names = {
        "encoder.class_token": "vit.embeddings.cls_token",
        "decoder.mask_token": "decoder.mask_token",
    }
    layers = {
        "encoder.patch_embed": "vit.embeddings.patch_embeddings.projection",
        "encoder.transformer.final_norm": "vit.layernorm",
        "decoder.embed": "decoder.decoder_embed",
        "decoder.transformer.final_norm": "decoder.decoder_norm",
        "decoder.to_pixels": "decoder.decoder_pred",
    }
    names |= {f"{a}.{kind}": f"{b}.{kind}" for a, b in layers.items() for kind in ("weight", "bias")}
    for layer in range(depth):
        names |= block_weights(f"encoder.transformer.blocks.{layer}", f"vit.layers.{layer}")
    names |= block_weights("decoder.transformer.blocks.0", "decoder.decoder_layers.0")
    found = {ours: theirs[name] for ours, name in names.items()}
    return found | {"encoder.positions.table": theirs["vit.embeddings.position_embeddings"][0]}


def test_equals_transformers() -> None:
    """The same weights and noise give the same masks, predictions, loss and gradients as `ViTMAEForPreTraining`."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16,
            patch_size=4, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
            decoder_intermediate_size=32, layer_norm_eps=1e-6, norm_pix_loss=True,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "pos" not in name:
                parameter.normal_(std=0.2)
    theirs.decoder.initialize_weights(16)
    theirs.vit.embeddings.initialize_weights()
    assert theirs.decoder.decoder_pos_embed.any()
    ours = MaskedAutoencoder(replace(CONFIG, encoder=replace(ENCODER, image_size=16, patch_size=4))).eval()
    ours.load_state_dict(weights_of(theirs.state_dict(), 2))
    images, noise = torch.randn(3, 3, 16, 16), torch.rand(3, 16)
    expected = theirs(images, noise=noise)
    predicted, masks = ours.predict(images, noise)
    assert torch.equal(torch.zeros(3, 16).scatter(1, masks.hidden, 1.0), expected.mask)
    torch.testing.assert_close(predicted, take(expected.logits, masks.hidden), rtol=1e-5, atol=1e-5)
    loss = ours(images, noise).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.loss.detach()), abs=1e-5)
    loss.backward()
    expected.loss.backward()
    theirs_grad = weights_of({n: torch.zeros(()) if p.grad is None else p.grad for n, p in theirs.named_parameters()}
                             | {"vit.embeddings.position_embeddings": torch.zeros(1)}, 2)  # fmt: skip
    for name, parameter in ours.named_parameters():
        if "positions" not in name:  # theirs do not train
            torch.testing.assert_close(parameter.grad, theirs_grad[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("position", ["learned", "rotary", "sincos2d"])
def test_the_encoder_sees_the_visible_patches_alone(position: str) -> None:
    """What is hidden has no influence on the encoder, and what it reads is where it stands."""
    turning = replace(CORE, position="rotary", rotary=RotaryConfig(axes=2))
    own = {"position": position} if position != "rotary" else {"position": "none", "transformer": turning}
    encoder = replace(ENCODER, **own)
    model = MaskedAutoencoder(replace(CONFIG, encoder=encoder)).eval()
    images, noise = torch.randn(2, 3, 8, 12), torch.rand(2, 12)
    masks = masks_of(noise, 0.75)
    assert masks.kept.shape == (2, 3) and masks.hidden.shape == (2, 9)
    blind = patches_of(images, (2, 4)).scatter(1, masks.hidden[..., None].expand(-1, -1, 24), 100.0)
    seen = model.encoder.tokens(images, masks.kept)
    torch.testing.assert_close(model.encoder.tokens(images_of(blind, (2, 4), (4, 3)), masks.kept), seen)
    order = torch.randperm(3)
    shuffled = model.encoder.tokens(images, masks.kept[:, order])
    torch.testing.assert_close(shuffled[:, 1:], seen[:, 1:][:, order])
    everything = torch.arange(12).expand(2, -1)
    torch.testing.assert_close(model.encoder.tokens(images, everything), model.encoder.tokens(images))


def test_patches_and_images_are_inverse() -> None:
    images = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    patches = patches_of(images, (2, 4))
    assert patches.shape == (2, 12, 24)
    assert torch.equal(patches[0, 0], images[0, :, :2, :4].permute(1, 2, 0).flatten())  # channels side by side
    assert torch.equal(images_of(patches, (2, 4), (4, 3)), images)
    assert torch.allclose(normalised(patches).mean(-1), torch.zeros(2, 12), atol=1e-5)


def test_a_perfect_decoder_paints_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MaskedAutoencoder(CONFIG).eval()
    images, noise = torch.randn(2, 3, 8, 12), torch.rand(2, 12)
    monkeypatch.setattr(model, "predict", lambda x, n: (model.targets(x, masks_of(n, 0.75)), masks_of(n, 0.75)))
    seen, painted = model.painted(images, noise)
    torch.testing.assert_close(painted, images, rtol=1e-4, atol=1e-4)
    assert int(seen.isnan().sum()) == 2 * 9 * 24
    assert torch.equal(seen[~seen.isnan()], images[~seen.isnan()])
    assert float(model(images, noise).max()) < 1e-10


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"stem": "convolutions", "patch_size": 4}, "stem is 'convolutions'"),
        ({"relative_bias": "shared"}, "relative_bias is 'shared'"),
        ({"pool": "attention"}, "pool"),
        ({"image_size": [2, 4]}, "one patch"),
    ],
)
def test_encoders_that_cannot_be_masked(change: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        AutoencoderConfig(replace(ENCODER, **change))
    with pytest.raises(UserError, match="masked is 1"):
        AutoencoderConfig(ENCODER, masked=1.0)
