"""A private race between settings: successive halving, by the held-out counts of masked sums.

Every candidate begins an ordinary run in a folder of its own, with the same seed, so that the same people are
asked in the same rounds. After some rounds the better half goes on, which the server's counts decide
(`server.standing`); nothing has been judged on test pairs by then. The last one's run moves up into the run
directory and goes on to its end: no round of it is trained twice. Jamieson and Talwalkar, *Non-stochastic
best arm identification and hyperparameter optimization* (AISTATS 2016).

With noise all sums of a person, in whatever candidate's run, are paid for by the one epsilon that was asked
for: each run's noise is made for as many participations as race and run can take together
(`dp_participations`), so each sum costs at most that part of rho, and rho adds up. No device takes part in
more sums of a candidate than are set aside for its heat, nor in more of the run than the losers have left.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from penchant.client.learning.model_cache import simulated_models
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation
from penchant.common.errors import (
    ConfigError,
    DataError,
    DeviceError,
    JournalError,
    ProtocolError,
    RoundFailed,
    RunDirectoryError,
    UsageError,
)
from penchant.common.privacy.accounting import epsilon_of
from penchant.common.secagg.stages import MASKED
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.storage import sync_directory
from penchant.common.wording import counted
from penchant.deploy import datasets, run_directory
from penchant.deploy.recipes import GENERAL, recipe
from penchant.deploy.simulation.candidates import Candidate, candidates
from penchant.deploy.simulation.race_record import RACE, RECORD, Entrant, Heat, RaceRecord
from penchant.deploy.simulation.runner import train_until
from penchant.deploy.simulation.world import Progress, SimulationSetup, prepare
from penchant.server.journal import RoundLog
from penchant.server.journal_reader import JournalReader
from penchant.server.noise_terms import settle_noise
from penchant.server.standing import POOLED, RunStanding, going_on, standing

__all__ = ["LEAST_ROUNDS", "RacePlan", "begun_race", "is_racing"]

LEAST_ROUNDS: Final = POOLED + 1
"""Rounds of the first heat: those that are pooled, and one whose counts are of the run's own start."""

TURNS: Final = 2
"""How often everybody is asked in the first heat: a personal part is judged after its person trained it."""

SPARE: Final = 1
"""Further turns that are set aside for each heat of a candidate: for an attempt that fails after masked
vectors have left, and is paid for all the same."""


class _RaceProgress(Progress):
    """Says whose rounds they are."""

    def __init__(self, progress: Progress, name: str, rounds: int) -> None:
        self._progress, self._name, self._rounds = progress, name, rounds

    def stage(self, text: str) -> None:
        """As `Progress.stage`."""
        self._progress.stage(f"race, {self._name}: {text}")

    def round(self, log: RoundLog, last: int) -> None:
        """As `Progress.round`; the heat's last round is the last."""
        self._progress.round(log, min(last, self._rounds))


