"""What a simulation ends with: the figures of result.json."""

from __future__ import annotations

import html
import resource
import shlex
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from penchant.client.learning.proxy_gap import proxy_gap
from penchant.common.config import config_digest
from penchant.common.errors import RunDirectoryError
from penchant.common.wording import percent, plain
from penchant.deploy import run_directory
from penchant.deploy.json_tables import from_table, plain_value
from penchant.deploy.simulation.devices import Score
from penchant.deploy.simulation.newcomers import ColdStart
from penchant.deploy.simulation.person_scores import AccuracySpread, ClientScore, spread_of
from penchant.deploy.simulation.race_record import Race
from penchant.deploy.simulation.served import ModelsInUse, Served, ranked_right, served, why_not_served
from penchant.deploy.simulation.world import SimulationSetup
from penchant.server.journal import Journal, RoundLog
from penchant.server.measured import measured_after
from penchant.server.privacy_figures import PrivacyFigures
from penchant.server.stopping import ends_with

__all__ = ["ColdStart", "RoundSummary", "RunResult", "SharedTensor", "result_of"]


@dataclass(frozen=True)
class RoundSummary:
    """One finished round: who took part, what it cost, and how well the models did.

    `cohort` is how many clients were asked, `survivors` how many are in the sum. Bytes are those of all
    clients together. `val_accuracy` pools the clients' validation pairs; `histogram` counts people per tenth
    of it. Both, and `train_loss`, are of the model that the round began with: that of round `measured_on`, 0
    for the beginning of the run.
    """

    round: int
    attempt: int | None = None
    phase: str | None = None
    cohort: int | None = None
    survivors: int | None = None
    seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    train_loss: float | None = None
    val_accuracy: float | None = None
    histogram: tuple[int, ...] | None = None
    measured_on: int | None = None

    @classmethod
    def of(cls, log: RoundLog) -> Self:
        """The summary of a journaled round."""
        return cls(
            round=log.round,
            attempt=log.attempt,
            phase=log.phase,
            cohort=log.cohort,
            survivors=log.survivors,
            seconds=log.seconds,
            bytes_up=log.bytes_up,
            bytes_down=log.bytes_down,
            train_loss=log.train_loss,
            val_accuracy=log.val_accuracy,
            histogram=None if log.histogram is None else tuple(log.histogram),
            measured_on=log.measured_on,
        )

    @property
    def upload(self) -> float | None:
        """Bytes that one client of the cohort sent."""
        return self._each(self.bytes_up)

    @property
    def download(self) -> float | None:
        """Bytes that one client of the cohort received."""
        return self._each(self.bytes_down)

    def _each(self, total: int | None) -> float | None:
        return total / self.cohort if total is not None and self.cohort else None


