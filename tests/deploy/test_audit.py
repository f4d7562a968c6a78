"""`penchant audit`: what it lists of an honest run, and what it says of records that can't be honest."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.recorded_run import FIRST_NODE, Recorded, record, some_people, world_of

from penchant.common.errors import RunDirectoryError
from penchant.common.secagg.update_vector import COUNTERS
from penchant.deploy import run_directory
from penchant.deploy.audit.audit import audit
from penchant.deploy.audit.record import WIRE
from penchant.deploy.cli.main import main

PEOPLE = 5
SLOT = "encoder.layer.2.output.dense"
PLACES = {
    "warmup": [f"{SLOT}.lora_A", f"{SLOT}.lora_B", "head.weight"],
    "main": [f"{SLOT}.lora_A", "head.weight"],
    "close": [],
}


@pytest.fixture(scope="module")
def base(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("bert")


@pytest.fixture(scope="module")
def honest(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Share A, a warm-up round, two more, the closing one; person 3 vanishes in stage masked of round 2."""
    counted: list[str] = []

    def fault(node: int, kind: str) -> bool:
        counted.append(kind)
        in_round_2 = counted.count("train.masked") > PEOPLE and counted.count("train.confirm") <= PEOPLE
        return node == FIRST_NODE + 3 and kind == "train.masked" and in_round_2

    world = world_of(base, some_people(PEOPLE), federation__rounds=3, federation__warmup_rounds=1)
    return record(tmp_path_factory.mktemp("honest") / "run", world, fault=fault)


@pytest.fixture
def copy(honest: Recorded, tmp_path: Path) -> Path:
    """A run directory to tamper with."""
    return Path(shutil.copytree(honest.directory, tmp_path / "run"))


def told(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, output and error output of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["penchant", "audit", *args])
        patch.setenv("COLUMNS", "140")
        with pytest.raises(SystemExit) as left:
            main()
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


# --- an honest run ----------------------------------------------------------------------------------------