@dataclass(frozen=True)
class RacePlan:
    """A race that can begin, or go on.

    worlds: of the candidates, by name, the cheapest first: the same people, and one cache of models.
    """

    record: RaceRecord
    worlds: Mapping[str, SimulationSetup]

    @classmethod
    def of(cls, asked: Mapping[str, Any], people: Federation | None = None) -> Self:
        """Plan a race with the settings that were given, by dotted keys; nothing is written.

        people: those of the run, where they are in memory already.

        Raises UsageError, ConfigError, DataError or BaseModelError for what can't work.
        """
        entered = candidates(asked)
        _refuse_unraceable(entered[0].config)
        worlds = _worlds(entered, people)
        first = next(iter(worlds.values()))
        members = len(first.federation.people)
        heats = _heats(len(worlds), first.config.federation.rounds, first.cohort, members)
        if first.config.privacy.dp_epsilon:
            worlds = _noised(worlds, heats)
        record = RaceRecord(
            asked=_before_a_choice(asked, entered).to_toml(),
            people=members,
            entrants=tuple(
                Entrant(name, world.config.adapter.share, world.config.to_toml())
                for name, world in worlds.items()
            ),
            heats=tuple(heats),
        )
        return cls(record, worlds)

    @classmethod
    def resumed(cls, directory: Path, people: Federation | None = None) -> Self:
        """The race that was begun in a directory. RunDirectoryError where there is none."""
        record = RaceRecord.read(directory)
        if record is None:
            raise RunDirectoryError(f"{directory} holds no race: it has no {RECORD}")
        entered = [Candidate(one.name, record.config(one.name)) for one in record.entrants]
        return cls(record, _worlds(entered, people))

    @property
    def asked(self) -> RunConfig:
        """The configuration of the run before anything was chosen."""
        return RunConfig.from_toml(self.record.asked)

    @property
    def cost(self) -> str:
        """What the race will cost, for whoever begins it."""
        rounds = self.asked.federation.rounds
        lost = sum(heat.rounds * out for heat, out in _lost(self.record.heats, len(self.worlds)))
        named = ", ".join(self.worlds)
        text = (
            f"A race chooses the settings first, among {named}: {counted(lost, 'round')} beside the "
            f"{rounds} of the run, {(lost + rounds) / rounds:.1f} times the rounds of one"
        )
        privacy = next(iter(self.worlds.values())).config.privacy
        if not privacy.dp_epsilon:
            return text
        return f"{text}; race and run together keep epsilon {privacy.dp_epsilon:g}"

    def begin(self, directory: Path) -> None:
        """Make `directory` the one of this race. RunDirectoryError when anything is there already."""
        run_directory.refuse_used(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with run_directory.claim(directory):
                run_directory.refuse_used(directory)  # another process may have been quicker
                self.record.write(directory)
        except OSError as error:
            raise RunDirectoryError(f"can't write into {directory}: {error.strerror}") from None

    def run(self, directory: Path, progress: Progress | None = None) -> SimulationSetup:
        """Race, or go on racing, until one is left; `directory` is then the directory of its run, which
        `simulate` ends. -> that run's setup.

        Raises RoundFailed or DeviceError where every candidate's training fails, and as `simulate` does.
        """
        with run_directory.claim(directory):
            record = RaceRecord.read(directory) or self.record
            while not record.chosen:
                record = self._heat(record, directory, progress or Progress())
                record.write(directory)
            _move_up(directory / RACE / record.chosen, directory)
        return self.worlds[record.chosen]

    # --- a heat ----------------------------------------------------------------------------------

    def _heat(self, record: RaceRecord, directory: Path, progress: Progress) -> RaceRecord:
        """The record after the next heat."""
        heat, racing = record.heats[record.over], record.racing
        judged: list[Entrant] = []
        standings: list[RunStanding | None] = []
        failures: list[Exception] = []
        for one in racing:
            home, found, why = directory / RACE / one.name, None, ""
            try:
                found = self._standing(one, heat, home, progress)
            except (DeviceError, ProtocolError, RoundFailed) as error:
                failures.append(error)
                why = str(error)
            standings.append(found)
            judged.append(_stood(one, found, home, why))
        if len(failures) == len(racing):
            raise failures[0]
        there = [place for place, one in enumerate(judged) if not one.why]
        chosen = going_on([standings[place] for place in there], heat.stay)
        on = {judged[there[place]].name for place in chosen}
        news = {one.name: replace(one, heats=one.heats + (one.name in on)) for one in judged}
        entrants = tuple(news.get(one.name, one) for one in record.entrants)
        record = replace(record, entrants=entrants, over=record.over + 1)
        return self._ended(record) if len(on) == 1 else record

    def _standing(self, one: Entrant, heat: Heat, home: Path, progress: Progress) -> RunStanding | None:
        """How a candidate stands once it has trained so far in the directory of its run."""
        world = self.worlds[one.name]
        if not (home / run_directory.CONFIG).exists():
            run_directory.create(home, world.config)
        people = len(world.federation.people)
        heard = _RaceProgress(progress, one.name, heat.rounds)
        sums = _most_turns(heat, world.cohort, people) if world.config.privacy.dp_epsilon else None
        logs = train_until(world, home, heat.rounds, heard, sums=sums)
        return standing(world.config, logs, people, _layout(world).count_error(world.cohort))

    def _ended(self, record: RaceRecord) -> RaceRecord:
        """The record of a race that one is left of, with what it cost."""
        (winner,) = record.racing
        losers = [one for one in record.entrants if one.name != winner.name]
        record = replace(record, chosen=winner.name, rounds=sum(one.rounds for one in losers))
        own = self.worlds[winner.name].privacy_figures()
        if own is None:
            return record
        turns = {one.name: self._turns(one, record.heats[one.heats]) for one in losers}
        rho = sum(count * _rho(self.worlds[name]) for name, count in turns.items())
        left = own.participations - sum(turns.values())  # as `Race.sums_left`
        return replace(
            record,
            participations=sum(turns.values()),
            epsilon=epsilon_of(rho, own.delta),
            epsilon_left=epsilon_of(left * own.rho, own.delta),
        )

    def _turns(self, loser: Entrant, heat: Heat) -> int:
        """In how many sums of a loser a person is at most; heat: the one after which it was out.

        The devices of a round that is tried again are the same, and refuse what is beyond the most.
        """
        world = self.worlds[loser.name]
        people = len(world.federation.people)
        again = loser.paid - loser.rounds
        return min(
            _turns(loser.rounds, world.cohort, people) + again, _most_turns(heat, world.cohort, people)
        )


def is_racing(directory: Path) -> bool:
    """Whether a race was begun in a directory, and nobody's run has come out of it yet."""
    return (directory / RECORD).is_file() and not (directory / run_directory.CONFIG).exists()


def begun_race(directory: Path) -> RunConfig:
    """The configuration that was asked for when the race in a directory was begun; RunDirectoryError where
    there is none."""
    record = RaceRecord.read(directory)
    if record is None:
        raise RunDirectoryError(f"{directory} holds no race: it has no {RECORD}")
    return RunConfig.from_toml(record.asked)


# --- before it begins -----------------------------------------------------------------------------


def _refuse_unraceable(config: RunConfig) -> None:
    if config.grid != "local":
        raise ConfigError(
            "a race runs on the local grid; drop grid ray, or name a share",
            on_command_line="--auto runs on the local grid; drop --grid ray, or name a --share",
            about=("grid",),
        )
    if not config.data.validation_pairs:
        raise ConfigError(
            "a race goes by held-out choices, and data.validation_pairs is 0; ask for some, or name a share",
            about=("data.validation_pairs",),
        )


def _before_a_choice(asked: Mapping[str, Any], entered: Sequence[Candidate]) -> RunConfig:
    """The configuration with what was asked for, before a share is chosen: it has the default one, or where
    that does not suit what was asked for, the first candidate's."""
    shares = [one.config.adapter.share for one in entered]
    usual = RunConfig().adapter.share
    share = usual if usual in shares else shares[0]
    return RunConfig().changed({"adapter.share": share, **recipe(GENERAL, ""), **asked})


def _worlds(entered: Sequence[Candidate], people: Federation | None) -> dict[str, SimulationSetup]:
    """A world for each candidate: the same people, the same cohorts, one cache of models."""
    config = entered[0].config
    federation = datasets.configured(config.data, config.seed) if people is None else people
    first = prepare(config, simulated_models(), federation)
    if not any(person.validation for person in first.federation.people):
        raise DataError("nobody has choices to hold out, by which a race goes; name a share")
    worlds = {}
    for one in entered:
        same = one.config.changed({"federation.cohort": first.cohort})
        world = prepare(same, first.model_cache, federation)
        worlds[one.name] = replace(world, federation=first.federation)
    return worlds


def _heats(entrants: int, rounds: int, cohort: int, people: int) -> list[Heat]:
    """How far each heat goes, and how many go on: half of them, each time after twice the rounds.

    UsageError where the run's rounds are too few.
    """
    stays = []
    left = entrants
    while left > 1:
        left //= 2
        stays.append(left)
    doubled = 2 ** (len(stays) - 1)
    if LEAST_ROUNDS * doubled > rounds:
        raise UsageError(
            f"a race among {entrants} needs {LEAST_ROUNDS * doubled} rounds or more, and the run has "
            f"{rounds}; ask for more, or name a share",
            on_command_line=f"a race among {entrants} needs {LEAST_ROUNDS * doubled} rounds or more, and the "
            f"run has {rounds}; ask for more with --rounds, or name a --share",
        )
    met = -(
        -TURNS * people // cohort
    )  # rounds until everybody was asked so often, if they were asked in turn
    first = max(LEAST_ROUNDS, min(met, rounds // (2 * doubled)))
    return [Heat(first * 2**number, stay) for number, stay in enumerate(stays)]


def _lost(heats: Sequence[Heat], entrants: int) -> list[tuple[Heat, int]]:
    """Each heat, and how many are out after it."""
    before = [entrants, *(heat.stay for heat in heats)]
    return [(heat, start - heat.stay) for heat, start in zip(heats, before, strict=False)]


def _turns(rounds: int, cohort: int, people: int) -> int:
    """In how many of so many rounds a person is at most, where cohorts are drawn in turn."""
    return min(-(-rounds * cohort // people), rounds)


def _most_turns(heat: Heat, cohort: int, people: int) -> int:
    """In how many sums of a candidate a person may be until the end of a heat."""
    return _turns(heat.rounds, cohort, people) + SPARE


def _noised(worlds: Mapping[str, SimulationSetup], heats: Sequence[Heat]) -> dict[str, SimulationSetup]:
    """The worlds with noise that pays for the whole race. ConfigError where it hides what a race goes by."""
    made = {}
    for name, world in worlds.items():
        people = len(world.federation.people)
        lost = _lost(heats, len(worlds))
        race = sum(_most_turns(heat, world.cohort, people) * out for heat, out in lost)
        config = settle_noise(world.config, world.cohort, people)  # of the run alone
        turns = config.privacy.dp_participations + race
        try:
            made[name] = replace(world, config=config.changed({"privacy.dp_participations": turns}))
            shown = _layout(made[name]).shows_counts(world.cohort)
        except ConfigError:
            shown = False
        if not shown:
            raise _too_little(config, world.cohort, turns)
    return made


def _too_little(config: RunConfig, cohort: int, turns: int) -> ConfigError:
    wrong = (
        f"epsilon {config.privacy.dp_epsilon:g} is too little for a race: shared among {turns} sums of "
        f"{cohort} people, its noise hides the counts that a race goes by; raise it, ask more people a "
        "round, or"
    )
    return ConfigError(
        f"{wrong} name a share", on_command_line=f"{wrong} name a --share", about=("privacy.dp_epsilon",)
    )


def _layout(world: SimulationSetup) -> UpdateLayout:
    """The form of a usual round's vectors."""
    plan = world.config.plan("main", world.cohort)
    return UpdateLayout.of(plan, world.model_cache.of(plan).split)


def _rho(world: SimulationSetup) -> float:
    """What one sum of a candidate's run costs a person."""
    figures = world.privacy_figures()
    return 0.0 if figures is None else figures.rho


# --- after a heat ---------------------------------------------------------------------------------


def _stood(one: Entrant, found: RunStanding | None, home: Path, why: str) -> Entrant:
    """A candidate after a heat, whose run is in `home`."""
    contents = JournalReader(home).contents()
    attempts = contents.attempts
    paid = sum(
        attempt.state == "finished"
        or any(stage.name == MASKED for stage in contents.stages.get((attempt.round, attempt.attempt), ()))
        for attempt in attempts
    )
    done = sum(attempt.state == "finished" and attempt.phase != "close" for attempt in attempts)
    one = replace(one, rounds=done, tried=len(attempts), paid=paid, why=why)
    if found is None:
        return replace(one, accuracy=None, error=None, judged=None)
    return replace(one, accuracy=found.accuracy, error=found.error, judged=found.judged)


def _move_up(winner: Path, directory: Path) -> None:
    """Make the winner's run that of the race's directory. Whatever is interrupted is done again: the
    configuration, with which it is a run, comes last."""
    try:
        if not winner.is_dir():
            if (directory / run_directory.CONFIG).exists():
                return
            raise JournalError(f"{winner}, which won the race, is gone; put it back, or start anew")
        for path in sorted(winner.iterdir(), key=lambda path: (path.name == run_directory.CONFIG, path.name)):
            if not path.name.startswith("."):
                os.replace(path, directory / path.name)
                sync_directory(directory)
        for left in winner.iterdir():  # locks
            left.unlink()
        winner.rmdir()
    except OSError as error:
        raise RunDirectoryError(f"can't write into {directory}: {error.strerror}") from None
