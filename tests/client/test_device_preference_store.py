"""A device's files: choices that are never lost or torn, and a storage that opens for its owner alone."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.client.device import preference_store
from penchant.client.device.preference_store import (
    KEYS,
    STORE,
    TIE_KEYS,
    Added,
    PreferenceStore,
    held_out,
)
from penchant.client.vault.erasable import ErasableStorage
from penchant.client.vault.sealing import CHECK_FILE, ROOT_FILE, SealedStorage
from penchant.common.crypto.passphrase import ScryptCost
from penchant.common.data.preferences import Preference
from penchant.common.errors import DataError, DeviceError

CHEAP = ScryptCost(2**10)  # of a passphrase: a test has nothing to protect


def choice(number: int) -> Preference:
    return Preference(f"question {number}? ", f"yes {number}", f"no {number}")


# --- choices --------------------------------------------------------------------------------------


def test_choices_come_back_in_order_and_once(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    assert store.add([choice(1), choice(2), choice(1)]) == Added(new=2, repeated=1)
    assert store.add([choice(2), choice(3)], source="label") == Added(new=1, repeated=1)
    again = PreferenceStore(tmp_path)
    assert len(again) == 3
    assert again.sources() == {"import": 2, "label": 1}
    assert sorted([*again.train(), *again.validation()], key=lambda p: p.prompt) == [
        choice(1),
        choice(2),
        choice(3),
    ]


# --- ties -------------------------------------------------------------------------------------------


def tied(number: int) -> Preference:
    return Preference(f"tied {number}? ", f"so {number}", f"so so {number}")


def test_ties_are_kept_beside_choices_and_learned_from(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    marks = store.marks()
    first = store.add_tie(tied(1), "equal", "label")
    second = store.add_tie(tied(2), "both bad", "label")
    again = PreferenceStore(tmp_path)
    assert again.ties() == [first, second]
    assert [(tie.pair, tie.said) for tie in again.ties()] == [(tied(1), "equal"), (tied(2), "both bad")]
    assert (*again.train(), *again.validation()) == (choice(1),)
    learned, aside = again.sides()
    assert learned == (choice(1), *(t.preference for t in again.ties() if not held_out(t.pair)))
    assert aside == tuple(t.preference for t in again.ties() if held_out(t.pair))
    assert [tie.preference.tie for tie in again.ties()] == ["equal", "both bad"]
    assert (len(again), again.sources()) == (1, {"import": 1})
    assert again.marks().startswith(marks)
    assert [tie for _, tie in again.marked_ties()] == again.ties()
    assert b"".join(mark for mark, _ in (*again.marked(), *again.marked_ties())) == again.marks()
    turned = Preference(tied(1).prompt, tied(1).rejected, tied(1).chosen)
    assert again.unanswered([turned, choice(1), choice(2)]) == [choice(2)]


def test_without_a_choice_there_are_no_ties_to_learn_from(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    for n in range(20):
        store.add_tie(tied(n), "equal", "label")
    learned, aside = store.sides()
    assert learned == ()
    assert aside
    store.add([choice(n) for n in range(20)])
    learned, _ = store.sides()
    assert [p.tie for p in learned] == sorted(p.tie for p in learned)  # choices first
    assert learned[-1].tie


def test_an_import_records_ties_beside_choices(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    turned = Preference(choice(1).prompt, choice(1).rejected, choice(1).chosen, "equal")
    given = [
        replace(tied(1), tie="equal"),
        choice(2),
        replace(tied(1), tie="both bad"),  # of the same two
        turned,  # which a choice was recorded of
        replace(tied(2), tie="both bad"),
    ]
    assert store.add(given, "file x") == Added(new=3, repeated=2, ties=2)
    assert [(t.pair, t.said, t.source) for t in store.ties()] == [
        (tied(1), "equal", "file x"),
        (tied(2), "both bad", "file x"),
    ]
    assert store.add(given, "file x") == Added(new=0, repeated=5)
    assert store.add([tied(1)]) == Added(new=1, repeated=0)
    assert [tie.pair for tie in store.ties()] == [tied(2)]


def test_of_two_responses_one_thing_is_recorded(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    assert (
        store.add_tie(Preference(choice(1).prompt, choice(1).rejected, choice(1).chosen), "equal", "x")
        is None
    )
    store.add_tie(tied(1), "equal", "label")
    store.add_tie(tied(1), "both bad", "label")
    (tie,) = store.ties()
    assert tie.said == "both bad"
    assert store.settle(tie, first_is_better=False)
    assert store.ties() == []
    made = store.recorded()[-1]
    assert (made.preference.chosen, made.source) == (tied(1).rejected, "label")
    assert not store.settle(tie, first_is_better=True)
    assert len(store) == 2


def test_a_choice_of_the_same_two_ends_a_tie(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add_tie(tied(1), "equal", "label")
    store.add_tie(tied(2), "equal", "label")
    sealed = _sealed_tie(tmp_path)
    turned = Preference(tied(1).prompt, tied(1).rejected, tied(1).chosen)
    assert store.add([choice(1), turned]) == Added(new=2, repeated=0)
    assert [tie.pair for tie in store.ties()] == [tied(2)]
    assert store.lost_ties() == 0
    with pytest.raises(DeviceError, match="key was destroyed"):
        store._tie_storage.open([(sealed, "tie")])


def test_a_tie_that_is_deleted_can_not_be_opened_any_more(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    for gone in (
        store.remove_tie,
        lambda tie: store.remove_ties([tie]),
        lambda tie: store.settle(tie, True),
        lambda tie: store.forget(),
    ):
        tie = store.add_tie(tied(1), "equal", "label")
        assert tie is not None
        sealed = _sealed_tie(tmp_path)
        assert store._tie_storage.open([(sealed, "tie")]) == [tie.encode()]
        gone(tie)
        assert PreferenceStore(tmp_path).ties() == []
        with pytest.raises(DeviceError):
            PreferenceStore(tmp_path)._tie_storage.open([(sealed, "tie")])
        store.remove(tied(1))
    assert len(store) == 0


def test_ties_are_deleted_all_that_are_named_and_no_others(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    first, second, third = (store.add_tie(tied(n), "equal", "label") for n in range(3))
    assert first is not None
    assert third is not None
    assert store.remove_ties([first, third]) == 2
    assert store.remove_ties([first]) == 0
    assert PreferenceStore(tmp_path).ties() == [second]


def test_keys_of_ties_outlive_what_else_goes(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1), choice(2)])
    store.add_tie(tied(1), "equal", "label")
    store.remove(choice(1))
    assert [tie.pair for tie in PreferenceStore(tmp_path).ties()] == [tied(1)]


def test_a_version_that_knows_no_ties_destroys_none_of_their_keys(tmp_path: Path) -> None:
    """It keeps the keys that choices have, and destroys all others beside them."""
    store = PreferenceStore(tmp_path)
    store.add([choice(1), choice(2)])
    store.add_tie(tied(1), "equal", "label")
    with sqlite3.connect(tmp_path / STORE) as db:
        slots = db.execute("SELECT substr(sealed, 1, 4) FROM sealed_choices").fetchall()
    ErasableStorage(SealedStorage.of(tmp_path), tmp_path / KEYS).destroy_but(slot for (slot,) in slots)
    again = PreferenceStore(tmp_path)
    assert [tie.pair for tie in again.ties()] == [tied(1)]
    assert [row.preference for row in again.recorded()] == [choice(1), choice(2)]


def test_a_tie_whose_key_is_gone_is_left_out_and_counted(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    lost, left = (store.add_tie(tied(n), "equal", "label") for n in (1, 2))
    with (tmp_path / TIE_KEYS).open("r+b") as keys:
        keys.write(bytes(32))
    again = PreferenceStore(tmp_path)
    assert (again.ties(), again.lost_ties()) == ([left], 1)
    assert again.unanswered([tied(1), tied(2)]) == [tied(1)]
    assert lost is not None
    assert not again.remove_tie(lost)
    again.forget()
    assert (again.ties(), again.lost_ties()) == ([], 0)


def test_what_an_earlier_version_wrote_in_clear_into_a_sealed_store_is_sealed(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    store.add_tie(tied(1), "equal", "label")
    store.add_tie(tied(2), "equal", "label")
    with sqlite3.connect(tmp_path / STORE) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        db.execute(
            "CREATE TABLE choices (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, "
            "prompt TEXT NOT NULL, chosen TEXT NOT NULL, rejected TEXT NOT NULL, source TEXT NOT NULL, "
            "recorded REAL NOT NULL)"
        )
        for n, p in enumerate((choice(1), choice(2), tied(1))):
            row = (bytes([n]), p.prompt, p.chosen, p.rejected, "old", 1.0)
            db.execute("INSERT INTO choices VALUES (NULL, ?, ?, ?, ?, ?, ?)", row)
    assert b"question 2?" in (tmp_path / STORE).read_bytes()
    for _ in range(2):
        again = PreferenceStore(tmp_path)
        assert [row.preference for row in again.recorded()] == [choice(1), choice(2), tied(1)]
        assert again.sources() == {"import": 1, "old": 2}
        assert [tie.pair for tie in again.ties()] == [tied(2)]
    for path in tmp_path.iterdir():
        assert b"question 2?" not in path.read_bytes()


def _sealed_tie(home: Path) -> bytes:
    """The first tie, as the file holds it."""
    with sqlite3.connect(home / STORE) as db:
        (found,) = db.execute("SELECT sealed FROM sealed_ties ORDER BY number").fetchone()
    return bytes(found)


# --- changes ----------------------------------------------------------------------------------------


def test_a_choice_is_turned_round_in_its_place_and_its_old_key_is_gone(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1), choice(2)], "label")
    row = store.recorded()[0]
    sealed = _sealed(tmp_path, row.number)
    assert store.turn_round(row)
    turned = Preference(choice(1).prompt, choice(1).rejected, choice(1).chosen)
    assert {r.preference for r in store.recorded()} == {turned, choice(2)}
    now = next(r for r in store.recorded() if r.preference == turned)
    assert (now.source, now.recorded) == (row.source, row.recorded)
    with pytest.raises(DeviceError):
        store._storage.open([(sealed, "choice")])
    assert not store.turn_round(row)
    store.add([choice(1)])
    assert store.turn_round(next(r for r in store.recorded() if r.preference == choice(1)))
    assert {r.preference for r in store.recorded()} == {turned, choice(2)}


def test_an_edited_choice_takes_the_place_of_what_it_said_which_is_gone_as_if_deleted(
    tmp_path: Path,
) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1), choice(2)], "label")
    row = store.recorded()[0]
    sealed = _sealed(tmp_path, row.number)
    now = Preference("a question?", "yes", "no", strength=2)
    assert store.edit(row, now)
    edited = next(r for r in PreferenceStore(tmp_path).recorded() if r.preference == now)
    assert (edited.source, edited.recorded, len(store)) == (row.source, row.recorded, 2)
    with pytest.raises(DeviceError, match="key was destroyed"):
        store._storage.open([(sealed, "choice")])
    for path in tmp_path.iterdir():
        assert sealed not in path.read_bytes(), path
    assert not store.edit(row, choice(3)), "what is gone is not made anew"
    assert [r.preference for r in store.recorded()] == [choice(2), now]


def test_a_choice_becomes_a_tie_and_a_tie_a_choice_in_one_step(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1)], "label")
    (row,) = store.recorded()
    sealed = _sealed(tmp_path, row.number)
    assert store.edit(row, replace(choice(1), tie="equal"))
    (tie,) = store.ties()
    assert (store.recorded(), tie.pair, tie.said) == ([], choice(1), "equal")
    assert (tie.source, tie.recorded) == (row.source, row.recorded)
    with pytest.raises(DeviceError):
        store._storage.open([(sealed, "choice")])
    sealed = _sealed_tie(tmp_path)
    assert store.edit(tie, choice(2))
    assert ([r.preference for r in store.recorded()], store.ties()) == ([choice(2)], [])
    assert store.recorded()[0].recorded == row.recorded
    with pytest.raises(DeviceError):
        store._tie_storage.open([(sealed, "tie")])
    assert not store.edit(tie, choice(3))


def test_an_edit_that_would_repeat_another_comparison_changes_nothing(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1), choice(2)])
    store.add_tie(tied(3), "equal", "label")
    before = store.all_marked()
    turned = Preference(choice(2).prompt, choice(2).rejected, choice(2).chosen)
    for row in (store.recorded()[0], store.ties()[0]):
        for repeated in (choice(2), turned, replace(choice(2), strength=3), replace(turned, tie="both bad")):
            with pytest.raises(DataError, match="compares these two responses already"):
                store.edit(row, repeated)
    with pytest.raises(DataError):
        store.edit(store.recorded()[0], replace(tied(3), tie="both bad"))
    assert store.all_marked() == before
    assert store.edit(store.ties()[0], replace(tied(3), tie="equal")), "as it was"
    assert store.all_marked() == before


def test_whoever_reads_meanwhile_finds_the_one_or_the_other(tmp_path: Path) -> None:
    """A choice that becomes a tie and a choice again is there once in each look at the store."""
    store, reader = PreferenceStore(tmp_path), PreferenceStore(tmp_path)
    store.add([choice(1)])
    ways = (replace(choice(2), tie="equal"), choice(1))

    def edit() -> None:
        for n in range(40):
            ((_, row),) = store.all_marked()
            store.edit(row, ways[n % 2])

    editing = threading.Thread(target=edit)
    editing.start()
    found = []
    while editing.is_alive():
        found.append([row.preference for _, row in reader.all_marked()])
    editing.join()
    assert found
    assert all(rows in ([ways[0]], [ways[1]]) for rows in found)


def test_which_side_an_edited_choice_is_on_depends_on_its_new_texts(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    kept = next(choice(n) for n in range(100) if not held_out(choice(n)))
    aside = next(choice(n) for n in range(100) if held_out(choice(n)))
    store.add([kept])
    assert (store.train(), store.validation()) == ((kept,), ())
    assert store.edit(store.recorded()[0], aside)
    assert (store.train(), store.validation()) == ((), (aside,))
    turned = Preference(aside.prompt, aside.rejected, aside.chosen)
    assert store.edit(store.recorded()[0], turned)
    assert store.validation() == (turned,), "which one is preferred changes no side"


def _sealed(home: Path, number: int) -> bytes:
    with sqlite3.connect(home / STORE) as db:
        (found,) = db.execute("SELECT sealed FROM sealed_choices WHERE number = ?", (number,)).fetchone()
    return bytes(found)


def test_about_a_fifth_is_held_out_and_a_comparison_never_changes_sides(tmp_path: Path) -> None:
    many = [choice(n) for n in range(500)]
    store = PreferenceStore(tmp_path)
    store.add(many)
    aside = store.validation()
    assert 60 <= len(aside) <= 140
    assert not set(aside) & set(store.train())
    assert store.sides() == (store.train(), aside)
    turned = [Preference(p.prompt, p.rejected, p.chosen) for p in many]
    assert [held_out(p) for p in turned] == [held_out(p) for p in many]


def test_choices_that_have_not_changed_are_neither_opened_nor_packed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the agent's replies would wait the longer the more there are."""
    monkeypatch.setattr(preference_store, "CLOCK_STEP", -1.0)  # all of what follows is a change long ago
    opened: list[int] = []
    rows = PreferenceStore._rows

    def counted(self: PreferenceStore, db: sqlite3.Connection) -> list[preference_store.Recorded]:
        found = rows(self, db)
        opened.append(len(found))
        return found

    store = PreferenceStore(tmp_path)
    store.add([choice(1), choice(2)])
    monkeypatch.setattr(PreferenceStore, "_rows", counted)
    first = store.sides()
    assert all(again is side for again, side in zip(store.sides(), first, strict=True))
    assert opened == [2]
    sent = pickle.loads(pickle.dumps(first))
    assert sent == first
    assert {type(side) for side in sent} == {tuple}
    with monkeypatch.context() as patch:
        patch.setattr(Preference, "__reduce_ex__", None)  # what is packed anew would ask for that
        assert pickle.loads(pickle.dumps(first)) == first
    PreferenceStore(tmp_path).add([choice(3)])  # by another process, say
    opened.clear()
    assert sum(map(len, store.sides())) == sum(map(len, store.sides())) == 3
    assert opened == [3]
    store.remove(choice(3))
    assert store._read is None
    assert sum(map(len, store.sides())) == 2
    store.forget()
    assert store.sides() == ((), ())


