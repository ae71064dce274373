"""Rows of chat data sets to conversations: which columns hold what, who speaks, and what is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import UserError, nearest
from ...core.files import few, parse_json
from ...core.labels.rows import Row, rows

ANSWERS = "assistant"
ROLES = {
    "human": "user", "prompter": "user", "gpt": ANSWERS, "chatgpt": ANSWERS, "bot": ANSWERS, "model": ANSWERS,
    "ai": ANSWERS, "observation": "tool", "function": "tool", "function_call": ANSWERS,
}  # fmt: skip
"""Names of other data sets for the usual roles."""
USUAL_ROLES = ("system", "developer", "user", ANSWERS, "tool", "ipython")

LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue")
"""Columns that hold the messages of a conversation."""
COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction", "question", "query", "problem"),
    "context": ("context", "input"),
    "completion": ("completion", "response", "output", "answer"),
    "system": ("system", "system_prompt"),
    "tools": ("tools",),
}
"""What a row of one question and its answer may hold, and the columns that do in the usual data sets. A row with two of
one line is ambiguous."""
OTHER_ANSWERS = (
    "solution", "answers", "final_answer", "chosen", "rationale", "explanation", "cot", "chain_of_thought", "target",
    "ground_truth", "expected_output", "generation",
)  # fmt: skip
"""Columns that may hold the answer, or a part of it, beside one of `COLUMNS`."""
FORMS = (
    "`messages` or `conversations` (a list of role and content, or from and value), or a question (`prompt`, "
    "`instruction`, `question`, `query`) and its answer (`completion`, `response`, `output`, `answer`)"
)

Message = dict[str, Any]


class Conversation(NamedTuple):
    """Messages `{"role", "content", …}`, and where they came from, `file:row`.

    `learned`: the numbers of the messages to learn, all of them the assistant's; None: every answer.
    `tools`: descriptions of functions that the template may show to the model.
    """

    name: str
    messages: list[Message]
    learned: frozenset[int] | None = None
    tools: list[Any] | None = None

    @property
    def answers(self) -> list[int]:
        """The numbers of the messages to learn: not what the assistant says before anybody spoke, nor an empty turn."""
        asked, found = False, []
        for number, message in enumerate(self.messages):
            asked = asked or message["role"] not in (ANSWERS, "system", "developer")
            says = message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content")
            wanted = self.learned is None or number in self.learned
            if asked and wanted and says and message["role"] == ANSWERS:
                found.append(number)
        return found


def read_conversations(
    files: list[str], columns: Mapping[str, str] | None = None
) -> Iterator[Conversation | UserError]:
    """The conversations of files of rows; for a row that cannot be used the error that says why.

    A row holds a list of messages, or a question and its answer; see `docs/inputs.md`.

    Args:
        files: .jsonl, .jsonl.gz, or .json with one array.
        columns: the names that this data set uses: `{"prompt": "q"}` reads questions from the column q. Keys are those
            of `COLUMNS`, `messages`, and `role` and `content` of a message.

    Raises:
        UserError: a file is missing or damaged, or `columns` maps something unknown.
    """
    mapped = dict(columns or {})
    known = ["messages", "role", "content", *COLUMNS]
    for name in mapped:
        if name not in known:
            raise UserError(
                f"data.columns has {name}{nearest(name, known)}, but must map some of {', '.join(known)} to the names "
                "that the rows use."
            )
    for file in files:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"data.chats names '{file}', which is no file; give files of JSON rows (.jsonl).")
        for row in rows(path):
            try:
                yield _conversation(row, mapped)
            except UserError as error:
                yield error


def read_messages(value: Any, where: str) -> list[Message]:
    """The messages of a JSON value: a list of them, or an object with a list. Raises UserError when it is neither."""
    several = value
    if isinstance(value, dict):
        several = next((value[name] for name in LISTS if isinstance(value.get(name), list)), None)
    if not isinstance(several, list):
        raise UserError(f"{where} holds no conversation, but must hold a list of messages (role, content).")
    return [_message(message, f"{where}, message {number}", {}) for number, message in enumerate(several, 1)]


def _conversation(row: Row, columns: Mapping[str, str]) -> Conversation:
    if row.error:
        raise row.error
    where, value = row.where, row.value
    if not isinstance(value, Mapping):
        raise UserError(f"{where} holds a {type(value).__name__}, but must hold an object with {FORMS}.")
    _refuse_media(value, where)
    if value.get("label") is False:
        raise UserError(f"{where} has the label false, which says that its answer is a bad one; remove the row.")
    found = _messages(value, where, columns)
    tools, system = _column(value, where, "tools", columns), _column(value, where, "system", columns)
    messages = [
        _message(message, f"{where}, message {number}", columns) for number, (message, _) in enumerate(found, 1)
    ]
    learned = [
        learned and _wanted(message, f"{where}, message {number}") for number, (message, learned) in enumerate(found, 1)
    ]
    if system is not None and system != "":
        if not isinstance(system, str):
            raise UserError(f"{where} has a `system` column that holds a {type(system).__name__}, but must be a text.")
        first = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        if first not in (None, system):
            raise UserError(f"{where} has a `system` column and another system message; keep one of them.")
        if first is None:
            messages, learned = [{"role": "system", "content": system}, *messages], [False, *learned]
    if isinstance(tools, str) and tools.strip():
        tools = parse_json(tools, f"{where}: column `tools`")
    if tools and not isinstance(tools, list):
        raise UserError(f"{where} has `tools` that are a {type(tools).__name__}, but must be a list of functions.")
    numbers = frozenset(number for number, wanted in enumerate(learned) if wanted)
    conversation = Conversation(where, messages, numbers, tools or None)
    if not conversation.answers:
        said = any(message["role"] == ANSWERS for message in messages)
        why = "no answer that follows a question and is to be learned" if said else f"no answer (role {ANSWERS})"
        raise UserError(f"{where} has {why}, so there is nothing to learn; remove the row.")
    return conversation


def _messages(row: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> list[tuple[Any, bool]]:
    """The messages of a row as they stand there, each with whether it may be learned."""
    if "messages" in columns:
        names = [columns["messages"]]
    else:
        names = [] if {"prompt", "completion"} & set(columns) else [n for n in LISTS if isinstance(row.get(n), list)]
    if len(names) > 1:
        raise UserError(f"{where} has {' and '.join(names)}; say which to read with --data.columns.messages NAME.")
    if names:
        several = row.get(names[0])
        if not isinstance(several, list):
            raise UserError(f"{where} has no list of messages in column '{names[0]}'; change --data.columns.")
        _refuse_answer_beside(row, several, where, columns)
        return [(message, True) for message in several]
    question, answer = (_column(row, where, name, columns) for name in ("prompt", "completion"))
    context = _column(row, where, "context", columns)
    names = {n: next((c for c in COLUMNS[n] if c in row), n) for n in ("prompt", "completion")} | dict(columns)
    if question is None and isinstance(context, str) and "input" in row and not {*COLUMNS["prompt"]} & set(row):
        question, context = context, None  # `input` and `output` alone
    elif question is None and names["prompt"] in row and names["completion"] in row:
        raise UserError(f"{where}: `{names['prompt']}` is null, but must be a text; remove the row.")
    if question is None or (answer is None and names["completion"] not in row):
        if other := next((name for name in LISTS if row.get(name) is not None), None):
            kind = type(row[other]).__name__
            raise UserError(f"{where}: `{other}` is a {kind}, but must be a list of messages (role, content).")
        raise UserError(f"{where} has {few(list(map(str, row)), 6) or 'nothing'}, but must have {FORMS}.{_hint(row)}")
    if answer is None:
        raise UserError(f"{where}: `{names['completion']}` is null, but must be a text; remove the row.")
    if "completion" not in columns and isinstance(answer, str):
        _refuse_other_answers(row, answer, where, columns)
    if isinstance(question, str) and context is not None and context != "":
        if not isinstance(context, str):
            raise UserError(f"{where} has a context that is a {type(context).__name__}, but must be a text.")
        question = f"{question}\n\n{context}" if question else context
    asked = question if isinstance(question, list) else [{"role": "user", "content": question}]
    thoughts = {key: row[key] for key in THOUGHTS if row.get(key) and key not in columns.values()}
    answered = answer if isinstance(answer, list) else [{"role": ANSWERS, "content": answer, **thoughts}]
    before = [] if "history" in columns.values() else _history(row, where)
    asked = [(message, False) for message in asked]
    return [(message, True) for message in before] + asked + [(message, True) for message in answered]


def _refuse_answer_beside(row: Mapping[str, Any], several: list[Any], where: str, columns: Mapping[str, str]) -> None:
    """Raises UserError where messages end with a question, whose answer would be dropped with its column."""
    last = several[-1] if several and isinstance(several[-1], Mapping) else {}
    role = last.get(columns.get("role", "role")) or last.get("from")
    if not isinstance(role, str) or ROLES.get(role.strip().lower(), role.strip().lower()) != "user":
        return
    if "messages" not in columns and (there := [name for name in COLUMNS["completion"] if row.get(name)]):
        raise UserError(
            f"{where} has messages that end with a question, and `{there[0]}` beside them; put the answer into the "
            "messages, or say that they are all with --data.columns.messages NAME."
        )


def _refuse_other_answers(row: Mapping[str, Any], answer: str, where: str, columns: Mapping[str, str]) -> None:
    """Raises UserError for a second column that may hold the answer, and holds what the first one does not."""
    for name in OTHER_ANSWERS:
        other = row.get(name)
        if name not in columns.values() and isinstance(other, str) and other.strip() and other.strip() not in answer:
            first = next(column for column in COLUMNS["completion"] if row.get(column) is not None)
            raise UserError(
                f"{where} has {first} and {name}; say which is learned: --data.columns.completion {first}, or {name}."
            )


def _history(row: Mapping[str, Any], where: str) -> list[Any]:
    """Turns before the question, `[[question, answer], …]`, as messages: its answers are learned as in a list."""
    turns = row.get("history")
    if turns is None or turns == "":
        return []
    pairs = isinstance(turns, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) for said in turn) for turn in turns
    )
    if not pairs:
        raise UserError(f"{where} has a `history`, but must have a list of pairs of a question and its answer there.")
    return [
        {"role": role, "content": said} for turn in turns for role, said in zip(("user", ANSWERS), turn, strict=True)
    ]


def _hint(row: Mapping[str, Any]) -> str:
    if "text" in row:
        return " Rows of `text` are read by --data.files."
    if "chosen" in row:
        return " For pairs of answers say which to learn: --data.columns.completion chosen."
    return " Other names are mapped, for example with --data.columns.prompt NAME."


def _column(row: Mapping[str, Any], where: str, name: str, columns: Mapping[str, str]) -> Any:
    if name in columns:
        if columns[name] not in row:
            raise UserError(
                f"{where} has no column '{columns[name]}', which data.columns names as {name}; it has "
                f"{few(list(map(str, row)), 6) or 'nothing'}."
            )
        return row[columns[name]]
    there = [column for column in COLUMNS[name] if row.get(column) not in (None, "")]
    taken = set(columns.values())
    there = [column for column in there if column not in taken]
    if len(there) > 1:
        raise UserError(f"{where} has {' and '.join(there)}; say which to read with --data.columns.{name} NAME.")
    return (
        row[there[0]] if there else next((row[c] for c in COLUMNS[name] if row.get(c) == "" and c not in taken), None)
    )


def _message(message: Any, where: str, columns: Mapping[str, str]) -> Message:
    """A message with `role` and `content`, and what else a template may read."""
    if not isinstance(message, Mapping):
        raise UserError(f"{where} is a {type(message).__name__}, but must be an object with role and content.")
    _refuse_media(message, where)
    role = _one(message, [columns["role"]] if "role" in columns else ["role", "from"], where)
    if not isinstance(role, str) or not role.strip():
        raise UserError(f"{where} has no role; say who speaks ({', '.join(USUAL_ROLES[:4])}).")
    role = role.strip().lower()
    kept = {key: message[key] for key in ("name", "tool_call_id") if message.get(key) is not None}
    if (thought := _first(message, list(THOUGHTS))) is not None:
        if not isinstance(thought, str):
            raise UserError(f"{where} has thoughts that are a {type(thought).__name__}, but must be a text.")
        kept["reasoning_content"] = thought
    calls = _calls(message, where)
    content = _one(message, [columns["content"]] if "content" in columns else ["content", "value"], where)
    if content is None and calls:
        content = ""
    text = _text(content, where)
    return {"role": ROLES.get(role, role), "content": text, **kept, **({"tool_calls": calls} if calls else {})}


THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of what an answer says before it is given, as transformers looks for them."""


