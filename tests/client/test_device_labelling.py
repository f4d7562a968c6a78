"""Labelling: two responses in random order, the owner chooses; answers are kept, and can be taken back."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import termios
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import wait_for

from penchant.client.device.labelling import Labelling, compared, read_comparisons
from penchant.client.device.preference_store import PreferenceStore
from penchant.client.learning.laplace import Belief
from penchant.common.data.preferences import Preference
from penchant.common.errors import DataError

SNACKS = compared("A snack? ", ["carrots", "jerky", "an apple"])


def sitting(home: Path, comparisons: Iterable[Preference] = SNACKS, seed: int = 1) -> Labelling:
    return Labelling(PreferenceStore(home), comparisons, random.Random(seed))


def recorded(home: Path) -> list[Preference]:
    return sorted(PreferenceStore(home)._all(), key=lambda p: (p.chosen, p.rejected))


def test_a_tie_is_recorded_not_asked_again_and_taken_back(tmp_path: Path) -> None:
    asked = sitting(tmp_path)
    question = asked.question
    assert question is not None
    asked.tie("both bad")
    assert (asked.recorded, asked.tied, asked.skipped, asked.left) == (0, 1, 0, 2)
    (tie,) = PreferenceStore(tmp_path).ties()
    assert (tie.pair, tie.said) == (question.answered(True), "both bad")
    assert sitting(tmp_path).left == 2
    asked.skip()
    assert asked.undo()
    assert asked.undo()
    assert asked.question == question
    assert (asked.tied, PreferenceStore(tmp_path).ties(), recorded(tmp_path)) == (0, [], [])


def test_undo_of_a_tie_takes_the_choice_back_that_was_made_of_it_since(tmp_path: Path) -> None:
    store, pair = PreferenceStore(tmp_path), Preference("p", "A", "B")
    asked = sitting(tmp_path, [pair])
    assert asked.tie("equal")
    (tie,) = store.ties()
    assert store.settle(tie, True)
    assert asked.undo()
    assert (recorded(tmp_path), store.ties()) == ([], [])
    assert asked.tie("equal")  # as if nothing had been said
    assert (asked.tied, asked.skipped, len(store.ties())) == (1, 0, 1)
    assert asked.undo()
    question = asked.question
    assert question is not None
    asked.choose(True)
    assert recorded(tmp_path) == [question.answered(True)]


def test_undo_of_a_tie_leaves_what_was_recorded_otherwise_meanwhile(tmp_path: Path) -> None:
    store, pair = PreferenceStore(tmp_path), Preference("p", "A", "B")
    asked = sitting(tmp_path, [pair])
    assert asked.tie("equal")
    (tie,) = store.ties()
    store.remove_tie(tie)
    store.add([pair])
    assert asked.undo()
    assert recorded(tmp_path) == [pair]


def test_a_tie_on_what_was_chosen_meanwhile_is_none(tmp_path: Path) -> None:
    store, pair = PreferenceStore(tmp_path), Preference("p", "A", "B")
    asked = sitting(tmp_path, [pair])
    store.add([pair])
    assert not asked.tie("equal")
    assert (asked.tied, asked.skipped, store.ties()) == (0, 1, [])
    assert asked.undo()
    assert recorded(tmp_path) == [pair]


# --- what is asked --------------------------------------------------------------------------------


def test_three_responses_are_three_questions_and_repeats_are_none() -> None:
    assert [{p.chosen, p.rejected} for p in SNACKS] == [
        {"carrots", "jerky"},
        {"carrots", "an apple"},
        {"jerky", "an apple"},
    ]
    assert len(compared("", ["a", "b", "a", "b"])) == 1
    for few_or_many in ([], ["a"], ["a", "a"], [str(n) for n in range(101)]):
        with pytest.raises(DataError, match="different responses to one prompt"):
            compared("", few_or_many)


def test_rows_with_responses_and_rows_of_trl_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "responses": ["a", "b"]},
        {"prompt": "p", "chosen": "c", "rejected": "d"},
        {"responses": ["e", "f"]},
        {"prompt": "p"},
        {"prompt": "p", "responses": ["a", 3]},
        {"prompt": "p", "responses": "ab"},
        {"prompt": 3, "responses": ["a", "b"]},
        {"prompt": "p", "responses": ["a", " "]},
    ]
    file = tmp_path / "ask.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found, report = read_comparisons(file, "skip")
    assert found == [Preference("p", "a", "b"), Preference("p", "c", "d"), Preference("", "e", "f")]
    assert [bad.where for bad in report.bad] == [f"{file}:{line}" for line in (4, 5, 6, 7, 8)]
    with pytest.raises(DataError, match=r"ask\.jsonl:4: 'responses' is missing"):
        read_comparisons(file)


def test_either_side_comes_first_half_of_the_time(tmp_path: Path) -> None:
    many = [Preference(f"p{n}", "a", "b") for n in range(400)]
    asked = Labelling(PreferenceStore(tmp_path), many)  # the system's own draw
    first = 0
    while asked.question:
        first += asked.question.first == "a"
        asked.skip()
    assert 140 < first < 260


def test_what_was_answered_either_way_is_not_asked_again_and_what_was_skipped_is(tmp_path: Path) -> None:
    PreferenceStore(tmp_path).add([Preference("A snack? ", "an apple", "carrots")])
    again = sitting(tmp_path, [*SNACKS, *(Preference(p.prompt, p.rejected, p.chosen) for p in SNACKS)])
    assert again.left == 2
    again.choose(True)
    again.skip()
    assert (again.question, again.recorded, again.skipped) == (None, 1, 1)
    assert sitting(tmp_path).left == 1


# --- what is recorded -----------------------------------------------------------------------------


@pytest.mark.parametrize("first_is_better", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_what_was_shown_wherever_it_stood(
    tmp_path: Path, seed: int, first_is_better: bool
) -> None:
    asked = sitting(tmp_path, seed=seed)
    question = asked.question
    assert question is not None
    asked.choose(first_is_better)
    (choice,) = recorded(tmp_path)
    better = question.first if first_is_better else question.second
    assert (choice.prompt, choice.chosen) == ("A snack? ", better)
    assert {choice.chosen, choice.rejected} == {question.first, question.second}
    assert PreferenceStore(tmp_path).sources() == {"label": 1}


def test_undoing_takes_back_answers_and_skips_and_nothing_older(tmp_path: Path) -> None:
    PreferenceStore(tmp_path).add([Preference("older", "a", "b")])
    asked = sitting(tmp_path)
    shown = []
    for work in (lambda: asked.choose(True), asked.skip, lambda: asked.choose(False)):
        shown.append(asked.question)
        work()
    assert len(recorded(tmp_path)) == 3
    for question in reversed(shown):
        assert asked.undo()
        assert asked.question == question  # asked as before, in the same order
    assert not asked.undo()
    assert recorded(tmp_path) == [Preference("older", "a", "b")]
    assert b"jerky" not in (tmp_path / "preferences.db").read_bytes()


def test_undoing_leaves_what_was_recorded_otherwise_meanwhile(tmp_path: Path) -> None:
    asked = sitting(tmp_path)
    assert asked.question is not None
    imported = asked.question.answered(True)
    PreferenceStore(tmp_path).add([imported], "a file")
    asked.choose(True)
    assert asked.undo()
    assert recorded(tmp_path) == [imported]


def test_undoing_takes_back_a_choice_that_was_turned_round_since(tmp_path: Path) -> None:
    asked = sitting(tmp_path)
    asked.choose(True)
    store = PreferenceStore(tmp_path)
    assert store.turn_round(store.recorded()[0])
    assert asked.undo()
    assert recorded(tmp_path) == []


# --- at the terminal ------------------------------------------------------------------------------


class ShortestFirst:
    """Stands for an interview: the shortest question tells most; notes what it is told."""

    def __init__(self, candidates: Sequence[Preference]) -> None:
        self.candidates = candidates
        self.sizes = [len(pair.chosen + pair.rejected) for pair in candidates]
        self.told: list[bool | None] = []

    def question(self, among: Sequence[int]) -> int:
        return min(among, key=lambda index: self.sizes[index])

    def answer(self, index: int, first: bool | None) -> None:
        self.told.append(first)

    def undo(self) -> None:
        self.told.pop()


def test_a_tie_is_told_and_taken_back_and_one_that_is_not_recorded_is_neither(tmp_path: Path) -> None:
    made: list[ShortestFirst] = []

    def learner(candidates: Sequence[Preference]) -> Any:
        made.append(ShortestFirst(candidates))
        return made[0]

    store = PreferenceStore(tmp_path)
    asked = Labelling(store, SNACKS, random.Random(1), learner)
    asked.choose(True)
    assert asked.tie("both bad")
    assert asked.question is not None
    store.add([asked.question.answered(True)])
    assert not asked.tie("equal")
    assert made[0].told == [True, None]
    assert asked.undo()
    assert made[0].told == [True, None]
    assert asked.undo()
    assert made[0].told == [True]


def test_the_most_telling_question_comes_first_and_answers_are_told(tmp_path: Path) -> None:
    made: list[ShortestFirst] = []

    def learner(candidates: Sequence[Preference]) -> Any:
        made.append(ShortestFirst(candidates))
        return made[0]

    asked = Labelling(PreferenceStore(tmp_path), SNACKS, random.Random(1), learner)
    sizes = []
    for turn in range(len(SNACKS)):
        sizes.append(len(asked.question.first + asked.question.second))
        if turn == 1:
            asked.skip()
        else:
            asked.choose(turn == 0)
    assert sizes == sorted(sizes)
    assert made[0].told == [True] + [False] * (len(SNACKS) - 2)
    assert asked.undo()
    assert made[0].told == [True] + [False] * (len(SNACKS) - 3)
    assert asked.question is not None


def test_a_guess_is_about_the_response_that_stands_first(tmp_path: Path) -> None:
    class LikesApples(ShortestFirst):
        def beliefs(self) -> Belief:
            sides = [("apple" in p.chosen) - ("apple" in p.rejected) for p in self.candidates]
            return Belief(np.array(sides, dtype=float), np.zeros(len(sides)))

    assert sitting(tmp_path).guess() is None
    asked = Labelling(PreferenceStore(tmp_path), SNACKS, random.Random(1), LikesApples)
    while (question := asked.question) is not None:
        side = ("apple" in question.first) - ("apple" in question.second)
        assert asked.guess() == pytest.approx(1 / (1 + math.exp(-side)))
        asked.skip()
    assert asked.guess() is None


def command(home: Path, *words: str) -> list[str]:
    program = "from penchant.deploy.cli.main import main; main()"
    return [sys.executable, "-c", program, "device", "label", *words, "--home", str(home)]


def typed(keys: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(home, *words), capture_output=True, text=True, input=keys, timeout=300)


@pytest.fixture
def snacks(tmp_path: Path) -> Path:
    file = tmp_path / "ask.jsonl"
    row = {"prompt": "A snack?\x1b[31m", "responses": ["carrots", "jerky\x07\x1b]0;owned\x07", "an apple"]}
    file.write_text(json.dumps(row))
    return file


def test_ties_at_the_terminal(snacks: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = typed("=\nb\nu\nb\n1\n\n", home, str(snacks))
    assert done.returncode == 0, done.stderr
    assert "1 choices recorded, 2 ties, 0 skipped, 0 left to ask" in done.stdout
    assert [tie.said for tie in PreferenceStore(home).ties()] == ["equal", "both bad"]
    assert len(recorded(home)) == 1


def test_a_sitting_at_the_terminal(snacks: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = typed("u\n\nwhat\n1\nu\n2\ns\n1\nu\n1\n\n", home, str(snacks))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("there is nothing to undo") == 1
    assert done.stdout.count("1 or 2: the one you would rather have") == 3  # at first, and for what is no key
    assert "2 choices recorded, 1 skipped, 0 left to ask" in done.stdout
    assert "device train" in done.stdout
    assert "\x1b" not in done.stdout  # whoever wrote the responses does not write to this terminal
    assert "\x07" not in done.stdout
    assert "jerky??]0;owned?" in done.stdout
    assert len(recorded(home)) == 2
    again = typed("", home, str(snacks))
    assert "0 choices recorded, 0 skipped, 1 left to ask" in again.stdout


def test_a_key_is_enough_at_a_terminal_and_each_question_says_which_one_it_is(
    snacks: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    ours, theirs = os.openpty()
    with subprocess.Popen(
        command(home, str(snacks)), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        said = b""
        for count, key in enumerate((b"1", b"=", b"q"), 1):
            while said.count(b"q > ") < count:
                said += process.stdout.read(1)
            wait_for("a key", lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON, 30)
            os.write(ours, key)
        rest, errors = process.communicate(timeout=300)
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, errors) == (0, b"")
    assert all(place in said for place in (b"1 of 3  A snack?", b"2 of 3  A snack?", b"3 of 3  A snack?"))
    assert b"1 choices recorded, 1 ties" in rest


def test_long_responses_have_a_line_between_them(tmp_path: Path) -> None:
    file = tmp_path / "ask.jsonl"
    rows = [["carrots\nand dip", "an apple"], ["a", "b"]]
    file.write_text("".join(json.dumps({"prompt": "A snack?", "responses": row}) + "\n" for row in rows))
    done = typed("s\ns\n\n", tmp_path / "home", str(file))
    assert done.stdout.count("  " + "-" * 40 + "\n") == 3


@pytest.mark.parametrize("keys", ["1\nq\n", "1\n", "1\n1"])
def test_quitting_or_the_end_of_input_keeps_what_was_answered(
    snacks: Path, tmp_path: Path, keys: str
) -> None:
    home = tmp_path / "home"
    done = typed(keys, home, str(snacks))
    assert done.returncode == 0, done.stderr
    assert len(recorded(home)) == keys.count("1")
    assert done.stderr == ""


def test_an_interrupt_keeps_what_was_answered(snacks: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = command(home, str(snacks))
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=unbuffered
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        said = b""
        while said.count(b"q >") < 2:
            said += process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, b"")
    assert b"1 choices recorded" in rest
    assert len(recorded(home)) == 1


def test_responses_one_a_line_can_be_compared(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("stew\n\nsalad\n")
    home = tmp_path / "home"
    done = typed("1\n\n", home, str(tmp_path / "answers.txt"), "--prompt", "Dinner? ")
    assert done.returncode == 0, done.stderr
    (choice,) = recorded(home)
    assert (choice.prompt, {choice.chosen, choice.rejected}) == ("Dinner? ", {"stew", "salad"})
    (tmp_path / "one.txt").write_text("stew\n")
    refused = typed("", home, str(tmp_path / "one.txt"), "--prompt", "Dinner? ")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    missing = typed("", home, str(tmp_path / "nowhere.jsonl"))
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
