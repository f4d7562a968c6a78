"""Does a personal policy suit its person? `python tests/experiments/policies.py --folder DIR`

SmolLM2-135M writes short responses to everyday requests, once (kept in DIR). Made-up people have tastes for
what can be measured of a text (`FEATURES`): length, formality, lists, hedging, sentiment; a taste has a part
that all have alike, of --agreements, and one of its own. People choose between two responses to a request by
Bradley and Terry, and train policies by DPO under several share rules, or a reward model that takes the best
of n. Then each writes for requests that nobody has seen, and is judged beside the base model: by the taste
itself, as it is and as it would be at equal length, and by the reward model of the same person that was
trained on choices between other texts. The texts to choose between are the same for every seed; tastes,
choices and what policies write are not.

A row that was measured is kept in --json; the same command goes on where it stopped. What each row wrote,
and its people's models, are kept in DIR (tests/experiments/over_optimisation.py reads them). --page FILE
writes the table between its marks. Sizes are flags (`Sizes`); a file of rows holds those of one size only.
Number formats of the writer (--dtype) may differ, but not within one agreement and seed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

import numpy as np
import torch

from fleets import Trained, settled  # isort: skip
from generated import LEARNED, TESTED, requests  # isort: skip

from support.teacher import Array

from penchant.client.learning.best_of_n import Generator
from penchant.client.learning.merged_model import MergedModel
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation, Person, Preference, comparison_of
from penchant.deploy.owner_policy import fleet_policy
from penchant.deploy.recipes import recipe
from penchant.deploy.simulation.world import SimulationSetup

KEPT = Path(__file__).parent / "results" / "policies.json"
MARKS = re.compile(r"(<!-- policies -->\n).*?(<!-- end -->)", re.S)
SHARES = {
    "global (AB)": "AB",
    "A, the default": "A",
    "alone": "none",
    "B": "B",
    "mixed": "mixed",
    "ffa": "ffa",
}
ROWS = ("base", "best of n", *SHARES)
FIGURES = ("accuracy", "teacher", "level", "judge", "kl", "words")
DECIDED = 0.5  # difference in utility below which nobody chooses
SHARPNESS = 3.0  # standard deviation of a person's utility over the responses
ALL_WORDS = 1 << 20  # top-k beyond any vocabulary: what is drawn is the model's own distribution


@dataclass(frozen=True)
class Sizes:
    """How large everything is, and of which models.

    Attributes:
        writer: the base model of policies.
        judge: that of reward models.
        modules: of the writer that get factors.
        dtype: the writer's number format, which each row says. Products in bfloat16 take a third to a ninth
            of the time where the machine has them.
        people, train, held_out, test: how many people, and choices of each in three parts.
        learned, tested: requests to choose on, and to write for.
        responses: to each request that is learned from.
        tokens: of a response.
        pool: to each request that is written for, by the base model: one is what it wrote first, and from n
            others the best is taken.
        rounds, epochs: of training.
        rate: of learning, for all factors of policies.
    """

    writer: str = "smollm2-135m"
    judge: str = "all-MiniLM-L6-v2"
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: str = "bfloat16"
    people: int = 8
    train: int = 16
    held_out: int = 4
    test: int = 24
    learned: int = 24
    tested: int = 6
    responses: int = 8
    tokens: int = 32
    n: int = 8
    pool: int = 33
    rounds: int = 4
    epochs: int = 2
    rate: float = 3e-3


# --- texts and tastes -------------------------------------------------------------------------------------

_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z']+")
_CASUAL = "hey|hi|yeah|ok|okay|cool|awesome|super|really|just|stuff|fun|gonna|wanna|lol|wow"
_HEDGES = "maybe|perhaps|might|could|may|possibly|probably|seems|somewhat|sometimes|often|likely"
_GOOD = "good|great|love|happy|wonderful|beautiful|enjoy|best|nice|warm|perfect|delicious|joy|kind|bright"
_BAD = "bad|sad|hard|difficult|cold|dark|poor|lost|pain|fear|worst|tired|wrong|problem|unfortunately"


def features(texts: Sequence[str]) -> Array:
    """[texts, 5]: length, formality, lists, hedging, sentiment, each as it is counted."""
    return np.array([_features(text) for text in texts], dtype=float)


def _features(text: str) -> tuple[float, ...]:
    words = [word.lower() for word in _WORD.findall(text)]
    many = max(len(words), 1)

    def share(of: str) -> float:
        return sum(bool(re.fullmatch(of, word)) for word in words) / many

    casual = share(_CASUAL) + sum("'" in word for word in words) / many + text.count("!") / many
    formal = sum(len(word) >= 8 for word in words) / many - 2 * casual
    return (
        math.log1p(len(words)),
        formal,
        math.log1p(len(_LIST.findall(text))),
        math.sqrt(share(_HEDGES)),
        share(_GOOD) - share(_BAD),
    )


@dataclass(frozen=True)
class Tastes:
    """weights [people, features]; centre and scale [features] of the responses to learn from."""

    weights: Array
    centre: Array
    scale: Array

    @classmethod
    def draw(cls, texts: Sequence[str], people: int, agreement: float, seed: int) -> Tastes:
        """agreement: the part of a taste's variance that everybody has alike."""
        rng = np.random.default_rng([seed, 19])
        found = features(texts)
        centre, scale = found.mean(axis=0), found.std(axis=0) + 1e-9
        drawn = rng.standard_normal((1 + people, found.shape[1]))
        common, *own = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        weights = math.sqrt(agreement) * common + math.sqrt(1 - agreement) * np.stack(own)
        spread = (((found - centre) / scale) @ weights.T).std(axis=0) + 1e-9
        return cls(weights * (SHARPNESS / spread)[:, None], centre, scale)

    def utilities(self, texts: Sequence[str]) -> Array:
        """[people, texts]"""
        return np.asarray(self.weights @ ((features(texts) - self.centre) / self.scale).T)


