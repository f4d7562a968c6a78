"""The experiments about privacy: they compute what they say, at small sizes, and the page has it."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tastes import small_run, write_choices

from penchant.client.learning.local_round import work
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.data.preferences import Preference
from penchant.common.data.splits import Sizes
from penchant.common.privacy.noise import solve
from penchant.common.secagg.transcript import threshold
from penchant.common.secagg.update_vector import COUNTERS, Contribution
from penchant.deploy import datasets
from penchant.server.privacy_figures import MEASURED_NORM

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "tests" / "experiments"
RESULTS = EXPERIMENTS / "results"


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Gives an experiment's module by its name."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


# --- the audit of epsilon --------------------------------------------------------------------------


def test_the_audit_finds_less_than_is_promised_and_more_with_a_quarter_of_the_noise(
    experiment: Callable[[str], Any],
) -> None:
    audit = experiment("audit_epsilon")
    right, wrong = (audit.Setting.of(2.0, part, 12, 10) for part in (1.0, 0.25))
    assert 0 < audit.many_sums(right, 0, 2000) <= 2.0
    assert audit.many_sums(wrong, 0, 2000) > 2.0


def test_one_run_with_many_canaries_tells_right_from_wrong_noise(experiment: Callable[[str], Any]) -> None:
    audit = experiment("audit_epsilon")
    right, wrong = (audit.Setting.of(1.0, part, 200, 130) for part in (1.0, 0.125))
    assert audit.one_run(right, 0, 200, 60) <= 1.0
    assert audit.one_run(wrong, 0, 200, 60) > 1.0


def test_bounds_of_rates_are_those_of_clopper_and_pearson(experiment: Callable[[str], Any]) -> None:
    audit = experiment("audit_epsilon")
    low, high = audit.clopper_pearson(0, 100, 0.05)
    assert low == 0
    assert high == pytest.approx(1 - 0.05 ** (1 / 100))
    low, high = audit.clopper_pearson(100, 100, 0.05)
    assert low == pytest.approx(0.05 ** (1 / 100))
    assert high == 1


def test_guesses_that_are_all_right_show_as_much_as_their_number_allows(
    experiment: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = experiment("audit_epsilon")
    monkeypatch.setattr(audit, "DELTA", 0.0)
    rate = 0.05 ** (1 / 300)
    assert audit.guessing_bound(300, 300, 1000) == pytest.approx(math.log(rate / (1 - rate)), abs=1e-3)
    assert audit.guessing_bound(150, 300, 1000) == 0


# --- what a server sees ----------------------------------------------------------------------------


def test_a_sum_is_that_of_its_parts_and_their_noise(experiment: Callable[[str], Any]) -> None:
    audit, fleet = experiment("audit_epsilon"), experiment("noised_fleet")
    layout = audit.Setting.of(8.0, 1.0, 12, 10).layout
    draw = np.random.default_rng(0)
    sent = [
        Contribution(draw.normal(size=layout.quantiser.size).astype(np.float32), 3, 1.0, 0, 0)
        for _ in range(4)
    ]
    total = fleet.ring_sum(layout, sent, SeededEntropy(bytes(32), "sum"))
    alone = [fleet.signed(layout.quantise(one, bytes(32)), layout.ring) for one in sent]
    spread = float(np.std(total - sum(alone)))
    assert spread == pytest.approx(2 * layout.noise.sigma, rel=0.1)  # four shares
    shares = fleet.noise_of(layout, 300, SeededEntropy(bytes(32), "shares"))
    assert float(np.std(shares)) == pytest.approx(math.sqrt(300) * layout.noise.sigma, rel=0.1)


def test_everybody_trained_at_once_is_everybody_trained_alone(
    experiment: Callable[[str], Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    fleets = experiment("noised_fleet")
    write_choices(tmp_path / "choices.jsonl", [24] * 12)
    changes = small_run(tiny_model("bert"), tmp_path / "choices.jsonl", 12, 2)
    changes |= {
        "adapter.share": "lore",
        "privacy.dp_epsilon": 8.0,
        "federation.rounds": 2,
        "training.l2_to_start": 0.01,
    }
    config = RunConfig().changed(changes)
    people = datasets.configured(config.data, 0).people
    fleet = fleets.Fleet.of(config, people, ModelCache())
    assert fleet.config.privacy.dp_participations == 3  # two rounds and the closing one
    learned = fleet.learn()
    assert 0 <= fleet.accuracy(learned) <= 1
    again = fleets.Fleet.of(config, people, ModelCache()).learn()
    assert np.array_equal(again.shared, learned.shared)
    pairs = fleets.Pairs.of(fleet.planned, [person.train for person in people])
    state, start = fleet.start()
    personal = start + 0.5
    sent, own = fleet.round(state.factors, personal, pairs)
    fitted = fleet.fitted(state.factors, own, pairs)
    for at, person in enumerate(people):
        planned, zeros = fleet.planned, np.zeros(2, np.float32)
        outcome = work(planned, state.factors, zeros, personal[at].numpy(), person.train, (), 0)
        assert sent[at].update == pytest.approx(outcome.shared_update, abs=1e-5)
        assert own[at].numpy() == pytest.approx(outcome.personal, abs=1e-5)
        assert sent[at].weight == outcome.weight
        assert sent[at].loss == pytest.approx(outcome.loss_sum, rel=1e-4)
        closing = fleet.cache.of(fleet.config.plan("close", 12))
        outcome = work(closing, state.factors, zeros, own[at].numpy(), person.train, (), 0)
        assert fitted[at].numpy() == pytest.approx(outcome.personal, abs=1e-5)


def test_a_fleet_of_another_share_is_trained_by_the_product(
    experiment: Callable[[str], Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    fleets = experiment("noised_fleet")
    write_choices(tmp_path / "choices.jsonl", [24] * 12)
    changes = small_run(tiny_model("bert"), tmp_path / "choices.jsonl", 12, 2)
    config = RunConfig().changed(changes | {"federation.rounds": 2, "training.final_fit_epochs": 2})
    people = datasets.configured(config.data, 0).people
    for share in ("A", "AB"):
        fleet = fleets.fleet_of(config.changed({"adapter.share": share}), people, ModelCache())
        learned = fleet.learn()
        start, personal = fleet.start()
        assert not np.array_equal(start.factors, learned.shared)
        assert learned.personal.shape == personal.shape == (12, fleet.planned.split.personal.size)
        assert 0 <= fleet.accuracy(learned) <= 1


def test_one_by_one_and_all_at_once_come_to_the_same(
    experiment: Callable[[str], Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    fleets = experiment("noised_fleet")
    write_choices(tmp_path / "choices.jsonl", [24] * 12)
    changes = small_run(tiny_model("bert"), tmp_path / "choices.jsonl", 12, 2)
    config = RunConfig().changed(changes | {"adapter.share": "lore", "federation.rounds": 2})
    people, cache = datasets.configured(config.data, 0).people, ModelCache()
    at_once, one_by_one = (kind.of(config, people, cache).learn() for kind in (fleets.Fleet, fleets.OneByOne))
    assert one_by_one.shared == pytest.approx(at_once.shared, abs=1e-4)
    assert one_by_one.personal.numpy() == pytest.approx(at_once.personal.numpy(), abs=1e-4)


def test_a_clip_follows_the_quantile_that_noised_counts_say(
    experiment: Callable[[str], Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    adaptive = experiment("adaptive_clip")
    assert adaptive.moved(2.0, 0.5) == 2.0
    assert adaptive.moved(2.0, 1.7) == adaptive.moved(2.0, 1.0) == pytest.approx(2.0 * math.exp(-0.5))
    assert adaptive.moved(2.0, -1.0) == pytest.approx(2.0 * math.exp(0.5))
    sent = [Contribution(np.full(4, size, np.float32), 3, 1.0, 0, 0) for size in (0.1, 10.0)]
    assert [(part.correct, part.total) for part in adaptive.counted(sent, 1.0)] == [(1, 1), (0, 1)]
    write_choices(tmp_path / "choices.jsonl", [24] * 12)
    changes = small_run(tiny_model("bert"), tmp_path / "choices.jsonl", 12, 2)
    config = RunConfig().changed(
        changes | {"adapter.share": "lore", "federation.rounds": 2, "privacy.dp_epsilon": 8.0}
    )
    people = datasets.configured(config.data, 0).people
    learned = adaptive.Adaptive.of(config, people, ModelCache()).learn()
    assert np.isfinite(learned.shared).all()


def test_judges_of_arguments_are_split_by_topic(experiment: Callable[[str], Any], tmp_path: Path) -> None:
    for topic in range(8):
        choices = "".join(
            f"<mTurkAssignment><turkID>{who}</turkID><value>{value}</value></mTurkAssignment>"
            for who, value in (("one", "a1"), ("two", "a2"), ("three", "equal"))
        )
        (tmp_path / f"topic {topic}.xml").write_text(
            f"<list><annotatedArgumentPair><arg1><text>for {topic}</text></arg1><arg2><text>against {topic}"
            f"</text></arg2><mTurkAssignments>{choices}</mTurkAssignments></annotatedArgumentPair></list>",
            encoding="utf-8",
        )
    found = experiment("many_people").arguments(tmp_path, 3, Sizes(9, 9, 9), 0).people
    assert [person.name for person in found] == ["one", "two"]
    for person, first in zip(found, ("for", "against"), strict=True):
        assert all(pair.chosen.startswith(first) for pair in (*person.train, *person.test))
        assert not {pair.chosen for pair in person.train} & {pair.chosen for pair in person.test}
    assert {pair.chosen[-1] for pair in found[0].test} == {pair.chosen[-1] for pair in found[1].test}


def test_made_up_people_agree_as_much_as_they_are_asked_to(experiment: Callable[[str], Any]) -> None:
    """Two people's wish for one text over another is the same as often as their tastes are alike."""
    many, sizes = experiment("many_people"), Sizes(20, 0, 60)

    def alike(agreement: float) -> float:
        """How often people who judged the same two texts chose the same one."""
        people = many.taught(60, sizes, 0, agreement).people
        pairs = [
            (frozenset((p.chosen, p.rejected)), p.chosen) for one in people for p in one.train + one.test
        ]
        by_pair: dict[frozenset[str], list[str]] = {}
        for texts, chosen in pairs:
            by_pair.setdefault(texts, []).append(chosen)
        both = [a == b for own in by_pair.values() for a, b in itertools.combinations(own, 2)]
        return sum(both) / len(both)

    apart, half, together = alike(0.0), alike(0.5), alike(1.0)
    assert apart == pytest.approx(0.5, abs=0.12)
    assert apart < half < together
    assert many.taught(3, sizes, 0) == many.taught(3, sizes, 0, 0.0)
    assert 0.7 < many.oracle(60, sizes, 0, 0.5) < 0.95


