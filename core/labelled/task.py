"""Training any head on any trunk: the labels of a table, judged by the metrics of their kind."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.checksums import write_config
from ..checkpoints.family import Pretrained
from ..checkpoints.native import CONFIG, load_config
from ..checkpoints.saved import SavedModel
from ..checkpoints.source import Source
from ..config import TransformerConfig
from ..errors import UserError
from ..evaluate.judgement import Judgement
from ..heads.base import HeadSpec
from ..heads.keep import keep
from ..heads.registry import head_class, prepare
from ..initialise import uninitialised
from ..labels.guess import cells_of
from ..losses import IGNORED
from ..training.lightning_fixes import across_data
from ..training.module import Loss, TrainingModule
from ..training.run.folder import RunFolder
from ..training.start import Start, adapted_transformer, longer, rebuilt
from .model import LabelledConfig, LabelledModel, check_layer
from .table import FromTable


class LabelTask(TrainingModule):
    """A model with a head for the labels of a table.

    Args:
        transformer: the core of a new model.
        pool: how the vector of a row is made of its tokens: class, mean, attention, last, or own (what a checkpoint
            brings). Left out: own where the checkpoint has one, else what suits the task.
        hidden: activation (tanh, relu, gelu, gelu_tanh, silu) of a layer before the head, as classifiers of RoBERTa
            (tanh, pool class), DistilBERT (relu) and ESM-2 (tanh) have it in transformers; gelu_norm and the like with
            a norm behind it (ModernBERT). Left out: that of the checkpoint, else no such layer.
        head: settings of the head by name, such as `{"class_weights": "balanced"}`; the kind of the target decides
            which there are.
        **training: optimizer, schedule, ema, compile, pretrained, lora and freeze; see `TrainingModule`.
    """

    unit = "row"
    loss_unit = "loss per target"

    MODEL: ClassVar[type[LabelledModel]] = LabelledModel
    SMALL: ClassVar[TransformerConfig] = TransformerConfig()
    """The transformer of a new model without further settings."""
    COMMAND: ClassVar[str] = ""
    """Name of the task on the command line."""

    def __init__(
        self,
        transformer: TransformerConfig = TransformerConfig(),  # noqa: B008 (never changed)
        pool: str | None = None,
        hidden: str | None = None,
        head: dict[str, Any] | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        check_layer("model.hidden", hidden)
        self.transformer_config = transformer
        self.pool, self.hidden, self.head_options = pool, hidden, dict(head or {})
        self._form: dict[str, Any] = {}  # pool and layer of a checkpoint's own head
        self._said_of_head = ""
        self._outputs: Tensor | None = None  # of the evaluation batch at hand
        self._seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.judged: tuple[Tensor, Any, np.ndarray] | None = None
        """Of the last evaluation: outputs `[examples, width]`, their targets, and the row of each."""
        self.judgement: Judgement | None = None
        self.calibration: dict[str, Any] = {}

    # --- what a task says --------------------------------------------------------------------------------------------

    def new_trunk(self, data: Any) -> SavedModel:
        """A trunk at random for the inputs of the data."""
        raise NotImplementedError(f"{type(self).__name__} must implement new_trunk(data).")

    def reads(self, data: Any) -> dict[str, Any]:
        """Settings of the input that the model must keep; plain values."""
        return {}

    def default_pool(self, trunk: SavedModel, pretrained: bool) -> str:
        """The pool without the option."""
        return "mean"

    def around(self, data: Any) -> int | None:
        """Tokens that stand around an input of `data.context` tokens; None where that is no option of the data."""
        return None

    def limit(self, start: Start, data: Any) -> str:
        """Shortens the inputs, before they are read, to those that a checkpoint's table of positions has rows for, and
        says so.

        Raises:
            UserError: `data.context` was given, and is longer.
        """
        trunk: Any = start.model
        most = self._most(trunk, data)
        if most is None or data.context <= most:
            return ""
        if "context" in data.given:
            longer(trunk.config.transformer, data.context, start.source, self._outside(trunk, data))
        data.context = most
        return f"{most:,} tokens of an input are read, because its table of positions ends there"

    def _outside(self, trunk: Any, data: Any) -> int:
        """Positions of a model that are not for an input: of the tokens around it, and before the first."""
        return (self.around(data) or 0) + getattr(trunk.config, "position_offset", 0)

    def _most(self, trunk: Any, data: Any) -> int | None:
        """Tokens of an input that a table of positions has rows for; None without one."""
        if self.around(data) is None or trunk.config.transformer.position != "learned":
            return None
        return max(trunk.config.transformer.context - self._outside(trunk, data), 1)

    def fit_trunk(self, trunk: Any, data: Any) -> Any:
        """A checkpoint's trunk for the inputs of the data, such as images of another size."""
        return trunk

    def save_companion(self, folder: Path) -> None:
        """Writes what the model needs beside its weights, such as a tokenizer."""

    # --- the model ---------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """The data module of the trainer, a `FromTable`."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def build_model(self, data: Any) -> LabelledModel:
        return self._model(data, self.new_trunk(data), pretrained=False)

    def _model(self, data: Any, trunk: SavedModel, pretrained: bool) -> LabelledModel:
        if not isinstance(data, FromTable):
            raise UserError(f"{type(self).__name__} needs a table of labels; give --data.table FILE.")
        if data.spec is None:
            target = data.target_of("train")
            options = dict(self.head_options)
            if target.kind == "tag" and target.numbers:
                options.setdefault("numbers", True)
            data.spec = prepare(target.kind, target, options)
        spec = data.spec
        pool = self.pool or self._form.get("pool") or self.default_pool(trunk, pretrained)
        if head_class(spec.kind).reads_tokens(spec):
            if self.pool is not None:
                raise UserError(
                    f"model.pool is {self.pool}, but a target of kind {spec.kind} reads every token; leave it out."
                )
            pool = None
        hidden = self.hidden or (self._form.get("hidden") if pool == self._form.get("pool") else None)
        settings, reads = trunk.settings()[trunk.config_entry], self.reads(data) | self.MODEL.reads_of(trunk, pool)
        if (most := self._most(trunk, data)) is not None:
            data.most = most
        config = LabelledConfig(trunk.architecture, settings, spec.to_dict(), pool, reads, hidden)
        model = self.MODEL(config, trunk)  # pyright: ignore[reportCallIssue]
        several = len(spec.names) > 1 and cells_of(spec.kind) == "regress"
        if model.head.per_token or cells_of(spec.kind) == "multilabel" or several:
            self.unit = "number" if several else "label"
        name, better = model.head.monitor
        self.monitor = (f"val_{name}", better)
        return model

    # --- fine-tuning -------------------------------------------------------------------------------------------------

    def read_start(self, folder: Path) -> Start:
        names = [known.architecture for known in self.MODEL.TRUNKS]
        settings = load_config(folder, *names)
        with uninitialised():
            model = self.MODEL.trunk_class(settings["architecture"]).from_settings(settings)
        return Start.read(settings, model, self.read_companion(folder))

    def read_companion(self, folder: Path) -> Any:
        """What `save_companion` wrote; None where there is nothing."""
        return None

    def own_pretrained(self, name: str, find: Any) -> Pretrained | None:
        """The trunk of a model of this task with a head of its own; None for another checkpoint."""
        source: Source = find(name)
        if not source.is_ours or source.config.get("architecture") != self.MODEL.__name__:
            return None
        model: Any = self.MODEL.from_pretrained(source.path)  # type: ignore[attr-defined]
        found = Pretrained(model.trunk.eval(), source, None, self.read_companion(Path(source.path)))
        found.headed = model
        return found

    def adapt_model(self, start: Start, data: Any) -> LabelledModel:
        """The checkpoint's model below a new head."""
        trunk: Any = start.model
        if not isinstance(start.model, self.MODEL.TRUNKS):
            known = ", ".join(known.__name__ for known in self.MODEL.TRUNKS)
            raise UserError(f"'{start.source}' is a {type(trunk).__name__}, but a head needs one of {known} below it.")
        config = trunk.config
        transformer = adapted_transformer(self.transformer_config, self.SMALL, config.transformer, start.source)
        if self.around(data) is not None:
            transformer = longer(transformer, data.context, start.source, self._outside(trunk, data))
        if transformer != config.transformer:
            trunk = rebuilt(trunk, replace(config, transformer=transformer))
        self.transformer_config = transformer
        headed: Any = start.headed
        if headed is not None:
            start.kept = {"pool": headed.config.pool, "hidden": headed.config.hidden}
        self._form = start.kept
        model = self._model(data, self.fit_trunk(trunk, data), pretrained=True)
        if headed is not None:
            self._said_of_head = self._keep(model, headed)
            start.headed = None
        return model

    def _keep(self, model: LabelledModel, headed: LabelledModel) -> str:
        """Takes over what the checkpoint's own head has for the targets of the table; returns that in words."""
        same = (model.config.pool, model.config.hidden) == (headed.config.pool, headed.config.hidden)
        if not same:
            return "a new head"
        for ours, theirs in ((model.pool, headed.pool), (model.hidden, headed.hidden)):
            if ours is not None and theirs is not None:
                ours.load_state_dict(theirs.state_dict())
        names, all_names = keep(model.head, headed.head), model.head.spec.words
        if not names:
            return "a new head (the checkpoint's has none of these names)"
        return f"the checkpoint's head for {len(names):,} of {len(all_names):,} names"

    def is_new(self, name: str) -> bool:
        return name.startswith(("head.", "pool.")) or (name.startswith("hidden.") and not self._form.get("hidden"))

    # --- training ----------------------------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of the head over the targets of the batch."""
        assert isinstance(self.model, LabelledModel)
        outputs = self.outputs_of(batch)
        if not self.training:
            self._outputs = outputs.detach()
        return Loss(*self.model.head.loss(outputs, batch["targets"]))

    def outputs_of(self, batch: dict[str, Tensor]) -> Tensor:
        """The outputs of the head, as `LabelledModel` gives them."""
        assert self.model is not None
        return self.model(batch)

    def slots(self, batch: dict[str, Tensor]) -> int:
        """Places of targets: rows, labels of rows, or tokens, as the head counts them."""
        assert isinstance(self.model, LabelledModel)
        targets = batch["targets"]
        return math.prod(targets.shape[:-1]) if self.model.head.spec.parts else targets.numel()

    # --- judging -----------------------------------------------------------------------------------------------------

    def update_metrics(self, batch: dict[str, Tensor]) -> None:
        assert self._outputs is not None
        outputs, targets = self._outputs.float().cpu(), batch["targets"].cpu()
        rows = batch["index"].cpu()
        if outputs.dim() == 3:  # one answer for each token
            rows = rows[:, None].expand(outputs.shape[:2])
            real = (targets == targets) & (targets != IGNORED)
            real = (real if targets.dim() == 2 else real.any(-1)) & (rows >= 0)
            outputs, targets, rows = outputs[real], targets[real], rows[real]
        else:
            outputs, targets, rows = outputs[rows >= 0], targets[rows >= 0], rows[rows >= 0]
        self._seen.append((outputs.numpy(), targets.numpy(), rows.numpy()))
        self._outputs = None

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """The figures of the head over the rows of all ranks; the answers themselves stay in `judged`."""
        seen, self._seen = self._seen, []
        if self.trainer.world_size > 1:
            seen = [part for parts in across_data(self.trainer, seen) for part in parts]
        outputs, targets, rows = (np.concatenate(part) for part in zip(*seen))
        self.judged = torch.from_numpy(outputs), torch.from_numpy(targets), rows
        if not np.isfinite(outputs).all():
            return {}  # diverged: the loss says so, and a long training is stopped by its own check
        assert isinstance(self.model, LabelledModel)
        try:
            judgement = self.model.head.judge(*self.judged[:2], calibration={}, groups=rows, resamples=0)
        except UserError:  # no target in this set
            return {}
        return dict(judgement.metrics)

    def finalise(self, run: RunFolder | None) -> dict[str, Any]:
        """Calibrates on the rows just judged, or, of test rows, takes the calibration stored with the run's model.

        On validation rows each half is judged by what the other half gives, so that no row is judged by a number that
        it helped to choose.
        """
        if self.judged is None or not isinstance(self.model, LabelledModel):
            return {}
        outputs, targets, rows = self.judged
        head = self.model.head
        testing = self.trainer.state.fn == "test" and self.data.scored_side == "test"
        stored = self._stored(run) if testing else None
        try:
            self.judgement = head.judge(outputs, targets, stored, rows)
            if not testing:
                self.calibration = head.calibrate(outputs, targets)
        except UserError as error:
            return {"not_judged": str(error)}
        side = "test" if testing else "val"
        found = {f"{side}_{name}": value for name, value in self.judgement.metrics.items()}
        return found | {"judged": self.judgement.to_dict(), "calibration": self.calibration if not testing else stored}

    def _stored(self, run: RunFolder | None) -> dict[str, Any]:
        if run is None or not (run.model / CONFIG).is_file():
            return {}
        return HeadSpec.from_dict(load_config(run.model, self.MODEL.__name__)["model"]["head"]).calibration

    # --- what the command line shows and writes ----------------------------------------------------------------------

    def describe(self) -> str:
        """One line about the model."""
        c, model = self.transformer_config, self.model
        shape = f"{c.depth} layers x {c.dim}, {c.heads} heads"
        if not isinstance(model, LabelledModel):
            return shape
        pool = model.config.pool
        read = f"{pool} pool" if pool else "every token"
        read += f" and {model.config.hidden} layer" if model.config.hidden else ""
        kept = f", {self._said_of_head}" if self._said_of_head else ""
        return f"{shape}, {read}, head {model.head.describe()}{kept}"

    def table(self, metrics: dict[str, Any]) -> str:
        """The figures with their intervals beside those of the constant answer."""
        if self.judgement is None:
            return str(metrics.get("not_judged") or super().table(metrics))
        loss = next((f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("_loss")), "")
        parts = [loss, self.judgement.table(), self.judgement.class_table()]
        return "\n".join(part for part in parts if part)

    def finish(self, run: RunFolder) -> None:
        """Draws the pictures of the head into the run folder."""
        if self.judgement is not None and isinstance(model := self.model, LabelledModel):
            from ..evaluate import pictures

            pictures.draw(self.judgement, run.path, unit=self.data.parts if model.head.per_token else "rows")

    def export(self, folder: Path) -> None:
        """Writes the model, its head calibrated, and what belongs to its inputs."""
        assert isinstance(self.model, LabelledModel)
        model: Any = self.model
        spec = model.head.spec.calibrated(self.calibration) if self.calibration else model.head.spec
        self.save_companion(folder)
        model.save_pretrained(folder, self.export_state())
        config = load_config(folder, self.MODEL.__name__)
        config["model"]["head"] = spec.to_dict()
        write_config(folder, config)

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to type after training."""
        name = shlex.quote(str(run))
        return [
            f"triune {self.COMMAND} test {name} --data.table OTHER.csv",
            f"triune {self.COMMAND} predict {name} --table NEW.csv --input COLUMN --out answers.csv",
        ]

    # --- what a checkpoint says --------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["labelled"] = self.data.trained

    def before_scoring(self, checkpoint: Path, data: Any) -> None:
        """Lets the data code labels as those of the training were."""
        content: Any = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        if isinstance(data, FromTable) and isinstance(content, dict) and "labelled" in content:
            data.continue_as(content["labelled"])