Texts = dict[str, list[str]]
Comparison = tuple[str, frozenset[str]]  # as `comparison_of`


def base_model(sizes: Sizes, cache: ModelCache) -> MergedModel:
    """The writer as it is: a policy whose factors add nothing yet."""
    plan = RunConfig().changed({"adapter.share": "AB", **policy_settings(sizes)}).plan("main", 2)
    planned = cache.of(plan)
    weights = planned.split.merged(*planned.split.initial(0))
    return MergedModel(planned.model, weights, plan.model, plan.adapter)


def written(folder: Path, sizes: Sizes, cache: ModelCache) -> Texts:
    """Responses to the requests that are learned from; made once, and kept in `folder`."""
    asked = requests(LEARNED)[: sizes.learned]
    made = _kept(folder, sizes, cache, asked, sizes.responses, 0)
    return {request: own for request, own in made.items() if len(own) > 1}


def first_written(folder: Path, sizes: Sizes, cache: ModelCache) -> Texts:
    """What the base model writes to the requests that nobody has seen; made once, and kept in `folder`."""
    return _kept(folder, sizes, cache, requests(TESTED)[: sizes.tested], sizes.pool, 1)


def _kept(folder: Path, sizes: Sizes, cache: ModelCache, asked: list[str], count: int, seed: int) -> Texts:
    name = re.sub(r"[^\w.-]", "_", Path(sizes.writer).name)
    path = folder / f"{name}-{seed}-{len(asked)}x{count}-{sizes.tokens}.json"
    if path.exists():
        kept: Texts = json.loads(path.read_text(encoding="utf-8"))
        return kept
    began = time.process_time()
    made = drawn(Generator.of(base_model(sizes, cache)), asked, sizes, seed, count)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(zip(asked, made, strict=True)), indent=0) + "\n", encoding="utf-8")
    print(f"{path.name} in {time.process_time() - began:.0f} s of the processor", file=sys.stderr, flush=True)
    return dict(zip(asked, made, strict=True))


def drawn(generator: Generator, asked: list[str], sizes: Sizes, seed: int, count: int) -> list[list[str]]:
    """`count` responses to each request, from the model's own distribution."""
    made = generator.responses_to_all(
        asked, count, seed=seed, tokens=sizes.tokens, temperature=1.0, top_k=ALL_WORDS
    )
    return [own or ["."] for own in made]


