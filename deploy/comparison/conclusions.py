"""What a comparison says: which methods pay, by how much, and how sure that is, in words.

Methods are compared at one setting only: the same number of choices a person and of people. Several
settings make several rankings, and learning curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penchant.common.shares import find_share
from penchant.common.wording import listed, percent, points, span
from penchant.deploy.comparison.methods import head_of, is_one_for_all, method
from penchant.deploy.comparison.statistics import Difference, difference
from penchant.deploy.comparison.table import ComparisonRow

_IN_WORDS = {"better": "clearly better", "worse": "clearly worse", "unclear": "no clear difference"}


UNITS = {"pairs": "choices a person", "clients": "people"}


@dataclass(frozen=True)
class MethodDifference:
    """How much better one method is than another, seed by seed, and what that means in words."""

    one: str
    other: str
    gap: Difference

    @property
    def label(self) -> str:
        """Both methods, as they are subtracted."""
        return f"{self.one} − {self.other}"

    @property
    def difference(self) -> str:
        """The mean difference in percentage points."""
        return points(self.gap.mean)

    @property
    def interval(self) -> str:
        """The 95 % interval in percentage points."""
        return f"{points(self.gap.low)} … {points(self.gap.high)}"

    @property
    def words(self) -> str:
        """Whether the difference is clear, in words."""
        return _IN_WORDS[self.gap.verdict]


# --- differences ----------------------------------------------------------------------------------


# --- rankings: what may be compared with what ------------------------------------------------------


@dataclass(frozen=True)
class MethodRanking:
    """The methods at one setting, the best first.

    Attributes:
        title: the setting in words; empty where there is only one.
        value: the setting without its unit.
        rows: the rows of the methods, the best first.
        names: what each row is called, in the same order.
    """

    title: str
    value: str
    rows: tuple[ComparisonRow, ...]
    names: tuple[str, ...]

    @property
    def alone(self) -> int | None:
        """The position of the best row of everyone alone, whatever the rule is called; None without one."""
        return next((i for i, row in enumerate(self.rows) if _alone(row)), None)

    @property
    def baselines(self) -> tuple[int, ...]:
        """Positions of what every other method is compared with: everyone alone, and one model for all."""
        for_all = next((i for i, row in enumerate(self.rows) if is_one_for_all(row)), None)
        return tuple(position for position in (self.alone, for_all) if position is not None)


def rankings_of(rows: Sequence[ComparisonRow]) -> list[MethodRanking]:
    """The rows by setting, ascending. A method has the same name in all of them."""
    names = setting_names(rows)
    varied = [key for key in UNITS if len({_value(row, key) for row in rows}) > 1]
    settings = sorted({tuple(_value(row, key) for key in varied) for row in rows})
    rankings = []
    for setting in settings:
        own = [row for row in rows if tuple(_value(row, key) for key in varied) == setting]
        own.sort(key=lambda row: -row.accuracy_mean)
        value, unit = _setting(varied, setting)
        title = f"{value} {unit}".strip()
        rankings.append(MethodRanking(title, value, tuple(own), tuple(names[method_of(row)] for row in own)))
    return rankings


def _value(row: ComparisonRow, key: str) -> int:
    """A row's number of choices or of people, by the name it has in `UNITS`; 0 where it is not known."""
    return int(getattr(row, key) or 0)


def _setting(varied: Sequence[str], setting: tuple[int, ...]) -> tuple[str, str]:
    """(value, unit) in words: ("20", "choices a person"), or ("20 choices of 50 people", "")."""
    if len(varied) == 2:
        return f"{setting[0]} choices of {setting[1]} people", ""
    return (f"{setting[0]}", UNITS[varied[0]]) if varied else ("", "")


def method_of(row: ComparisonRow) -> tuple[str, str]:
    return row.share, head_of(row)


def _alone(row: ComparisonRow) -> bool:
    rule = find_share(row.share)
    return rule is not None and rule.shares_nothing


def _personal(row: ComparisonRow) -> bool:
    """Whether something is shared and something, a factor or the head, is personal."""
    share, head = method_of(row)
    rule = find_share(share)
    if rule is None:
        return True
    return not rule.shares_nothing and bool(rule.personal or head == "personal")


def setting_names(rows: Sequence[ComparisonRow]) -> dict[tuple[str, str], str]:
    """(share, head) -> name; with the head where the share alone doesn't tell methods apart."""
    shares = [share for share, _ in dict.fromkeys(map(method_of, rows))]
    names = {}
    for share, head in map(method_of, rows):
        name, rule = method(share), find_share(share)
        if rule and head == "personal" and not rule.shares_nothing and not rule.personal:
            name = f"{rule.sharing} shared, head personal"
        elif shares.count(share) > 1 and not (rule and rule.shares_nothing):
            name = f"{name}, {head} head"
        names[share, head] = name
    return names


# --- in words -------------------------------------------------------------------------------------