def test_an_honest_run_is_listed_and_nothing_else_left(
    honest: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = told(capsys, str(honest.directory))
    assert (code, err) == (0, "")
    assert "share A, secure aggregation on" in out
    assert "Nothing else left." in out
    lines = [[cell.strip() for cell in row.split("│")[1:-1]] for row in out.splitlines() if "│" in row]
    assert ["", "", "", "", "vector", "uint32", "126", "504"] in lines  # warm-up: 2 × 32 + 16 × 2 + 16 + 14
    assert ["", "", "", "", "vector", "uint32", "94", "376"] in lines
    assert [f"{SLOT}.lora_A", "2 × 32", "256"] in lines
    assert "main: 94 × uint32" in out


def test_json_lists_every_field_of_every_message(
    honest: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = told(capsys, str(honest.directory), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["violations"] == []
    assert (found["secagg"], found["share"], found["element"], found["clients"]) == (
        True,
        "A",
        "uint32",
        PEOPLE,
    )
    assert found["messages"] == len(honest.left)
    assert found["bytes"] == sum(len(left.payload) for left in honest.left)
    assert found["framed_bytes"] == sum(len(left.frame) for left in honest.left)
    names = {phase: [t["name"] for t in tensors] for phase, tensors in found["vectors"].items()}
    assert names == {phase: [*tensors, *COUNTERS] for phase, tensors in PLACES.items()}
    for line in found["left"]:
        sizes = [field["bytes"] for field in line["fields"]]
        assert all(sizes), line
    kinds = [(line["phase"], line["stage"], line["message"], line["times"]) for line in found["left"]]
    assert kinds[:6] == [
        ("outside rounds", "status", "Status", 2 * PEOPLE),
        ("warmup", "keys", "Entry", PEOPLE),
        ("warmup", "shares", "Shares", PEOPLE),
        ("warmup", "masked", "Masked", PEOPLE),
        ("warmup", "confirm", "Confirmation", PEOPLE),
        ("warmup", "unmask", "Unmasking", PEOPLE),
    ]
    main_round = {kind: times for phase, _, kind, times in kinds if phase == "main"}
    assert main_round == {  # two rounds; in the first one device was lost from stage masked on
        "Entry": 2 * PEOPLE,
        "Shares": 2 * PEOPLE,
        "Masked": 2 * PEOPLE - 1,
        "Confirmation": 2 * PEOPLE - 1,
        "Unmasking": 2 * PEOPLE - 1,
    }


def test_messages_and_bytes_are_counted_a_client_a_round(honest: Recorded) -> None:
    found = audit(honest.directory)
    close = found.loads["close"]
    mine = [left for left in honest.left if left.place.startswith("4.") and left.node == FIRST_NODE]
    assert len(mine) == 5
    assert (close.rounds, close.clients, close.messages) == (1, PEOPLE, 5 * PEOPLE)
    assert close.bytes == PEOPLE * sum(len(left.payload) for left in mine) == PEOPLE * close.most_bytes
    assert sum(load.messages for load in found.loads.values()) == found.messages


def test_a_plain_run_is_in_order_and_said_to_be_in_clear(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = world_of(base, some_people(3), privacy__secagg=False, federation__rounds=1)
    run = record(tmp_path / "run", world)
    code, out, _ = told(capsys, str(run.directory))
    assert code == 0
    assert "secure aggregation OFF" in out
    assert "Every vector left unmasked" in out
    assert "The unmasked vector of a client, main" in out


def test_several_groups_may_differ_in_size_but_not_within_one(base: Path, tmp_path: Path) -> None:
    """Seven devices in groups of at most four: three and four."""
    world = world_of(base, some_people(7), privacy__group_size=4, federation__rounds=1)
    run = record(tmp_path / "run", world)
    assert audit(run.directory).violations == ()
    (shares,) = (s for s in audit(run.directory).lines if s.phase == "main" and s.kind == "Shares")
    assert (shares.least, shares.most) == (9 + 2 * 82, 9 + 3 * 82)


# --- nothing to read --------------------------------------------------------------------------------------


def test_no_run_directory_and_no_record_are_one_line_and_exit_2(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = told(capsys, str(tmp_path / "empty"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is not a run directory" in err
    (copy / WIRE).unlink()
    code, out, err = told(capsys, str(copy))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "holds no record of the wire" in err


def test_an_audit_changes_nothing(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    audit(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


# --- doctored records -------------------------------------------------------------------------------------


def doctor(directory: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(directory / WIRE)) as db:
        changed = db.execute(statement, values).rowcount
        db.commit()
    assert changed > 0


def fields_of(directory: Path, number: int) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(directory / WIRE)) as db:
        (text,) = db.execute("SELECT fields FROM sent WHERE number = ?", (number,)).fetchone()
    return list(json.loads(text))


def first(directory: Path, kind: str, place: str = "2.1", at: int = 0) -> int:
    """The number of a message in the record."""
    with closing(sqlite3.connect(directory / WIRE)) as db:
        rows = db.execute(
            "SELECT number FROM sent WHERE kind = ? AND place = ? ORDER BY number", (kind, place)
        )
        return int(rows.fetchall()[at][0])


def change_fields(directory: Path, number: int, change: Callable[[list[dict[str, Any]]], None]) -> None:
    fields = fields_of(directory, number)
    change(fields)
    doctor(directory, "UPDATE sent SET fields = ? WHERE number = ?", json.dumps(fields), number)


def add_field(directory: Path) -> None:
    extra = {"name": "mood", "type": "bytes", "shape": [4], "size": 4}
    change_fields(directory, first(directory, "Entry"), lambda fields: fields.append(extra))


def grow_field(directory: Path) -> None:
    number = first(directory, "Confirmation")
    change_fields(directory, number, lambda fields: fields[0].update(shape=[68], size=68))


def repeat_field(directory: Path) -> None:
    change_fields(directory, first(directory, "Entry"), lambda fields: fields.append(fields[0]))


def drop_field(directory: Path) -> None:
    change_fields(directory, first(directory, "Entry"), lambda fields: fields.pop())


def hide_bytes(directory: Path) -> None:
    doctor(directory, "UPDATE sent SET bytes = bytes + 16 WHERE number = ?", first(directory, "Masked"))


def send_unmasked(directory: Path) -> None:
    number = first(directory, "Masked")
    vector = next(f for f in fields_of(directory, number) if f["name"] == "vector")
    doctor(
        directory,
        "UPDATE sent SET kind = 'Plain', fields = ?, bytes = bytes - 64 WHERE number = ?",
        json.dumps([vector]),
        number,
    )


def send_more_numbers(directory: Path) -> None:
    """A whole personal B, 16 × 2, behind the vector."""
    number = first(directory, "Masked")
    change_fields(
        directory, number, lambda f: f[1].update(shape=[f[1]["size"] + 128], size=f[1]["size"] + 128)
    )
    doctor(directory, "UPDATE sent SET bytes = bytes + 128 WHERE number = ?", number)


def send_a_stranger(directory: Path) -> None:
    doctor(directory, "UPDATE sent SET kind = 'Gossip' WHERE number = ?", first(directory, "Shares"))


def send_junk(directory: Path) -> None:
    doctor(directory, "UPDATE sent SET kind = '?' WHERE number = ?", first(directory, "Shares"))


def in_another_stage(directory: Path) -> None:
    doctor(directory, "UPDATE sent SET stage = 'keys' WHERE number = ?", first(directory, "Masked"))


def with_an_error_text(directory: Path) -> None:
    doctor(
        directory,
        "UPDATE sent SET kind = 'error', fields = '[]', bytes = 0, said = 'ValueError: what he chose' "
        "WHERE number = ?",
        first(directory, "Masked"),
    )


COPY = "stage, node, kind, bytes, framed, sha256, fields, said, message FROM sent WHERE number = ?"


def twice(directory: Path) -> None:
    number = first(directory, "Masked")
    doctor(
        directory,
        f"INSERT INTO sent SELECT 100000, place, {COPY}",
        number,
    )


def shares_in_two_attempts(directory: Path) -> None:
    doctor(
        directory,
        f"INSERT INTO sent SELECT 100000, '2.2', {COPY}",
        first(directory, "Unmasking"),
    )


def unequal_shares(directory: Path) -> None:
    number = first(directory, "Shares", at=2)
    change_fields(directory, number, lambda fields: fields[0].update(shape=[3, 82], size=3 * 82))
    doctor(directory, "UPDATE sent SET bytes = bytes - 82 WHERE number = ?", number)


def a_longer_frame(directory: Path) -> None:
    doctor(directory, "UPDATE sent SET framed = framed + 5000 WHERE number = ?", first(directory, "Entry"))


def a_round_too_many(directory: Path) -> None:
    doctor(directory, "UPDATE sent SET place = '9.1' WHERE number = ?", first(directory, "Entry", "4.1"))


def a_message_struck_out(directory: Path) -> None:
    doctor(directory, "DELETE FROM sent WHERE number = ?", first(directory, "Masked", "3.1"))


def everything_struck_out(directory: Path) -> None:
    doctor(directory, "DELETE FROM sent")


def no_layout(directory: Path) -> None:
    doctor(directory, "DELETE FROM tensors WHERE phase = 'main'")


def a_personal_factor_in_the_layout(directory: Path) -> None:
    """The record itself says that main rounds sent B, which share A keeps."""
    with closing(sqlite3.connect(directory / WIRE)) as db:
        (warm,) = db.execute("SELECT layout FROM tensors WHERE phase = 'warmup'").fetchone()
    doctor(directory, "UPDATE tensors SET layout = ? WHERE phase = 'main'", warm)


def a_layout_of_another_rank(directory: Path) -> None:
    with closing(sqlite3.connect(directory / WIRE)) as db:
        (layout,) = db.execute("SELECT layout FROM tensors WHERE phase = 'main'").fetchone()
    doctor(
        directory, "UPDATE tensors SET layout = ? WHERE phase = 'main'", layout.replace("[2, 32]", "[4, 16]")
    )


def a_counter_more(directory: Path) -> None:
    with closing(sqlite3.connect(directory / WIRE)) as db:
        (layout,) = db.execute("SELECT layout FROM tensors WHERE phase = 'close'").fetchone()
    longer = [*json.loads(layout), {"name": "weight", "shape": []}]
    doctor(directory, "UPDATE tensors SET layout = ? WHERE phase = 'close'", json.dumps(longer))


DOCTORED: list[tuple[Callable[[Path], None], str]] = [
    (add_field, 'Entry with a field "mood" that it does not have'),
    (grow_field, "Confirmation.signature of type bytes, shape (68,) and 68 bytes"),
    (repeat_field, "Entry has the fields"),
    (drop_field, "Entry has the fields"),
    (hide_bytes, "which its fields explain"),
    (send_unmasked, "an unmasked vector, in a run with secure aggregation"),
    (send_more_numbers, "a vector of 504 bytes where 376 belong"),
    (send_a_stranger, "not a message of the protocol"),
    (send_junk, "not a message of the protocol"),
    (in_another_stage, "a message Masked does not belong there"),
    (with_an_error_text, "an error with text beyond the name of its type"),
    (twice, "2 messages where one belongs"),
    (shares_in_two_attempts, "shares given in 2 attempts"),
    (unequal_shares, "Shares differs in size"),
    (a_longer_frame, "travelled around the payload"),
    (a_round_too_many, "the run has no round 9"),
    (a_message_struck_out, "the record is not whole"),
    (everything_struck_out, "nothing is recorded at all"),
    (no_layout, "a vector, and no record of what it is made of"),
    (a_personal_factor_in_the_layout, f"main: the vector holds {SLOT}.lora_B, which is not shared"),
    (a_layout_of_another_rank, "which is not of rank 2"),
    (a_counter_more, "the vector's counters are not the 14"),
]


@pytest.mark.parametrize(("tamper", "says"), DOCTORED, ids=lambda v: getattr(v, "__name__", ""))
def test_a_doctored_record_is_reported(copy: Path, tamper: Callable[[Path], None], says: str) -> None:
    assert audit(copy).violations == ()
    tamper(copy)
    found = audit(copy).violations
    assert any(says in line for line in found), found


def test_findings_are_printed_and_end_in_exit_1(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    send_unmasked(copy)
    code, out, err = told(capsys, str(copy))
    assert code == 1
    assert "Nothing else left" not in out
    assert f"round 2.1, masked, node {FIRST_NODE}: an unmasked vector" in out
    assert (err.count("\n"), "2 findings" in err) == (1, True)  # the record is no longer whole, either
    code, out, _ = told(capsys, str(copy), "--json")
    assert code == 1
    assert len(json.loads(out)["violations"]) == 2


def test_a_plain_message_is_at_home_in_a_plain_run_only(copy: Path) -> None:
    """The configuration decides, not the record: a run without secure aggregation has no Masked."""
    config = run_directory.read_config(copy)
    (copy / run_directory.CONFIG).write_text(config.changed({"privacy.secagg": False}).to_toml())
    found = audit(copy).violations
    assert sum("a message Masked does not belong there" in line for line in found) == 4 * PEOPLE - 1


def test_the_rule_table_decides_what_may_be_shared(copy: Path) -> None:
    """The same record under a configuration of share B: A was sent in main rounds, and B was not."""
    config = run_directory.read_config(copy)
    (copy / run_directory.CONFIG).write_text(config.changed({"adapter.share": "B"}).to_toml())
    assert set(audit(copy).violations) == {
        f"main: the vector holds {SLOT}.lora_A, which is not shared",
        "main: the vector lacks the shared tensors of role B",
    }


def test_a_record_from_before_devices_named_their_list_is_sound(copy: Path) -> None:
    with closing(sqlite3.connect(copy / WIRE)) as db:
        rows = db.execute("SELECT number FROM sent WHERE kind = 'Status'").fetchall()
    for (message,) in rows:
        change_fields(copy, message, lambda fields: fields.pop())
        doctor(copy, "UPDATE sent SET bytes = bytes - 32 WHERE number = ?", message)
    assert audit(copy).violations == ()
    change_fields(copy, message, lambda fields: fields.pop())
    assert "Status has the fields ready, where ready, member, list_digest belong" in audit(copy).violations[0]


def test_an_unknown_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        audit(tmp_path / "nowhere")