def test_a_candidate_is_found_in_what_it_is_a_part_of(experiment: Callable[[str], Any]) -> None:
    attacks = experiment("attacks")
    texts = [f"text {number}" for number in range(31)]
    guesser = attacks.Guesser.with_updates(texts, np.random.default_rng(0).normal(size=(30, 200)))
    truth = np.zeros(30)
    truth[[4, 9]], truth[[5, 8]] = 0.05, -0.05
    seen = truth @ guesser.updates
    found = guesser.wins(seen, noised=False)
    assert found == pytest.approx([*truth, 0.0], abs=1e-6)
    right, half, wrong = (
        Preference("", texts[one], texts[other]) for one, other in ((4, 5), (9, 20), (8, 4))
    )
    assert guesser.first(found, [half, wrong, right]) == 2
    assert guesser.first(guesser.wins(seen, noised=True), [half, right, wrong]) == 1
    assert guesser.first(np.zeros(31), [right, half, wrong]) == 2  # nothing known: not the first


def test_likelihood_ratios_find_who_is_inside_and_nothing_where_nothing_is(
    experiment: Callable[[str], Any],
) -> None:
    membership = experiment("membership")
    draw = np.random.default_rng(0)
    inside = draw.random((40, 50)) < 0.5
    noise = draw.normal(size=(40, 50))
    found = membership.judged(noise + 3 * inside, inside)
    assert found["auc"][0] > 0.95
    low, high = membership.judged(noise, inside)["auc"][1:]
    assert low < 0.53 < 0.6
    assert high > 0.47