def _first(message: Mapping[str, Any], keys: list[str]) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _one(message: Mapping[str, Any], keys: list[str], where: str) -> Any:
    """What stands under one of the keys. Raises UserError where two of them say something else."""
    said = {key: message[key] for key in keys if message.get(key) is not None}
    first, *others = said or [""]
    if any(_same(said[other]) != _same(said[first]) for other in others):
        raise UserError(
            f"{where} has {' and '.join(said)} that differ; say which to read with --data.columns.{keys[0]} NAME."
        )
    return said.get(first)


def _same(value: Any) -> Any:
    """A value as it is compared: names of one role are one."""
    return ROLES.get(value.strip().lower(), value) if isinstance(value, str) else value


def _calls(message: Mapping[str, Any], where: str) -> list[Any]:
    """Calls of functions; arguments that are written as JSON become the values they stand for, as templates expect."""
    calls = message.get("tool_calls")
    if calls is None and isinstance(message.get("function_call"), Mapping):
        calls = [{"type": "function", "function": message["function_call"]}]
    if not calls:
        return []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise UserError(f"{where} has `tool_calls` that are no list of objects.")
    found = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            arguments = parse_json(function["arguments"] or "{}", f"{where}: the arguments of a call")
            call = {**call, "function": {**function, "arguments": arguments}}
        found.append(call)
    return found


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise UserError(f"{where} has a part of type {kind}, which a text model cannot read; remove the row.")
        content = "".join(part["text"] for part in content)
    if content is None:
        raise UserError(f"{where} has no content (it is null), but must hold a text; remove the row.")
    if not isinstance(content, str):
        raise UserError(f"{where} has a content that is a {type(content).__name__}, but must be a text.")
    return content


def _wanted(message: Mapping[str, Any], where: str) -> bool:
    """Data sets may say which answers are learned: `weight` 0 or 1 (OpenAI), others true or false."""
    for key in ("mask", "masked", "ignore"):
        if message.get(key) is not None:
            raise UserError(
                f"{where} has `{key}`, which may mean learned or left out; name it `loss`, true for what is learned."
            )
    keys = ("weight", "train", "training", "loss", "loss_mask", "trainable", "learn")
    marks = {key: message[key] for key in keys if message.get(key) is not None}
    for key, mark in marks.items():
        if not isinstance(mark, (bool, int, float)) or mark not in (0, 1):
            raise UserError(f"{where} has the {key} {mark!r}, but must be 0 or 1, false or true: learned or not.")
    return all(marks.values())


def _refuse_media(held: Mapping[str, Any], where: str) -> None:
    """Raises UserError where a row or a message comes with pictures or sounds, beside its text."""
    for key in ("image", "images", "audio", "audios", "video", "videos"):
        if held.get(key) not in (None, "", []):
            raise UserError(f"{where} has `{key}`, which a text model cannot read; remove the row.")
