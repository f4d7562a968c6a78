"""Preferences: the worked examples of TRL's page first, then files, bad rows, and a federation's checks."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.common.data import trl_format
from penchant.common.data.preferences import Federation, Person, Preference, each_once
from penchant.common.data.trl_format import Labelled
from penchant.common.errors import DataError


def lines(path: Path, *rows: object) -> Path:
    """A JSON-lines file; a row that is a text already is written as it is."""
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


# --- worked examples: the four kinds of rows on TRL's page of data set formats ---------------------

USER = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            Preference("The sky is", " blue.", " green."),
            id="standard, explicit prompt",
        ),
        pytest.param(
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            Preference("The sky is", " blue.", " green."),
            id="standard, implicit prompt",
        ),
        pytest.param(
            {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},
            Preference("user: What color is the sky?\n", "assistant: It is blue.", "assistant: It is green."),
            id="conversational, explicit prompt",
        ),
        pytest.param(
            {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
            Preference("user: What color is the sky?\n", "assistant: It is blue.", "assistant: It is green."),
            id="conversational, implicit prompt",
        ),
        pytest.param(
            {"prompt": "What color is the sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
            Preference("user: What color is the sky?\n", "assistant: It is blue.", "assistant: It is green."),
            id="a text prompt beside conversations is not used, as in TRL",
        ),
        pytest.param(
            {"prompt": "", "chosen": "A", "rejected": "B"}, Preference("", "A", "B"), id="empty prompt"
        ),
    ],
)
def test_rows_of_all_kinds(row: dict[str, Any], expected: Preference) -> None:
    assert trl_format.parse_preference(row) == expected


def test_content_in_parts_is_joined() -> None:
    parts = {
        "role": "assistant",
        "content": [{"type": "text", "text": "It "}, {"type": "text", "text": "is"}],
    }
    assert trl_format.render("chosen", [parts]) == "assistant: It is"


def trl_extract_prompt(chosen: str, rejected: str) -> tuple[str, str, str]:
    """TRL's rule, written down from its behaviour; the slow reference."""
    index = 0
    for index in range(min(len(chosen), len(rejected))):
        if chosen[index] != rejected[index]:
            if chosen[index - 1] == " ":
                index -= 1
            break
    return chosen[:index], chosen[index:], rejected[index:]


@given(
    st.text("ab ", max_size=5), st.text("ab ", min_size=1, max_size=8), st.text("ab ", min_size=1, max_size=8)
)
def test_extract_prompt_is_trls(prefix: str, a: str, b: str) -> None:
    chosen, rejected = prefix + a, prefix + b
    prompt, rest, other = trl_format.extract_prompt(chosen, rejected)
    assert (prompt + rest, prompt + other) == (chosen, rejected)
    if chosen[0] == rejected[0]:  # TRL looks at index -1 otherwise
        assert (prompt, rest, other) == trl_extract_prompt(chosen, rejected)


# --- files ----------------------------------------------------------------------------------------

TEXTS = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
PAIRS = st.builds(lambda p, c, r: (p, c, r), st.text(max_size=20), TEXTS, TEXTS).filter(
    lambda t: t[1] != t[2]
)


@given(st.lists(st.tuples(st.none() | st.sampled_from(["ann", "bob"]), PAIRS), min_size=1, max_size=5))
def test_jsonl_round_trip(rows: list[tuple[str | None, tuple[str, str, str]]]) -> None:
    named = rows[0][0] is not None  # a file names everybody or nobody
    written = [Labelled(person or "ann" if named else None, Preference(*pair)) for person, pair in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        trl_format.write_jsonl(path, written)
        read, report = trl_format.read_preferences(path)
    assert read == written
    assert (report.rows, report.kept) == (len(rows), len(rows))


def test_parquet_reads_as_json_lines_do(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN], "worker": "w1"},
        {"prompt": [USER], "chosen": [GREEN], "rejected": [BLUE], "worker": "w2"},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    from_parquet, _ = trl_format.read_preferences(tmp_path / "pairs.parquet")
    from_lines, _ = trl_format.read_preferences(lines(tmp_path / "pairs.jsonl", *rows))
    assert from_parquet == from_lines
    assert [row.person for row in from_parquet] == ["w1", "w2"]


