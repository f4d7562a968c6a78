"""Made-up files of UKPConvArg1's schema: debates, and who found which argument more convincing."""

from __future__ import annotations

from pathlib import Path

PAIR = """<annotatedArgumentPair><id>{name}</id>
<arg1><stance>{stance}</stance><text>{one}</text><id>1</id></arg1>
<arg2><stance>{stance}</stance><text>{other}</text><id>2</id></arg2>
<debateMetaData><title>{title}</title></debateMetaData>
<mTurkAssignments>{votes}</mTurkAssignments></annotatedArgumentPair>"""
VOTE = "<mTurkAssignment><turkID>{who}</turkID><value>{value}</value></mTurkAssignment>"
DEBATES = [f"Debate {n}" for n in range(8)]


def write(
    folder: Path, title: str, stance: str, votes: dict[str, str], count: int = 3, one: str = ""
) -> Path:
    cast = "".join(VOTE.format(who=who, value=value) for who, value in votes.items())
    pairs = [
        PAIR.format(
            name=n, stance=stance, title=title, votes=cast,
            one=one or f"{title} {stance} strong {n}", other=f"{title} {stance}\n weak &amp; {n}",
        )
        for n in range(count)
    ]  # fmt: skip
    path = folder / f"{title}_{stance}.xml".replace(" ", "-")
    path.write_text(f"<?xml version='1.0' encoding='utf-8'?><list>{''.join(pairs)}</list>", encoding="utf-8")
    return path