@dataclass(frozen=True)
class SharedTensor:
    """One tensor inside the vector that clients send."""

    name: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What result.json holds of one run.

    `accuracy` is the mean over people of the part of their held-out pairs that their own model ranks right,
    `cold_start_accuracy` that of newcomers with all their choices. `config` holds the run's settings.
    """

    dataset: str
    base_model: str
    share: str
    head: str | None = None
    objective: str = "reward"
    clients: int
    pairs: int
    rounds: int
    seed: int
    secagg: bool = False
    dp: PrivacyFigures | None = None
    evaluated_on: str = "test"
    accuracy: float
    cold_start_accuracy: float | None = None
    cold_start: tuple[ColdStart, ...] | None = None
    per_client: tuple[ClientScore, ...] = ()
    rounds_log: tuple[RoundSummary, ...] = field(default=(), repr=False)
    wall_seconds: float | None = None
    peak_rss_mb: float | None = None
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    caveats: tuple[str, ...] = ()
    shared_tensors: tuple[SharedTensor, ...] = field(default=(), repr=False)
    best_round: int | None = None  # whose factors the run ended with, where they are not the last round's
    served: Served | None = None  # against the population's model, where the share rule has one
    models_in_use: ModelsInUse | None = None  # by devices for their people, where they had a choice
    race: Race | None = None  # that chose the settings, where one did
    baselines: Mapping[str, float] = field(default_factory=dict, repr=False)  # share -> accuracy, where known

    @property
    def per_person(self) -> dict[str, float]:
        """Everybody's accuracy, by name."""
        return {score.client: score.accuracy for score in self.per_client if score.accuracy is not None}

    @cached_property
    def spread(self) -> AccuracySpread | None:
        """How accuracy spreads over people; None where nobody's is known."""
        return spread_of(self.per_client)

    @property
    def why_not_served(self) -> str:
        """Why `served` is None; empty where it is not."""
        return "" if self.served is not None else why_not_served(self.share, self.head)

    @property
    def measured(self) -> dict[int, RoundSummary]:
        """round -> the row that measured the factors which it ended with; 0: those of the beginning."""
        return dict(measured_after(self.rounds_log))

    def setting(self, key: str, *others: str) -> Any:
        """The value of a dotted setting, under its first name that `config` has; None where it has none."""
        for name in (key, *others):
            table: Any = self.config
            for part in name.split("."):
                table = table.get(part) if isinstance(table, Mapping) else None
            if table is not None:
                return table
        return None

    def to_dict(self) -> dict[str, Any]:
        """The tables of result.json."""
        table: dict[str, Any] = {}
        for name, value in plain_value(_own_fields(self)).items():
            if name == "accuracy":
                table[name] = {"personal": value, "cold_start": self.cold_start_accuracy}
                table["spread"] = None if self.spread is None else self.spread.to_dict()
            elif name == "served":
                table[name] = value
                table["served_why"] = self.why_not_served or None
            elif name != "cold_start_accuracy" and (name not in ("baselines", "best_round", "race") or value):
                table[name] = value
        return table

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> RunResult:
        """The inverse of `to_dict`; files of earlier versions may lack some keys.

        `spread` is made anew from `per_client`, so that earlier files have one as well.

        Raises:
            RunDirectoryError: what no result can do without is missing.
        """
        given = {name: value for name, value in table.items() if value is not None}
        accuracy = given.get("accuracy")
        if isinstance(accuracy, Mapping):
            given["cold_start_accuracy"] = accuracy.get("cold_start")
            given.pop("accuracy")
            if accuracy.get("personal") is not None:
                given["accuracy"] = accuracy["personal"]
        if "dp" in given:
            given["dp"] = from_table(PrivacyFigures, given["dp"], "dp of the result")
        if "served" in given:
            given["served"] = from_table(Served, given["served"], "served of the result")
        if "models_in_use" in given:
            given["models_in_use"] = from_table(
                ModelsInUse, given["models_in_use"], "models_in_use of the result"
            )
        if "race" in given:
            given["race"] = Race.from_table(given["race"])
        for name, record in _ROWS.items():
            if name in given:
                if not isinstance(given[name], list | tuple):
                    raise RunDirectoryError(f"{name} of the result must be a list; it is damaged")
                given[name] = tuple(from_table(record, row, f"{name} of the result") for row in given[name])
        return from_table(RunResult, given, "the result")

    @classmethod
    def read(cls, directory: Path) -> RunResult | None:
        """The result of a finished run directory, or None while the run is not finished."""
        table = run_directory.read_result(directory)
        return None if table is None else cls.from_dict(table)

    @property
    def given(self) -> str:
        """How many choices each person gave to learn from: the number, or the least and the most."""
        counts = [score.n_train for score in self.per_client if score.n_train is not None] or [self.pairs]
        least, most = min(counts), max(counts)
        return plain(least) if least == most else f"{plain(least)} to {plain(most)}"

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures, then everybody's accuracy."""
        facts = [
            ("accuracy, mean over people", percent(self.accuracy)),
            ("people", plain(self.clients)),
            ("choices a person", self.given),
            ("rounds", plain(self.rounds)),
            ("secure aggregation", "on" if self.secagg else "OFF"),
        ]
        people = [(score.client, plain(score.n_test), percent(score.accuracy)) for score in self.per_client]
        title = f"{self.dataset}, {self.base_model}, share {self.share}, seed {self.seed}"
        rows = html_table((), facts)
        return (
            f"<p><b>{html.escape(title)}</b></p>{rows}<details><summary>Every person</summary>"
            f"{html_table(('person', 'held-out pairs', 'accuracy'), people)}</details>"
            + "".join(f"<p><small>{html.escape(caveat)}</small></p>" for caveat in self.caveats)
        )


