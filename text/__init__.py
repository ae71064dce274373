"""Language models of text. Standard library only, because `triune --help` reads this."""

from __future__ import annotations

from ..core.task import Task, Verb, training

_LANGUAGE = ("triune.text.task:TextTask", "triune.text.data.module:TextData")
_MASKED = ("triune.text.masked.task:MaskedTextTask", "triune.text.masked.data:MaskedText")

TASK = Task(
    about="language models: train on your text, write more of it",
    verbs={
        **training(*_LANGUAGE, names=("fit",)),
        **training(*_MASKED, "train an encoder to guess hidden tokens (masked language model)", ("pretrain",)),
        **training(*_LANGUAGE, names=("validate", "test", "predict")),
        "check": Verb("show what training reads and learns from files", "triune.text.check:main"),
        "shard": Verb("write texts as tokens in shards, for more than memory holds", "triune.text.shard:main"),
        "probe": Verb("judge a checkpoint's frozen vectors on the labels of a table", "triune.text.labelled:probe"),
        "generate": Verb("continue a text with a trained model", "triune.text.generate:main"),
        "chat": Verb("talk with a trained model in the terminal", "triune.text.chat:main"),
        "serve": Verb("serve a trained model to OpenAI's clients", "triune.text.serve:main"),
    },
    also={
        "data.pairs": training("triune.text.seq2seq.task:PairTask", "triune.text.seq2seq.data:PairData"),
        "data.table": {
            **training("triune.text.labels:TextLabels", "triune.text.labels:TextTable"),
            "predict": Verb("answer new inputs with the best weights of a run", "triune.text.labelled:predict"),
        },
    },
    examples="""\
  triune text fit                                           train on Python's standard library
  triune text fit --config shakespeare-char-cpu --data.files input.txt
  triune text fit --config seq2seq-dates                    an encoder-decoder: "3rd of March 1987" to 1987-03-03
  triune text fit --data.pairs FILE.tsv                     the same for your own sources and targets
  triune text pretrain --data.files FOLDER                  an encoder that guesses hidden tokens, to fine-tune later
  triune text fit --run DIR --resume true                   continue where it stopped
  triune text validate RUN                                  the same metrics again
  triune text generate RUN --prompt 'Once'                  let it write""",
    checkpoints="triune.text.checkpoints.pretrained",
    architectures=("LanguageModel", "TextEncoder"),
    own=("EncoderDecoder", "TextPredictor"),
    lens="triune.text.lens:open_subject",
    modality="triune.text.labelled:MODALITY",
    libraries={"hf": "transformers", "gguf": "llama.cpp"},
    demo="triune.text.demo:main",
    smallest=("--trainer.max_steps", "20", "--trainer.val_check_interval", "20", "--model.transformer.depth", "1"),
    shown=("val_loss", "val_bits_per_byte"),
)
