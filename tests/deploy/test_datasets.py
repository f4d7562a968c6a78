"""Data sets: Senate as it is, then each loader on small files in the true schema, then wrong use."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penchant.common.data.preferences import Federation, Preference
from penchant.common.data.splits import own_items, people_from_pairs, seeded
from penchant.common.data.trl_format import Labelled, RowLog, write_jsonl
from penchant.common.errors import ConfigError, DataError
from penchant.deploy import datasets
from penchant.deploy.datasets import helpsteer2, movielens, personalllm, prism, senate, tldr
from penchant.deploy.datasets.loader import DATASETS, dataset

DATA = Path(__file__).parents[1] / "data"
SMALL: dict[str, Any] = {"pairs": 3, "validation_pairs": 1, "test_pairs": 2}


def texts_of(federation: Federation, part: str) -> set[str]:
    pairs = [pair for person in federation.people for pair in getattr(person, part)]
    return {text for pair in pairs for text in (pair.chosen, pair.rejected)}


def items_of(federation: Federation, part: str) -> set[str]:
    pairs = [pair for person in federation.people for pair in getattr(person, part)]
    return {item for pair in pairs for item in own_items(pair)}


# --- Senate ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def the_senate() -> Federation:
    return datasets.load("senate")


def test_the_senate_as_packaged() -> None:
    data = senate.read()
    assert (len(data.people), len(data.roll_calls), len(data.contested())) == (102, 645, 506)
    assert {len(line) for line in data.votes} == {645}
    assert set("".join(data.votes)) == set("+-.")
    dates = [call.date for call in data.roll_calls]
    assert dates == sorted(dates)
    assert (dates[0], dates[-1]) == ("2005-01-06", "2006-12-09")
    # Roll call 1-3 confirmed Alberto Gonzales by 60 to 36.
    gonzales = [line[2] for line in data.votes[1:]]
    assert "Gonzales" in data.roll_calls[2].text
    assert (gonzales.count("+"), gonzales.count("-")) == (60, 36)


def test_a_vote_for_and_a_vote_against_make_a_pair(the_senate: Federation) -> None:
    data = senate.read()
    item_of = {senate.worded(call): index for index, call in enumerate(data.roll_calls)}
    last_training_item = max(item_of[text] for text in texts_of(the_senate, "train"))
    first_test_item = min(item_of[text] for text in texts_of(the_senate, "test"))
    assert last_training_item < min(item_of[text] for text in texts_of(the_senate, "validation"))
    assert max(item_of[text] for text in texts_of(the_senate, "validation")) < first_test_item
    assert data.contested().index(first_test_item) >= 0.75 * 506 - 1
    for person in the_senate.people:
        votes = data.votes[data.people.index(person.name)]
        for pair in (*person.train, *person.validation, *person.test):
            assert votes[item_of[pair.chosen]] == "+"
            assert votes[item_of[pair.rejected]] == "-"


def test_without_validation_pairs_the_whole_training_part_is_learned_from(the_senate: Federation) -> None:
    whole = datasets.load("senate", validation_pairs=0)
    data = senate.read()
    time_of = {senate.worded(call): index for index, call in enumerate(data.roll_calls)}
    assert not texts_of(whole, "validation")
    last = max(time_of[text] for text in texts_of(whole, "train"))
    assert max(time_of[text] for text in texts_of(the_senate, "validation")) <= last
    assert last < min(time_of[text] for text in texts_of(whole, "test"))
    assert [person.test for person in whole.people] == [person.test for person in the_senate.people]
    assert {len(person.train) for person in whole.people} == {20}


def test_a_past_of_the_senate_never_meets_its_test_part(the_senate: Federation) -> None:
    past = datasets.load("senate", validation_pairs=0, until=0.75)
    parts = texts_of(past, "train"), texts_of(past, "test")
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & texts_of(the_senate, "test")
    assert past.caveats[-1] == "only the first 75% of the items, to choose settings"


def test_a_text_says_what_was_asked_before_what_it_was_about(the_senate: Federation) -> None:
    gonzales = senate.worded(senate.read().roll_calls[2])
    assert gonzales == "On the Nomination: Confirmation Alberto R. Gonzales to be Attorney General"
    assert gonzales in texts_of(the_senate, "train")


def test_the_senate_gives_what_is_asked(the_senate: Federation) -> None:
    assert len(the_senate.people) == 101  # Corzine left before the test part began
    assert all(len(person.train) == 20 for person in the_senate.people)
    assert min(len(person.test) for person in the_senate.people) >= 40
    caveats = " ".join(the_senate.caveats)
    for expected in ("not elicited", "table", "hint at the party", "bipolar", "CORZINE (D NJ)", "President"):
        assert expected in caveats


def test_the_senate_is_the_same_every_time(the_senate: Federation) -> None:
    assert datasets.load("senate").digest == the_senate.digest
    assert datasets.load("senate", seed=1).digest != the_senate.digest
    ten = datasets.load("senate", clients=10)
    assert set(ten.people) < set(the_senate.people)
    assert set(ten.people) < set(datasets.load("senate", clients=11).people)
    more = {person.name: person for person in datasets.load("senate", pairs=30).people}
    for person in the_senate.people:
        assert more[person.name].train[:20] == person.train
        assert more[person.name].test == person.test


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Kennedy Amdt. No. 2; To amend", "Senator Amdt. No. 2; To amend"),
        ("Motion to Table Pryor Amdt. No. 5", "Motion to Table Senator Amdt. No. 5"),
        ("Nelson (FL) Amdt. No. 37;", "Senator Amdt. No. 37;"),
        ("Motion to Waive CBA Kenedy Amdt. No. 2063", "Motion to Waive CBA Senator Amdt. No. 2063"),
        ("Meenendez Amdt. No. 4999", "Senator Amdt. No. 4999"),
        ("Inhofe Amt. No. 4683", "Senator Amt. No. 4683"),
        ("Dewine Motion to Instruct Conferees", "Senator Motion to Instruct Conferees"),
        ("Baucus Amendment No. 3131", "Senator Amendment No. 3131"),
        ("S. 2766; John Warner National Defense", "S. 2766; Senator National Defense"),
        ("Confirmation William H. Pryor, Jr.", "Confirmation William H. Pryor, Jr."),
        ("at Walter Reed Army Medical Hospital", "at Walter Reed Army Medical Hospital"),
    ],
)
def test_masking(text: str, masked: str) -> None:
    surnames = {name.split(" (")[0] for name in senate.read().people}
    assert senate.mask_sponsors(text, surnames) == masked


def test_no_senators_name_is_left_but_of_namesakes() -> None:
    data = senate.read()
    surnames = {name.split(" (")[0] for name in data.people}
    names = {*surnames, *map(str.upper, senate.MISSPELT)}
    left = [
        word
        for call in data.roll_calls
        for word in re.findall(r"\w+", senate.mask_sponsors(senate.worded(call), surnames).upper())
        if word in names
    ]
    assert set(left) == {"JOHNSON", "PRYOR", "THOMAS", "ROBERTS", "SMITH", "REED"}
    assert len(left) == 11


def test_the_masked_senate_has_the_same_choices(the_senate: Federation) -> None:
    masked = datasets.load("senate-masked")
    assert masked.name == "senate-masked"
    assert masked.digest == datasets.load("senate", masked=True).digest
    assert masked.digest != the_senate.digest
    surnames = {name.split(" (")[0] for name in senate.read().people}
    for one, other in zip(the_senate.people, masked.people, strict=True):
        for pair, hidden in zip(one.train, other.train, strict=True):
            assert senate.mask_sponsors(pair.chosen, surnames) == hidden.chosen


def test_the_senate_loads_fast_and_light() -> None:
    code = (
        "import sys, time\n"
        "from penchant.deploy.datasets import load\n"
        "start = time.process_time(); load('senate')\n"
        "heavy = [m for m in ('torch', 'pandas', 'rdata', 'numpy', 'datasets') if m in sys.modules]\n"
        "print(heavy, time.process_time() - start < 1)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] True"


def test_the_package_data_is_what_its_script_makes() -> None:
    source = Path("/usr/lib/R/site-library/pscl/data")
    pytest.importorskip("rdata")
    if not source.is_dir():
        pytest.skip("needs Debian's r-cran-pscl")
    from penchant.deploy.datasets import build_senate

    made = build_senate.compact(build_senate.read_lazy_load(source, "s109"))
    data = senate.read()
    assert made["people"] == list(data.people)
    assert made["votes"] == list(data.votes)
    assert made["items"] == [dataclasses.asdict(call) for call in data.roll_calls]


# --- each loader, on small files in the true schema -----------------------------------------------

NAMES = ("tldr", "helpsteer2", "prism", "personalllm", "movielens")


@pytest.mark.parametrize("name", NAMES)
def test_a_local_copy(name: str) -> None:
    federation = datasets.load(f"{name}:{DATA / name}", clients=2, **SMALL)
    assert federation.name == name
    assert len(federation.people) == 2
    assert all(1 <= len(person.train) <= 3 for person in federation.people)
    assert any(caveat for caveat in federation.caveats)
    again = datasets.load(f"{name}:{DATA / name}", clients=2, **SMALL)
    assert again.digest == federation.digest


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_held_out_where_no_validation_pairs_are_wanted(name: str) -> None:
    source, all_of_them = f"{name}:{DATA / name}", {"pairs": 500, "test_pairs": 500, "clients": 2}
    held_out = datasets.load(source, validation_pairs=500, **all_of_them)
    whole = datasets.load(source, validation_pairs=0, **all_of_them)
    items = {part: items_of(held_out, part) for part in ("train", "validation")}
    assert items["validation"]
    assert not items_of(whole, "validation")
    assert items["train"] | items["validation"] <= items_of(whole, "train")
    assert [person.test for person in whole.people] == [person.test for person in held_out.people]


@pytest.mark.parametrize("name", NAMES[:-1])
def test_parquet_and_the_hub_give_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (file,) = (f for f in (DATA / name).rglob("*") if f.is_file())
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    local = datasets.load(f"{name}:{DATA / name}", clients=2, **SMALL)

    stem = "utterances" if name == "prism" else "train-00000-of-00001"
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{stem}.parquet")
    assert datasets.load(f"{name}:{tmp_path}", clients=2, **SMALL).digest == local.digest

    asked: list[tuple[Any, ...]] = []
    hub = types.ModuleType("datasets")

    def load_dataset(*arguments: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((*arguments, split))
        return rows

    hub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert datasets.load(name, clients=2, **SMALL).digest == local.digest
    assert asked == [
        {
            "tldr": ("openai/summarize_from_feedback", "comparisons", "train"),
            "helpsteer2": ("nvidia/HelpSteer2", None, "train"),
            "prism": ("HannahRoseKirk/prism-alignment", "utterances", "train"),
            "personalllm": ("namkoong-lab/PersonalLLM", None, "train"),
        }[name]
    ]


def test_tldr_takes_the_busiest_workers_and_equally_much_of_each() -> None:
    row = {
        "info": {"id": "t3_1", "post": "I ate it.", "title": "Lunch", "subreddit": "tifu", "site": None},
        "summaries": [
            {"text": " ate lunch", "policy": "ref", "note": None},
            {"text": " nothing", "policy": "sup4", "note": None},
        ],
        "choice": 1,
        "worker": "w",
    }
    pair = tldr.comparison(row)
    assert (
        pair.prompt + pair.chosen == "SUBREDDIT: r/tifu\n\nTITLE: Lunch\n\nPOST: I ate it.\n\nTL;DR: nothing"
    )
    counts = {"a": 5, "b": 9, "c": 7, "d": 1}
    comparisons = {worker: [pair] * count for worker, count in counts.items()}
    assert {w: len(own) for w, own in tldr.busiest(comparisons, 3).items()} == {"b": 5, "c": 5, "a": 5}
    with pytest.raises(DataError, match="4 workers"):
        tldr.busiest(comparisons, 5)
    federation = datasets.load(f"tldr:{DATA / 'tldr'}", clients=2, **SMALL)
    assert [person.name for person in federation.people] == ["wKAra", "bUsyO"]
    assert any("cut to 8" in caveat for caveat in federation.caveats)
    assert any("1 rows of the splits valid1" in caveat for caveat in federation.caveats)


def test_helpsteer2_attributes_are_labelers() -> None:
    rows = [
        {
            "prompt": "p",
            "response": "long",
            "helpfulness": 1,
            "correctness": 2,
            "coherence": 4,
            "complexity": 3,
        },
        {
            "prompt": "p",
            "response": "short",
            "helpfulness": 3,
            "correctness": 2,
            "coherence": 4,
            "complexity": 1,
        },
    ]
    (helpful,) = helpsteer2._preference(rows[0], rows[1], "helpfulness")
    assert (helpful.chosen, helpful.rejected) == ("short", "long")
    (complex_,) = helpsteer2._preference(rows[0], rows[1], "complexity")
    assert (complex_.chosen, complex_.rejected) == ("long", "short")
    assert helpsteer2._preference(rows[0], rows[1], "coherence") == []  # a tie
    federation = datasets.load(f"helpsteer2:{DATA / 'helpsteer2'}", **SMALL)
    assert {person.name for person in federation.people} == set(helpsteer2.ATTRIBUTES)


def test_helpsteer2_names_a_response_that_is_alone(tmp_path: Path) -> None:
    lines = (DATA / "helpsteer2/train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(DataError, match=r"train\.jsonl:1: no second response"):
        datasets.load(f"helpsteer2:{tmp_path}", **SMALL)
    skipped = datasets.load(f"helpsteer2:{tmp_path}", bad_rows="skip", **SMALL)
    assert any("1 of 31 rows" in caveat for caveat in skipped.caveats)


def test_prism_prefers_the_chosen_response_along_the_conversation() -> None:
    def said(turn: int, response: str, score: int, chosen: bool) -> prism.Utterance:
        return prism.Utterance("u", "c", turn, f"question {turn}", response, score, chosen)

    pairs = prism.comparisons(
        [said(0, "A", 90, True), said(0, "B", 20, False), said(0, "C", 90, False), said(1, "D", 1, False),
         said(1, "E", 7, True)]
    )  # fmt: skip
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        ("user: question 0\n", "assistant: A", "assistant: B"),  # C ties with A
        ("user: question 0\nassistant: A\nuser: question 1\n", "assistant: E", "assistant: D"),
    ]


def test_prism_keeps_a_conversation_on_one_side() -> None:
    federation = datasets.load(f"prism:{DATA / 'prism'}", pairs=50, validation_pairs=50, test_pairs=50)
    for person in federation.people:
        conversations = [
            {pair.chosen.split(" in ")[1] for pair in getattr(person, part)} for part in ("train", "test")
        ]
        assert not conversations[0] & conversations[1]


def test_personalllm_people_are_weightings_of_reward_models() -> None:
    weights = personalllm.dirichlet(10, seeded(0, "x"))
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    source = f"personalllm:{DATA / 'personalllm'}"
    few, more = (datasets.load(source, clients=count, **SMALL) for count in (3, 5))
    assert more.people[:3] == few.people
    assert len(datasets.load(source, **SMALL).people) == personalllm.PEOPLE


def test_personalllm_standardises_each_reward_model() -> None:
    questions = [personalllm.ScoredPrompt("p", ("a", "b"), ((1.0, 100.0), (3.0, 300.0)))]
    (question,) = personalllm.standardise(questions)
    assert question.scores == ((-1.0, -1.0), (1.0, 1.0))


def test_movielens_reads_recboles_tables() -> None:
    log = RowLog()
    films = movielens.read_films(DATA / "movielens/ml-100k.item", log)
    assert films["1"] == "Toy Story (1995): Comedy Crime"
    ratings = movielens.read_ratings(DATA / "movielens/ml-100k.inter", films, log)
    assert set(ratings) == {"user-196", "user-186", "user-22"}
    federation = datasets.load(f"movielens:{DATA / 'movielens'}", **SMALL)
    assert not texts_of(federation, "train") & texts_of(federation, "test")


def test_movielens_bad_lines_are_named(tmp_path: Path) -> None:
    for name in ("ml-100k.item", "ml-100k.inter"):
        (tmp_path / name).write_text((DATA / "movielens" / name).read_text())
    with (tmp_path / "ml-100k.inter").open("a") as file:
        file.write("1\t2\n7\t999\t3\t4\n7\t1\tgood\t4\n")
    with pytest.raises(
        DataError, match=r"ml-100k\.inter:44: 2 columns instead of 4; .*:45: a film that is not"
    ):
        datasets.load(f"movielens:{tmp_path}", **SMALL)
    (tmp_path / "ml-100k.inter").write_text("user_id:token\titem_id:token\n")
    with pytest.raises(DataError, match="no column 'rating'"):
        datasets.load(f"movielens:{tmp_path}", **SMALL)


def test_movielens_from_recbole_where_installed() -> None:
    try:
        folder = movielens._recbole_folder()
    except DataError as error:
        assert "pip install --no-deps recbole" in str(error)  # noqa: PT017
        pytest.skip("needs recbole")
    assert (folder / "ml-100k.inter").is_file()
    federation = datasets.load("movielens")
    assert len(federation.people) > 900
    assert "recbole" not in sys.modules


@pytest.mark.parametrize(
    ("name", "broken", "reason"),
    [
        ("tldr", {"choice": 2}, "'choice' must be 0 or 1"),
        ("tldr", {"choice": None}, "'choice' must be 0 or 1"),
        ("tldr", {"summaries": []}, "'summaries' must hold two"),
        ("tldr", {"summaries": ["a", "b"]}, "'summaries' must hold objects only"),
        ("tldr", {"info": None}, "'info' is missing"),
        ("tldr", {"info": {"post": None, "title": "t", "subreddit": "s"}}, "'post' is missing"),
        ("tldr", {"worker": None}, "'worker' is missing"),
        ("helpsteer2", {"prompt": " "}, "'prompt' is empty"),
        ("helpsteer2", {"verbosity": "high"}, "'verbosity' is not a number"),
        ("helpsteer2", {"verbosity": float("nan")}, "'verbosity' is not finite"),
        ("prism", {"if_chosen": "yes"}, "'if_chosen' must be true or false"),
        ("prism", {"turn": 0.5}, "'turn' is missing or not a whole"),
        ("prism", {"score": None}, "'score' is missing"),
        ("personalllm", {"response_3_gemma_2b": None}, "'response_3_gemma_2b' is missing"),
        ("personalllm", {"prompt": ""}, "'prompt' is empty"),
    ],
)
def test_rows_of_another_schema_are_named(
    name: str, broken: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (file,) = (f for f in (DATA / name).rglob("*") if f.is_file())
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[1] |= broken
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as refusal:
        datasets.load(f"{name}:{path}", clients=2, **SMALL)
    assert f"{path}:2: " in str(refusal.value)
    assert reason in str(refusal.value)


# --- files in TRL's format ------------------------------------------------------------------------


def own_file(tmp_path: Path, *people: str, column: str = "person", count: int = 12) -> Path:
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for name in people:
            for number in range(count):
                row = {column: name, "prompt": f"{name} asks {number}", "chosen": "yes", "rejected": "no"}
                file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize("column", ["person", "worker", "user_id", "who"])
def test_a_file_of_ones_own(tmp_path: Path, column: str) -> None:
    path = own_file(tmp_path, "ann", "bob", column=column)
    federation = datasets.load(path, person_column=column if column == "who" else None, **SMALL)
    assert federation.name == "pairs"
    assert [person.name for person in federation.people] == ["ann", "bob"]
    assert all(len(person.train) == 3 and len(person.test) == 2 for person in federation.people)


def test_senate_written_as_a_file_reads_as_one(tmp_path: Path, the_senate: Federation) -> None:
    path = tmp_path / "senate.jsonl"
    rows = [
        Labelled(person.name, pair)
        for person in the_senate.people[:5]
        for pair in (*person.train, *person.validation, *person.test)
    ]
    write_jsonl(path, rows)
    federation = datasets.load(path, **SMALL)
    assert len(federation.people) == 5
    assert not texts_of(federation, "train") & texts_of(federation, "test")
    assert any("different sides" in caveat for caveat in federation.caveats)


def test_a_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in own_file(tmp_path, "ann").read_text().splitlines()]
    hub = types.ModuleType("datasets")
    hub.load_dataset = lambda *_, split: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert datasets.load("someone/pairs", **SMALL).people[0].name == "ann"

    def offline(*_: object, split: str) -> None:
        raise ConnectionError("no route")

    hub.load_dataset = offline  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"someone/pairs can't be fetched from the hub \(ConnectionError\)"):
        datasets.load("someone/pairs")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'penchant\[hub\]'"):
        datasets.load("someone/pairs")


# --- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("senat", {}, "unknown data set 'senat'; did you mean 'senate'"),
        ("nothing-like-it", {}, "known are senate, senate-masked, movielens"),
        ("absent.jsonl", {}, "there is no file absent.jsonl"),
        ("/absent/folder", {}, "unknown data set"),
        ("prism:/absent", {}, "there is no file /absent"),
        ("senate:/somewhere", {}, "unknown data set"),
        ("senate", {"pairs": 0}, "pairs is 0"),
        ("senate", {"clients": 103}, "1 to 101"),
        ("senate", {"clients": 0}, "1 to 101"),
        ("senate", {"person_column": "who"}, "knows its people"),
        (f"prism:{DATA / 'prism'}", {"masked": True}, "only Senate"),
        (f"prism:{DATA / 'tldr'}", {}, "is not a copy of HannahRoseKirk/prism-alignment"),
        (f"personalllm:{DATA / 'personalllm'}", {"clients": 0}, "at least 1"),
    ],
)
def test_wrong_use_is_one_line(source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as refusal:
        datasets.load(source, **options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_clients_without_pairs_or_with_one_class_are_named(tmp_path: Path) -> None:
    path = own_file(tmp_path, "ann", "bob")
    lonely = {"person": "cy", "prompt": "once", "chosen": "yes", "rejected": "no"}
    with path.open("a") as file:
        file.write(json.dumps(lonely) + "\n")
    with pytest.raises(DataError, match="client 'cy' has no pairs"):
        datasets.load(path, **SMALL)
    with path.open("a") as file:
        file.write(json.dumps(lonely) + "\n")
    with pytest.raises(DataError, match="client 'cy' has one class"):
        datasets.load(path, **SMALL)
    left = datasets.load(path, bad_rows="skip", **SMALL)
    assert [person.name for person in left.people] == ["ann", "bob"]
    assert any("cy has one class" in caveat for caveat in left.caveats)


# --- what a data set declares ---------------------------------------------------------------------


@pytest.fixture
def clubs() -> Iterator[Callable[..., list[datasets.DataRequest]]]:
    """Registers a data set "clubs" of three people that declares what is given; -> what was asked of it."""
    asked: list[datasets.DataRequest] = []

    def prepare(request: datasets.DataRequest) -> datasets.Prepared:
        asked.append(request)
        pairs = {
            name: [Preference(f"{name} asks {i}", "yes", "no") for i in range(20)]
            for name in ("ann", "bob", "cy")
        }
        people, shortfalls, _ = people_from_pairs(pairs, request.sizes, request.seed)
        return datasets.Prepared("clubs", people, shortfalls)

    def register(**declared: Any) -> list[datasets.DataRequest]:
        datasets.register_dataset(datasets.DatasetLoader("clubs", "Three people.", prepare, **declared))
        return asked

    yield register
    DATASETS._things.pop("clubs", None)


def test_a_registered_data_set_is_loaded_by_its_name(clubs: Any, tmp_path: Path) -> None:
    asked = clubs()
    federation = datasets.load("clubs", clients=2, **SMALL)
    assert (federation.name, len(federation.people)) == ("clubs", 2)
    datasets.load(f"clubs:{tmp_path}", seed=3, bad_rows="skip", **SMALL)
    assert [(a.source, a.path, a.seed, a.bad_rows) for a in asked] == [
        ("clubs", None, 0, "refuse"),
        ("clubs", tmp_path, 3, "skip"),
    ]
    assert datasets.dataset_names()[-1] == "clubs"


def test_a_data_set_that_chooses_its_people_is_told_how_many(clubs: Any) -> None:
    asked = clubs(chooses_people=True)
    assert len(datasets.load("clubs", clients=2, **SMALL).people) == 3  # it took no notice
    assert asked[0].clients == 2


def test_what_a_data_set_does_not_accept_is_refused(clubs: Any, tmp_path: Path) -> None:
    clubs(takes_folder=False)
    with pytest.raises(DataError, match=f"unknown data set 'clubs:{tmp_path}'; .*known are senate"):
        datasets.load(f"clubs:{tmp_path}")
    with pytest.raises(DataError, match="'clubs' knows its people"):
        datasets.load("clubs", person_column="who")
    with pytest.raises(DataError, match="has a masked variant, not 'clubs'"):
        datasets.load("clubs", masked=True)
    clubs(needs_folder=True)
    with pytest.raises(DataError, match="'clubs' is read from a local copy; write clubs:FOLDER"):
        datasets.load("clubs")
    clubs(takes_person_column=True)
    assert len(datasets.load("clubs", person_column="who", **SMALL).people) == 3


def test_only_loaders_under_free_names_are_registered() -> None:
    with pytest.raises(ConfigError, match="senate is part of penchant and can't be replaced"):
        datasets.register_dataset(senate.LOADER)
    with pytest.raises(ConfigError, match="must be a DatasetLoader"):
        datasets.register_dataset(senate)  # type: ignore[arg-type]


def test_every_data_set_says_what_it_is() -> None:
    for name in datasets.dataset_names():
        loader = dataset(name)
        assert loader.name == name
        assert loader.about.endswith(".")


def test_a_file_that_names_nobody(tmp_path: Path) -> None:
    path = own_file(tmp_path, "ann", column="somebody")
    with pytest.raises(DataError, match="doesn't say whose preferences"):
        datasets.load(path)