def headline(rankings: Sequence[MethodRanking]) -> str:
    """Does sharing with a personal part pay against everyone alone?"""
    found = [_gain_of_sharing(ranking) for ranking in rankings]
    if all(one is None for one in found):
        ranking = rankings[0]
        at = f" with {ranking.title}" if ranking.title else ""
        return f"Best{at}: {ranking.names[0]}, {percent(ranking.rows[0].accuracy_mean)} of held-out choices."
    if len(rankings) == 1:
        return _one_headline(*(found[0] or ("", None)))
    by_verdict: dict[str, list[str]] = {"better": [], "unclear": [], "worse": [], "unknown": []}
    for ranking, one in zip(rankings, found, strict=True):
        by_verdict["unknown" if one is None or one[1] is None else one[1].verdict].append(ranking.value)
    unit = rankings[0].title.removeprefix(rankings[0].value).strip()
    starts = {
        "better": "Sharing with a personal part pays with",
        "unclear": "no clear gain over everyone alone with",
        "worse": "it does harm with",
        "unknown": "too few seeds to say with",
    }
    text = "; ".join(
        f"{starts[verdict]} {listed(values)} {unit}".strip()
        for verdict, values in by_verdict.items()
        if values
    )
    return f"{text[0].upper()}{text[1:]}."


def _gain_of_sharing(ranking: MethodRanking) -> tuple[str, Difference | None] | None:
    """The share of the best method with a personal part, and its gain; None without something to compare."""
    personal = next((row for row in ranking.rows if _personal(row)), None)
    alone = ranking.alone
    if personal is None or alone is None:
        return None
    return personal.share, difference(personal, ranking.rows[alone])


def _one_headline(share: str, gap: Difference | None) -> str:
    if gap is None:
        return "Too few seeds to say which method pays."
    rule = find_share(share)
    shared = rule.sharing if rule else share
    return {
        "better": f"Sharing {shared} and keeping the rest personal pays.",
        "worse": "Sharing does harm here: everyone alone does better.",
        "unclear": f"Sharing {shared} shows no clear gain over everyone alone.",
    }[gap.verdict]


def conclusion(ranking: MethodRanking) -> list[str]:
    """In plain words: the best, what it gains, and where sharing does not help."""
    best = ranking.rows[0]
    mean = percent(best.accuracy_mean, error=best.accuracy_se)
    start = f"With {ranking.title}, " if ranking.title else ""
    sentences = [f"{start}“{ranking.names[0]}” does best: {mean} of held-out choices ranked right."]
    for other in ranking.baselines:
        if other != 0:
            sentences.append(_gain(best, ranking.rows[other], method(ranking.rows[other].share)))
    return [" ".join(sentences), *_as_good(ranking), *_no_help(ranking), *_served(ranking)]


def _gain(best: ComparisonRow, other: ComparisonRow, words: str) -> str:
    gap = difference(best, other)
    if gap is None:
        by = points(best.accuracy_mean - other.accuracy_mean)
        return f"Against {words} that is {by} points, from too few seeds to rule out chance."
    return (
        f"Against {words} that is {points(gap.mean)} points, {_IN_WORDS[gap.verdict]} "
        f"(95% interval {points(gap.low)} to {points(gap.high)}, {gap.seeds} seeds)."
    )


def _as_good(ranking: MethodRanking) -> list[str]:
    """One sentence for the methods that can't be told apart from the best."""
    found = []
    for row, name in zip(ranking.rows[1:], ranking.names[1:], strict=True):
        gap = difference(ranking.rows[0], row)
        if gap is not None and gap.verdict == "unclear":
            found.append(f"“{name}” ({points(-gap.mean)} points)")
    return [f"Not told apart from the best: {listed(found)}."] if found else []


def _no_help(ranking: MethodRanking) -> list[str]:
    """One sentence for each kind of method that does not beat everyone alone."""
    alone = ranking.alone
    if alone is None:
        return []
    found: dict[str, list[str]] = {"worse": [], "unclear": []}
    for row, name in zip(ranking.rows, ranking.names, strict=True):
        gap = difference(row, ranking.rows[alone])
        if row is not ranking.rows[alone] and gap is not None and gap.verdict in found:
            found[gap.verdict].append(f"“{name}” ({points(gap.mean)} points)")
    starts = {
        "worse": "Clearly worse than everyone alone",
        "unclear": "Not clearly better",
    }
    return [f"{starts[verdict]}: {listed(methods)}." for verdict, methods in found.items() if methods]


def _served(ranking: MethodRanking) -> list[str]:
    """One sentence: for how many people each method's own models do worse than one for all, and better."""
    told = []
    for row, name in zip(ranking.rows, ranking.names, strict=True):
        found = [run.served for run in row.runs if run.served is not None]
        if found:
            worse, better = (span([getattr(one, way) for one in found]) for way in ("worse", "better"))
            told.append(f"“{name}” {worse} worse and {better} better of {span([o.people for o in found])}")
    if not told:
        return []
    return [
        "People whose own model differs from one model for all beyond noise (exact sign tests, corrected "
        f"after Holm), in one run: {'; '.join(told)}."
    ]


def differences(ranking: MethodRanking) -> list[MethodDifference]:
    """Each method against everyone alone, each against one model for all, and the best against the next one
    and against all that can't be told apart from it."""
    rows, names = ranking.rows, ranking.names
    wanted: list[tuple[int, int]] = []
    for other in ranking.baselines:
        wanted += [(i, other) for i in range(len(rows)) if i != other and (other, i) not in wanted]
    for i in range(1, len(rows)):
        gap = difference(rows[0], rows[i])
        close = gap is not None and gap.verdict == "unclear"
        if (i == 1 or close) and (0, i) not in wanted and (i, 0) not in wanted:
            wanted.append((0, i))
    lines = []
    for i, j in wanted:
        gap = difference(rows[i], rows[j])
        if gap is not None:
            lines.append(MethodDifference(names[i], names[j], gap))
    return lines