def test_bad_parquet_rows_are_named_by_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"chosen": "a", "rejected": "b"}, {"chosen": None, "rejected": "b"}]
    path = tmp_path / "pairs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=rf"{path}:2: 'chosen' is missing"):
        trl_format.read_preferences(path)
    (tmp_path / "no.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(DataError, match="can't be read as Parquet"):
        trl_format.read_preferences(tmp_path / "no.parquet")


def test_without_pyarrow_parquet_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"penchant\[simulate\]"):
        trl_format.read_preferences(tmp_path / "pairs.parquet")


def test_compressed_lines_and_folders(tmp_path: Path) -> None:
    row = {"chosen": "a", "rejected": "b"}
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    lines(tmp_path / "b.jsonl", row, "", {"chosen": "c", "rejected": "d"})
    (tmp_path / "notes.txt").write_text("not data")
    read, report = trl_format.read_preferences(tmp_path)
    assert [row.preference.chosen for row in read] == ["a", "a", "c"]
    assert report.rows == 3  # the blank line is none
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz can't be read"):
        trl_format.read_preferences(tmp_path)


# --- who chose ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "column", "person"),
    [
        ({"person": "ann"}, None, "ann"),
        ({"worker": " w1 "}, None, "w1"),
        ({"user_id": 17}, None, "17"),
        ({"who": "ann", "person": "bob"}, "who", "ann"),
        ({"worker": "w1", "person": "ann"}, None, "ann"),
        ({}, None, None),
    ],
)
def test_the_person(tmp_path: Path, row: dict[str, Any], column: str | None, person: str | None) -> None:
    path = lines(tmp_path / "p.jsonl", {**row, "chosen": "a", "rejected": "b"})
    read, _ = trl_format.read_preferences(path, person_column=column)
    assert read[0].person == person


# --- bad rows -------------------------------------------------------------------------------------

GOOD = {"person": "ann", "prompt": "p", "chosen": "a", "rejected": "b"}


