"""A month of choosing: `python tests/experiments/online.py --folder DIR [--seeds 0,1]`

Made-up owners (policies.py: tastes for length, formality, lists, hedging, sentiment; the texts are those that
SmolLM2-135M wrote there, kept in DIR) have real devices: each day some choices are recorded, and in the
evening there is a round, by the devices' own agents and the server's own round, with secure aggregation.
Five ways to come to choices:

- ask: on the ask page's desk the owner's model ranks four responses to a prompt, and the owner picks one.
- corrections: the same, but where it is the first nothing is recorded.
- random: the owner answers which of two responses, drawn at random, they like better; none is asked twice.
- active: the same, of the pairs that would tell most about the owner (`Device.learner`).
- offline: what `random` has recorded by the end of the month is there before the first round.

After each round everybody's model is judged by pairs of responses to requests that nobody was asked about.
Writes online.json into --out and, with matplotlib, online.png into --figures; --page FILE writes the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

import numpy as np
import torch

from curves import Look, draw, summary  # isort: skip
from policies import Sizes, Tastes, Texts, written  # isort: skip

from flwr.app import Context
from support.scene import signed_for

from penchant.client.agent.agent import Agent
from penchant.client.agent.flower_app import build_app
from penchant.client.device.device import Device
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Preference, comparison_of
from penchant.common.membership.identity import Membership
from penchant.deploy.device_page.asking import AskDesk
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.deploy.owner_policy import policy_for
from penchant.deploy.recipes import recipe, usual_share
from penchant.server.journal import Journal, RoundLog
from penchant.server.round import federate
from penchant.server.run import ServerRun
from penchant.server.secagg.secure import SecureAggregation

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parents[1] / "docs" / "figures"
MARKS = re.compile(r"(<!-- online -->\n).*?(<!-- end online -->)", re.S)
LOOKS = {
    "ask": Look("picks on the ask page", "#c2571a", "s"),
    "corrections": Look("picks of others than the first alone", "#d9a441", "v"),
    "active": Look("answers to the most telling questions", "#1f5fbf", "o"),
    "random": Look("answers to questions at random", "#666666", "^"),
    "offline": Look("all choices of the month from the first day on", "#999999", "", ":"),
}
Likes = Mapping[str, Mapping[str, float]]  # request -> response -> utility to somebody
SHOWN = (1, 2, 3, 5, 7, 10, 14, 20, 30)  # days of the table and the figure


@dataclass(frozen=True)
class Month:
    """How long, and of how many. agreement: as of `Tastes.draw`; candidates: pairs that the most telling are
    chosen from; judged: pairs that judge each owner's model; base_model: of reward models."""

    days: int = 30
    choices: int = 5
    people: int = 5
    agreement: float = 0.5
    shown: int = 4
    candidates: int = 16
    judged: int = 60
    base_model: str = "all-MiniLM-L6-v2"


class Owner:
    """Somebody with a taste, a device, and a way to come to choices."""

    def __init__(
        self, device: Device, likes: Mapping[str, Mapping[str, float]], rng: Any, month: Month
    ) -> None:
        """likes: of the requests that the owner is asked about."""
        self.device = device
        self._likes, self._rng, self._month = likes, rng, month
        self._desk = AskDesk(device, None)

    def day(self, way: str) -> None:
        """One day's choices."""
        if way in ("ask", "corrections"):
            for _ in range(self._month.choices):
                self._ask(confirms=way == "ask")
        elif way == "active":
            self._answer_most_telling()
        else:
            self.device.record([self._answered(pair) for pair in self._questions(self._month.choices)])

    def _ask(self, *, confirms: bool) -> None:
        request = self._request()
        texts = self._rng.choice(list(self._likes[request]), self._month.shown, replace=False)
        asked = self._desk.rank(request, [str(text) for text in texts])
        utilities = np.array([self._likes[request][row.text] for row in asked.rows])
        likely = np.exp(utilities - utilities.max())
        liked = int(self._rng.choice(len(utilities), p=likely / likely.sum()))  # Plackett and Luce
        if liked or confirms:
            self._desk.pick(asked.mark, liked)

    def _answer_most_telling(self) -> None:
        candidates = self._questions(self._month.candidates)
        learner = self.device.learner(candidates)
        for _ in range(self._month.choices):
            index = learner.question()
            if index is None:
                return
            answer = self._answered(candidates[index])
            learner.answer(index, answer == candidates[index])
            self.device.record([answer])

    def _questions(self, count: int) -> list[Preference]:
        """That many pairs, none of which was answered before, in either order."""
        found: dict[tuple[str, frozenset[str]], Preference] = {}
        for _ in range(50):  # whoever has answered almost all is asked less
            drawn = [self._pair() for _ in range(count - len(found))]
            for pair in self.device.store.unanswered(drawn):
                found.setdefault(comparison_of(pair), pair)
        return list(found.values())

    def _request(self) -> str:
        return list(self._likes)[int(self._rng.integers(len(self._likes)))]

    def _pair(self) -> Preference:
        request = self._request()
        one, other = self._rng.choice(list(self._likes[request]), 2, replace=False)
        return Preference(request, str(one), str(other))

    def _answered(self, pair: Preference) -> Preference:
        """As the owner sees it, by Bradley and Terry."""
        likes = self._likes[pair.prompt]
        margin = likes[pair.chosen] - likes[pair.rejected]
        if self._rng.random() < 1 / (1 + math.exp(-margin)):
            return pair
        return Preference(pair.prompt, pair.rejected, pair.chosen)


