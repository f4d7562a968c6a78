"""Where a proxy parts from the gold: `python tests/experiments/over_optimisation.py --folder DIR`

As Gao, Schulman and Hilton (*Scaling Laws for Reward Model Overoptimization*, ICML 2023) on the made-up
people of policies.py: the gold is the taste itself, the proxy a reward model that was trained on choices,
each person's own or one for all. Of the responses that the base model wrote, the best of n by the proxy is
taken, for every n; its KL to the base is log n - (n - 1)/n. Gains are over the mean response, and in log-odds
for both, since a taste's utilities are: what the proxy promises, and what its owner gets. Policies that were
trained are points beside, each at its own KL. All that was written and trained is read from DIR, where
policies.py keeps it; reward models that lack are trained, in seconds. Writes over_optimisation.json into
--out; --page FILE writes the tables between their marks.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

import numpy as np
import torch

from best_of_n import chosen  # isort: skip
from curves import standard_error  # isort: skip
from policies import KEPT, SHARES, People, key_of, kept_rows, models_of, sizes_of, with_sizes  # isort: skip

from support.teacher import Array

from penchant.client.learning.merged_model import MergedModel
from penchant.client.learning.model_cache import ModelCache

HERE = Path(__file__).resolve().parent
MARKS = re.compile(r"(<!-- over-optimisation -->\n).*?(<!-- end over-optimisation -->)", re.S)
NUMBERS = (1, 2, 4, 8, 16, 32)
PROXIES = ("personal", "global")


def nats(n: int) -> float:
    """KL of the best of n to what it is taken of, exactly where responses differ (Stiennon et al. 2020)."""
    return math.log(n) - (n - 1) / n


def by_n(people: People) -> dict[str, dict[str, list[list[float]]]]:
    """Proxy -> promised and got -> by n (`NUMBERS` up to what is there), everybody's gain in log-odds."""
    pool = [own[1:] for own in people.base]
    numbers = numbers_of(pool)
    gold = [people.tastes.utilities(own) for own in pool]  # [people, responses] each
    found = {}
    for proxy in PROXIES:
        models = models_of(people.ranker if proxy == "personal" else people.global_ranker)
        scores = scores_of(people, models, pool)
        found[proxy] = {
            "promised": [_gains(scores, scores, n) for n in numbers],
            "got": [_gains(gold, scores, n) for n in numbers],
        }
    return found


def numbers_of(pool: Sequence[Sequence[str]]) -> list[int]:
    """The n that all requests have enough responses for."""
    return [n for n in NUMBERS if n <= min(map(len, pool))]


def scores_of(people: People, models: Sequence[MergedModel], pool: Sequence[Sequence[str]]) -> list[Array]:
    """Of each request [people, responses], by everybody's model."""
    return [
        np.array([model.scores([(asked, text) for text in own]) for model in models])
        for asked, own in zip(people.asked, pool, strict=True)
    ]


def _gains(worth: Sequence[Array], scores: Sequence[Array], n: int) -> list[float]:
    """What the best of n by `scores` is worth over the mean response, mean over requests, by person."""
    both = zip(worth, scores, strict=True)
    found: list[float] = np.mean([chosen(w, s, n) - w.mean(axis=1) for w, s in both], axis=0).tolist()
    return found