BAD_ROWS = [
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[1]", "not a JSON object but a list"),
    ({"person": "ann", "chosen": "a"}, "'rejected' is missing"),
    ({"person": "ann", "rejected": "a"}, "'chosen' is missing"),
    ({**GOOD, "chosen": 3}, "'chosen' must be a string, not a number"),
    ({**GOOD, "chosen": "b"}, "'chosen' and 'rejected' are the same"),
    ({**GOOD, "chosen": " \n"}, "'chosen' is empty"),
    ({**GOOD, "rejected": ""}, "'rejected' is empty"),
    ({**GOOD, "prompt": 1}, "'prompt' must be a string, not a number"),
    ({**GOOD, "chosen": [BLUE]}, "one of 'chosen' and 'rejected' is a text and the other a conversation"),
    ({**GOOD, "chosen": [], "rejected": [BLUE]}, "'chosen' is empty"),
    ({**GOOD, "chosen": ["hm"], "rejected": [BLUE]}, "a message that is a text, not an object"),
    ({**GOOD, "chosen": ["hm"], "rejected": ["a", "b"]}, "make a row of each rejected text"),
    ({**GOOD, "rejected": ["a", "b"]}, "are lists of texts, as of RewardBench 2"),
    ({**GOOD, "chosen": [{"role": "user"}], "rejected": [BLUE]}, "'content' must be a string, not null"),
    (
        {**GOOD, "chosen": [{"role": "user", "content": [{"type": "image"}]}], "rejected": [BLUE]},
        "a message with parts other than text",
    ),
    (
        '{"person": "ann", "chosen": "\\ud800", "rejected": "b", "prompt": ""}',
        "contains a lone surrogate, so it is not valid text",
    ),
    ({**GOOD, "person": None}, "'person' is missing"),
    ({**GOOD, "person": ""}, "'person' is empty"),
    ({**GOOD, "person": True}, "'person' must be a string, not a boolean"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, bad: object, reason: str) -> None:
    path = lines(tmp_path / "p.jsonl", GOOD, bad, GOOD)
    with pytest.raises(DataError) as refusal:
        trl_format.read_preferences(path)
    message = str(refusal.value)
    assert f"{path}:2: " in message
    assert reason in message
    assert message.startswith("1 of 3 rows")
    assert "\n" not in message


def test_bad_rows_are_skipped_when_told_to_and_counted(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", GOOD, *(bad for bad, _ in BAD_ROWS), GOOD)
    read, report = trl_format.read_preferences(path, bad_rows="skip")
    assert len(read) == 2
    assert (report.rows, report.kept) == (len(BAD_ROWS) + 2, 2)
    assert [row.where for row in report.bad] == [f"{path}:{n}" for n in range(2, len(BAD_ROWS) + 2)]
    assert f"and {len(BAD_ROWS) - 5} more" in report.summary()


def test_where_every_row_is_bad_skipping_is_not_offered(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {**GOOD, "chosen": ""}, {**GOOD, "rejected": None})
    for bad_rows, begin in (("refuse", "2 of 2 rows"), ("skip", f"{path}: nothing to use, 2 of 2 rows")):
        with pytest.raises(DataError) as refusal:
            trl_format.read_preferences(path, bad_rows=bad_rows)  # type: ignore[arg-type]
        for message in (str(refusal.value), refusal.value.on_command_line):
            assert message.startswith(begin)
            assert message.endswith(":2: 'rejected' is missing; correct them")


def test_one_reason_of_all_rows_is_said_once(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", *[{**GOOD, "chosen": ""}] * 3)
    told = f"3 of 3 rows can't be used, all for one reason: {path}:1: 'chosen' is empty; correct them"
    with pytest.raises(DataError, match=f"^{re.escape(told)}$"):
        trl_format.read_preferences(path)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (
            "Person,Chosen,Rejected",
            "the columns 'Person', 'Chosen', 'Rejected'; name the one that holds it "
            "(--columns person=Person,chosen=Chosen,rejected=Rejected)",
        ),
        (
            "prompt,response_a,rejected",
            "the columns 'prompt', 'response_a', 'rejected'; name the one that holds it "
            "(--columns chosen=COLUMN)",
        ),
        (
            "person|chosen|rejected",
            "the columns 'person|chosen|rejected'; cells of a table are separated by commas, semicolons or "
            "tabs",
        ),
    ],
)
def test_a_column_that_all_rows_lack_is_told_once_with_those_that_are_there(
    tmp_path: Path, head: str, told: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("\n".join([head, *[head.replace("e", "i")] * 3]) + "\n")
    with pytest.raises(DataError) as refusal:
        trl_format.read_preferences(path)
    assert refusal.value.on_command_line == (
        f"3 of 3 rows can't be used: {path}:1: 'chosen' is missing, in this row as in all others; "
        f"there are {told}"
    )
    with pytest.raises(DataError, match=r"'who' is missing, in this row .* 'chosen', .*; name one of these$"):
        trl_format.read_preferences(lines(tmp_path / "p.jsonl", GOOD, GOOD), person_column="who")


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"chosen": "\xff", "rejected": "b"}\n')
    with pytest.raises(DataError, match=":1: not UTF-8"):
        trl_format.read_preferences(path)


@pytest.mark.parametrize("name", ["absent.jsonl", "table.csv", "empty"])
def test_wrong_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name):
        trl_format.read_preferences(tmp_path / name)


def test_nothing_left_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", "{")
    with pytest.raises(DataError, match="nothing to use"):
        trl_format.read_preferences(path, bad_rows="skip")
    path.write_text("")
    with pytest.raises(DataError, match="it has no rows"):
        trl_format.read_preferences(path)
    with pytest.raises(DataError, match="'refuse' or 'skip'"):
        trl_format.read_preferences(path, bad_rows="ignore")  # type: ignore[arg-type]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from(["prompt", "chosen", "rejected"]),
)
def test_whatever_is_in_a_row_only_a_data_error_comes_out(value: Any, field: str) -> None:
    for other in ("b", [BLUE]):
        row = {"prompt": "p", "chosen": other, "rejected": other, field: value}
        with contextlib.suppress(DataError):
            assert isinstance(trl_format.parse_preference(row), Preference)


