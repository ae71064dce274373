"""Files of vectors with names: .parquet, .npz, .npy. Whole or not at all, and resumable while they are made.

Parquet: a column `name` (text), one for each of `places`, and `vector` (a list of float32 of fixed size). NumPy
archive: arrays `names`, one for each of `places`, `vectors` and `about`. .npy: the vectors alone; the names stand in
FILE.names.txt, a line each, with the places behind tabs, and what made them in FILE.about.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import (
    check_growth,
    check_regular,
    few,
    open_regular,
    parsing,
    read_json,
    write_atomic,
    write_json,
    written_whole,
)

ENDINGS = (".parquet", ".npz", ".npy")
GROUP = 1 << 14
"""Rows that are written together."""


@dataclass(frozen=True)
class Vectors:
    """Vectors of inputs.

    Args:
        path: their file.
        names: of the inputs, one a row; equal ones where an input has several rows, told apart by `places`.
        values: float32 `[rows, dim]`.
        places: int columns that say what of the input a row is, such as `token` or `layer`; often none.
        about: what made them (model, layer, pooling): vectors can be compared where it is equal.
        notes: which of several readings was taken.
    """

    path: Path
    names: list[str]
    values: np.ndarray
    places: dict[str, np.ndarray] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def label(self, row: int) -> str:
        """How a row is called: its name, and its places where it has any."""
        inside = ", ".join(f"{place} {int(numbers[row])}" for place, numbers in self.places.items())
        return f"{self.names[row]} ({inside})" if inside else self.names[row]


def check_ending(path: str | Path) -> Path:
    """The same path, once its ending is one of those that vectors are kept in; and its library is there.

    Raises:
        UserError: another ending, or Parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"'{path}' must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}; give such a name.")
    if path.suffix.lower() == ".parquet":
        _arrow(path)
    return path


def files_of(path: Path) -> list[Path]:
    """The files that vectors called `path` are kept in, for `check_new`."""
    beside = [_names_file(path), _about_file(path)] if path.suffix.lower() == ".npy" else []
    return [path, *beside]


def _names_file(path: Path) -> Path:
    return path.with_name(path.name + ".names.txt")


def _about_file(path: Path) -> Path:
    return path.with_name(path.name + ".about.json")


def _arrow(path: Path) -> Any:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"'{path}' needs pyarrow; install it with pip install 'triune[datasets]', or take .npz or .npy."
        ) from error
    return pyarrow


# -- writing ----------------------------------------------------------------------------------------------------------


