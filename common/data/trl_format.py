"""Preferences in TRL's format: rows, plain or conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from penchant.common.data.preferences import Preference, Tie, check_text, checked_strength, choice_of, kind_of
from penchant.common.data.row_files import NEEDED, PARTS, BadRows, ReadReport, RowLog, read_rows
from penchant.common.errors import DataError

__all__ = [
    "PERSON_FIELDS",
    "SPLIT",
    "STRENGTH",
    "STRENGTHS",
    "TIE",
    "TOO_DEEP",
    "UNREAD_COLUMNS",
    "USUAL_COLUMNS",
    "AskedColumns",
    "Label",
    "LabelColumns",
    "Labelled",
    "Message",
    "collect_preferences",
    "column_names",
    "extract_prompt",
    "json_lines",
    "messages_in",
    "parse_preference",
    "part_of",
    "person_name",
    "read_preferences",
    "renamed",
    "render",
    "strength_in",
    "tie_said",
    "write_jsonl",
]
PERSON_FIELDS = ("person", "worker", "user_id")
"""Columns that name the person, in the order in which they are looked for."""
SPLIT = "split"
"""The column that says of each row whether it is for training, validation or testing."""
TIE = "tie"
"""The column that says of a row that neither response is preferred, and what was said of them."""
_TEXTS = ("prompt", "chosen", "rejected")
STRENGTH = "strength"
STRENGTHS = (STRENGTH, "margin")
"""Columns that say how strongly the chosen response is preferred: penchant's own, and TRL's."""
_SLIGHTLY, _BETTER, _MUCH = 1.0, 2.0, 3.0  # as HelpSteer2-Preference numbers them
_WORDS = {"slightly": _SLIGHTLY, "better": _BETTER, "moderately": _BETTER, "much": _MUCH}
_WORDS |= {f"{word}better": number for word, number in _WORDS.items() if word != "better"}
_EQUAL = ("equal", "tie", "tied", "tievote", "draw", "same", "bothgood")
_BOTH_BAD = ("bothbad", "bothbadvote", "tiebothbad", "neither")
_IS_TIE, _IS_NONE = ("true", "yes"), ("", "false", "no", None)
_ONE_OR_NOUGHT = re.compile(r"[01](\.0*)?")  # as tables write them
UNREAD_COLUMNS = ("images", "image", "videos", "video", "audio", "audios")
"""Columns of rows that show more than text; what is in them is not read."""
TOO_DEEP = "its lists and objects lie too deep in each other"
"""Why a row is a bad one that Python can't follow to its end."""
Message = dict[str, str]
"""One message of a conversation: its role and its content."""
_ROLES = re.compile(r"^(system|developer|user|assistant|tool|function): ", re.MULTILINE)
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def parse_preference(row: Mapping[str, Any]) -> Preference:
    """A preference from one TRL row; other columns are left alone.

    Raises:
        DataError: says what is wrong with the row, without quoting it.
    """
    for name in NEEDED:
        if row.get(name) is None:
            raise DataError(f"{name!r} is missing")
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if _are_texts(chosen, rejected):
        raise DataError(
            "'chosen' and 'rejected' are lists of texts, as of RewardBench 2, and a row compares one with "
            "one; make a row of each rejected text"
        )
    if _is_conversation(chosen) != _is_conversation(rejected):
        raise DataError("one of 'chosen' and 'rejected' is a text and the other a conversation")
    # As in TRL: a prompt of another kind than the responses is not used; they hold it themselves.
    if prompt is None or _is_conversation(prompt) != _is_conversation(chosen):
        prompt, chosen, rejected = extract_prompt(chosen, rejected)
    tie, strength = tie_of(row), strength_in(row)
    if tie and strength == 0:
        strength = None  # nought says the same
    if not _is_conversation(chosen):
        return Preference(prompt, chosen, rejected, tie, strength)
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if not any(_content(name, message).strip() for message in response):
            raise DataError(f"{name!r} is empty")
    return Preference(
        render("prompt", prompt, ends_with_newline=True),
        render("chosen", chosen),
        render("rejected", rejected),
        tie,
        strength,
    )


