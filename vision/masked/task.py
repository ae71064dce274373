"""Training an image encoder without labels, as a masked autoencoder."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.checkpoints.native import load_weights, read_weights
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.training.module import Loss
from ...core.training.run.folder import RunFolder
from ...core.training.start import Start, adapted_transformer, rebuilt, refuse_contradictions
from ..data.trained import read_trained
from ..model import Position, VisionTransformer, VisionTransformerConfig, checked_patch, pair
from ..positions import Coordinates
from ..task import SMALL, patch_for
from ..training import ImageTraining
from .data import PlainImages
from .model import DECODER, AutoencoderConfig, MaskedAutoencoder
from .pictures import reconstructions
from .probe import Probed, bare, probe

DECODER_FOLDER = "decoder"
"""Where a run's model folder keeps what only a further pretraining needs."""
SHOWN = 8
"""Images of the picture of reconstructions."""


class MaskedTask(ImageTraining):
    """An image encoder that learns from images without labels: a decoder must paint the patches that it does not see.

    He et al. 2021. The run's model is the encoder alone, for `triune vision fit --model.pretrained RUN`, `probe`,
    `triune embed` and `export`. Image size and channels come from the data. Where images have a class, a linear probe
    on the frozen vectors is printed for the weights before and after the training.

    Args:
        transformer: the core of the encoder.
        decoder: the blocks of the decoder, with position none; a small one learns as good an encoder as a large one.
        patch_size: pixels of a patch, or height and width. Left out: by the image size; 2 of 8 pixels, 4 of 28 or 32,
            16 from 112 on.
        class_token: a learned token before the patches.
        registers: further learned tokens (Darcet et al. 2024).
        pool: what is pooled when the encoder is used: the `mean` of the patches or the `class` token.
        position: table added to the patches: `learned`, `sincos2d` or `none`; beside it, transformer.position is `none`
            or `rotary`.
        rotary_coordinates: `index` counts patches, `unit` runs over the image.
        masked: share of the patches that the encoder does not see.
        normalise: the decoder learns each patch with mean 0 and variance 1 (He et al., section 4.2), instead of pixels.
        probe: labelled training images that the linear probe learns from, at most; 0 leaves it out.
        pretrained: a checkpoint to go on with: a folder or hub name of Hugging Face or timm, a file, a run or model
            folder. Its config is used; the decoder is new.
        **training: optimizer, schedule, ema, compile, lora and freeze; see `TrainingModule`.
    """

    unit = "img"
    loss_unit = "squared error per hidden pixel"

    def __init__(
        self,
        transformer: TransformerConfig = SMALL,
        decoder: TransformerConfig = DECODER,
        patch_size: int | list[int] | None = None,
        class_token: bool = False,
        registers: int = 0,
        pool: str = "mean",
        position: Position = "learned",
        rotary_coordinates: Coordinates = "index",
        masked: float = 0.75,
        normalise: bool = True,
        probe: int = 4000,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if probe < 0:
            raise UserError(f"model.probe is {probe}, but must be a number of images, or 0 for no probe.")
        self.transformer_config, self.decoder_config, self.patch_size = transformer, decoder, checked_patch(patch_size)
        self.options: dict[str, Any] = {
            "class_token": class_token, "registers": registers, "pool": pool, "position": position,
            "rotary_coordinates": rotary_coordinates,
        }  # fmt: skip
        self.masked, self.normalise, self.probe_images = masked, normalise, probe
        self.before: dict[str, Any] | None = None
        """`Probed` of the weights that the training began with; empty where there was none."""
        self.after: Probed | None = None

    @property
    def data(self) -> PlainImages:
        """The data module of the trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # --- the model ---------------------------------------------------------------------------------------------------

    def build_model(self, data: Any) -> MaskedAutoencoder:
        """A new model for the images of the data."""
        if not isinstance(data, PlainImages):
            raise UserError("MaskedTask needs PlainImages, whose batches have the noise that hides patches.")
        encoder = VisionTransformerConfig(
            image_size=list(data.image_size),
            patch_size=patch_for(data.image_size) if self.patch_size is None else self.patch_size,
            channels=data.channels,
            classes=0,
            transformer=self.transformer_config,
            preprocessing=data.preprocessing,
            **self.options,
        )
        return self._around(encoder, data)

    def _around(
        self, config: VisionTransformerConfig, data: PlainImages, encoder: VisionTransformer | None = None
    ) -> MaskedAutoencoder:
        whole = AutoencoderConfig(config, self.decoder_config, self.masked, self.normalise)
        rows, columns = config.grid(*config.size)
        data.patches = rows * columns
        return MaskedAutoencoder(whole, encoder)

    def adapt_model(self, start: Start, data: Any) -> MaskedAutoencoder:
        """The checkpoint's encoder at the size of the data's images, with a new decoder."""
        model = start.model
        assert isinstance(model, VisionTransformer) and isinstance(data, PlainImages)
        given = self.options | {"patch_size": self.patch_size and pair(self.patch_size, "patch_size")}
        refuse_contradictions(MaskedTask, given, vars(model.config), start.source)
        core = adapted_transformer(self.transformer_config, SMALL, model.config.transformer, start.source)
        headless = replace(model.config, transformer=core, classes=0, labels=[])
        model.head = torch.nn.Identity()
        model = rebuilt(model, headless)
        if tuple(data.image_size) != headless.size:
            model = model.resized(list(data.image_size))
        model.config = replace(model.config, preprocessing=data.preprocessing)
        self.transformer_config = core
        return self._around(model.config, data, model)

    def is_new(self, name: str) -> bool:
        return name.startswith("decoder.")

    # --- training ----------------------------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        """The mean squared error over the hidden patches of each image, summed over the images."""
        assert self.model is not None
        losses = self.model(batch["images"], batch["noise"])
        if self.training:
            return Loss(losses.sum(), len(losses))
        real = batch["index"] >= 0
        return Loss(losses.masked_fill(~real, 0.0).sum(), real.sum())

    def slots(self, batch: dict[str, Tensor]) -> int:
        return len(batch["images"])

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Any:
        raise UserError("A pretraining has no answers to write; `triune embed --run RUN` writes vectors of images.")

    # --- judging -----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.before is not None:
            return
        if self.trainer.is_global_zero:
            found = self._probe(pixels=False)
            self.before = {} if found is None else asdict(found)
        elif self.finalise_reads_weights:
            self.export_state()  # weights that are cut over the processes are put together by all of them

    @property
    def finalise_reads_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `TaskModule`."""
        return bool(self.probe_images) and "train" in self.data.names

    def _probe(self, pixels: bool = True) -> Probed | None:
        """The probe of the weights as they are exported."""
        if not self.finalise_reads_weights:
            return None
        return probe(self._encoder(), self.data, self.probe_images, pixels)

    def _encoder(self) -> VisionTransformer:
        """A copy of the encoder with the weights that are exported, on the CPU."""
        assert isinstance(self.model, MaskedAutoencoder)
        return bare(self.model.encoder, _below("encoder.", self.export_state()))

    def on_test_epoch_end(self) -> None:
        self._evaluation_end(self.data.scored)  # validation images must not be called test images

    def finalise(self, run: RunFolder | None) -> dict[str, Any]:
        """The linear probe of the weights just judged, beside that of the weights before the training."""
        self.after = self._probe()
        if self.after is None:
            return {}
        before = (self.before or {}).get("linear")
        return {
            "probe_before": before, "probe_after": self.after.linear, "probe_pixels": self.after.pixels,
            "probe_constant": self.after.constant, "probe_train": self.after.train, "probe_judged": self.after.judged,
        }  # fmt: skip

    def table(self, metrics: dict[str, Any]) -> str:
        """The loss, and the linear probe before and after."""
        lines = [f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("_loss")]
        if self.after is None:
            lines.append("no probe: too few images have a class" if self.probe_images else "no probe")
            return "\n".join([*lines, *self._notes()])
        lines.append(
            f"linear probe on frozen vectors, {self.after.train:,} labelled images to learn from and "
            f"{self.after.judged:,} held-out ones to judge:"
        )
        begun = "the checkpoint" if self.tuning else "random weights"
        rows = [
            (f"before, {begun}", metrics.get("probe_before")), ("after the training", self.after.linear),
            ("logistic regression on pixels", self.after.pixels), ("commonest class", self.after.constant),
        ]  # fmt: skip
        lines += [f"  {name:30} {'—' if value is None else f'{value:.1%}'}" for name, value in rows]
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        """What a person should know of the images that were scored."""
        if not self.data.scores:
            return []
        testing = self.trainer.state.fn == "test" and self.data.scored == "val"
        return [*self.data.notes, *(["There is no test set: these are the validation images."] if testing else [])]

    # --- what the command line shows and writes ----------------------------------------------------------------------

    def describe(self) -> str:
        """One line about the model."""
        c, d, model = self.transformer_config, self.decoder_config, self.model
        patch = "x".join(map(str, model.encoder.config.patch)) if isinstance(model, MaskedAutoencoder) else "?"
        positions = " + ".join(p for p in (self.options["position"], c.position) if p != "none") or "no"
        return (
            f"{self.masked:.0%} of the patches of {patch} hidden; encoder {c.depth} layers x {c.dim}, {c.heads} heads, "
            f"{c.norm}, {c.ffn_words()}, {positions} positions; decoder {d.depth} x {d.dim}"
        )

    def finish(self, run: RunFolder) -> None:
        """Draws reconstructions.png: validation images, what the encoder sees of them, and what the decoder paints."""
        data = self.data
        side = "val" if "val" in data.names else data.scored
        rows = list(range(min(SHOWN, len(data.names[side]))))
        pixels = torch.stack([data.picture(side, row) for row in rows])
        batch = data.on_after_batch_transfer({"images": pixels, "index": torch.tensor(rows)})
        assert isinstance(self.model, MaskedAutoencoder)
        # Read from what was just exported, because this process cannot run a model whose weights are cut over several.
        encoder = bare(self.model.encoder, dict(read_weights(run.model)))
        model = MaskedAutoencoder(self.model.config, encoder)
        load_weights(model.decoder, run.model / DECODER_FOLDER)
        model.eval().to(batch["images"].dtype)
        seen, painted = model.painted(batch["images"], batch["noise"])
        known = "; hidden patches have their own mean and contrast" if self.normalise else ""
        note = f"validation images, {self.masked:.0%} hidden{known}"
        reconstructions(
            batch["images"], seen, painted, data.preprocessing, run.path / "reconstructions.png", run.path.name, note
        )

    def export(self, folder: Path) -> None:
        """Writes the encoder as an image model without a head, and the decoder into a folder of its own."""
        assert isinstance(self.model, MaskedAutoencoder)
        state = self.export_state()
        self.model.encoder.save_pretrained(folder, _below("encoder.", state))
        extra = {"masked": self.masked, "normalise": self.normalise}
        self.model.decoder.save_pretrained(folder / DECODER_FOLDER, _below("decoder.", state), **extra)

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to type after training."""
        folder = shlex.quote(str(run))
        return [
            f"triune vision fit --model.pretrained {folder} --data.root FOLDER_WITH_CLASSES",
            f"triune vision probe --model {folder} --data.root FOLDER_WITH_CLASSES",
            f"triune embed IMAGES --run {folder} --out vectors.parquet",
        ]

    # --- what a checkpoint says --------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["images"] = self.data.trained.to_dict()
        checkpoint["probe_before"] = self.before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.before = checkpoint.get("probe_before")
        super().on_load_checkpoint(checkpoint)

    def before_scoring(self, checkpoint: Path, data: Any) -> None:
        """Lets the data prepare images as those of the training were."""
        if isinstance(data, PlainImages) and (trained := read_trained(checkpoint)) is not None:
            data.continue_as(trained)


def _below(first: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with `first`, without it."""
    return {name.removeprefix(first): tensor for name, tensor in state.items() if name.startswith(first)}
