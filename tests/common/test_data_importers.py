"""Exports of the programs that people choose in: small files of their schema, and the pairs they become."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.common.data.importers.choices import (
    PAIRS_MOST,
    Choice,
    Tally,
    nearest_lower,
    seconds,
    settled,
    worded,
)
from penchant.common.data.importers.reading import FORMATS, Found, choices_of_rows, read_choices
from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import RowLog
from penchant.common.data.trl_format import AskedColumns, parse_preference, write_jsonl
from penchant.common.errors import DataError

Row = dict[str, Any]


def read(path: Path, document: Any) -> Found:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    log = RowLog()
    found = read_choices(path, log)
    log.finish(path)
    return found


def told(found: Found) -> list[tuple[str | None, str, str, str]]:
    return [
        (r.person, r.preference.prompt, r.preference.chosen, r.preference.rejected)
        for r in found.labelled
        if not r.preference.tie
    ]


def ties(found: Found) -> list[tuple[str | None, str, str, str]]:
    """Person, the two responses, and what was said of them."""
    return [
        (r.person, r.preference.chosen, r.preference.rejected, r.preference.tie)
        for r in found.labelled
        if r.preference.tie
    ]


# --- Open WebUI -----------------------------------------------------------------------------------


def feedback(
    message: str, rating: int | None, user: str = "u1", when: int = 1_700_000_000, chat: str = "c1"
) -> Row:
    """One feedback on a chat: a question with three answers, and a follow-up with one."""
    messages = {
        "q": {
            "id": "q",
            "parentId": None,
            "childrenIds": ["a", "b", "c"],
            "role": "user",
            "content": "¿Qué tal? 🙂",
        },
        "a": {"id": "a", "parentId": "q", "childrenIds": ["q2"], "role": "assistant", "content": "Bien"},
        "b": {"id": "b", "parentId": "q", "childrenIds": [], "role": "assistant", "content": "Mal 😢"},
        "c": {"id": "c", "parentId": "q", "childrenIds": [], "role": "assistant", "content": "Así así"},
        "q2": {"id": "q2", "parentId": "a", "childrenIds": ["d"], "role": "user", "content": "¿Y tú?"},
        "d": {"id": "d", "parentId": "q2", "childrenIds": [], "role": "assistant", "content": "También"},
    }
    return {
        "id": f"{message}-{when}",
        "user_id": user,
        "version": 0,
        "type": "rating",
        "data": {"rating": rating, "model_id": "m", "sibling_model_ids": ["n"], "reason": "", "comment": ""},
        "meta": {"arena": False, "message_id": message, "message_index": 1, "chat_id": chat},
        "snapshot": {"chat": {"id": chat, "chat": {"history": {"messages": messages, "currentId": "d"}}}},
        "created_at": when,
        "updated_at": when,
    }


ASKED = "user: ¿Qué tal? 🙂\n"
BIEN, MAL, ASI = "assistant: Bien", "assistant: Mal 😢", "assistant: Así así"


def test_open_webui_pairs_a_rated_message_with_its_siblings(tmp_path: Path) -> None:
    found = read(tmp_path / "f.json", [feedback("a", 1), feedback("d", 1), feedback("gone", -1)])
    assert told(found) == [("u1", ASKED, BIEN, MAL), ("u1", ASKED, BIEN, ASI)]
    assert found.notes[0] == "read as feedback of Open WebUI"
    assert "1 ratings without another response to the same prompt: not used" in found.notes
    assert "1 ratings of a message that is not there or has no text: not used" in found.notes


def test_open_webui_weighs_the_thumbs_of_one_chat_against_each_other(tmp_path: Path) -> None:
    found = read(
        tmp_path / "f.json", [feedback("a", 1), feedback("b", 1), feedback("c", -1), feedback("a", None)]
    )
    assert told(found) == [("u1", ASKED, BIEN, ASI), ("u1", ASKED, MAL, ASI)]
    # a with b, and the empty rating
    assert "2 comparisons without an answer, or with the same thumb on both: not used" in found.notes


def test_of_contradictory_answers_the_latest_counts(tmp_path: Path) -> None:
    rows = [
        feedback("a", -1, when=300, chat="later"),
        feedback("a", 1, when=100),
        feedback("a", 1, when=200, chat="same"),
        feedback("b", 1, user="u2"),
    ]
    found = read(tmp_path / "f.json", rows)
    mine = [row[1:] for row in told(found) if row[0] == "u1"]
    assert mine == [(ASKED, MAL, BIEN), (ASKED, ASI, BIEN)]
    assert found.people == ["u1", "u2"]
    assert "2 there more than once: they count once" in found.notes
    assert "2 contradicted by the same person later: the latest choice counts" in found.notes


def test_open_webui_without_a_snapshot_is_refused_in_one_line(tmp_path: Path) -> None:
    row = feedback("a", 1) | {"snapshot": {}}
    with pytest.raises(DataError, match=r"f\.json:1: the feedback holds no snapshot of its chat") as refused:
        read(tmp_path / "f.json", [row])
    assert "\n" not in str(refused.value)


# --- ChatGPT --------------------------------------------------------------------------------------


def node(name: str, parent: str | None, role: str, text: str, children: list[str], **message: Any) -> Row:
    content = {"content_type": "text", "parts": [text]}
    return {
        "id": name,
        "parent": parent,
        "children": children,
        "message": {"id": name, "author": {"role": role}, "content": content, "recipient": "all", **message},
    }


def conversation(name: str = "conv") -> Row:
    """A question with two answers; the first was reached through a tool."""
    nodes = [
        {"id": "root", "parent": None, "children": ["sys"], "message": None},
        node("sys", "root", "system", "be nice", ["q"]),
        node("q", "sys", "user", "Wie spät ist es?", ["call", "b"]),
        node("call", "q", "assistant", "now()", ["tool"], recipient="clock"),
        node("tool", "call", "tool", "12:00", ["a"]),
        node("a", "tool", "assistant", "Zwölf.", []),
        node("b", "q", "assistant", "Keine Ahnung.", ["q2"]),
        node("q2", "b", "user", "Doch!", ["c"]),
        node("c", "q2", "assistant", "Na gut.", []),
    ]
    return {"id": name, "conversation_id": name, "title": "t", "mapping": {one["id"]: one for one in nodes}}


def thumb(message: str, rating: str, **more: Any) -> Row:
    return {
        "id": message,
        "conversation_id": "conv",
        "user_id": "me",
        "rating": rating,
        "content": "{}",
        **more,
    }


def comparison(rating: str, conversation: str = "conv") -> Row:
    def turn(name: str, text: str) -> list[Row]:
        return [
            {
                "id": name,
                "author": {"role": "assistant"},
                "content": {"content_type": "text", "parts": [text]},
            }
        ]

    step = {
        "original_turn": turn("b", "Keine Ahnung."),
        "new_turn": turn("a2", "Mittag."),
        "completion_comparison_rating": rating,
        "new_completion_placement": "not-applicable",
    }
    return {
        "id": "x",
        "input": {"conversation_id": conversation},
        "output": {"feedback_step_1": {}, "feedback_step_2": step},
        "create_time": "2023-05-01T10:00:00.000000Z",
    }


def chatgpt(folder: Path, **files: Any) -> Found:
    (folder / "chat.html").write_text("<html>")
    (folder / "assets.json").write_text('{"chosen": "not a row"}')
    (folder / "user.json").write_text('{"id": "user-1", "email": "a@b.c"}')
    for name, document in files.items():
        (folder / f"{name.replace('_0', '-000')}.json").write_text(json.dumps(document))
    log = RowLog()
    found = read_choices(folder, log)
    log.finish(folder)
    return found


WAS = "user: Wie spät ist es?\n"


@pytest.mark.parametrize("shard", ["conversations", "conversations_0"])
def test_chatgpt_pairs_thumbs_with_regenerated_answers(tmp_path: Path, shard: str) -> None:
    thumbs = [
        thumb("a", "thumbsUp"),
        thumb("c", "thumbs_down"),
        thumb("z", "thumbsUp", conversation_id="other"),
    ]
    found = chatgpt(tmp_path, **{shard: [conversation()], "message_feedback": thumbs})
    assert told(found) == [(None, WAS, "assistant: Zwölf.", "assistant: Keine Ahnung.")]
    assert found.notes == [
        "read as an export of ChatGPT",
        "1 ratings without another response to the same prompt: not used",
        "1 ratings of a message that is not there or has no text: not used",
        "files that are not read: assets.json, user.json",
    ]


@pytest.mark.parametrize(
    ("rating", "chosen"), [("new", "Mittag."), ("original", "Keine Ahnung."), ("same", None)]
)
def test_chatgpt_comparisons(tmp_path: Path, rating: str, chosen: str | None) -> None:
    found = chatgpt(
        tmp_path,
        conversations=[conversation()],
        model_comparisons=[comparison(rating), comparison("new", "deleted")],
    )
    expected = [] if chosen is None else [(WAS, f"assistant: {chosen}")]
    assert [row[1:3] for row in told(found)] == expected
    assert any("1 ratings of a message that is not there" in note for note in found.notes)


def test_chatgpt_without_ratings_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hold no rating; give the whole folder of the export"):
        read(tmp_path / "conversations.json", [conversation()])


# --- LibreChat ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [False, True])
def test_librechat_flat_and_as_a_tree(tmp_path: Path, tree: bool) -> None:
    ask = {"messageId": "1", "parentMessageId": None, "isCreatedByUser": True, "text": "Hi", "sender": "User"}
    first = {"messageId": "2", "parentMessageId": "1", "isCreatedByUser": False, "text": "Hello"}
    first["feedback"] = {"rating": "thumbsDown", "tag": "other", "text": "meh"}
    content = [{"type": "text", "text": {"value": "Hey 👋"}}]
    second = {
        "messageId": "3",
        "parentMessageId": "1",
        "isCreatedByUser": False,
        "text": "",
        "content": content,
    }
    messages = [ask | {"children": [first, second]}] if tree else [ask, first, second]
    found = read(tmp_path / "c.json", {"conversationId": "c", "endpoint": "x", "messages": messages})
    assert told(found) == [(None, "user: Hi\n", "assistant: Hey 👋", "assistant: Hello")]


# --- rings, and more answers than anybody compares ------------------------------------------------


@pytest.mark.parametrize("ring", [("a",), ("a", "b"), ("a", "b", "c")])
def test_messages_in_a_ring_end(tmp_path: Path, ring: tuple[str, ...]) -> None:
    above = dict(zip(ring, (*ring[1:], ring[0]), strict=True))
    open_webui = feedback("a", 1)
    nodes = {name: node(name, parent, "assistant", name, []) for name, parent in above.items()}
    thumbed = {"isCreatedByUser": False, "feedback": {"rating": "thumbsUp"}}
    messages = open_webui["snapshot"]["chat"]["chat"]["history"]["messages"]
    for name, parent in above.items():
        messages[name] = {"id": name, "parentId": parent, "role": "assistant", "content": name}
    spoken = [
        {"messageId": name, "parentMessageId": parent, "text": name, **thumbed}
        for name, parent in above.items()
    ]
    exports: list[Any] = [
        [open_webui],
        [{"conversation_id": "conv", "mapping": nodes}, thumb("a", "thumbsUp")],
        {"conversationId": "c", "messages": spoken},
    ]
    for document in exports:
        assert told(read(tmp_path / "ring.json", document)) == []


def test_of_very_many_answers_each_meets_a_bounded_number(tmp_path: Path) -> None:
    count = 3000
    ask = {"messageId": "q", "parentMessageId": None, "isCreatedByUser": True, "text": "Hi"}
    answers = [
        {
            "messageId": f"{n}",
            "parentMessageId": "q",
            "text": f"answer {n}",
            "feedback": {"rating": ("thumbsUp", "thumbsDown", "")[n % 3]},
        }
        for n in range(count)
    ]
    found = read(tmp_path / "c.json", {"conversationId": "c", "messages": [ask, *answers]})
    assert len(found.labelled) == 2 * count // 3 * PAIRS_MOST  # the last third has nobody below
    left_out = 3 * 1000**2 - len(found.labelled)
    assert any(note.startswith(f"{left_out} comparisons left out") for note in found.notes)
    chosen = Counter(row.preference.chosen for row in found.labelled)
    assert set(chosen.values()) == {PAIRS_MOST}


@pytest.mark.parametrize("seed", range(20))
def test_few_responses_make_every_pair(seed: int) -> None:
    rng = random.Random(seed)
    scores = {f"r{n}": rng.choice((0.0, 0.5, 1.0, 2.0)) for n in range(rng.randint(1, PAIRS_MOST + 1))}
    every = [
        (one, other) if scores[one] > scores[other] else (other, one)
        for one, other in itertools.combinations(scores, 2)
        if scores[one] != scores[other]
    ]
    tally = Tally()
    assert nearest_lower(scores, tally) == every
    assert tally.left_out == 0


def test_many_responses_meet_the_nearest_below_and_equals_take_turns() -> None:
    tally = Tally()
    steps = nearest_lower({f"{n}": float(n) for n in range(100)}, tally)
    assert all(0 < int(better) - int(worse) <= PAIRS_MOST for better, worse in steps)
    assert (len(steps), tally.left_out) == (84 * 16 + 16 * 15 // 2, 99 * 100 // 2 - len(steps))
    scores = {f"{n}": float(n % 2) for n in range(1000)}
    lower = Counter(worse for _, worse in nearest_lower(scores, Tally()))
    assert (len(lower), set(lower.values())) == (500, {PAIRS_MOST})
    assert nearest_lower(scores, Tally()) == nearest_lower(scores, Tally())


# --- arenas and labelling tools -------------------------------------------------------------------


def state(answer: str) -> Row:
    return {
        "roles": ["USER", "ASSISTANT"],
        "messages": [["USER", "1+1?"], ["ASSISTANT", answer]],
        "model_name": "m",
    }


def test_lm_arenas_log(tmp_path: Path) -> None:
    votes = ["leftvote", "rightvote", "tievote", "bothbad_vote", "chat", "upvote"]
    rows = [
        {
            "type": vote,
            "models": ["m", "n"],
            "states": [state("2"), state(f"3{vote}")],
            "ip": "1.2.3.4",
            "tstamp": n,
        }
        for n, vote in enumerate(votes)
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_choices(path, RowLog())
    assert told(found) == [
        ("1.2.3.4", "user: 1+1?\n", "assistant: 2", "assistant: 3leftvote"),
        ("1.2.3.4", "user: 1+1?\n", "assistant: 3rightvote", "assistant: 2"),
    ]
    assert ties(found) == [
        ("1.2.3.4", "assistant: 2", "assistant: 3tievote", "equal"),
        ("1.2.3.4", "assistant: 2", "assistant: 3bothbad_vote", "both bad"),
    ]
    assert "2 ties, in which neither response was preferred: kept as ties" in found.notes


def test_lm_arenas_rows(tmp_path: Path) -> None:
    def talk(*answers: str) -> list[Row]:
        roles = ("user", "assistant", "user", "assistant")
        return [{"role": r, "content": c} for r, c in zip(roles, answers, strict=True)]

    a, b = talk("hi", "yo", "why", "so"), talk("hi", "yo", "why", "because")
    rows = [
        {
            "model_a": "m",
            "model_b": "n",
            "winner": winner,
            "judge": judge,
            "conversation_a": a,
            "conversation_b": b,
        }
        for judge, winner in (
            ("j1", "model_b"), ("j2", "tie"), ("j3", "tie (bothbad)"), ("j4", "both_bad"), ("j5", ""),
        )
    ]  # fmt: skip
    found = read(tmp_path / "a.json", rows)
    before = "user: hi\nassistant: yo\nuser: why\n"
    assert told(found) == [("j1", before, "assistant: because", "assistant: so")]
    assert [(row[0], row[3]) for row in ties(found)] == [
        ("j2", "equal"),
        ("j3", "both bad"),
        ("j4", "both bad"),
    ]
    assert "3 ties, in which neither response was preferred: kept as ties" in found.notes
    assert "1 comparisons without an answer, or with the same thumb on both: not used" in found.notes


def test_argilla_labels_and_rankings(tmp_path: Path) -> None:
    fields = {"instruction": "Say hi", "response-1": "hi", "response-2": "hello", "response-3": "yo"}
    ranking = [{"value": f"response-{n}", "rank": rank} for n, rank in ((1, 2), (2, 1), (3, 2))]
    rows = [
        {
            "id": "1",
            "fields": fields,
            "responses": {
                "better": [{"value": "response_2", "user_id": "ann"}, {"value": None, "user_id": "cy"}],
                "order": [{"value": ranking, "user_id": "bob"}],
                "comment": [{"value": "free text", "user_id": "ann"}],
            },
        }
    ]
    found = read(tmp_path / "r.json", rows)
    prompt = "Say hi\n"
    assert told(found) == [
        ("ann", prompt, "hello", "hi"),
        ("ann", prompt, "hello", "yo"),
        ("bob", prompt, "hello", "hi"),
        ("bob", prompt, "hello", "yo"),
    ]
    assert ties(found) == [("bob", "hi", "yo", "equal")]
    assert "1 ties, in which neither response was preferred: kept as ties" in found.notes
    assert (
        "1 comparisons without an answer, or with the same thumb on both: not used" in found.notes
    )  # ann, of the two that she did not name


def test_an_argilla_label_may_say_that_there_is_a_tie(tmp_path: Path) -> None:
    fields = {"prompt": "Say hi", "response-a": "hi", "response-b": "hello"}
    answers = [{"value": said, "user_id": said} for said in ("Tie", "both bad", "response-b", "maybe")]
    found = read(tmp_path / "r.json", [{"fields": fields, "responses": {"better": answers}}])
    assert told(found) == [("response-b", "Say hi\n", "hello", "hi")]
    assert ties(found) == [("Tie", "hi", "hello", "equal"), ("both bad", "hi", "hello", "both bad")]


def test_label_studio_pairwise(tmp_path: Path) -> None:
    def annotation(selected: str, who: Any, **more: Any) -> Row:
        result = {
            "type": "pairwise",
            "from_name": "pw",
            "to_name": "answer1,answer2",
            "value": {"selected": selected},
        }
        return {"completed_by": who, "result": [result], "created_at": "2024-01-02T03:04:05Z", **more}

    rows = [
        {
            "id": 1,
            "data": {"prompt": "Q?", "answer1": "one", "answer2": "two"},
            "annotations": [
                annotation("left", 1),
                annotation("right", {"id": 2, "email": "b@c.d"}),
                annotation("right", 1, was_cancelled=True),
                annotation("", 3),
                annotation("tie", 4),
            ],
        },
        {"id": 2, "data": {"text_a": "x", "text_b": "y"}, "annotations": [annotation("left", 1)]},
    ]
    found = read(tmp_path / "t.json", rows)
    assert told(found) == [
        ("1", "Q?\n", "one", "two"),
        ("b@c.d", "Q?\n", "two", "one"),
        ("1", "", "x", "y"),
    ]
    assert ties(found) == [("4", "one", "two", "equal")]
    assert "1 ties, in which neither response was preferred: kept as ties" in found.notes
    assert "1 comparisons without an answer, or with the same thumb on both: not used" in found.notes


# --- ratings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("label", [True, False, False]),
        ("rating", [5, 2.5, 2.5]),
        ("stars", ["4", "1", "1"]),
        ("label", ["True", "false", "0"]),
    ],
)
def test_ratings_of_single_responses_become_pairs(tmp_path: Path, name: str, scores: list[Any]) -> None:
    texts = ("blue", "red", "green")
    rows = [
        {"user_id": 7, "prompt": "The sky is ", "completion": text, name: score}
        for text, score in zip(texts, scores, strict=True)
    ]
    rows.append({"user_id": 7, "prompt": "alone", "completion": "x", name: scores[0]})
    found = read(tmp_path / "r.json", rows)
    assert told(found) == [("7", "The sky is ", "blue", "red"), ("7", "The sky is ", "blue", "green")]
    assert ties(found) == ([] if name == "label" else [("7", "red", "green", "equal")])
    assert found.notes == [
        "read as ratings of single responses",
        "1 comparisons without an answer, or with the same thumb on both: not used"
        if name == "label"
        else "1 ties, in which neither response was preferred: kept as ties",
        *(
            ["2 choices say how strong they are: each counts by that, among the person's own"]
            * (name != "label")
        ),
        "1 ratings without another response to the same prompt: not used",
    ]


def test_a_bad_rating_is_a_bad_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": t, "label": label} for t, label in (("a", True), ("b", "meh"), ("", 1))
    ]
    with pytest.raises(
        DataError, match=r"2 of 3 rows .*:2: the label must be true.*:3: 'completion' is empty"
    ):
        read(tmp_path / "r.json", rows)


@pytest.mark.parametrize("label", ["NaN", "1e999", 10**400, "[" * 10_000, [1]])
def test_a_label_that_is_no_finite_number_is_a_bad_row(label: object, tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": "a", "label": label},
        {"prompt": "p", "completion": "b", "label": 1},
    ]
    with pytest.raises(DataError, match=r"1 of 2 rows .*:1: the label must be true, false or a number"):
        read(tmp_path / "r.json", rows)


def stars(text: str, score: Any, **more: Any) -> Row:
    return {"person": "ann", "prompt": "p ", "completion": text, "stars": score} | more


@pytest.mark.parametrize("lacks", ["completion", "stars", "person", "split"])
def test_a_rating_that_lacks_a_column_is_a_bad_row(tmp_path: Path, lacks: str) -> None:
    rows = [stars(text, score, split="train") for score, text in enumerate("abc")]
    del rows[1][lacks]
    with pytest.raises(DataError, match=f"1 of 3 rows .*:2: .*'{lacks}'"):
        read(tmp_path / "r.json", rows)
    found = choices_of_rows([(f"f:{n}", row) for n, row in enumerate(rows)], RowLog("skip"))
    assert told(found) == [("ann", "p ", "c", "a")]


def test_rows_of_another_format_among_ratings_are_bad_ones(tmp_path: Path) -> None:
    pair = {"person": "ann", "prompt": "p ", "chosen": "x", "rejected": "y"}
    with pytest.raises(DataError, match=r"1 of 2 rows .*:2: 'completion' is missing"):
        read(tmp_path / "r.json", [stars("a", 1), pair])
    with pytest.raises(DataError, match=r"1 of 2 rows .*:2: 'chosen' is missing"):
        read(tmp_path / "r.json", [pair, stars("a", 1)])


def test_ratings_for_different_parts_of_the_data_make_no_pair(tmp_path: Path) -> None:
    texts = (("a", 1, "train"), ("b", 2, "test"), ("c", 3, "train"), ("d", 4, "test"))
    found = read(tmp_path / "r.json", [stars(text, score, split=part) for text, score, part in texts])
    assert [(r.part, r.preference.chosen, r.preference.rejected) for r in found.labelled] == [
        ("train", "c", "a"),
        ("test", "d", "b"),
    ]


def test_ratings_of_one_prompt_by_several_people_are_of_several_kinds_and_make_no_pair(
    tmp_path: Path,
) -> None:
    """Asked for kinds, people stay who they are, and a pair of two kinds is of both."""
    said = (
        ("ann", "a", 1, "chat"),
        ("bob", "b", 2, "chat"),
        ("ann", "c", 3, "math"),
        ("bob", "d", 4, "chat"),
    )
    rows = [stars(text, score, person=person, subset=kind) for person, text, score, kind in said]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(rows))
    found = read_choices(path, RowLog(), asked=AskedColumns(kind="subset"))
    assert [(r.person, r.kind, r.preference.chosen, r.preference.rejected) for r in found.labelled] == [
        ("ann", "chat and math", "c", "a"),
        ("bob", "chat", "d", "b"),
    ]
    unnamed = [{name: value for name, value in row.items() if name != "person"} for row in rows]
    path.write_text(json.dumps(unnamed))
    found = read_choices(path, RowLog(), asked=AskedColumns(kind="subset"))
    assert {(r.person, r.kind) for r in found.labelled} == {("chat", "chat")}, (
        "kinds are whose, without names"
    )


def test_a_rating_that_is_contradicted_is_counted(tmp_path: Path) -> None:
    rows = [stars("a", 1), stars("b", 2), stars("a", 1), stars("a", 3)]
    found = read(tmp_path / "r.json", rows)
    assert told(found) == [("ann", "p ", "a", "b")]
    assert "1 ratings contradicted by the same person later: the latest rating counts" in found.notes


def test_of_two_columns_of_ratings_the_one_that_is_not_read_is_named(tmp_path: Path) -> None:
    rows = [stars("a", 5, label=False, rating=None), stars("b", 1, label=True, rating=None)]
    found = read(tmp_path / "r.json", rows)
    assert told(found) == [("ann", "p ", "b", "a")]
    assert found.notes[-1] == (
        "the column 'stars' is not read: 'label' beside it says how responses are rated"
    )


@pytest.mark.parametrize("empty", [None, "", " ", float("nan")])
def test_an_empty_column_of_labels_beside_ratings_is_no_rating(tmp_path: Path, empty: object) -> None:
    rows = [stars("a", None, label=empty, rating=5), stars("b", 1, label=empty, rating=2)]
    found = read(tmp_path / "r.json", rows)
    assert told(found) == [("ann", "p ", "a", "b")]
    assert [row.preference.strength for row in found.labelled] == [3.0]
    assert found.notes[-1] == (
        "the column 'stars' is not read: 'rating' beside it says how responses are rated"
    )


def test_one_column_of_ratings_is_read_and_its_empty_cells_are_bad_rows(tmp_path: Path) -> None:
    """Thumbs and stars of two columns are of two scales, and never compared row by row."""
    rows = [stars("a", 5, label=True), stars("b", 1, label=""), stars("c", 3, label=False)]
    with pytest.raises(DataError, match=r"1 of 3 rows .*:2: the label must be true, false or a number"):
        read(tmp_path / "r.json", rows)
    found = read(tmp_path / "r.json", rows[1:])
    assert told(found) == [("ann", "p ", "c", "b")]
    assert found.notes[-1] == "the column 'label' is not read: 'stars' beside it says how responses are rated"
    unrated = [stars("a", "", label=""), *rows[1:]]
    with pytest.raises(DataError, match=r"1 of 3 rows .*:1: the label must be"):
        read(tmp_path / "r.json", unrated)


def test_a_thousand_ratings_of_one_prompt_make_pairs_in_proportion(tmp_path: Path) -> None:
    rows = [{"prompt": "", "completion": f"text {n}", "label": n % 2 == 0} for n in range(1000)]
    found = read(tmp_path / "r.json", rows)
    assert len(found.labelled) == 500 * PAIRS_MOST
    alike = 2 * 500 * 499 // 2
    assert f"{alike} comparisons without an answer, or with the same thumb on both: not used" in found.notes
    assert any(
        note.startswith(f"{500 * 500 - 500 * PAIRS_MOST} comparisons left out") for note in found.notes
    )


def test_a_thousand_equal_stars_make_ties_in_proportion(tmp_path: Path) -> None:
    rows = [{"prompt": "", "completion": f"text {n}", "stars": 3} for n in range(1000)]
    found = read(tmp_path / "r.json", rows)
    assert len(ties(found)) == len(found.labelled) == 1000 * PAIRS_MOST - PAIRS_MOST * (PAIRS_MOST + 1) // 2
    left = 1000 * 999 // 2 - len(found.labelled)
    assert any(note.startswith(f"{left} comparisons left out") for note in found.notes)


def test_of_a_tie_and_a_choice_between_the_same_two_the_latest_counts(tmp_path: Path) -> None:
    def vote(said: str, when: int) -> Row:
        return {"type": said, "states": [state("2"), state("3")], "ip": "me", "tstamp": when}

    path = tmp_path / "votes.jsonl"
    for votes, wanted in (
        ([vote("leftvote", 1), vote("tievote", 2)], "equal"),
        ([vote("tievote", 1), vote("leftvote", 2)], ""),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in votes))
        found = read_choices(path, RowLog())
        assert [row.preference.tie for row in found.labelled] == [wanted]
        assert "1 contradicted by the same person later: the latest choice counts" in found.notes


@pytest.mark.parametrize(
    ("said", "tie"),
    [
        (True, "equal"), ("Both bad", "both bad"), ("equal", "equal"), ("TIE", "equal"), (1, "equal"),
        (1.0, "equal"), (False, ""), (None, ""), ("", ""), (0, ""), ("no", ""), (float("nan"), ""),
        ("1", "equal"), (" 1.0", "equal"), ("1.", "equal"), ("1.000", "equal"), (-0.0, ""), ("0", ""),
        ("0.0", ""), ("True", "equal"), ("Yes", "equal"), ("NO ", ""),
    ],
)  # fmt: skip
def test_a_row_may_say_that_it_is_a_tie(said: object, tie: str) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "tie": said}
    assert parse_preference(row).tie == tie


@pytest.mark.parametrize(
    "said",
    [
        "silk", 10, "10", 10.0, "1.01", "1.0.0", "00", "0.0.", "01", "11", "100", ".1", "1e0", "1_0", "t.rue",
        "nan", "n.o", 2, -1, 0.1, 0.99, float("inf"), [], [1], {}, {"tie": 1}, "²", "١",
    ],
)  # fmt: skip
def test_a_row_whose_tie_says_nothing_known_is_a_bad_row(tmp_path: Path, said: object) -> None:
    with pytest.raises(DataError, match="'tie' must be true, false, equal or both bad"):
        parse_preference({"prompt": "p", "chosen": "a", "rejected": "b", "tie": said})
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "tie": said}]
    with pytest.raises(DataError, match="'tie' must be true, false, equal or both bad"):
        read(tmp_path / "r.json", rows)


def test_ties_are_read_back_from_lines_and_tables(tmp_path: Path) -> None:
    pairs = [Preference("p ", "a", "b"), Preference("q ", "c", "d", "both bad")]
    lines, table = tmp_path / "r.jsonl", tmp_path / "r.csv"
    write_jsonl(lines, pairs)
    table.write_text("prompt,chosen,rejected,tie\np ,a,b,\nq ,c,d,both bad\n")
    for path in (lines, table):
        found = read_choices(path, RowLog())
        assert [row.preference for row in found.labelled] == pairs
        assert found.notes == ["1 ties, in which neither response was preferred: kept as ties"]


# --- rows that are not as they should be ----------------------------------------------------------


def talk(*said: Any) -> list[Row]:
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": content} for role, content in zip(roles, said, strict=False)]


def arena(winner: Any, number: int = 0, **more: Any) -> Row:
    """A row of an arena; the question and the second answer have the number in them."""
    asked = f"{number}?"
    sides = {"conversation_a": talk(asked, "a"), "conversation_b": talk(asked, f"b{number}")}
    return {"winner": winner, "judge": "me", **sides, **more}


def librechat(**more: Any) -> Row:
    return {"conversationId": "c", **more}


PICTURE = [{"type": "text", "text": "b"}, {"type": "image", "image": "x.png"}]
LONE = "\ud800"
TRL = {"person": "me", "prompt": "p", "chosen": "c", "rejected": "r"}
ARGILLA = {"fields": {"p": "Q", "a": "x", "b": "y"}, "responses": {"q": [{"value": "a", "user_id": 1}]}}
TASK = {
    "data": {"left": "x", "right": "y"},
    "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
}
THUMBED = librechat(
    messages=[
        {"messageId": "q", "isCreatedByUser": True, "text": "x"},
        {"messageId": "1", "parentMessageId": "q", "text": "a", "feedback": {"rating": "thumbsUp"}},
        {"messageId": "2", "parentMessageId": "q", "text": "b"},
    ]
)
VOTE = {"type": "leftvote", "states": [state("2"), state("3")], "ip": "me"}
BROKEN: list[tuple[list[Row], Row, str]] = [
    ([feedback("a", 1)], feedback("b", 1, chat="x") | {"snapshot": None}, "holds no snapshot of its chat"),
    ([feedback("a", 1)], TRL, "holds no snapshot of its chat"),
    (
        [conversation(), thumb("a", "thumbsUp")],
        conversation("y") | {"mapping": None},
        "'mapping' must be an object, not null",
    ),
    ([conversation(), thumb("a", "thumbsUp")], TRL, "neither a conversation nor a rating nor a comparison"),
    ([THUMBED], librechat(messages=None), "'messages' must be a list, not null"),
    ([THUMBED], TRL, "'messages' is missing"),
    ([VOTE], VOTE | {"states": [state("2"), {"roles": ["U", "A"]}]}, "a state without messages"),
    ([VOTE], VOTE | {"states": [state("2")]}, "'states' must hold the two sides of a vote"),
    ([VOTE], {name: value for name, value in VOTE.items() if name != "states"}, "'winner' is missing"),
    ([VOTE], TRL, "'winner' is missing"),
    ([arena("model_a")], TRL, "'winner' is missing"),
    ([arena("model_a")], arena("nobody"), "'winner' must be model_a, model_b, A, B or a tie, or empty"),
    ([arena("model_a")], arena(1), "'winner' must be model_a, model_b"),
    ([arena("model_a")], arena("tie", conversation_b=None), "'conversation_b' must be a conversation, not"),
    ([arena("model_a")], arena("tie", conversation_b=talk("0?", PICTURE)), "with parts other than text"),
    ([arena("model_a")], arena("tie", conversation_b=talk("0?", LONE)), "contains a lone surrogate"),
    ([ARGILLA], ARGILLA | {"responses": None}, "'responses' must be an object, not null"),
    ([ARGILLA], TRL, "'fields' is missing"),
    ([ARGILLA], ARGILLA | {"fields": {"p": "Q", "a": LONE, "b": "y"}}, "'a' contains a lone surrogate"),
    ([TASK], TASK | {"annotations": None}, "'annotations' must be a list, not null"),
    ([TASK], TRL, "'data' is missing"),
    (
        [stars("a", 1), stars("b", 2)],
        stars(LONE, 3),
        "'completion' contains a lone surrogate",
    ),
]  # fmt: skip


# The first row decides what a file is, so what stands there shows enough of the format.
PLACED = [([*good, bad], len(good), why) for good, bad, why in BROKEN]
PLACED += [
    ([bad, *good], 0, why)
    for good, bad, why in BROKEN
    if bad is not TRL and ("states" in bad or "states" not in good[0])
]


@pytest.mark.parametrize(("rows", "place", "why"), PLACED)
def test_a_bad_row_of_an_export_refuses_it_or_is_left_out(
    tmp_path: Path, rows: list[Row], place: int, why: str
) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps(rows))
    strict = RowLog()
    read_choices(path, strict)
    with pytest.raises(DataError) as refused:
        strict.finish(path)
    assert str(refused.value).startswith(f"1 of {len(rows)} rows can't be used: {path}:{place + 1}: ")
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.on_command_line.endswith("; correct them, or skip them (--skip-bad-rows)")
    log = RowLog("skip")
    found = read_choices(path, log)
    assert log.finish(path).kept == len(rows) - 1
    good = read(tmp_path / "good.json", [row for number, row in enumerate(rows) if number != place])
    assert found.labelled == good.labelled != []


def test_of_eighty_votes_the_one_with_a_picture_is_left_out(tmp_path: Path) -> None:
    rows = [arena("ab"[n % 2], n) for n in range(80)]
    rows[40]["conversation_a"] = talk("40?", PICTURE)
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = RowLog("skip")
    assert len(read_choices(path, log).labelled) == 79
    report = log.finish(path)
    assert (report.rows, report.kept) == (80, 79)
    assert str(report.bad[0]).startswith(
        f"{path}:41: 'conversation' has a message with parts other than text"
    )


def test_rows_of_another_format_behind_a_file_of_votes_are_bad_ones(tmp_path: Path) -> None:
    for name, rows in (
        ("a", [arena("model_a", n) for n in range(8)]),
        ("b", [TRL | {"prompt": f"p{n}"} for n in range(20)]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = RowLog()
    read_choices(tmp_path, log)
    with pytest.raises(DataError, match=r"20 of 28 rows can't be used: .*b\.jsonl:1: 'winner' is missing; "):
        log.finish(tmp_path)


@pytest.mark.parametrize(
    ("winner", "won"),
    [
        ("A", "a"), ("a", "a"), ("model_a", "a"), ("Model A", "a"),
        ("B", "b0"), ("b", "b0"), ("model_b", "b0"),
    ],
)  # fmt: skip
def test_a_winner_is_known_by_its_letter(tmp_path: Path, winner: str, won: str) -> None:
    found = read(tmp_path / "a.json", [arena(winner)])
    lost = "b0" if won == "a" else "a"
    assert told(found) == [("me", "user: 0?\n", f"assistant: {won}", f"assistant: {lost}")]


def test_a_log_that_begins_with_a_chat_is_a_log_of_votes(tmp_path: Path) -> None:
    chat = {"type": "chat", "state": state("2"), "ip": "me", "tstamp": 1}
    found = read(tmp_path / "log.json", [chat, VOTE, {**chat, "type": "upvote"}])
    assert told(found) == [("me", "user: 1+1?\n", "assistant: 2", "assistant: 3")]
    assert "2 rows of a log of chats that hold no vote: not used" in found.notes
    assert found.unused == ["2 rows of a log of chats that hold no vote: not used"]


def test_ratings_and_comparisons_of_chatgpt_that_say_nothing_are_counted(tmp_path: Path) -> None:
    thumbs = [thumb("a", "thumbsUp"), thumb("c", ""), thumb("b", "thumbsUp") | {"rating": None}]
    unanswered = {"id": "x", "input": {}, "output": {"feedback_step_1": {}}}
    found = chatgpt(
        tmp_path,
        conversations=[conversation()],
        message_feedback=thumbs,
        model_comparisons=[unanswered],
    )
    assert told(found) == [(None, WAS, "assistant: Zwölf.", "assistant: Keine Ahnung.")]
    assert "3 comparisons without an answer, or with the same thumb on both: not used" in found.notes


def test_a_bad_row_gives_none_of_its_choices(tmp_path: Path) -> None:
    """Neither those before what is wrong with it nor those behind."""
    good, late = TASK["annotations"][0], {**TASK["annotations"][0], "created_at": 10**400}
    task = {"data": {"left": "x", "right": "z"}, "annotations": [good, late, good]}
    path = tmp_path / "t.json"
    path.write_text(json.dumps([TASK, task]))
    log = RowLog("skip")
    assert told(read_choices(path, log)) == [(None, "", "x", "y")]
    assert log.finish(path).kept == 1


@pytest.mark.parametrize(
    ("rows", "places"),
    [
        ([TRL, TRL | {"prompt": "q"}], ["1", "2"]),
        ([arena("tie"), arena("a", 1)], ["1", "2"]),
        ([ARGILLA], ["1"]),
        ([TASK, TASK], ["2"]),  # the same choice once more: the latest counts
        ([THUMBED], ["1"]),
        ([conversation(), thumb("a", "thumbsUp"), comparison("new")], ["2", "3"]),
        ([feedback("d", 1), feedback("a", 1), feedback("b", -1)], ["2 3", "2", "3"]),
        ([stars("a", 1), stars("b", 5)], ["2 1"]),
        ([{"person": "ann", "x": 1, "y": 0}], ["1"]),
        ([{"item": "x", "ann": 1, "bob": 0}, {"item": "y", "ann": 0, "bob": 1}], ["1 2", "2 1"]),
    ],
)
def test_where_a_choice_was_read_is_known(tmp_path: Path, rows: list[Row], places: list[str]) -> None:
    path = tmp_path / "f.json"
    found = read(path, rows)
    assert [row.where.replace(f"{path}:", "").replace(" and ", " ") for row in found.labelled] == places
    assert all(f"{path}:" in row.where for row in found.labelled)


# --- whatever comes -------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROWS = [
    feedback("a", 1),
    conversation(),
    thumb("a", "thumbsUp"),
    comparison("new"),
    {"conversationId": "c", "messages": [{"messageId": "1"}]},
    {"type": "leftvote", "states": [state("2"), state("3")]},
    {"winner": "model_a", "conversation_a": [{"role": "user", "content": "x"}], "conversation_b": []},
    {"fields": {"a": "x", "b": "y"}, "responses": {"q": [{"value": "a", "user_id": 1}]}},
    {"data": {"left": "x", "right": "y"}, "annotations": [{"result": [{"type": "pairwise"}]}]},
    {"prompt": "p", "completion": "c", "label": True},
]


SIDES = {
    f"conversation_{side}": [{"role": "user", "content": "x"}, {"role": "assistant", "content": side}]
    for side in "ab"
}
WHOLE: list[list[Row]] = [
    [feedback("a", 1)],
    [conversation(), thumb("a2", "thumbsUp"), comparison("new")],
    [
        {
            "conversationId": "c",
            "messages": [
                {"messageId": "q", "isCreatedByUser": True, "text": "x"},
                {"messageId": "1", "parentMessageId": "q", "text": "a", "feedback": {"rating": "thumbsUp"}},
                {"messageId": "2", "parentMessageId": "q", "text": "b"},
            ],
        }
    ],
    [{"type": "leftvote", "states": [state("2"), state("3")], "ip": "me"}],
    [{"winner": "model_a", "judge": "me", **SIDES}],
    [{"fields": {"a": "x", "b": "y"}, "responses": {"q": [{"value": "a", "user_id": 1}]}}],
    [{"fields": {"a": "x", "b": "y"}, "responses": {"q": [{"value": "tie", "user_id": 1}]}}],
    [
        {
            "data": {"left": "x", "right": "y"},
            "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
        }
    ],
    [{"prompt": "p", "completion": text, "stars": stars, "person": "me"} for stars, text in enumerate("ab")],
    [{"prompt": "p", "chosen": "a", "rejected": "b", "person": "me"}],
]


@pytest.mark.parametrize("rows", WHOLE)
def test_rows_of_every_format_say_part_and_kind_and_whose_they_are_in_columns(
    rows: list[Row], tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"

    def labels(asked: AskedColumns, given: list[Row]) -> set[tuple[str | None, str | None, str | None]]:
        log = RowLog()
        path.write_text(json.dumps(given))
        found = read_choices(path, log, asked=asked)
        log.finish(path)
        return {(row.person, row.part, row.kind) for row in found.labelled}

    labelled = [{**row, "split": "test", "author": "ann", "subset": "chat"} for row in rows]
    asked = AskedColumns(person="author", kind="subset")
    assert labels(asked, labelled) == {("ann", "test", "chat")}
    assert labels(AskedColumns(familiar="author"), labelled) == {("ann", "test", None)}
    own = labels(AskedColumns(), rows)
    assert labels(AskedColumns(kind="subset"), labelled) == {
        (person or ("chat" if "person" in rows[0] else None), "test", "chat") for person, _, _ in own
    }, "who asks for kinds alone changes nobody's name"
    for nosuch in (AskedColumns(person="nosuch"), AskedColumns(kind="nosuch")):
        with pytest.raises(DataError, match=r"rows can't be used.*'nosuch' is missing"):
            labels(nosuch, rows)


@given(row=st.sampled_from(ROWS), path=st.lists(st.integers(0, 20), min_size=1, max_size=5), value=JSON)
def test_a_damaged_export_gives_choices_or_one_line(row: Row, path: list[int], value: Any) -> None:
    damaged = json.loads(json.dumps(row))
    at: Any = damaged
    for step in path:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = keys[step % len(keys)]
        if not isinstance(at[key], dict | list) or step == path[-1]:
            at[key] = value
            break
        at = at[key]
    try:
        found = choices_of_rows([("f:1", damaged)], RowLog("skip"))
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(one.preference.chosen != one.preference.rejected for one in found.labelled)


HUGE = 10**400
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]
ODD: list[Row] = [
    feedback("a", 1, when=HUGE),
    {"winner": "model_a", "tstamp": HUGE, "conversation_a": [{"role": "a", "content": "x"}]}
    | {"conversation_b": [{"role": "a", "content": "y"}]},
    {
        "fields": {"a": "x", "b": "y"},
        "responses": {"q": [{"value": [{"value": "a", "rank": HUGE}, {"value": "b", "rank": 1}]}]},
    },
    {"fields": {"a": DEEP, "b": "y"}, "responses": {}},
]


@pytest.mark.parametrize("row", ODD)
def test_numbers_and_lists_without_end_are_told_in_one_line(row: Row) -> None:
    log = RowLog()
    log.met()
    assert choices_of_rows([("f:1", row)], log).labelled == []
    told = (
        r"f:1: (not .* as it should be \(OverflowError\)|its lists and objects lie too deep in each other);"
    )
    with pytest.raises(DataError, match=told) as refused:
        log.finish("f")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["chosen", "completion"])
def test_a_row_that_lies_too_deep_is_a_bad_row(field: str) -> None:
    call = {"function": {"name": "f", "arguments": DEEP}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    row = {"prompt": [], field: said, "rejected": [{"role": "assistant", "content": "x"}], "label": True}
    log = RowLog("skip")
    log.met()
    assert choices_of_rows([("f:1", row)], log).labelled == []
    with pytest.raises(DataError, match="f:1: its lists and objects lie too deep"):
        log.finish("f")


def test_every_format_is_known_by_its_rows_alone() -> None:
    for row in ROWS:
        assert sum(form.recognises(row) for form in FORMATS) == ("completion" not in row)


@pytest.mark.parametrize(
    ("given_time", "expected"),
    [
        (1_700_000_000, 1.7e9),
        (1_700_000_000_000, 1.7e9),
        ("2023-11-14T22:13:20Z", 1.7e9),
        (None, 0),
        ("soon", 0),
    ],
)
def test_times_of_all_kinds(given_time: Any, expected: float) -> None:
    assert seconds(given_time) == expected


def test_texts_in_parts() -> None:
    assert worded(["a", {"text": "b"}, {"type": "image"}, {"text": {"value": "c"}}]) == "abc"
    assert worded(None) == ""


# --- strengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "strength"),
    [
        ({"strength": 2}, 2.0), ({"strength": 0.25}, 0.25), ({"strength": "3.5"}, 3.5),
        ({"margin": 1.0}, 1.0), ({"strength": 0}, 0.0), ({"strength": 1_000_000}, 1e6),
        ({"strength": "Slightly better"}, 1.0), ({"strength": "slightly_better"}, 1.0),
        ({"strength": "better"}, 2.0), ({"strength": "MUCH better"}, 3.0), ({"strength": "much"}, 3.0),
        ({"strength": None}, None), ({"strength": ""}, None), ({}, None),
        ({"strength": None, "margin": 2}, 2.0), ({"tie": True, "strength": 0}, None),
    ],
)  # fmt: skip
def test_a_row_may_say_how_strong_a_choice_is(said: dict[str, Any], strength: float | None) -> None:
    assert parse_preference({"prompt": "p", "chosen": "a", "rejected": "b", **said}).strength == strength


@pytest.mark.parametrize(
    "said",
    [
        float("nan"),
        float("inf"),
        -1,
        "-0.5",
        "nan",
        "inf",
        1_000_001,
        10**400,
        "1e9",
        True,
        [1],
        {},
        "a lot",
        "-",
    ],
)
@pytest.mark.parametrize("column", ["strength", "margin"])
def test_a_strength_that_says_nothing_known_is_a_bad_row(tmp_path: Path, column: str, said: object) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", column: said}
    wanted = f"'{column}' must be a number from 0 to 1000000, slightly, better or much"
    with pytest.raises(DataError, match=wanted) as refused:
        parse_preference(row)
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=wanted):
        read(tmp_path / "r.json", [{**row, column: 1}, row])


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"strength": 1, "margin": 1}, "'strength' and 'margin' both say how strong the choice is; keep one"),
        ({"tie": "equal", "strength": 1}, "a tie has no 'strength'"),
    ],
)
def test_what_contradicts_itself_about_its_strength_is_a_bad_row(said: dict[str, Any], wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        parse_preference({"prompt": "p", "chosen": "a", "rejected": "b", **said})


def test_strengths_are_read_back_from_lines_and_tables(tmp_path: Path) -> None:
    pairs = [
        Preference("p ", "a", "b", strength=2.5),
        Preference("q ", "c", "d"),
        Preference("r ", "e", "f", "equal"),
    ]
    lines, table = tmp_path / "r.jsonl", tmp_path / "r.csv"
    write_jsonl(lines, pairs)
    table.write_text("prompt,chosen,rejected,tie,how much\np ,a,b,,2.5\nq ,c,d,,\nr ,e,f,equal,\n")
    for path, columns in ((lines, None), (table, {"strength": "how much"})):
        found = read_choices(path, RowLog(), columns=columns)
        assert [row.preference for row in found.labelled] == pairs
        assert found.notes == [
            "1 ties, in which neither response was preferred: kept as ties",
            "1 choices say how strong they are: each counts by that, among the person's own",
        ]


def test_stars_say_how_strong_a_choice_is_and_thumbs_do_not(tmp_path: Path) -> None:
    for name, scores, wanted in (
        ("rating", (5, 4.5, 1), [0.5, 4.0, 3.5]),
        ("label", (1, 0, 0), [None, None]),
    ):
        rows = [
            {"user_id": 7, "prompt": "The sky is ", "completion": text, name: score}
            for text, score in zip(("blue", "red", "green"), scores, strict=True)
        ]
        found = read(tmp_path / f"{name}.json", rows)
        assert [row.preference.strength for row in found.labelled if not row.preference.tie] == wanted


def test_of_a_choice_that_was_made_twice_the_later_strength_counts() -> None:
    tally = Tally()
    pairs = [Preference("p", "a", "b", strength=strength) for strength in (1.0, 3.0)]
    (kept,) = settled([Choice("x", pair, float(time)) for time, pair in enumerate(pairs)], tally)
    assert kept.preference.strength == 3.0
    assert (tally.repeated, tally.contradicted) == (1, 0)