def strength_in(row: Mapping[str, Any]) -> float | None:
    """How strongly a row says that its chosen response is preferred, by the one of :data:`STRENGTHS` that it
    has: a number, or how much better it is in words; None where it doesn't say.

    Raises:
        DataError: it has both, or says nothing known.
    """
    said = {name: row[name] for name in STRENGTHS if row.get(name) not in (None, "")}
    if len(said) > 1:
        raise DataError(f"{' and '.join(map(repr, said))} both say how strong the choice is; keep one")
    for name, value in said.items():
        return checked_strength(name, _number(value) if isinstance(value, str) else value)
    return None


def _number(text: str) -> float | None:
    """A number, or a word that stands for one; None for anything else."""
    word = re.sub(r"[\W_]+", "", text.lower())
    if word in _WORDS:
        return _WORDS[word]
    try:
        return float(text)
    except ValueError:
        return None


def tie_said(value: Any) -> Tie | None:
    """What a vote says of two responses of which neither is preferred, whatever the case and the signs
    between words; None where it is no such vote."""
    word = re.sub(r"[\W_]+", "", value.lower()) if isinstance(value, str) else ""
    return "equal" if word in _EQUAL else "both bad" if word in _BOTH_BAD else None


def tie_of(row: Mapping[str, Any]) -> Tie | Literal[""]:
    """What a row's column :data:`TIE` says; empty for a choice. DataError when it says nothing known."""
    value = row.get(TIE)
    said = tie_said(value)
    if said is not None:
        return said
    if isinstance(value, str):
        value = value.strip().lower()
        value = float(value) if _ONE_OR_NOUGHT.fullmatch(value) else value
    if value in _IS_TIE or value == 1:
        return "equal"
    if value in _IS_NONE or value == 0 or value != value:  # NaN: an empty cell of a table
        return ""
    raise DataError(
        f"{TIE!r} must be true, false, equal or both bad; rename the column if it means something else"
    )


def extract_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Split two texts, or two lists of messages, into common beginning and rests.

    The rule is TRL's ``extract_prompt``: cut at the first difference; a space just before it goes to
    the responses; when one is the beginning of the other, cut before its last element, so that no
    rest is empty. (TRL looks at index -1 when the very first characters differ; here the prompt is
    then empty.)

    Returns:
        (prompt, rest of chosen, rest of rejected), of the types given.
    """
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(response, list):
            check_text(name, response)
    shorter = min(len(chosen), len(rejected))
    cut = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter - 1)
    cut = max(cut, 0)
    if cut > 0 and chosen[cut] != rejected[cut] and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def render(name: str, messages: Any, *, ends_with_newline: bool = False) -> str:
    r"""Messages as one text, independent of any model's chat template.

    ``[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]`` becomes
    ``"user: Hi\nassistant: Hello"``. A prompt ends with a newline, so that prompt + response is again
    one line a message. ``name`` is the field's, for messages of errors.
    """
    if not isinstance(messages, list):
        raise DataError(f"{name!r} must be a conversation, not {kind_of(messages)}")
    lines = [f"{_role(name, message)}: {_content(name, message)}" for message in messages]
    return "".join(line + "\n" for line in lines) if ends_with_newline else "\n".join(lines)


def messages_in(text: str, *, ends_with_newline: bool = False) -> list[Message] | None:
    """The messages of a text that `render` made in the same way; None where it does not begin with
    one, or end as it should.

    A text alone does not say where messages end: a line in one that begins with a role, such as ``user: ``,
    begins another here.
    """
    lines = list(_ROLES.finditer(text))
    if not lines or lines[0].start() or (ends_with_newline and not text.endswith("\n")):
        return None
    ends = [line.start() for line in lines[1:]] + [len(text) + (not ends_with_newline)]
    return [
        {"role": line[1], "content": text[line.end() : end - 1]}
        for line, end in zip(lines, ends, strict=True)
    ]


def _role(name: str, message: object) -> str:
    """Who says a message; ShareGPT's names of roles become the usual ones."""
    if not _is_sharegpt(message):
        return _message_text(name, message, "role")
    said_by = _message_text(name, message, "from")
    return _SHAREGPT_ROLES.get(said_by, said_by)