# --- federations ----------------------------------------------------------------------------------


def person(name: str = "ann", **parts: tuple[Preference, ...]) -> Person:
    usual = {
        "train": (Preference("", "a", "b"), Preference("", "c", "d")),
        "validation": (),
        "test": (Preference("", "e", "f"),),
    }
    return Person(name, **{**usual, **parts})


def test_a_federation_has_a_digest_of_its_content() -> None:
    one = Federation("f", (person(), person("bob")), ("a caveat",))
    assert len(one.digest) == 64
    assert one.digest == Federation("f", (person(), person("bob"))).digest  # caveats don't count
    others = [
        Federation("g", (person(), person("bob"))),
        Federation("f", (person("bob"), person())),
        Federation("f", (person(validation=(Preference("", "x", "y"),)), person("bob"))),
        Federation("f", (person(test=(Preference("", "f", "e"),)), person("bob"))),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize(
    ("people", "message"),
    [
        ((), "no clients"),
        ((person(), person()), "client 'ann' appears twice"),
        ((person(""),), "empty name"),
        ((person(train=()),), "client 'ann' has no pairs to train on"),
        ((person("bob"), person(test=())), "client 'ann' has no pairs to test on"),
        ((person(train=(Preference("", "a", "b"),) * 2),), "client 'ann' has one class"),
        (
            (person(train=(Preference("", "a", "b"), Preference("", "b", "a"))),),
            "client 'ann' has one class",
        ),
        ((person(test=(Preference("", "b", "a"),)),), "client 'ann' holds out a training pair"),
    ],
)
def test_a_federation_refuses(people: tuple[Person, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Federation("f", people)


def test_a_single_training_pair_is_little_but_fine() -> None:
    assert Federation("f", (person(train=(Preference("", "a", "b"),)),)).people[0].train


def test_reprs_hide_the_texts() -> None:
    canary = "canary-7f3a"
    pair = Preference(canary, canary + "1", canary + "2")
    shown = repr(Federation("f", (person(train=(pair,)),))) + repr(Labelled("ann", pair)) + str([pair])
    assert canary not in shown


def test_reading_needs_neither_torch_nor_pandas_nor_pyarrow() -> None:
    code = (
        "import sys, penchant.common.data.preferences, penchant.common.data.splits\n"
        "print([m for m in ('torch', 'pandas', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- strengths ------------------------------------------------------------------------------------


def strong(strength: Any = None, number: int = 0) -> Preference:
    return Preference(f"p{number}", "a", "b", strength=strength)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf"), 1e7, True, "2"])
def test_a_strength_is_a_number_from_nought_to_a_million(strength: Any) -> None:
    with pytest.raises(DataError, match="'strength' must be a number from 0 to 1000000"):
        strong(strength)


def test_a_digest_reads_strengths_and_is_as_before_without_them() -> None:
    def digest(*strengths: float | None) -> str:
        train = tuple(strong(s, n) for n, s in enumerate(strengths))
        return Federation("x", (Person("ann", train, (), (Preference("t", "a", "b"),)),)).digest

    assert len({digest(None, None), digest(1, None), digest(None, 1), digest(2, None)}) == 4
    before = json.dumps(["ann", [[["p0", "a", "b"], ["p1", "a", "b"]], [], [["t", "a", "b"]]]])
    head = json.dumps(["penchant federation 1", "x"])
    assert digest(None, None) == hashlib.sha256(f"{head}\n{before}".encode()).hexdigest()


def test_a_choice_counts_once_whatever_its_strength() -> None:
    tie = Preference("p0", "a", "b", "equal")
    assert each_once([strong(1), strong(2), tie, strong(), strong(1, number=1)]) == [
        strong(1),
        tie,
        strong(1, number=1),
    ]