@dataclass(frozen=True)
class Town:
    """Owners whose devices have joined, and the pairs that judge each one's model: as the taste has it."""

    authority: AuthorityStore
    owners: list[Owner]
    judged: list[list[Preference]]
    config: RunConfig
    cache: ModelCache

    def server(self, directory: Path, observe: Callable[[RoundLog], None]) -> ServerRun:
        """The server's side of the month's run."""
        count, run = len(self.owners), bytes(16)
        signature = self.cache.of(self.config.plan("main", count)).model_signature
        members = Membership(self.authority.authority.public_key).accept(
            self.authority.latest(), int(time.time())
        )
        return ServerRun(
            config=self.config,
            id=run,
            model_signature=signature,
            cohort=count,
            aggregation=SecureAggregation(members),
            membership=self.authority.latest(),
            journal=Journal(directory),
            observe=observe,
            manifest=signed_for(self.authority.authority, self.config, run, signature.digest, count),
        )

    def accuracy(self) -> float:
        """The part of the judging pairs that owners' models rank as the tastes do, mean over owners."""
        return float(np.mean([_accuracy(*both) for both in zip(self.owners, self.judged, strict=True)]))


def _accuracy(owner: Owner, judged: Sequence[Preference]) -> float:
    model = owner.device.model_in_use()
    chosen = model.scores([(pair.prompt, pair.chosen) for pair in judged])
    return float(np.mean(chosen > model.scores([(pair.prompt, pair.rejected) for pair in judged])))


def settings(month: Month) -> RunConfig:
    """Those of data without a recipe of their own, a round a day."""
    share = usual_share("online") or RunConfig().adapter.share
    own = {
        "model.base_model": month.base_model,
        "model.max_tokens": 64,
        "adapter.share": share,
        "federation.stop_after": 0,
        "federation.rounds": month.days,
        "federation.warmup_rounds": 0,
        "federation.cohort": month.people,
        "privacy.min_honest": 1,
        "privacy.max_colluders": 0,
    }
    return RunConfig().changed({**recipe("online", share), **own})


