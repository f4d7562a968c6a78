"""UKPConvArg1: which of two arguments is more convincing; each pair judged by five people.

Read from the folder of the original's XML files, one for each side of a debate (Habernal and Gurevych, ACL
2016; CC BY 4.0). People's choices are strict ("a1", "a2") or "equal".
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.splits import Sizes, people_from_pairs, seeded
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared

__all__ = ["LOADER", "prepare", "read"]

CAVEATS = (
    "Arguments: debates are split at random, both sides of one together: people are tested on topics that "
    "nobody was trained on.",
    "Arguments: five people judge a pair, paid to; who judged in one part only is left out.",
)
FORBIDDEN = (b"<!DOCTYPE", b"<!ENTITY")  # of which XML can be made to grow without bound


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person said of one pair; choice: "a1", "a2" or "equal"."""

    person: str
    debate: str
    prompt: str
    texts: tuple[str, str]
    choice: str


def prepare(folder: Path, sizes: Sizes, seed: int, bad_rows: BadRows) -> Prepared:
    """Everybody's strict choices; whole debates are on one side, drawn the same for every seed."""
    log = RowLog(bad_rows)
    judgements = list(read(folder, log))
    report = log.finish(folder)
    pairs: dict[str, list[Preference]] = {}
    debates: dict[str, str] = {}
    counts = Counter(one.debate for one in judgements)
    equal = copies = 0
    for one in judgements:
        if one.choice == "equal" or one.texts[0] == one.texts[1]:
            equal += one.choice == "equal"
            copies += one.choice != "equal"
            continue
        better, worse = one.texts if one.choice == "a1" else one.texts[::-1]
        pair = Preference(one.prompt, better, worse)
        pairs.setdefault(one.person, []).append(pair)
        debates[one.prompt] = one.debate
    shuffled = sorted(counts, key=lambda debate: seeded(0, "arguments", debate).random())
    parts = sizes.split(shuffled, [counts[debate] for debate in shuffled])
    people, shortfalls, _ = people_from_pairs(
        pairs, sizes, seed, items_of=lambda pair: (debates[pair.prompt],), parts=parts
    )
    caveats = [*CAVEATS]
    if equal:
        caveats.append(f"Arguments: {equal} judgements that both are equal are not used.")
    if copies:
        caveats.append(f"Arguments: {copies} judgements between two copies of one text are not used.")
    return Prepared("arguments", people, shortfalls, caveats, report)


def read(folder: Path, log: RowLog) -> Iterator[Judgement]:
    """Every judgement of the folder's files, in the order of their names.

    Raises:
        DataError: there are no such files, or one is no XML of this kind.
    """
    files = sorted(folder.glob("*.xml")) if folder.is_dir() else [folder] if folder.suffix == ".xml" else []
    if not files:
        raise DataError(f"{folder} holds no *.xml; give the folder of UKPConvArg1's XML files")
    for file in files:
        for number, pair in enumerate(_tree(file).iter("annotatedArgumentPair"), start=1):
            texts = _words(pair.find("arg1/text")), _words(pair.find("arg2/text"))
            title, stance = _words(pair.find("debateMetaData/title")), _words(pair.find("arg1/stance"))
            for one in pair.iter("mTurkAssignment"):
                log.met()
                person, choice = _words(one.find("turkID")), _words(one.find("value"))
                wrong = _wrong(person, choice, title, texts)
                if wrong:
                    log.reject(f"{file}:{number}", wrong)
                else:
                    yield Judgement(person, title, f"{title}: {stance}\n", texts, choice)


def _wrong(person: str, choice: str, title: str, texts: tuple[str, str]) -> str:
    """Why a judgement can't be used; empty when it can."""
    if not person or not title or not all(texts):
        return "a pair without title, texts or the worker's id"
    if choice not in ("a1", "a2", "equal"):
        return "the value must be a1, a2 or equal"
    return ""


def _tree(file: Path) -> ET.Element:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}") from None
    if any(word in data for word in FORBIDDEN):
        raise DataError(f"{file} declares a document type, which UKPConvArg1's files don't; it is not read")
    try:
        return ET.fromstring(data)
    except ET.ParseError as error:
        raise DataError(f"{file} is no XML: {error}") from None


def _words(element: ET.Element | None) -> str:
    """An element's text, white space between words as one space."""
    return " ".join((element.text or "").split()) if element is not None else ""


LOADER = DatasetLoader(
    name="arguments",
    about="Which of two arguments convinces more, by crowd workers (UKPConvArg1); needs its XML files.",
    prepare=lambda asked: prepare(asked.path or Path(), asked.sizes, asked.seed, asked.bad_rows),
    needs_folder=True,
)