def test_independent_noise_is_the_measure_of_correlated_noise(experiment: Callable[[str], Any]) -> None:
    correlated = experiment("correlated_noise")
    mean, last = correlated.errors(np.eye(8), 2, 4)
    assert last == pytest.approx(math.sqrt(2) * math.sqrt(8))
    assert mean == pytest.approx(math.sqrt(2) * math.sqrt(4.5))
    matrix = correlated.strategy(8, 4)
    column = float(np.linalg.norm(matrix[:, 0]))
    assert correlated.sensitivity(matrix, 2, 4) == pytest.approx(
        math.hypot(column, float(np.linalg.norm(matrix[:, 4])))
    )
    whole = correlated.strategy(8, 8)
    assert np.allclose(whole @ whole, np.tril(np.ones((8, 8))))
    assert correlated.gain(30, 1, 30).mean < 0.6


def test_errors_of_correlated_noise_are_those_of_the_literature(experiment: Callable[[str], Any]) -> None:
    """The whole square root, one participation: the largest error is (ln n + Euler's constant + 4 ln 2) / pi
    to o(1), the constant of Landau: a sum of squares of central binomial coefficients over 4^k."""
    correlated = experiment("correlated_noise")
    for rounds in (100, 300):
        last = correlated.errors(correlated.strategy(rounds, rounds), 1, rounds)[1]
        assert last == pytest.approx(
            (math.log(rounds) + np.euler_gamma + 4 * math.log(2)) / math.pi, abs=2e-3
        )


