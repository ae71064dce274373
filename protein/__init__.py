"""Contacts of protein residues, and protein language models. Standard library only, because `triune --help` reads
this.
"""

from __future__ import annotations

from ..core.task import Task, Verb, training

_PAIR = ("triune.protein.pair.task:PairTask", "triune.protein.data.module:ProteinData")
_LABELS = ("triune.protein.language.labels:ProteinLabels", "triune.protein.language.labels:ProteinTable")
_LANGUAGE = ("triune.protein.language.task:PretrainTask", "triune.protein.language.data:SequenceData")

TASK = Task(
    about="contacts and labels of proteins",
    verbs={
        "prepare": Verb(
            "turn structures and alignments into a set to train on", "triune.protein.data.prepare.prepare:main"
        ),
        "shard": Verb("write sequences in shards, for more than memory holds", "triune.protein.shard:main"),
        "check": Verb(
            "list copies, leaks and doubtful labels among the sequences of a table; verify a folder of shards",
            "triune.protein.shard:check",
        ),
        "dca": Verb(
            "predict contacts from an alignment alone, by mean-field direct couplings",
            "triune.protein.predict.dca:main",
        ),
        **training(*_PAIR, names=("fit",)),
        **training(
            *_LANGUAGE,
            "train a masked language model on sequences, and fit a contact head on its attention",
            ("pretrain",),
        ),
        **training(*_PAIR, names=("validate", "test")),
        "predict": Verb("answer new proteins with a model of a table", "triune.protein.language.labelled:predict"),
        "contacts": Verb(
            "draw, write and score the contact maps of sequences and alignments with a trained model",
            "triune.protein.predict.contacts:main",
        ),
        "probe": Verb(
            "judge a checkpoint's frozen vectors on the labels of a table", "triune.protein.language.labelled:probe"
        ),
        "mutations": Verb(
            "score every substitution of a sequence with a masked language model",
            "triune.protein.predict.mutations:main",
        ),
    },
    also={"data.table": training(*_LABELS, names=("fit", "validate", "test"))},
    examples="""\
  triune protein fit                                        train on the chains that come with the package
  triune protein prepare SET --structures PDB_FOLDER --alignments A3M_FOLDER
  triune protein fit --data.folder SET
  triune protein contacts family.a3m --run RUN --structure 1abc.cif
  triune protein pretrain --data.files swissprot.fasta.gz
  triune protein mutations protein.fasta --pretrained facebook/esm2_t12_35M_UR50D
  triune protein dca family.a3m""",
    checkpoints="triune.protein.language.checkpoints.pretrained",
    architectures=("SequenceModel",),
    own=("PairModel", "ProteinPredictor"),
    lens="triune.protein.lens.open:open_subject",
    modality="triune.protein.language.labelled:MODALITY",
    libraries={"hf": "transformers", "fair-esm": "fair-esm"},
    demo="triune.protein.demo:main",
    smallest=(
        "--trainer.max_steps", "20", "--trainer.val_check_interval", "20",
        "--model.settings", '{"depth": 1, "sequence_dim": 32, "sequence_depth": 1}',
    ),
    shown=("val_loss", "val_long_p_at_l5", "val_long_p_at_l5_chance", "val_long_p_at_l5_ceiling"),
)  # fmt: skip