def of_policies(people: People, rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Row -> its KL, and everybody's promised and got gain, of policies whose texts were kept.

    Each is judged by the reward model that goes with it: the policy for all by that for all.
    """
    pool = [own[1:] for own in people.base]
    found = {}
    for row, share in SHARES.items():
        if "kl" not in rows.get(row, {}) or not people.kept_texts(row).exists():
            continue
        texts: list[list[str]] = json.loads(people.kept_texts(row).read_text("utf-8"))
        models = models_of(people.global_ranker if share == "AB" else people.ranker)
        base = scores_of(people, models, pool)
        promised, got = [], []
        for person, (own, model) in enumerate(zip(texts, models, strict=True)):
            means = [float(scores[person].mean()) for scores in base]
            promised.append(_above(model.scores(list(zip(people.asked, own, strict=True))), means))
            golds = [people.tastes.utilities([text])[person, 0] for text in own]
            got.append(_above(golds, [people.tastes.utilities(one)[person].mean() for one in pool]))
        found[row] = {"kl": rows[row]["kl"], "promised": promised, "got": got}
    return found


def _above(values: Sequence[float], means: Sequence[float]) -> float:
    return statistics.fmean(value - mean for value, mean in zip(values, means, strict=True))


# --- tables -----------------------------------------------------------------------------------------------


def table(done: Mapping[str, Any], agreements: Sequence[float], seeds: Sequence[int]) -> str:
    """In Markdown: for each degree of agreement, gains by n and of policies, mean ± one standard error over
    seeds: people of one seed have a part of their tastes alike, and the same responses."""
    lines: list[str] = []
    for agreement in agreements:
        found = [one for seed in seeds if (one := done.get(f"{agreement:g} {seed}"))]
        if not found:
            continue
        people = sum(len(one["by_n"]["personal"]["got"][0]) for one in found)
        lines += [
            f"Agreement {agreement:g}, {people} people, seeds: {len(found)}",
            "",
            "| best of | KL, nats | personal: promised | got | global: promised | got |",
            "|---|---|---|---|---|---|",
        ]
        for place, n in enumerate(NUMBERS[: min(len(one["by_n"]["personal"]["got"]) for one in found)]):
            cells = [
                _told([statistics.fmean(one["by_n"][proxy][what][place]) for one in found])
                for proxy in PROXIES
                for what in ("promised", "got")
            ]
            lines.append(f"| {n} | {nats(n):.2f} | {' | '.join(cells)} |")
        lines += ["", _left_behind(found), "", *_policy_rows(found)]
    return "\n".join(lines).rstrip() + "\n" if lines else "Not run yet.\n"


def _left_behind(found: Sequence[Mapping[str, Any]]) -> str:
    """How many people get less with the largest n than with a smaller one, or less than the mean response."""
    fewer, below = [], []
    for proxy in PROXIES:
        got = np.concatenate([np.array(one["by_n"][proxy]["got"]) for one in found], axis=1)  # [n, people]
        fewer.append(f"{int((got[-1] < got.max(axis=0)).sum())} of {got.shape[1]} ({proxy})")
        below.append(f"{int((got[-1] < 0).sum())} ({proxy})")
    return (
        f"With the largest n {' and '.join(fewer)} got less than with a smaller one, "
        f"and {' and '.join(below)} less than the mean response is worth to them."
    )


def _policy_rows(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for row in SHARES:
        own = [one["policies"][row] for one in found if row in one["policies"]]
        if own:
            kl = statistics.fmean(one["kl"] for one in own)
            gains = [_told([statistics.fmean(one[what]) for one in own]) for what in ("promised", "got")]
            rows.append(f"| {row} | {kl:.2f} | {' | '.join(gains)} |")
    head = ["| policy | KL, nats | promised | got |", "|---|---|---|---|"]
    return [*head, *rows, ""] if rows else []


def _told(values: Sequence[float]) -> str:
    error = standard_error(values)
    return f"{statistics.fmean(values):.2f}" + ("" if error is None else f" ± {error:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where policies.py keeps what it made")
    parser.add_argument("--json", type=Path, default=KEPT, help="the rows of policies.py")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--agreements", default="0,0.5,0.9")
    parser.add_argument("--seeds", default="0,1,2")
    with_sizes(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes, cache = sizes_of(given), ModelCache()
    rows = kept_rows(given.json, sizes)
    agreements = [float(one) for one in given.agreements.split(",")]
    seeds = [int(seed) for seed in given.seeds.split(",")]
    done: dict[str, Any] = {}
    for agreement in agreements:
        for seed in seeds:
            people = People(given.folder, sizes, agreement, seed, cache)
            known = {row: found for row in SHARES if (found := rows.get(key_of(agreement, seed, row)))}
            done[f"{agreement:g} {seed}"] = {"by_n": by_n(people), "policies": of_policies(people, known)}
    given.out.mkdir(parents=True, exist_ok=True)
    made = {"numbers": NUMBERS, "rows": _rounded(done)}
    path = given.out / "over_optimisation.json"
    path.write_text(json.dumps(made, indent=0) + "\n", encoding="utf-8")
    text = table(done, agreements, seeds)
    print(text)
    if given.page:
        before = given.page.read_text(encoding="utf-8")
        given.page.write_text(MARKS.sub(lambda found: found[1] + text + found[2], before), encoding="utf-8")


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_rounded(value) for value in found]
    return round(found, 4) if isinstance(found, float) else found


if __name__ == "__main__":
    main()