def _content(name: str, message: object) -> str:
    """A message's text; content in parts, as of multimodal rows, is joined if every part is text. A message
    without content that calls tools is what it calls them with."""
    if _is_sharegpt(message):
        return _message_text(name, message, "value")
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(message, Mapping) and content in (None, "") and message.get("tool_calls"):
        return _calls(name, message["tool_calls"])
    if not isinstance(content, list):
        return _message_text(name, message, "content")
    if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        raise DataError(f"{name!r} has a message with parts other than text")
    return "".join(_message_text(name, part, "text") for part in content)


def _calls(name: str, calls: object) -> str:
    """Calls of tools, one a line: ``name(arguments)`` with the arguments as JSON."""
    lines = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else call
        called = _message_text(name, function, "name")
        arguments = function.get("arguments", {}) if isinstance(function, Mapping) else {}
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        lines.append(f"{called}({written})")
    return "\n".join(lines)


def _is_sharegpt(message: object) -> bool:
    return isinstance(message, Mapping) and "role" not in message and "from" in message


def _message_text(name: str, message: object, key: str) -> str:
    if not isinstance(message, Mapping):
        raise DataError(f"{name!r} has a message that is {kind_of(message)}, not an object")
    value = message.get(key)
    if not isinstance(value, str):
        raise DataError(f"{name!r} has a message whose {key!r} must be a string, not {kind_of(value)}")
    return value


def _is_conversation(value: object) -> bool:
    return isinstance(value, list)


def _are_texts(chosen: object, rejected: object) -> bool:
    """Whether the responses are texts of which one side or both has several, in a list."""
    sides = [side if isinstance(side, list) else [side] for side in (chosen, rejected)]
    listed = isinstance(chosen, list) or isinstance(rejected, list)
    return listed and all(side and all(isinstance(text, str) for text in side) for side in sides)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A preference, who has it, which part of the data it belongs to, and of what kind it is; None where the
    data don't say, or where nobody asked for kinds. where: the row that says it, or the rows; empty where
    that is not known."""

    person: str | None
    preference: Preference
    part: str | None = None
    kind: str | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Label:
    """What a row says beside its choice: whose it is, for which part of the data, of what kind; where: the
    row, which makes no difference to what is said."""

    person: str | None = None
    part: str | None = None
    kind: str | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """The columns that say so; empty, or False, where none does. A row without one of them is a bad one."""

    person: str = ""
    kind: str = ""
    split: bool = False

    def of(self, row: Mapping[str, Any]) -> Label:
        """What a row says in them. DataError when it does not, or says a part where the first row didn't."""
        if not self.split:
            _check_no_part(row)
        return Label(
            person_name(row, self.person) if self.person else None,
            part_of(row) if self.split else None,
            person_name(row, self.kind) if self.kind else None,
        )


@dataclass(frozen=True, slots=True)
class AskedColumns:
    """What is asked of columns before any row is seen.

    person: the column that names the person, in every row; empty for a usual one.
    kind: the column that says of what kind a choice is, in every row; empty where nobody asks.
    familiar: a column that names the person where the first row has it, before the usual ones.
    """

    person: str = ""
    kind: str = ""
    familiar: str = ""

    def among(self, first: Mapping[str, Any], *, usual: bool = True) -> LabelColumns:
        """The columns that a file is read by, as its first row has them.

        usual: whether :data:`PERSON_FIELDS` name the person. Where none does, people are known by the kind
        alone: choices of two kinds are then of two people.
        """
        fields = (self.familiar, *(PERSON_FIELDS if usual else ()))
        person = self.person or next((name for name in fields if name and name in first), "")
        return LabelColumns(person or (self.kind if usual else ""), self.kind, SPLIT in first)


USUAL_COLUMNS = AskedColumns()
"""Where nothing is asked for."""


def read_preferences(
    path: str | Path, *, person_column: str | None = None, bad_rows: BadRows = "refuse"
) -> tuple[list[Labelled], ReadReport]:
    """Preferences from a file or folder in TRL's format, in file order.

    Raises:
        DataError: no such file; bad rows, unless skipped; or no row left. See :func:`read_rows`,
            :func:`collect_preferences`.
    """
    log = RowLog(bad_rows)
    asked = AskedColumns(person_column or "")
    return collect_preferences(read_rows(path, log), log, asked), log.finish(path)