_ROWS: dict[str, type[Any]] = {
    "cold_start": ColdStart,
    "per_client": ClientScore,
    "rounds_log": RoundSummary,
    "shared_tensors": SharedTensor,
}


def _own_fields(result: RunResult) -> dict[str, Any]:
    """The fields of result.json in their order, without what a subclass adds."""
    return {name: getattr(result, name) for name in RunResult.__dataclass_fields__}


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of escaped texts."""
    titles = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    start = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f"<table>{start}<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def result_of(
    world: SimulationSetup,
    journal: Journal,
    scores: list[Score],
    curve: Sequence[ColdStart] | None,
    wall: float,
    command: str,
) -> RunResult:
    """The result of a run whose rounds are finished, and what the report shows beside it."""
    config = world.config
    planned = world.model_cache.of(config.plan("main", world.cohort))
    figures = world.privacy_figures()
    against = [score.versus for score in scores if score.versus is not None]
    logs = journal.logs()
    trained = tuple(RoundSummary.of(log) for log in logs if log.phase != "close")
    best = ends_with(config, logs)
    return RunResult(
        dataset=world.federation.name,
        base_model=config.model.base_model,
        share=config.adapter.share,
        head=config.head.value,
        objective=config.model.objective,
        clients=len(world.federation.people),
        pairs=config.data.pairs,
        rounds=config.federation.rounds,
        seed=config.seed,
        secagg=config.privacy.secagg,
        dp=figures,
        evaluated_on=config.data.evaluate,
        accuracy=float(np.mean([score.accuracy for score in scores])),
        cold_start_accuracy=curve[-1].mean if curve else None,
        cold_start=None if curve is None else tuple(curve),
        per_client=tuple(
            ClientScore(
                score.client, score.n_test, score.accuracy, score.n_train, ranked_right(score.margins)
            )
            for score in scores
        ),
        rounds_log=trained,
        wall_seconds=wall,
        peak_rss_mb=_peak_rss_mb(),
        command=command or shlex.join(["penchant", *sys.argv[1:]]),
        config=tomllib.loads(config.to_toml()),
        versions=run_directory.versions(),
        digests={
            "configuration": config_digest(config),
            "data": world.federation.digest,
            "base model": planned.model.digest,
        },
        caveats=(
            *world.caveats(),
            *_ended(config.federation.rounds, trained, best),
            *_tied(scores),
            *_overstated(scores),
        ),
        best_round=best,
        served=served(against) if against else None,
        models_in_use=ModelsInUse.of([score.blend for score in scores if score.blend is not None]),
        shared_tensors=tuple(SharedTensor(s.name, tuple(s.shape)) for s in planned.split.shared.specs),
    )


def _ended(rounds: int, trained: Sequence[RoundSummary], best: int | None) -> list[str]:
    """What must be said of a run that did not end with its last round's factors."""
    if best is None:
        return []
    return [
        f"Held-out choices were ranked best after round {best}, whose shared factors the run ends with; "
        f"{trained[-1].round} of {rounds} rounds were trained."
    ]


def _tied(scores: Sequence[Score]) -> list[str]:
    """What must be said of pairs whose two texts have one score."""
    tied, total = sum(score.tied for score in scores), sum(score.n_test for score in scores)
    said = [f"{tied} of {total} scored pairs have equal scores, which count as ranked wrong."] if tied else []
    ties = sum(score.ties for score in scores)
    if ties:
        expected = sum(score.ties_expected for score in scores)
        said.append(
            f"{ties} held-out pairs in which people preferred neither response are left out of the accuracy; "
            f"by the trained models {expected:.0f} of {total + ties} pairs were to be such."
        )
    return said


def _overstated(scores: Sequence[Score]) -> list[str]:
    """What must be said of models that promise more than they keep where they are surest."""
    gap = proxy_gap([margin for score in scores for margin in score.margins])
    return [gap.warning()] if gap is not None and gap.parts else []


def _peak_rss_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