def town(folder: Path, texts: Texts, month: Month, seed: int, again: int, cache: ModelCache) -> Town:
    """Devices in `folder`, each with its owner. again: another one, other questions and answers of the same
    people, judged by the same pairs."""
    config, authority = settings(month), AuthorityStore.init(folder / "authority")
    tastes = Tastes.draw(list(itertools.chain(*texts.values())), month.people, month.agreement, seed)
    asked = list(texts)
    held = asked[-max(len(asked) // 4, 1) :]
    policy = policy_for(config, min_honest=1, max_colluders=0).to_toml()
    owners, judged = [], []
    for person in range(month.people):
        rng = np.random.default_rng([seed, 21, person])
        likes = {
            request: dict(zip(own, tastes.utilities(own)[person].tolist(), strict=True))
            for request, own in texts.items()
        }
        home = folder / f"device-{person}"
        device = Device(home, model_cache=cache)
        (home / "policy.toml").write_text(policy, encoding="utf-8")
        device.join(authority.issue(device.request()).encode(), authority.digest)
        learned = {request: own for request, own in likes.items() if request not in held}
        judged.append(_judging({request: likes[request] for request in held}, rng, month.judged))
        own = np.random.default_rng([seed, 21, person, again]) if again else rng
        owners.append(Owner(device, learned, own, month))
    return Town(authority, owners, judged, config, cache)


def _judging(likes: Likes, rng: Any, count: int) -> list[Preference]:
    """Pairs of responses that the owner tells apart, the better one chosen."""
    pairs = [
        Preference(request, max(both, key=own.__getitem__), min(both, key=own.__getitem__))
        for request, own in likes.items()
        for both in itertools.combinations(own, 2)
        if abs(own[both[0]] - own[both[1]]) >= 0.5
    ]
    return [pairs[place] for place in rng.permutation(len(pairs))[:count]]


def month_of(people: Town, way: str, folder: Path, month: Month) -> dict[str, list[float]]:
    """After each day: accuracy, and how many choices an owner has recorded, means over owners."""
    accuracy: list[float] = []
    recorded: list[float] = []

    def evening(log: RoundLog) -> None:
        if log.round > month.days:  # the closing round
            return
        for owner in people.owners:  # as the server's next greeting would tell them
            owner.device.vault.settle(server.id, server.journal.finished())
        accuracy.append(people.accuracy())
        recorded.append(float(np.mean([len(owner.device.store) for owner in people.owners])))
        if way != "offline" and log.round < month.days:
            for owner in people.owners:
                owner.day(way)

    for _ in range(month.days if way == "offline" else 1):
        for owner in people.owners:
            owner.day("random" if way == "offline" else way)
    server = people.server(folder / "server", evening)
    try:
        play(server, [owner.device.agent() for owner in people.owners])
    finally:
        server.journal.close()
    return {"accuracy": accuracy, "recorded": recorded}


def play(run: ServerRun, agents: Sequence[Agent]) -> None:
    """All rounds, through Flower's relay app, over a grid."""

    def agent_of(context: Context) -> Callable[[str, bytes], bytes]:
        return agents[int(context.node_config["partition-id"])].answer

    grid = InProcessGrid(build_app(agent_of), len(agents), workers=1)
    try:
        federate(run, grid)
    finally:
        grid.close()


# --- all of them ------------------------------------------------------------------------------------------


def run(
    folder: Path,
    kept: Path,
    texts: Texts,
    month: Month,
    seeds: Sequence[int],
    ways: Sequence[str],
    draws: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Measure what `kept` does not hold yet; -> way, seed and draw -> curves by day."""
    done: dict[str, Any] = json.loads(kept.read_text("utf-8"))["rows"] if kept.exists() else {}
    cache = ModelCache()
    for again, seed, way in itertools.product(draws, seeds, ways):
        key = f"{way} {seed} {again}"
        if key in done:
            continue
        place = folder / f"month-{way}-{seed}-{again}"
        if place.exists():
            raise SystemExit(f"{place} was begun and not finished; remove it")
        done[key] = month_of(town(place, texts, month, seed, again, cache), way, place, month)
        table = {"month": asdict(month), "rows": done}
        kept.write_text(json.dumps(table, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        print(key, [round(value, 3) for value in done[key]["accuracy"]], flush=True)
    return done


def curves(done: Mapping[str, Any], days: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Way -> at each of `days` the accuracy over seeds, each one's the mean of its draws."""
    found = {}
    for way in LOOKS:
        towns: dict[str, list[Sequence[float]]] = {}
        for key, row in done.items():
            one, seed, _ = key.split()
            if one == way:
                towns.setdefault(seed, []).append(row["accuracy"])
        means = [np.mean(own, axis=0) for own in towns.values()]
        if means:
            found[way] = [summary([float(one[day - 1]) for one in means]) for day in days]
    return found


def table(done: Mapping[str, Any], days: Sequence[int]) -> str:
    """In Markdown."""
    lines = [
        "| choices by | "
        + " | ".join(f"day {day}" for day in days)
        + " | recorded in the month | seeds, draws |",
        "|---" * (len(days) + 3) + "|",
    ]
    for way, rows in curves(done, days).items():
        own = [row for key, row in done.items() if key.split()[0] == way]
        recorded = float(np.mean([row["recorded"][-1] for row in own]))
        cells = [_told(row) for row in rows]
        seeds = {key.split()[1] for key in done if key.split()[0] == way}
        of_each = f"{len(seeds)}, {len(own)}"
        lines.append(f"| {LOOKS[way].label} | {' | '.join(cells)} | {recorded:.0f} | {of_each} |")
    return "\n".join(lines) + "\n"


def _told(row: Mapping[str, Any]) -> str:
    error = "" if row["se"] is None else f" ± {row['se']:.3f}"
    return f"{row['mean']:.3f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="keeps what was written, and the devices")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--draws", default="0", help="of questions and answers of the same people")
    parser.add_argument("--people", type=int, default=Month.people)
    parser.add_argument("--ways", default=",".join(LOOKS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    month = replace(Month(), people=given.people)
    texts = written(given.folder, Sizes(), ModelCache())
    seeds = [int(seed) for seed in given.seeds.split(",")]
    ways, draws = given.ways.split(","), [int(one) for one in given.draws.split(",")]
    done = run(given.folder, given.out / "online.json", texts, month, seeds, ways, draws)
    days = [day for day in SHOWN if day <= month.days]
    text = table(done, days)
    print(text)
    names = ("day", "accuracy on pairs of responses to requests that are new")
    draw(curves(done, days), LOOKS, given.figures / "online.png", places=days, names=names)
    if given.page:
        before = given.page.read_text(encoding="utf-8")
        given.page.write_text(MARKS.sub(lambda found: found[1] + text + found[2], before), encoding="utf-8")


if __name__ == "__main__":
    main()
