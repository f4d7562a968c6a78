"""Files as people bring them: every kind, arrays, tables, folders, and the names of parts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from penchant.common.data import row_files
from penchant.common.data.row_files import (
    FileInMemory,
    RowLog,
    data_files,
    part_named,
    read_rows,
    rows_of_json,
    rows_of_memory,
)
from penchant.common.errors import DataError

ROWS = [{"prompt": f"p{n}", "chosen": "ja 🙂", "rejected": "nein"} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = "prompt,chosen,rejected\r\n" + "".join(
    f"{r['prompt']},{r['chosen']},{r['rejected']}\r\n" for r in ROWS
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    log = RowLog()
    rows = [row for _, row in read_rows(path, log)]
    log.finish(path)
    return rows


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINES),
        ("a.JSONL", LINES),
        ("a.ndjson", LINES),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"data": ROWS}, indent=2)),
        ("a.csv", TABLE),
        ("a.CSV", TABLE.replace(",", ";")),
        ("a.tsv", TABLE.replace(",", "\t")),
        ("a.csv", "\ufeff" + TABLE),
        ("a.json", "\ufeff" + json.dumps(ROWS)),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert rows_of(tmp_path / name) == ROWS
    log = RowLog()
    in_memory = [row for _, row in rows_of_memory(FileInMemory(name, text.encode()), log)]
    assert in_memory == ROWS
    assert log.finish(name).rows == 3
    (tmp_path / "packed").mkdir()
    packed = tmp_path / "packed" / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert rows_of(packed) == ROWS
    in_memory = [row for _, row in rows_of_memory(FileInMemory(packed.name, packed.read_bytes()), RowLog())]
    assert in_memory == ROWS


def test_in_memory_a_packed_file_is_unpacked_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = FileInMemory("a.jsonl.gz", gzip.compress(LINES.encode()))
    monkeypatch.setattr(row_files, "UNPACKED_MOST", len(LINES.encode()))
    assert [row for _, row in rows_of_memory(packed, RowLog())] == ROWS
    monkeypatch.setattr(row_files, "UNPACKED_MOST", len(LINES.encode()) - 1)
    with pytest.raises(DataError, match="unpacked; split it"):
        list(rows_of_memory(packed, RowLog()))


@pytest.mark.parametrize(
    "data",
    [b"\x1f\x8b", LINES.encode(), gzip.compress(LINES.encode(), mtime=0)[:-9]],
    ids=["begun", "plain", "cut"],
)
def test_in_memory_what_is_no_packed_file_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^a\.csv\.gz "):
        list(rows_of_memory(FileInMemory("a.csv.gz", data), RowLog()))


@pytest.mark.parametrize("name", ["a.parquet", "a.txt", "a", ""])
def test_in_memory_nothing_else_is_read(name: str) -> None:
    with pytest.raises(DataError, match="must end in"):
        list(rows_of_memory(FileInMemory(name, gzip.compress(LINES.encode())), RowLog()))


@pytest.mark.parametrize("text", [LINES, json.dumps(ROWS), json.dumps(ROWS, indent=2), f"\ufeff{LINES}"])
def test_what_is_sent_gives_the_same_rows_as_a_file(text: str) -> None:
    log = RowLog()
    assert list(rows_of_json(text.encode(), log)) == [(f"row {n}", row) for n, row in enumerate(ROWS, 1)]
    assert log.finish("it").rows == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has no rows"),
        (b"3", "row 1: not a JSON object but a number"),
        (b"[[]]", "row 1: not a JSON object but a list"),
        (b'{"a": 1}\nb\n\xff', "row 2: not JSON; row 3: not UTF-8"),
        (b"[" * 100_000, "row 1: not JSON"),
    ],
)
def test_what_is_sent_and_is_no_row_is_named(data: bytes, message: str) -> None:
    log = RowLog()
    rows = list(rows_of_json(data, log))
    assert rows in ([], [("row 1", {"a": 1})])
    with pytest.raises(DataError, match=message):
        log.finish("it")


def test_an_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"conversationId": "c", "messages": []}, indent=1))
    assert rows_of(tmp_path / "a.json") == [{"conversationId": "c", "messages": []}]
    (tmp_path / "b.json").write_text(json.dumps({"messages": []}))
    assert rows_of(tmp_path / "b.json") == [{"messages": []}]


def test_a_table_keeps_line_breaks_and_names_rows_with_too_many_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('chosen,rejected\n"two\nlines",x\na,b,c\n' + "y" * 200_000 + ",z\n")
    log = RowLog("skip")
    rows = [row["chosen"] for _, row in read_rows(path, log)]
    assert rows == ["two\nlines", "y" * 200_000]
    assert str(log.finish(path).bad[0]) == f"{path}:2: more cells than the header has"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"chosen,rejected\n\xff,b\n", "it is not UTF-8"),
        ("a.json", b"[1, {", "1 of 1 rows can't be used: .*:1: not JSON"),
        ("a.json", b"[1]", "1: not a JSON object but a number"),
        ("a.json", b"3", "1: not a JSON object but a number"),
        ("a.json", b'"text"', "1: not a JSON object but a text"),
        ("a.json", b"", "it has no rows"),
        ("a.json.gz", b"no gzip", "can't be read; create it again"),
        ("a.txt", b"", r"must end in \.jsonl"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as refusal:
        rows_of(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_a_folder_is_read_whole_and_says_what_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("data/b.csv", "a.jsonl", "z.ndjson"):
        (tmp_path / name).write_text(TABLE if name.endswith("csv") else LINES)
    for name in ("dataset_infos.json", ".hidden.jsonl", "README.md", "LICENSE", "sheet.xlsx", "data/x.arrow"):
        (tmp_path / name).write_text("{}")
    found = data_files(tmp_path)
    assert [file.name for file in found.read] == ["a.jsonl", "b.csv", "z.ndjson"]
    assert [file.name for file in found.unread] == ["x.arrow", "sheet.xlsx"]
    assert len(rows_of(tmp_path)) == 9


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train.jsonl", "train"),
        ("test-00000-of-00001.parquet", "test"),
        ("valid", "validation"),
        ("my_dev_set", "validation"),
        ("eval.json", "test"),
        ("contest.jsonl", None),
        ("latest", None),
        ("training.jsonl", "train"),
        ("train_test.jsonl", None),  # speaks of two
        ("a.jsonl", None),
    ],
)
def test_a_name_speaks_of_a_part_in_a_word_of_its_own(name: str, part: str | None) -> None:
    assert part_named(name) == part


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("train.jsonl", "test.jsonl"), {"train": "train", "test": "test"}),
        (("people.jsonl", "test.jsonl"), {"people": "train", "test": "test"}),
        (("test/a.jsonl", "train/b.jsonl"), {"a": "test", "b": "train"}),
        (("test.jsonl",), {}),  # a name that tells nothing apart
        (("train-1.jsonl", "train-2.jsonl"), {}),
        (("a.jsonl", "b.jsonl"), {}),
    ],
)
def test_names_of_files_tell_parts_apart(
    tmp_path: Path, names: tuple[str, ...], parts: dict[str, str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES)
    found = data_files(tmp_path)
    assert {file.stem: part for file, part in found.parts(tmp_path).items()} == parts


def test_files_of_too_many_rows_or_columns_are_refused_while_they_are_read() -> None:
    """A wide head makes every row wide, however short it is: what is read grows with both."""
    wide = FileInMemory("a.csv", b"c" + b",c" * 1000 + b"\n1\n")
    with pytest.raises(DataError, match="1001 columns; at most 1000"):
        list(rows_of_memory(wide, RowLog()))
    many = FileInMemory("a.jsonl", b"1\n" * 11)
    assert list(rows_of_memory(many, RowLog("skip", most=11))) == []
    with pytest.raises(DataError, match="more than 10 rows"):
        list(rows_of_memory(many, RowLog("skip", most=10)))


def test_the_names_of_a_tables_columns_have_no_blanks_around_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE.replace("prompt,chosen,rejected", " prompt, chosen ,rejected"))
    assert rows_of(tmp_path / "a.csv") == ROWS


@pytest.mark.parametrize("head", ["chosen,chosen,rejected", "prompt,chosen, chosen"])
def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path, head: str) -> None:
    (tmp_path / "a.csv").write_text(TABLE.replace("prompt,chosen,rejected", head))
    with pytest.raises(DataError, match=r"a\.csv has 2 columns called 'chosen'; give each its own name"):
        rows_of(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("a,,\n1,2,3\n")  # as spreadsheets end a header
    assert rows_of(tmp_path / "b.csv") == [{"a": "1", "": "3"}]


def test_a_table_of_another_encoding_is_named_before_any_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt,größe\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv can't be read; it is not UTF-8"):
        rows_of(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "person;More trees, and parks, and lakes;Fewer cars, please\nann;1;-1\nbob;0;\n",
            [
                {"person": "ann", "More trees, and parks, and lakes": "1", "Fewer cars, please": "-1"},
                {"person": "bob", "More trees, and parks, and lakes": "0", "Fewer cars, please": ""},
            ],
        ),
        ('a;"b, c, d, e"\n"1, 2, 3";2\n', [{"a": "1, 2, 3", "b, c, d, e": "2"}]),
        ('"a; b; c",d\n1,"x; y\nz;"\n', [{"a; b; c": "1", "d": "x; y\nz;"}]),
        ("a, b\tc, d\n1\t2\n", [{"a, b": "1", "c, d": "2"}]),
        ("a;b, or c\nx, y, z;1\nx, y;2\nx, y, w, v;3\n", [{"a": f"x, y{more}", "b, or c": n} for more, n in
            ((", z", "1"), ("", "2"), (", w, v", "3"))]),
        ("a,b;c\n1,2\n\n3,4;5\n", [{"a": "1", "b;c": "2"}, {"a": "3", "b;c": "4;5"}]),
        ("a;b\n", []),
        ("", []),
        ("a\nx;y\n", [{"a": "x;y"}]),
    ],
)  # fmt: skip
def test_a_tables_separator_is_the_one_that_its_rows_agree_on(
    text: str, wanted: list[dict[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeff" + text, encoding="utf-8")
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        log = RowLog("skip")
        read = [row for _, row in read_rows(file, log)]
        assert read == wanted