def test_choices_are_read_again_right_after_a_change(tmp_path: Path) -> None:
    """A second change within one step of the file system's clock would not show."""
    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    store.sides()
    assert store._read is None


@given(st.text(min_size=1), st.text(min_size=1), st.text())
def test_texts_that_only_look_alike_when_glued_are_different_choices(a: str, b: str, c: str) -> None:
    from penchant.client.device.preference_store import _packed

    assert (_packed(a, b, c) == _packed(a + b, "", c)) == ((a, b) == (a + b, ""))


def test_an_import_is_all_or_nothing(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)

    def breaks_off() -> object:
        yield choice(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(breaks_off())  # type: ignore[arg-type]
    assert len(store) == 0


def test_only_the_owner_can_read_the_store(tmp_path: Path) -> None:
    PreferenceStore(tmp_path / "device")
    assert stat.S_IMODE((tmp_path / "device").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "device" / STORE).stat().st_mode) == 0o600


def test_what_is_forgotten_is_gone_from_the_file(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([Preference("", "a word like xylophonist", "another")])
    key = (tmp_path / KEYS).read_bytes()[:32]
    assert store.forget() == 1
    for path in tmp_path.iterdir():
        assert b"xylophonist" not in path.read_bytes()
        assert key not in path.read_bytes()


def test_a_full_disk_is_one_line_and_everything_is_kept(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    real = sqlite3.connect

    def small(*args: object, **more: object) -> sqlite3.Connection:
        db: sqlite3.Connection = real(*args, **more)  # type: ignore[call-overload]
        db.execute("PRAGMA max_page_count = 5")  # SQLite's own "database or disk is full"
        return db

    sqlite3.connect = small  # type: ignore[assignment]
    try:
        with pytest.raises(DeviceError, match="full; nothing was changed"):
            store.add([Preference(f"{n}", "x" * 5000, "y" * 5000) for n in range(50)])
    finally:
        sqlite3.connect = real
    assert len(store) == 1


def test_no_choice_is_lost_when_the_process_is_killed_while_importing(tmp_path: Path) -> None:
    """A process records batches of ten and says when each is durable; it is killed at random instants."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from penchant.client.device.preference_store import PreferenceStore\n"
        "from penchant.common.data.preferences import Preference\n"
        "store = PreferenceStore(Path(sys.argv[1]))\n"
        "start = len(store)\nfor n in range(start, start + 10_000, 10):\n"
        "    store.add([Preference(f'{m}', 'yes', 'no') for m in range(n, n + 10)])\n"
        "    print(n + 10, flush=True)\n"
    )
    said = 0
    for turn in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            said = int(process.stdout.readline())
            time.sleep(0.003 * turn)
            os.kill(process.pid, signal.SIGKILL)
            said = max([said, *(int(line) for line in process.stdout if line.endswith("\n"))])
        there = len(PreferenceStore(tmp_path))
        assert there >= said
        assert there % 10 == 0


# --- the sealed storage -----------------------------------------------------------------------------


def test_a_box_opens_what_it_sealed_for_the_same_purpose_only(tmp_path: Path) -> None:
    storage = SealedStorage.of(tmp_path)
    sealed = storage.seal(b"my factor", "personal")
    assert b"my factor" not in sealed
    assert SealedStorage.of(tmp_path).open(sealed, "personal") == b"my factor"
    for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed[:5], b""):
        with pytest.raises(DeviceError, match="does not open"):
            storage.open(wrong, "personal")
    with pytest.raises(DeviceError, match="does not open"):
        storage.open(sealed, "identity")


def test_a_wrong_or_missing_passphrase_is_refused_before_anything_is_sealed(tmp_path: Path) -> None:
    SealedStorage.of(tmp_path, "correct horse", CHEAP)
    SealedStorage.of(tmp_path, "correct horse", CHEAP)
    with pytest.raises(DeviceError, match="wrong passphrase"):
        SealedStorage.of(tmp_path, "battery staple", CHEAP)
    with pytest.raises(DeviceError, match="give it"):
        SealedStorage.of(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECK_FILE, ROOT_FILE]
    with pytest.raises(DeviceError, match="empty"):
        SealedStorage.of(tmp_path / "other", "")


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    SealedStorage.of(tmp_path)
    key = tmp_path / ROOT_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(DeviceError, match="key file, not by a passphrase"):
        SealedStorage.of(tmp_path, "a passphrase")
    key.chmod(0o644)
    with pytest.raises(DeviceError, match="read by others"):
        SealedStorage.of(tmp_path)


def test_a_key_never_shows_itself(tmp_path: Path) -> None:
    storage = SealedStorage.of(tmp_path)
    key = (tmp_path / ROOT_FILE).read_text().strip().removeprefix("penchant-key$")
    assert len(key) == 64
    assert key not in repr(storage)
    assert repr(storage) == "SealedStorage()"


# --- strengths --------------------------------------------------------------------------------------


def test_strengths_are_kept_and_a_later_one_counts(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    assert store.add([choice(1), replace(choice(2), strength=1.5)]) == Added(new=2, repeated=0)
    marks = store.marks()
    assert store.add([choice(1), choice(2)]) == Added(new=0, repeated=2)  # they say no other strength
    assert store.marks() == marks
    assert store.add([replace(choice(1), strength=3)]) == Added(new=1, repeated=0)
    again = PreferenceStore(tmp_path)
    assert {row.preference for row in again.recorded()} == {
        replace(choice(1), strength=3.0),
        replace(choice(2), strength=1.5),
    }
    assert store.marks() != marks
    assert len(store) == 2
    (first, *_) = again.recorded()
    assert first.preference == replace(choice(2), strength=1.5)
    assert again.turn_round(first)  # how strongly that is so nobody said
    assert [row.preference.strength for row in again.recorded()] == [3.0, None]
    assert again.remove(choice(1))
    assert len(again) == 1