def write_vectors(
    path: str | Path,
    names: Sequence[str],
    values: np.ndarray,
    places: Mapping[str, np.ndarray] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes vectors; a file that exists is replaced when all is written.

    Args:
        path: with one of `ENDINGS`.
        names, values, places, about: see `Vectors`.

    Raises:
        UserError: a name cannot be written, two rows have the same name and places, or a vector is not finite.
    """
    path, places, about = check_ending(path), dict(places or {}), dict(about or {})
    if values.ndim != 2 or len(values) != len(names) or any(len(numbers) != len(names) for numbers in places.values()):
        raise ValueError(f"{len(names)} names, values {values.shape}, places {[len(p) for p in places.values()]}")
    check_finite(names, values)
    _check_names(path, names, places)
    ending = path.suffix.lower()
    if ending == ".parquet":
        _write_parquet(path, names, values, places, about)
    elif ending == ".npz":
        arrays = {"names": np.array(list(names), np.str_), **places, "about": np.array(json.dumps(about))}
        with written_whole(path) as part, part.open("wb") as file:
            np.savez(file, **arrays, vectors=_float32(values))  # type: ignore[arg-type]
    else:
        columns = [list(names), *(numbers.tolist() for numbers in places.values())]
        lines = "".join("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))
        with written_whole(path) as part, part.open("wb") as file:
            np.save(file, _float32(values))
        write_atomic(_names_file(path), lines.encode())
        write_json(_about_file(path), {"rows": len(names), "places": list(places), "about": about})


def _float32(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.float32 else values.astype(np.float32)


def check_finite(names: Sequence[str], values: np.ndarray) -> None:
    """Raises UserError for a vector that holds NaN or an infinite number."""
    for start in range(0, len(values), GROUP):
        good = np.isfinite(values[start : start + GROUP]).all(1)
        if not good.all():
            name = names[start + int((~good).argmax())]
            raise UserError(f"The vector of '{name}' is not finite, so nothing can be compared with it; leave it out.")


def _check_names(path: Path, names: Sequence[str], places: Mapping[str, np.ndarray]) -> None:
    if taken := {"name", "names", "vector", "vectors", "about"} & set(places):
        raise ValueError(f"places may not be called {taken}")
    keys: Any = list(zip(names, *places.values(), strict=True)) if places else names
    if len(set(keys)) < len(names):
        seen = set[Any]()
        twice = next(name for name, key in zip(names, keys, strict=True) if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UserError(f"'{twice}' is the name of two inputs, but each needs one of its own; rename one.")
    if path.suffix.lower() == ".npy":
        odd = next((name for name in names if not name or len(name.splitlines()) > 1 or "\t" in name), None)
        if odd is not None:
            raise UserError(f"The name {odd!r} cannot stand on a line of '{_names_file(path)}'; take .parquet or .npz.")
    if path.suffix.lower() == ".npz" and (odd := next((name for name in names if name.endswith("\0")), None)):
        raise UserError(f"The name {odd!r} ends in a NUL character, which .npz loses; take .parquet.")


def _write_parquet(
    path: Path, names: Sequence[str], values: np.ndarray, places: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    pa = _arrow(path)
    dim = values.shape[1]
    fields = [
        ("name", pa.string()),
        *((place, pa.int32()) for place in places),
        ("vector", pa.list_(pa.float32(), dim)),
    ]
    schema = pa.schema(fields, metadata={"triune": json.dumps(dict(about))})
    # Codes for equal texts cost time on vectors, of which no two are equal.
    with written_whole(path) as part, pa.parquet.ParquetWriter(part, schema, use_dictionary=False) as writer:
        for start in range(0, max(len(names), 1), GROUP):
            rows = slice(start, start + GROUP)
            flat = pa.array(np.ascontiguousarray(_float32(values[rows])).reshape(-1))
            columns = [
                pa.array(list(names[rows]), pa.string()),
                *(pa.array(numbers[rows], pa.int32()) for numbers in places.values()),
                pa.FixedSizeListArray.from_arrays(flat, dim),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


# -- reading ----------------------------------------------------------------------------------------------------------


def read_vectors(path: str | Path) -> Vectors:
    """Reads vectors that Triune wrote, or another program: then the one column or array that can be meant.

    Raises:
        UserError: the file cannot be read, or holds no vectors, or several.
    """
    path = check_regular(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"'{path}' holds no vectors by its name, which must end in {', '.join(ENDINGS)}.")
    read = {".parquet": _read_parquet, ".npz": _read_npz, ".npy": _read_npy}[ending]
    found = read(path)
    if found.values.ndim != 2 or not np.issubdtype(found.values.dtype, np.floating):
        raise UserError(
            f"'{path}' holds an array of the shape {list(found.values.shape)} and type {found.values.dtype}, but "
            "vectors are numbers with a point of the shape [rows, dim]; give another file."
        )
    if len(found.names) != len(found.values):
        raise UserError(
            f"'{path}' holds {len(found.values):,} vectors, but {len(found.names):,} names; it was damaged or changed."
        )
    if not found.values.size:
        raise UserError(f"'{path}' holds no vectors; give another file.")
    check_finite(found.names, found.values)
    return found


def _numbered(count: int) -> tuple[list[str], list[str]]:
    return [f"row {i}" for i in range(1, count + 1)], ["it has no names, so rows are called by their number"]


def _read_parquet(path: Path) -> Vectors:
    pa = _arrow(path)
    types, notes = pa.types, list[str]()
    with parsing(path, "Parquet"):
        file = pa.parquet.ParquetFile(path)
        schema = file.schema_arrow
    lists = [
        f.name for f in schema
        if (types.is_list(f.type) or types.is_large_list(f.type) or types.is_fixed_size_list(f.type))
        and types.is_floating(f.type.value_type)
    ]  # fmt: skip
    texts = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
    vector = _the_one(path, "vector", lists, "lists of numbers with a point")
    name = None if not texts else _the_one(path, "name", texts, "texts")
    places = [f.name for f in schema if types.is_int32(f.type)] if vector == "vector" and name == "name" else []
    with parsing(path, "Parquet"):
        table = file.read(columns=[column for column in (name, *places, vector) if column])
        count = table.num_rows
        parts = [_matrix(path, chunk) for chunk in table.column(vector).chunks if len(chunk)]
        if len({part.shape[1] for part in parts}) > 1:
            raise UserError(f"The lists of '{vector}' of '{path}' are not equally long, so they are no vectors.")
        values = np.concatenate(parts) if len(parts) != 1 else parts[0]
        names = table.column(name).to_pylist() if name else None
        numbers = {place: table.column(place).to_numpy() for place in places}
    if names is None:
        names, notes = _numbered(count)
    if empty := next((i for i, text in enumerate(names, 1) if text is None), 0):
        raise UserError(f"'{name}' of '{path}' is empty in row {empty:,}; each vector needs a name.")
    if (vector, name) != ("vector", "name"):
        notes.append(f"vectors are '{vector}', names '{name}'")
    raw = (schema.metadata or {}).get(b"triune", b"{}")
    return Vectors(path, names, _float32(values), numbers, _about(path, raw), notes)


def _matrix(path: Path, chunk: Any) -> np.ndarray:
    """A chunk of lists as `[rows, dim]`."""
    if chunk.null_count:
        raise UserError(f"A vector of '{path}' is empty; leave its row out.")
    flat = chunk.flatten().to_numpy(zero_copy_only=False)
    lengths = len(flat) // len(chunk)
    if not hasattr(chunk.type, "list_size") and (np.diff(chunk.offsets.to_numpy()) != lengths).any():
        raise UserError(f"The vectors of '{path}' are not equally long; give vectors of one model.")
    return flat.reshape(len(chunk), lengths)


def _about(path: Path, raw: bytes | str) -> dict[str, Any]:
    with parsing(path, "a file of vectors"):
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("what made its vectors is no object")
        return found


def _the_one(path: Path, usual: str, found: Sequence[str], what: str) -> str:
    if usual in found:
        return usual
    if len(found) != 1:
        there = f"several ({few(list(found))})" if found else "none"
        raise UserError(
            f"'{path}' must have one column of {what}, or one called '{usual}', but has {there}; rename one."
        )
    return found[0]


def _read_npz(path: Path) -> Vectors:
    import zipfile

    with parsing(path, "a NumPy archive"):
        with zipfile.ZipFile(path) as archive:
            check_growth(path, archive.infolist())
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    matrices = [n for n, a in arrays.items() if a.ndim == 2 and np.issubdtype(a.dtype, np.floating)]
    vector = _the_one(path, "vectors", matrices, "vectors [rows, dim]")
    texts = [n for n, a in arrays.items() if a.ndim == 1 and a.dtype.kind == "U"]
    values, notes = arrays[vector], list[str]()
    if texts:
        names = arrays[_the_one(path, "names", texts, "texts")].tolist()
    else:
        names, notes = _numbered(len(values))
    ours = vector == "vectors" and "about" in arrays
    places = {n: a for n, a in arrays.items() if a.ndim == 1 and a.dtype.kind == "i"} if ours else {}
    return Vectors(path, names, _float32(values), places, _about(path, str(arrays["about"])) if ours else {}, notes)


def _read_npy(path: Path) -> Vectors:
    with parsing(path, "a NumPy array"):
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    about, notes = {}, list[str]()
    if _about_file(path).exists():
        about = read_json(_about_file(path))
    if not _names_file(path).exists():
        names, notes = _numbered(len(values))
        return Vectors(path, names, values, {}, about.get("about", {}), notes)
    with parsing(_names_file(path), "a list of names"), open_regular(_names_file(path)) as file:
        lines = file.read().decode("utf-8-sig").split("\n")
    if lines and not lines[-1]:
        del lines[-1]
    wanted = list(about.get("places", ()))
    rows = [line.rstrip("\r").split("\t") for line in lines] if wanted else [[line.rstrip("\r")] for line in lines]
    if bad := next((i for i, row in enumerate(rows, 1) if len(row) != 1 + len(wanted)), 0):
        raise UserError(f"Line {bad:,} of '{_names_file(path)}' must hold {', '.join(['a name', *wanted])}; mend it.")
    with parsing(_names_file(path), "a list of names"):
        places = {place: np.array([int(row[i]) for row in rows], np.int32) for i, place in enumerate(wanted, 1)}
    return Vectors(path, [row[0] for row in rows], values, places, about.get("about", {}), notes)


def parts_of(values: np.ndarray, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows: where each begins, and its float32 values."""
    for start in range(0, len(values), rows):
        yield start, np.asarray(values[start : start + rows], np.float32)