def policy_settings(sizes: Sizes) -> dict[str, Any]:
    """Of all policies, whatever is shared."""
    return {
        "model.base_model": sizes.writer,
        "model.objective": "dpo",
        "model.dtype": sizes.dtype,
        "model.max_tokens": 192,
        "adapter.target_modules": list(sizes.modules),
        "adapter.layers": [-2, -1],
        "adapter.rank": 4,
        "adapter.alpha": 8.0,
        "training.local_epochs": sizes.epochs,
        "training.final_fit_epochs": 2 * sizes.epochs,
        "training.lr_shared": sizes.rate,
        "training.lr_personal": sizes.rate,
        "training.final_fit_lr": sizes.rate,
    }


def choosers(
    texts: Texts, tastes: Tastes, sizes: Sizes, seed: int, draw: int, others: Federation | None = None
) -> Federation:
    """Everybody's choices; the last quarter of the requests is for test.

    draw: another one, other choices. others: no pair of theirs is compared, whoever it is that has it.
    """
    known = {comparison_of(pair) for pair in _pairs_of(others)} if others else set()
    utilities = {request: tastes.utilities(own) for request, own in texts.items()}
    asked = list(texts)
    held = asked[-max(len(asked) // 4, 1) :]
    parts = ((asked[: -len(held)], sizes.train), (asked[: -len(held)], sizes.held_out), (held, sizes.test))
    people = []
    for person in range(sizes.people):
        rng = np.random.default_rng([seed, draw, person])
        seen = known.copy()
        found = []
        for among, count in parts:
            own: list[Preference] = []
            for _ in range(50 * count):  # some tell too few texts apart for that many
                if len(own) < count:
                    own += _chosen(texts, utilities, person, among, rng, seen)
            found.append(tuple(own))
        people.append(Person(f"person {person}", found[0], found[1], found[2]))
    return Federation(f"made-up tastes {draw}", tuple(people))


def _chosen(
    texts: Texts,
    utilities: Mapping[str, Array],
    person: int,
    among: Sequence[str],
    rng: np.random.Generator,
    seen: set[Comparison],
) -> list[Preference]:
    """One choice by Bradley and Terry; none where two texts are about the same, or were compared before."""
    request = among[int(rng.integers(len(among)))]
    one, other = rng.choice(len(texts[request]), 2, replace=False)
    pair = comparison_of(Preference(request, texts[request][one], texts[request][other]))
    margin = utilities[request][person, one] - utilities[request][person, other]
    if pair in seen or abs(margin) < DECIDED:
        return []
    seen.add(pair)
    if rng.random() > 1 / (1 + math.exp(-margin)):
        one, other = other, one
    return [Preference(request, texts[request][one], texts[request][other])]


def _pairs_of(people: Federation) -> Iterator[Preference]:
    for one in people.people:
        yield from (*one.train, *one.validation, *one.test)


# --- one world of people ----------------------------------------------------------------------------------


class People:
    """The people of one degree of agreement and one seed, and what is trained of their choices."""

    def __init__(self, folder: Path, sizes: Sizes, agreement: float, seed: int, cache: ModelCache) -> None:
        self.sizes, self._folder, self._seed, self._cache = sizes, folder, seed, cache
        self._texts = written(folder, sizes, cache)
        all_texts = [text for own in self._texts.values() for text in own]
        self.tastes = Tastes.draw(all_texts, sizes.people, agreement, seed)
        self.name = f"agree{agreement:g}-seed{seed}"
        self.draws = 2000 + 1000 * seed  # where the seeds of what is written begin
        self.asked = requests(TESTED)[: sizes.tested]

    @cached_property
    def choices(self) -> Federation:
        return choosers(self._texts, self.tastes, self.sizes, self._seed, 1)

    @cached_property
    def judge(self) -> list[MergedModel]:
        """Everybody's reward model, of choices between other texts than any row was trained on."""
        others = choosers(self._texts, self.tastes, self.sizes, self._seed, 2, self.choices)
        return models_of(self._trained(self._reward(), others, "judge"))

    @cached_property
    def ranker(self) -> Trained:
        """Everybody's reward model, of the choices that policies are trained on."""
        return self._trained(self._reward(), self.choices, "reward")

    @cached_property
    def global_ranker(self) -> Trained:
        """One reward model for all, of the same choices."""
        return self._trained({**self._reward(), "adapter.share": "AB"}, self.choices, "reward-AB")

    @cached_property
    def reference(self) -> Any:
        """transformers' language model without factors."""
        base = base_model(self.sizes, self._cache)
        return base.model.language_model(base.weights)

    def policies(self, share: str) -> Trained:
        """Everybody's policy under a share rule."""
        settings = {"adapter.share": share, **policy_settings(self.sizes)}
        return self._trained(settings, self.choices, f"policy-{share}")

    @cached_property
    def base(self) -> list[list[str]]:
        """What the base model wrote to each request, in an order of this seed: the first of it is what others
        are compared with."""
        rng = np.random.default_rng([self._seed, 20])
        made = first_written(self._folder, self.sizes, self._cache)
        return [[own[place] for place in rng.permutation(len(own))] for own in made.values()]

    def kept_texts(self, row: str) -> Path:
        """Where what a row wrote is kept."""
        return self._folder / f"{self.name}-texts-{re.sub(r'[^a-z]+', '-', row.lower())}.json"

    def _reward(self) -> dict[str, Any]:
        rounds = {"federation.rounds": 3 * self.sizes.rounds}  # a few seconds each
        return {
            **recipe("senate", "A"), **rounds, "model.base_model": self.sizes.judge, "model.max_tokens": 64
        }  # fmt: skip

    def _trained(self, settings: Mapping[str, Any], people: Federation, name: str) -> Trained:
        usual = {
            "data.dataset": "made-up",
            "privacy.secagg": False,
            "seed": self._seed,
            "adapter.share": "A",
            "federation.rounds": self.sizes.rounds,
        }
        all_asked = {"federation.cohort": self.sizes.people, "federation.warmup_rounds": 0}
        config = RunConfig().changed({**usual, **settings, **all_asked})
        policy = fleet_policy(config, self.sizes.people)
        world = SimulationSetup(config, people, self._cache, self.sizes.people, policy)
        return settled(world, self._folder, f"{self.name}-{name}")


def models_of(trained: Trained) -> list[MergedModel]:
    """Everybody's own model."""
    planned = trained.planned()
    return [MergedModel.of(planned, trained.factors, own) for own in trained.personal()]


# --- figures ----------------------------------------------------------------------------------------------


def measured(people: People, row: str) -> dict[str, float]:
    """One row: means over people and requests; `seconds` are what it cost of the processor, without what
    other rows had made."""
    ready = people.base, people.judge, people.choices
    began = time.process_time()
    if row == "base":
        found = {"accuracy": 0.5, "kl": 0.0}
        texts = [[own[0] for own in ready[0]]] * people.sizes.people
    elif row == "best of n":
        found, texts = _best_of_n(people)
    else:
        found, texts = _of_policies(people, SHARES[row])
    people.kept_texts(row).write_text(json.dumps(texts, indent=0) + "\n", encoding="utf-8")
    return {**found, **_wins(people, texts), "seconds": time.process_time() - began}


def _best_of_n(people: People) -> tuple[dict[str, float], list[list[str]]]:
    trained, n = people.ranker, people.sizes.n
    texts = []
    for model in models_of(trained):
        own = []
        for asked, responses in zip(people.asked, people.base, strict=True):
            among = responses[1 : n + 1] or responses
            scores = model.scores([(asked, text) for text in among])
            own.append(among[int(np.argmax(scores))])
        texts.append(own)
    # of the best of n, exactly where responses differ (Beirami et al. 2024: at most)
    return {"accuracy": trained.accuracy()["personal"], "kl": math.log(n) - (n - 1) / n}, texts


def _of_policies(people: People, share: str) -> tuple[dict[str, float], list[list[str]]]:
    trained = people.policies(share)
    texts, apart = [], []
    for number, model in enumerate(models_of(trained)):
        writer, seed = Generator.of(model), people.draws + number
        own, far = written_by(writer, people.reference, people.asked, people.sizes.tokens, seed)
        texts.append(own)
        apart += far
    return {"accuracy": trained.accuracy()["personal"], "kl": statistics.fmean(apart)}, texts


@torch.no_grad()
def written_by(
    generator: Generator, reference: Any, asked: list[str], tokens: int, seed: int
) -> tuple[list[str], list[float]]:
    """One response of a policy to each prompt, and each one's KL(π || π_ref) in nats.

    The KL is over the tokens as they were drawn, before a text is cut to whole sentences, and at each token
    that of the two whole distributions: chance has only how a response goes on (Rao and Blackwell; Amini,
    Vieira and Cotterell 2025). reference: transformers' language model without factors.
    """
    policy, inputs = generator._model, generator._encoded(asked)
    start = inputs["input_ids"].shape[1]
    how = {"temperature": 1.0, "top_k": 0, "max_new_tokens": tokens, "pad_token_id": generator._pad}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = policy.generate(**inputs, **how, do_sample=True)  # [n, prompt + response]
    ends, drawn = generator._ends, rows[:, start:]
    ended = torch.isin(drawn, torch.tensor(sorted(ends)))
    there = ended.cumsum(1) - ended.long() == 0  # up to the first end, and that one too
    mask = torch.cat([inputs["attention_mask"], there.long()], dim=1)
    ours, theirs = (_log_probabilities(one, rows, mask, start) for one in (policy, reference))
    apart = (ours.exp() * (ours - theirs)).sum(2) * there  # [n, tokens]
    texts = [generator._text(row.tolist(), ends) or "." for row in drawn]
    return texts, apart.sum(1).tolist()


def _log_probabilities(model: Any, rows: torch.Tensor, mask: torch.Tensor, start: int) -> torch.Tensor:
    """Of every word at every place from `start` on, [n, tokens, words]."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=rows, attention_mask=mask, position_ids=places).logits[:, start - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)


def _wins(people: People, texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """How often a person would rather have what is written for them than what the base wrote first: by the
    taste, and by the judge; and how many words it has."""
    first = [own[0] for own in people.base]
    teacher, longer, judge = [], [], []
    for person, (own, model) in enumerate(zip(texts, people.judge, strict=True)):
        for asked, ours, theirs in zip(people.asked, own, first, strict=True):
            utilities = people.tastes.utilities([ours, theirs])[person]
            teacher.append(_won(*utilities))
            longer.append(_length(ours) - _length(theirs))
            judge.append(_won(*model.scores([(asked, ours), (asked, theirs)])))
    words = [len(_WORD.findall(text)) for own in texts for text in own]
    return {
        "teacher": statistics.fmean(teacher),
        "level": at_equal_length(teacher, longer),
        "judge": statistics.fmean(judge),
        "words": statistics.fmean(words),
    }


def _length(text: str) -> float:
    return math.log1p(len(_WORD.findall(text)))


def at_equal_length(won: Sequence[float], longer: Sequence[float]) -> float:
    """The part of wins where `longer` is nothing, by least squares: what is not won by length alone (as
    Dubois et al., *Length-Controlled AlpacaEval*, COLM 2024, by a line)."""
    if max(longer) == min(longer):
        return statistics.fmean(won)
    return float(statistics.linear_regression(longer, won).intercept)


def _won(ours: float, theirs: float) -> float:
    return 0.5 if ours == theirs else float(ours > theirs)


# --- all of them ------------------------------------------------------------------------------------------


def key_of(agreement: float, seed: int, row: str) -> str:
    return f"{agreement:g} {seed} {row}"


def table(done: Mapping[str, Mapping[str, Any]], agreements: Sequence[float], seeds: Sequence[int]) -> str:
    """In Markdown, a table for each degree of agreement: mean over seeds ± standard error."""
    lines = []
    for agreement in agreements:
        found = [one for seed in seeds for row in ROWS if (one := done.get(key_of(agreement, seed, row)))]
        formats = " and ".join(sorted({one["dtype"] for one in found}))
        lines += [
            f"Agreement {agreement:g}{formats and ', '}{formats}:",
            "",
            "| row | accuracy | wins, teacher | at equal length | wins, other reward model "
            "| KL, nats | words | seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in ROWS:
            found = [one for seed in seeds if (one := done.get(key_of(agreement, seed, row)))]
            cells = [_told([one[figure] for one in found if figure in one]) for figure in FIGURES]
            lines.append(f"| {row} | {' | '.join(cells)} | {len(found)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _told(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.3g}"
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.2g}" if len(values) > 1 else mean


def run(
    folder: Path,
    kept: Path,
    sizes: Sizes,
    agreements: Sequence[float],
    seeds: Sequence[int],
    rows: Sequence[str],
) -> dict[str, Any]:
    """Measure what `kept` does not hold yet, and keep it row by row; -> all that it holds."""
    done = kept_rows(kept, sizes)
    cache = ModelCache()
    for seed in seeds:
        for agreement in agreements:
            wanted = {key_of(agreement, seed, row): row for row in rows}
            if wanted.keys() <= done.keys():
                continue
            _check_dtype(done, sizes, agreement, seed)
            people = People(folder, sizes, agreement, seed, cache)
            for key, row in wanted.items():
                if key not in done:
                    figures = {name: round(value, 4) for name, value in measured(people, row).items()}
                    done[key] = {**figures, "dtype": sizes.dtype}
                    all_of_it = {"sizes": _plain(sizes), "rows": done}
                    kept.write_text(json.dumps(all_of_it, indent=0, sort_keys=True) + "\n", encoding="utf-8")
                    print(key, done[key], flush=True)
    return done


def _check_dtype(done: Mapping[str, Any], sizes: Sizes, agreement: float, seed: int) -> None:
    """SystemExit where other rows of the same people are of another number format: they are compared."""
    for row in ROWS:
        before = done.get(key_of(agreement, seed, row), {}).get("dtype", sizes.dtype)
        if before != sizes.dtype:
            raise SystemExit(
                f"agreement {agreement:g}, seed {seed}: rows are in {before}; go on with --dtype {before}"
            )


def kept_rows(kept: Path, sizes: Sizes) -> dict[str, Any]:
    """The rows of a file; none where there is no file. SystemExit where it holds those of other sizes."""
    if not kept.exists():
        return {}
    found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    if found["sizes"] != _plain(sizes):
        raise SystemExit(f"{kept} holds rows of other sizes: {found['sizes']}; give those, or another file")
    rows: dict[str, Any] = found["rows"]
    return rows


def _plain(sizes: Sizes) -> dict[str, Any]:
    """As JSON holds them, without the number format, which each row has."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(sizes)))
    del plain["dtype"]
    return plain


def with_sizes(parser: argparse.ArgumentParser) -> None:
    """A flag for each size that is a number."""
    for one in fields(Sizes):
        if isinstance(one.default, int | float):
            flag = "--" + one.name.replace("_", "-")
            parser.add_argument(flag, type=type(one.default), default=one.default)
    parser.add_argument("--base-model", dest="writer", default=Sizes.writer)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=Sizes.dtype)


def sizes_of(given: argparse.Namespace) -> Sizes:
    return Sizes(**{one.name: getattr(given, one.name) for one in fields(Sizes) if hasattr(given, one.name)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="keeps what was written and trained")
    parser.add_argument("--json", type=Path, default=KEPT, help="a file to add the rows to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--agreements", default="0,0.5,0.9")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=";".join(ROWS), help="names of rows, set apart by semicolons")
    with_sizes(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    agreements = [float(one) for one in given.agreements.split(",")]
    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows = tuple(row for row in given.rows.split(";") if row)
    if unknown := set(rows) - set(ROWS):
        raise SystemExit(f"there is no row {sorted(unknown)}; choose of {ROWS}")
    done = run(given.folder, given.json, sizes_of(given), agreements, seeds, rows)
    text = table(done, agreements, seeds)
    print(text)
    if given.page:
        before = given.page.read_text(encoding="utf-8")
        given.page.write_text(MARKS.sub(lambda found: found[1] + text + found[2], before), encoding="utf-8")


if __name__ == "__main__":
    main()