def collect_preferences(
    rows: Iterable[tuple[str, Mapping[str, Any]]], log: RowLog, asked: AskedColumns = USUAL_COLUMNS
) -> list[Labelled]:
    """Preferences from TRL rows; bad ones are rejected in ``log``.

    Where nothing else is ``asked``, the first row decides which of :data:`PERSON_FIELDS` names the person;
    if it has none, nobody is named. It also decides whether rows say by :data:`SPLIT` which part they belong
    to. Once a column is decided on, a row without it is a bad one; so is a row that says which part it is for
    where the first doesn't, since what is to be tested on must not be trained on unseen.
    """
    found: list[Labelled] = []
    columns: LabelColumns | None = None
    for where, row in rows:
        columns = columns or asked.among(row)
        try:
            label = columns.of(row)
            found.append(Labelled(label.person, parse_preference(row), label.part, label.kind, where))
        except DataError as error:
            lacking = (name for name in (columns.person, *NEEDED) if name and name not in row)
            log.reject(where, error, lacks=next(lacking, ""), row=row)
        except RecursionError:
            log.reject(where, TOO_DEEP)
    return found


def part_of(row: Mapping[str, Any]) -> str:
    """The part that a row's column :data:`SPLIT` names. DataError when it names none."""
    said = row.get(SPLIT)
    for part, names in PARTS.items():
        if isinstance(said, str) and said.strip().lower() in names:
            return part
    raise DataError(f"{SPLIT!r} must be {', '.join(PARTS)}; rename the column if it means something else")


def _check_no_part(row: Mapping[str, Any]) -> None:
    """DataError when a row says which part it belongs to, where the first row didn't."""
    if row.get(SPLIT) not in (None, ""):
        raise DataError(
            f"has a column {SPLIT!r} that the first row lacks; say of every row, the first too, which part "
            "it is for, or rename the column if it means something else"
        )


def renamed(
    rows: Iterable[tuple[str, Mapping[str, Any]]], columns: Mapping[str, str], log: RowLog
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows with further names for some columns: ``columns`` is {the name that is looked for: the column}."""
    for where, row in rows:
        absent = [column for column in columns.values() if column not in row]
        if absent:
            log.reject(where, f"there is no column {absent[0]!r}", lacks=absent[0], row=row)
        else:
            yield where, {**row, **{name: row[column] for name, column in columns.items()}}


def column_names(entries: Iterable[str]) -> dict[str, str]:
    """{name: column} of entries such as ``prompt=question``. DataError when one is not of that form."""
    found: dict[str, str] = {}
    for entry in entries:
        name, sign, column = (part.strip() for part in entry.partition("="))
        if not (name and sign and column):
            raise DataError(f"{entry!r} names no column; write NAME=COLUMN, such as prompt=question")
        if name in found:
            raise DataError(f"two columns are given for {name!r}; give one")
        found[name] = column
    return found


def person_name(row: Mapping[str, Any], column: str) -> str:
    """The person a row names: a text, or a whole number, as a text.

    Raises:
        DataError: the column is missing, empty, or of another type.
    """
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise DataError(f"{column!r} is missing")
    check_text(column, value)
    name = str(value).strip()
    if not name:
        raise DataError(f"{column!r} is empty")
    return name


def write_jsonl(
    path: str | Path, rows: Iterable[Labelled | Preference], *, person_column: str = "person"
) -> None:
    """Write preferences as JSON lines, standard format with explicit prompt, ties with a column :data:`TIE`,
    known strengths with one too; reading gives them back."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json_lines(rows, person_column=person_column))


def json_lines(rows: Iterable[Labelled | Preference], *, person_column: str = "person") -> Iterator[str]:
    """The lines that `write_jsonl` writes, each with its end."""
    for row in rows:
        labelled = row if isinstance(row, Labelled) else Labelled(None, row)
        pair = labelled.preference
        columns: dict[str, Any] = dict(zip(_TEXTS, choice_of(pair), strict=True))
        if pair.tie:
            columns[TIE] = pair.tie
        if pair.strength is not None:
            columns[STRENGTH] = pair.strength
        if labelled.person is not None:
            columns = {person_column: labelled.person, **columns}
        yield json.dumps(columns, ensure_ascii=False) + "\n"