def test_the_sensitivity_is_that_of_the_worst_rounds_to_be_in(experiment: Callable[[str], Any]) -> None:
    correlated = experiment("correlated_noise")
    for rounds, participations, apart, bands in ((9, 3, 2, 9), (9, 3, 3, 3), (8, 2, 4, 2), (8, 8, 1, 1)):
        matrix = correlated.strategy(rounds, bands)
        worst = max(
            float(np.linalg.norm(matrix[:, list(turns)].sum(axis=1)))
            for turns in itertools.combinations(range(rounds), participations)
            if all(later - earlier >= apart for earlier, later in itertools.pairwise(turns))
        )
        assert correlated.sensitivity(matrix, participations, apart) == pytest.approx(worst)


# --- the page --------------------------------------------------------------------------------------


def test_the_page_says_what_was_measured(experiment: Callable[[str], Any], tmp_path: Path) -> None:
    marked, text = experiment("marked_page"), (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")

    def kept(name: str) -> Any:
        return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))

    correlated, utility = experiment("correlated_noise"), experiment("private_utility")
    tables = {
        "private utility": utility.table(
            utility.Runs(RESULTS / "private_utility.json", None, only_show=True)
        ),
        "adaptive clip": experiment("adaptive_clip").table(kept("adaptive_clip")),
        "attacks": experiment("attacks").tables(kept("attacks")),
        "audit": experiment("audit_epsilon").table(kept("audit_epsilon")),
        "membership": experiment("membership").table(kept("membership")),
        "correlated noise": correlated.table(
            {name: correlated.gain(*fleet) for name, fleet in correlated.FLEETS.items()}
        ),
    }
    for name, lines in tables.items():
        assert marked.replaced(text, name, lines) == text, f"write the table of {name} anew with --page"


def rows_of(heading: str) -> list[list[str]]:
    """The rows of the table on the page whose heading begins so."""
    lines = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith(heading)) + 2
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_page_has_the_bound_on_releases_that_its_snippet_computes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A release carries the noise of all groups: rho falls by their number, and so does any test's area."""
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    (snippet,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "NormalDist" in block
    )
    exec(snippet, {})
    printed = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.split("\n")
    ]
    assert rows_of("| people a round | groups of up to 256 |") == printed[:-1]
    areas = {row[1]: float(row[3]) for row in printed[:-1]}
    assert areas == {"1": 0.866, "4": 0.71, "10": 0.637, "40": 0.57, "489": 0.52}


def test_the_noise_of_many_groups_costs_as_much_less() -> None:
    noise = solve(epsilon=8, delta=1e-5, participations=10, size=768, honest=84)
    for groups in (1, 4, 10, 40):
        assert noise.rho(84 * groups) == pytest.approx(noise.rho(84) / groups, rel=1e-9)


def test_how_long_noise_is_and_what_it_leaves_are_as_the_page_says() -> None:
    """The norms from the settings of each run, what is left from the page's own table of accuracies."""
    people, elements = {"senate": 101, "arguments": 173}, {"lore": 768, "AB": 4224, "A, no recipe": 3456}
    accuracies = {
        row[0]: [cell.split(" ")[0] for cell in row[2:8]] for row in rows_of("| people, share | rounds")
    }
    longest = 0.0
    for name, epsilon, told, left in rows_of("| people, share | ε | `noise_norm`"):
        who, share = name.split(", ", 1)
        sums = 11 if share == "lore" else 5  # rounds, and the closing one
        noise = solve(
            epsilon=float(epsilon), delta=1e-5, participations=sums, size=elements[share] + len(COUNTERS),
            honest=threshold(people[who]) - 2,
        )  # fmt: skip
        norm = math.sqrt(noise.size / people[who]) * noise.sigma / noise.clip
        assert f"{norm:.2f}" == told
        nothing, exact = float(accuracies[name][0]), float(accuracies[name][5])
        noised = float(accuracies[name][("1", "2", "4", "8").index(epsilon) + 1])
        assert f"{(noised - nothing) / (exact - nothing):.2f}" == left
        longest = max(longest, norm)
        assert norm < 1 or 1 / 6 <= float(left) <= 11 / 12 + 0.005
    assert round(longest, 2) == MEASURED_NORM


def test_a_page_without_marks_is_refused(experiment: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="marks"):
        experiment("marked_page").replaced("no marks", "attacks", ["a line"])
