"""The verbs that use, compare and hand on models: mutations, shard, serve, chat, convert, compare, report, …"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from .made import Case, Content, folder, picture, pipe

MUTATIONS = "protein mutations MKVLAAGIVGLLLAQWERTY --run ok/esm --no-png "
SERVE = "text serve ok/lm "
MASKED = "text pretrain --run run --data.files ok/ok.txt --data.tokenizer bytes --data.cache cache "
PAIRS = "text fit --run run --data.pairs {} "
SHARD = "text shard ok/ok.txt x --tokenizer bytes"
PORT = 48_731
KEPT: list[socket.socket] = []


def listens(path: Path) -> None:
    """Takes the port, as another program would."""
    if not KEPT:
        KEPT.append(socket.create_server(("127.0.0.1", PORT)))


ROWS: list[tuple[str, str, str, str]] = [
    # room, what, command, words
    ("mutations", "no model", "protein mutations MKVL", "--run"),
    ("mutations", "two models", MUTATIONS + "--pretrained ok/esm", "--pretrained"),
    ("mutations", "a model of contacts", "protein mutations MKVL --run ok/pair", "PairModel|SequenceModel|masked"),
    ("mutations", "a model of text", "protein mutations MKVL --run ok/lm", "LanguageModel|SequenceModel"),
    ("mutations", "DNA", "protein mutations ACGTACGTACGTACGT --run ok/esm", "DNA|--force"),
    ("mutations", "a file that is not there", "protein mutations none.fasta --run ok/esm", "none.fasta"),
    ("mutations", "sites of nobody", MUTATIONS + "--sites ten", "--sites"),
    ("mutations", "a site behind the end", MUTATIONS + "--sites 10-90", "90"),
    ("mutations", "sites backwards", MUTATIONS + "--sites 9-3", "9-3"),
    ("mutations", "a site before the first", MUTATIONS + "--first 10 --sites 5", "5"),
    ("mutations", "a method of nobody", MUTATIONS + "--method mask", "--method"),
    ("mutations", "windows of 3", MUTATIONS + "--windows 3", "--windows"),
    ("mutations", "a measured column alone", MUTATIONS + "--column fitness", "--measured"),
    ("mutations", "measured values without a column", MUTATIONS + "--measured ok/texts.csv", "--column"),
    ("mutations", "a table that is not there", MUTATIONS + "--measured none.csv --column a", "none.csv"),
    ("serve", "no model", "text serve none", "none"),
    ("serve", "a model of images", "text serve ok/vit", "VisionTransformer|vision|LanguageModel"),
    ("serve", "a host of nobody", SERVE + "--host no.such.host.invalid", "--host"),
    ("serve", "the address of another machine", SERVE + "--host 192.0.2.1", "cannot listen"),
    ("serve", "a port above all", SERVE + "--port 99999", "--port"),
    ("serve", "a key that is empty", SERVE + "--api-key ''", "--api-key is empty"),
    ("serve", "no answers", SERVE + "--max-waiting 0", "--max-waiting"),
    ("serve", "weights of 3 bits", SERVE + "--weights int3", "--weights"),
    ("chat", "no model", "text chat none --prompt a", "none"),
    ("chat", "beams", "text chat ok/lm --prompt a --beams 3", "--beams|encoder"),
    ("chat", "no such conversation", "text chat ok/lm --prompt a --conversation none.json", "none.json|chat"),
    ("generate", "a look-up of 0", "text generate ok/lm --prompt a --lookup 0", "--lookup"),
    ("generate", "a top-p of 2", "text generate ok/lm --prompt a --top-p 2", "top.p"),
    ("generate", "greedy and a temperature", "text generate ok/lm --prompt a --greedy --temperature 2", "greedy"),
    ("generate", "thoughts without a chat", "text generate ok/lm --prompt a --think", "--think|--chat"),
    ("GGUF out", "a folder's name", "convert ok/lm out --to gguf", ".gguf"),
    ("GGUF out", "another format", "convert ok/lm out.gguf --to hf", ".gguf"),
    ("GGUF out", "bits without a GGUF file", "convert ok/lm out --to hf --type q8_0", "--type"),
    ("GGUF out", "bits of nobody", "convert ok/lm out.gguf --type q9", "--type"),
    ("GGUF out", "a model of images", "convert ok/vit out.gguf", "GGUF|gguf"),
    ("GGUF out", "a model of proteins", "convert ok/esm out.gguf", "GGUF|gguf"),
    ("GGUF out", "a model with a head", "convert ok/run-texts out.gguf", "head|GGUF|gguf|TextPredictor"),
    ("heads out", "a head of an image", "convert ok/run-images out --to hf", "cannot be written"),
    ("heads out", "a pool that they do not have", "convert ok/run-texts out --to hf", "no counterpart"),
    ("heads out", "another library", "convert ok/run-chains out --to timm", "timm|head|ProteinPredictor"),
    ("compare", "one run", "compare ok/run-text", "at least 2"),
    ("compare", "what is no run", "compare ok/run-text ok/lm", "ok/lm"),
    ("compare", "a run twice", "compare ok/run-text ok/run-text", "twice|same"),
    ("compare", "a picture of text", "compare ok/run-text ok/run-texts --png a.txt", "png"),
    ("compare", "an ending of nobody", "compare ok/run-text ok/run-texts --out a.txt", "must end in|json"),
    ("report", "what is no run", "report ok/lm", "ok/lm"),
    ("report", "one page of two runs", "report ok/run-text ok/run-texts --out a.html", "--out"),
    ("emergence", "no widths", "emergence --widths ''", "--widths"),
    ("emergence", "a width of -1", "emergence --widths=-1", "widths"),
    ("emergence", "a width twice", "emergence --widths 4,4", "widths|different"),
    ("emergence", "steps of 0", "emergence --budget 0", "--budget"),
    ("emergence", "a width of 10^18", "emergence --widths 1000000000000000000", "widths"),
    ("masked text", "all is hidden", MASKED + "--model.masked 1", "masked"),
    ("masked text", "nothing is hidden", MASKED + "--model.masked 0", "masked"),
    ("masked text", "a model that reads one way", MASKED + "--model.transformer.causal true", "causal"),
    ("masked text", "a context of 0", MASKED + "--data.context 0", "context"),
    ("pairs", "no such file", PAIRS.format("none.tsv"), "none.tsv"),
    ("pairs", "files beside them", PAIRS.format("ok/pairs.tsv") + "--data.files ok/ok.txt", "files"),
    ("pairs", "a source of nobody", PAIRS.format("ok/pairs.tsv") + "--data.source a", "source"),
    ("text shards", "no such file", "text shard none.txt x", "none.txt"),
    ("text shards", "a size for bytes", SHARD + " --vocab_size 300", "vocab_size|vocabulary"),
    ("text shards", "a tokenizer of nobody", "text shard ok/ok.txt x --tokenizer words", "words|tokenizer"),
    ("text shards", "shards of no token", SHARD + " --rows 0", "--rows"),
    ("text shards", "texts to validate on that are not there", SHARD + " --val_files none.txt", "none.txt"),
    ("image shards", "no such folder", "vision shard none x", "none"),
    ("image shards", "onto itself", "vision shard ok/img ok/img", "itself|INPUT"),
    ("image shards", "a cache that is a device", "vision shard ok/img x --cache /dev/zero", "cache"),
    ("image shards", "megapixels of nan", "vision shard ok/img x --max_megapixels nan", "max_megapixels"),
    ("loggers", "one of nobody", MASKED + "--trainer.logger tensorbord", "tensorbord"),
    ("loggers", "one twice", MASKED + "--trainer.logger [csv,csv]", "twice|csv"),
]  # fmt: skip
PLACES: list[tuple[str, str, str, dict[str, Content], str]] = [
    ("mutations", "a column that is not there", MUTATIONS + "--measured x.csv --column fitness",
     {"x.csv": b"mutation,score\nM1A,1\n"}, "no column 'fitness'"),
    ("mutations", "names that are not there", MUTATIONS + "--measured x.csv --column score",
     {"x.csv": b"mutant,score\nM1A,1\n"}, "no column 'mutation'"),
    ("mutations", "another wild type", MUTATIONS + "--measured x.csv --column score",
     {"x.csv": b"mutation,score\nA1G,1\n"}, "A1G"),
    ("mutations", "a text for a number", MUTATIONS + "--measured x.csv --column score",
     {"x.csv": b"mutation,score\nM1A,high\n"}, "high"),
    ("mutations", "a mutant of nobody", MUTATIONS + "--measured x.csv --column score",
     {"x.csv": b"mutation,score\nM1J,1\n"}, "J"),
    ("mutations", "a file as folder", MUTATIONS + "--out x", {"x": b"mine"}, "x"),
    ("serve", "a port in use", SERVE + f"--port {PORT}", {"x": listens}, "cannot listen"),
    ("chat", "a conversation that is a pipe", "text chat ok/lm --prompt a --conversation x", {"x": pipe}, "pipe|chat"),
    ("GGUF out", "over a file", "convert ok/lm x.gguf", {"x.gguf": b"mine"}, "exists"),
    ("GGUF out", "into a folder", "convert ok/lm x.gguf --overwrite", {"x.gguf": folder}, "folder"),
    ("GGUF out", "into a pipe", "convert ok/lm x.gguf --overwrite", {"x.gguf": pipe}, "pipe"),
    ("compare", "over a file", "compare ok/run-text ok/run-texts --out x.csv", {"x.csv": b"mine"}, "exists"),
    ("compare", "into a pipe", "compare ok/run-text ok/run-texts --out x.csv --overwrite", {"x.csv": pipe}, "pipe"),
    ("report", "into a folder", "report ok/run-text --out x.html", {"x.html": folder}, "folder"),
    ("report", "into a pipe", "report ok/run-text --out x.html", {"x.html": pipe}, "pipe"),
    ("emergence", "over a file", "emergence --output x.json", {"x.json": b"mine"}, "exists"),
    ("pairs", "a row of one cell", PAIRS.format("x.tsv"), {"x.tsv": b"a\tb\nc\n"}, "x.tsv:2"),
    ("pairs", "an empty file", PAIRS.format("x.tsv"), {"x.tsv": b""}, "x.tsv"),
    ("pairs", "a pipe", PAIRS.format("x.tsv"), {"x.tsv": pipe}, "pipe"),
    ("pairs", "one pair", PAIRS.format("x.tsv"), {"x.tsv": b"a\tb\n"}, "pair"),
    ("text shards", "a folder with something else", SHARD, {"x/mine": b"mine"}, "no folder of shards"),
    ("text shards", "a file", SHARD, {"x": b"mine"}, "no folder of shards|x"),
    ("text shards", "a pipe", SHARD, {"x": pipe}, "no folder of shards|x"),
    ("text shards", "notes that are cut", SHARD, {"x/progress.json": b"{"}, "JSON"),
    ("text shards", "shards of other texts", SHARD, {"x/progress.json": b'{"identity": "b"}'}, "other files"),
    ("text shards", "a manifest of nobody", "text fit --run run --data.files x", {"x/manifest.json": b"{}"},
     "manifest|text"),
    ("image shards", "a folder with something else", "vision shard ok/img x", {"x/mine": b"m"}, "no folder of shards"),
    ("image shards", "an image that is cut", "vision shard y x",
     {"y/a/1.png": picture(), "y/b/1.png": picture(colour=9)[:40]}, "cut short|damaged"),
]  # fmt: skip


def cases() -> Iterator[Case]:
    """All of this room."""
    for room, about, command, words in ROWS:
        yield Case(room, about, command, {}, words)
    for room, about, command, given, words in PLACES:
        yield Case(room, about, command, given, words)
