"""What a device's owner does with its model, without any server: train, rank, ask, judge, export, forget."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penchant.client.agent.agent import Agent
from penchant.client.agent.kept_model import Model, blend_of, kept_with, model_of
from penchant.client.agent.owner import member_identity
from penchant.client.agent.policy import OwnerPolicy
from penchant.client.device.conversation_form import learned_from_conversations
from penchant.client.device.explaining import Explanation, explained
from penchant.client.device.export import Export, export_peft
from penchant.client.device.fitted import About, Fitted, personal_digest
from penchant.client.device.home import AUTHORITY, MODEL, DeviceHome, OfflineConfig
from penchant.client.device.known_release import (
    KnownFleets,
    KnownRelease,
    checked_release,
    known_release,
    newest_offered,
    noted,
    refuse_use,
)
from penchant.client.device.onnx_export import export_onnx
from penchant.client.device.preference_store import (
    Recorded,
    RecordedTie,
    held_out,
    marks_of,
)
from penchant.client.device.privacy_report import PrivacyReport, privacy_report
from penchant.client.device.ranked import Ranked
from penchant.client.learning.active import ActiveLearner
from penchant.client.learning.best_of_n import Generator
from penchant.client.learning.chosen import Blend
from penchant.client.learning.doubt import Doubt, doubt_of, numbers_kept
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.laplace import Laplace, probability
from penchant.client.learning.local_round import settled_part
from penchant.client.learning.merged_model import MergedModel
from penchant.client.learning.model_cache import ModelCache, PlannedModel, device_models
from penchant.client.learning.newcomer import fit_newcomer, prior_of
from penchant.client.learning.outcome import Counts
from penchant.client.learning.proxy_gap import ProxyGap, proxy_gap
from penchant.client.learning.trainer import LocalTrainer
from penchant.client.vault.budget import ALONE, RELEASED, DiskUse, Room
from penchant.client.vault.fitted_store import FittedStore
from penchant.client.vault.ownership import read_owned
from penchant.client.vault.run_ledger import KnownRun
from penchant.common.config import Plan
from penchant.common.data.preferences import Preference, without_ties
from penchant.common.errors import (
    BaseModelError,
    ConfigError,
    DataError,
    DeviceError,
    PenchantError,
    PolicyRefusal,
    UsageError,
)
from penchant.common.membership.identity import authority_digest
from penchant.common.membership.release_manifest import ReleaseAsk, ReleaseManifest, ReleaseOffer
from penchant.common.model.davidson import habits_of, nu_of
from penchant.common.model.reward import Reading
from penchant.common.settings import build_section
from penchant.common.wording import counted

__all__ = [
    "OTHER_SETTINGS",
    "Device",
    "Forgotten",
    "Liked",
    "ModelInUse",
    "Quality",
    "Ranked",
    "Report",
    "Standing",
]

Vector = NDArray[np.float32]

SEED = 0  # of the common start; protects nothing
TRAIN = "`penchant device train`"
OTHER_SETTINGS = f"the model was trained with other settings than model.toml has now: {TRAIN}"
POSTERIOR_MOST = 1 << 27  # numbers in the gradients of all texts, 8 bytes each, computed with at once
KEPT_MOST = 1 << 26  # numbers, 4 bytes each, that are kept so that errors can be told


def _nobody(said: str) -> None:
    """Who listens to nothing."""


@dataclass(frozen=True)
class Liked:
    """How much more the owner's model likes a text than the average of those looked at, in log-odds.

    error: the score's standard error, None as in `Ranked`.
    """

    prompt: str = field(repr=False)
    response: str = field(repr=False)
    score: float
    error: float | None = None


@dataclass(frozen=True)
class Quality:
    """How both models do on the owner's held-out choices; `common`: the one without the person."""

    personal: Counts
    common: Counts


@dataclass(frozen=True)
class Standing:
    """What the model in use is to the choices that are recorded now.

    Attributes:
        newer: how many choices and ties were recorded since it was trained here, those held out among them.
        errors: whether the errors of its scores are known.
        why_not: why they are not, and what to do; empty where they are, or where nothing personal was fitted.
        gone: how many choices and ties of then are there no more: they were taken back, or turned round (the
            turned one is newer).
        other_settings: whether it was trained here alone, and model.toml says something else by now.
        blend: which model is in use, and why; None where there was nothing to choose between.
    """

    newer: int
    errors: bool
    why_not: str = ""
    gone: int = 0
    other_settings: bool = False
    blend: Blend | None = None

    def notes(self) -> list[str]:
        """What the owner should know of it, a sentence each; none where all is as it should be."""
        newer, gone = counted(self.newer, "newer choice"), counted(self.gone, "choice")
        said = [
            (self.newer, f"{newer} {'is' if self.newer == 1 else 'are'} not in the model: {TRAIN}"),
            (
                self.gone,
                f"{gone} that the model knows {'was' if self.gone == 1 else 'were'} taken back or changed "
                f"since: {TRAIN}",
            ),
            (self.other_settings, OTHER_SETTINGS),
            (self.why_not, self.why_not),
            (self.blend and self.blend.percent < 100, self.blend.words() if self.blend else ""),
        ]
        return [sentence for holds, sentence in said if holds]


@dataclass(frozen=True)
class ModelInUse:
    """The model that ranks for the owner now, ready to score.

    Attributes:
        planned: the reward model, loaded, and its plan.
        personal: whether a personal part was fitted; without one it is the model that knows nobody.
    """

    planned: PlannedModel
    personal: bool
    _trainer: LocalTrainer = field(repr=False)
    _shared: Vector = field(repr=False)
    _own: Vector = field(repr=False)

    def scores(self, texts: Sequence[tuple[str, str]]) -> Vector:
        """Scores [n], float32, of n (prompt, response); as `Device.rank` gives them."""
        prepared = self.planned.model.prepare_texts(texts)
        return self._trainer.score(self._shared, self._own, prepared)


@dataclass(frozen=True)
class Forgotten:
    """What forgetting some choices did.

    Attributes:
        removed: how many choices are deleted; ties: and how many ties.
        left: how many there still are.
        learned: whether what was learned from them was deleted with them; not so where all of them were held
            out, and no share rule asked those anything.
        fitted: whether a personal part was fitted to the rest.
        why_not: why it was not, where it should have been; empty otherwise.
    """

    removed: int
    left: int
    learned: bool
    fitted: bool
    why_not: str = ""
    ties: int = 0


@dataclass(frozen=True)
class Report:
    """What `status` says."""

    choices: int
    held_out: int
    sources: dict[str, int]
    member: int | None  # None: in no fleet
    absent: str  # why this device takes part in nothing now; empty when it does
    run: str  # hex, empty before the first run
    round: int
    rounds_joined: int
    refused: tuple[tuple[str, str, str], ...]
    left: tuple[tuple[str, int, int], ...]  # (name, count, total bytes) of everything that ever left
    quality: Quality | None  # None without held-out choices, or without a base model
    blend: Blend | None  # which model is in use, and why; None where there was nothing to choose between
    unknown: str  # why the quality is not known
    disk: DiskUse
    disk_most: int | None  # bytes that the owner allows the vault; None when policy.toml can't be read
    runs: tuple[KnownRun, ...] = ()  # that asked for this device, the latest last
    each_run: bool = False  # whether the owner accepts each run
    privacy: PrivacyReport | None = None
    last_taken: int | None = None  # the day of its last round, as of `common.membership.manifest.shown_day`
    ties: int = 0  # those whose keys are gone among them
    lost_ties: int = 0  # those
    other_settings: bool = False  # as of `Standing`
    release: KnownRelease | None = None  # the newest that was meant for this device


class Device(DeviceHome):
    """One device, for its owner: its home, and what needs a model."""

    def __init__(
        self, directory: Path, passphrase: str | None = None, model_cache: ModelCache | None = None
    ) -> None:
        super().__init__(directory, passphrase)
        self._fitted = Fitted(FittedStore(directory, self.storage))
        self._shares_cache = model_cache is not None
        self._model_cache = device_models(None, directory) if model_cache is None else model_cache

    def agent(self) -> Agent:
        """As `DeviceHome.agent`; but where this device was opened with a model cache that others share, it
        works in this process and waits for nothing."""
        if self._shares_cache:
            return self._agent(InThisProcess(self._model_cache), None)
        return super().agent()

    # --- the model -----------------------------------------------------------------------------------

    def train(self, tell: Callable[[str], None] = _nobody) -> Report:
        """Fit the personal part alone, and how sure it is, to all recorded choices and ties but the held-out
        ones; nothing leaves. Alone it is by model.toml as it is now, whatever it was before.

        tell: is told what is being done, in a few words, before it begins.

        Raises DataError without choices, DeviceError when training diverges, or when the running agent has
        changed the model meanwhile: what a round made is kept.
        """
        version, marks = self.vault.version(), self.store.marks()
        choices = self.choices()
        if not choices.train:
            raise DataError("there are no choices to learn from; import some with `penchant device import`")
        tell("loading the base model")
        latest = self.vault.latest()
        alone = latest is None or latest[0] == ALONE
        planned, run, number, factors, kept = self._begun_alone() if alone else self._model()
        shared, start = planned.parts(factors)
        trainer = planned.trainer(start)
        known = _counted(choices.train)
        tell(f"reading {known}")
        prepared = planned.model.prepare(choices.train)
        tell(f"learning from {known}")
        if run == ALONE:
            outcome = trainer.train(shared, start, prepared, SEED)
            personal = outcome.personal
        elif kept is None and not _too_large(choices.train, start):
            personal = fit_newcomer(planned, factors, choices.train)
        else:
            first = start if kept is None else kept
            personal = trainer.fit_personal(shared, first, prepared, SEED, epochs=_epochs(planned.plan))
        blend = None
        if run != ALONE:
            personal, blend = settled_part(planned, shared, start, personal, choices.validation)
        context = kept_with(_context(planned, factors), blend)
        kept_as = self.vault.keep_personal(run, number, personal, context, version=version)
        tell("finding out how sure it is")
        self._fit_errors(choices.train, marks, kept_as)
        tell("judging by the choices that were held out")
        return self.report()

    def fit_errors(self) -> None:
        """Fit how sure the model in use is, after all recorded choices but the held-out ones, and leave it as
        it is. For one that a round has made: `train` does it by itself. Errors as `train`."""
        version, marks, choices = self.vault.version(), self.store.marks(), self.choices().train
        if not choices:
            raise DataError("there are no choices to learn from; import some with `penchant device import`")
        self._fit_errors(choices, marks, version)

    def standing(self) -> Standing:
        """Whether newer choices wait to be trained on, and whether errors are known."""
        latest, about, other = self.vault.latest(), self._about(), self._other_settings()
        if latest is None or not latest[1].vector.size:
            return Standing(0, errors=False)
        blend = blend_of(latest[1].context)
        if about is None:
            return Standing(
                0,
                errors=False,
                why_not=f"no errors are known of this model: {TRAIN}, or `rank --fit-errors`",
                other_settings=other,
                blend=blend,
            )
        why_not = "" if about.errors else "the personal part is too large for errors to be computed"
        then, now = marks_of(about.marks), marks_of(self.store.marks())
        return Standing(len(now - then), about.errors, why_not, len(then - now), other, blend)

    def rank(self, prompt: str, responses: Sequence[str]) -> list[Ranked]:
        """The responses, the one that the owner would like most first. DataError without any."""
        if not responses:
            raise DataError("there are no responses to rank; give one per line")
        planned, _, _, factors, kept = self._model()
        shared, start = planned.parts(factors)
        trainer = planned.trainer(start)
        personal = start if kept is None else kept
        texts = [(prompt, response) for response in responses]
        own, common = (trainer.rewards(shared, part, texts) for part in (personal, start))
        best = sorted(range(len(responses)), key=lambda index: -own[index])
        ranked = [Ranked(responses[i], float(own[i]), float(common[i])) for i in best]
        about = self._about()
        if kept is None or about is None or not about.errors:
            return ranked
        laplace = planned.laplace(shared)
        return _with_doubt(laplace, self._fitted.doubt(), kept, prompt, ranked)

    def explain(self, prompt: str, ranked: Sequence[str]) -> list[Explanation]:
        """Why each response comes before the next one: which of the owner's choices speak for it.

        ranked: responses as `rank` orders them. Only choices that the model was learned from have a say, no
        ties and no held-out one. DataError where that isn't known: nothing is trained here, or no errors were
        fitted.
        """
        planned, _, _, factors, kept = self._model()
        about = self._about()
        if kept is None or about is None or not about.errors:
            why_not = self.standing().why_not or "nothing personal is fitted yet: `penchant device train`"
            raise DataError(f"which choices speak for it is not known: {why_not}")
        shared, _ = planned.parts(factors)
        known = marks_of(about.marks)
        choices = [row for mark, row in self.store.marked() if mark in known and not held_out(row.preference)]
        ties = [row for mark, row in self.store.marked_ties() if mark in known and not held_out(row.pair)]
        habits = habits_of([*(row.preference for row in choices), *(row.preference for row in ties)])
        laplace = planned.laplace(shared)
        texts = [(prompt, response) for response in ranked]
        return explained(laplace, self._fitted.doubt(), kept, texts, choices, habits)

    def proxy_gap(self) -> ProxyGap | None:
        """How far the model in use is right where it is surest, by the choices that were held out when it was
        fitted here; None where none were, or it was not. No choice is opened for it, and no model loaded."""
        about = self._about()
        if about is None:
            return None
        if marks_of(about.marks) <= marks_of(self.store.marks()):
            return self._fitted.gap()
        return None  # it may say something of a choice that was taken back

    def conversational(self) -> bool:
        """Whether the model learned from conversations (`conversation_form`)."""
        about = self._about()
        return learned_from_conversations(self.store.train()) if about is None else about.conversations

    def knows_conversations(self) -> bool:
        """Whether there are choices, and the model learned from conversations."""
        return len(self.store) > 0 and self.conversational()

    def writes(self) -> bool:
        """Whether the model in use is a policy, which writes, and not one that only ranks. No base model is
        loaded for it."""
        return not self._plan_in_use().model.rule.has_head

    def generator(self) -> Generator:
        """What writes with the owner's policy; its base model is the one that ranks, and not a second one.

        UsageError, before anything is loaded, where the model in use only ranks.
        """
        if not self.writes():
            named = self._plan_in_use().model.objective
            raise UsageError(
                f'the model on this device ranks and does not write (objective "{named}"): `penchant device '
                "best-of` takes the best of n responses of another model; to have one that writes, set "
                'objective = "dpo" in model.toml and train'
            )
        planned, _, _, factors, kept = self._model()
        return Generator.of(MergedModel.of(planned, factors, kept))

    def liking(self, texts: Sequence[tuple[str, str]]) -> list[Liked]:
        """How much more than their average the model in use likes (prompt, response) texts, the most liked
        first.

        What a score says of a text alone is hardly known, however many choices there are: choices tell
        differences. Scores compare best between responses to one prompt. Errors as `rank`.
        """
        if not texts:
            return []
        planned, _, _, factors, kept = self._model()
        shared, start = planned.parts(factors)
        about = self._about()
        if kept is None or about is None or not about.errors or len(texts) * kept.size > POSTERIOR_MOST:
            scores = planned.trainer(start).rewards(shared, start if kept is None else kept, texts)
            above = scores - scores.mean()
            found = [Liked(*text, float(score)) for text, score in zip(texts, above, strict=True)]
        else:
            laplace = planned.laplace(shared)
            own, gradients = laplace.score_gradients(kept, texts)
            above, errors = own - own.mean(), self._fitted.doubt().error(gradients - gradients.mean(axis=0))
            found = [
                Liked(*text, float(score), float(error))
                for text, score, error in zip(texts, above, errors, strict=True)
            ]
        return sorted(found, key=lambda row: -row.score)

    def model_in_use(self) -> ModelInUse:
        """The model that `rank` ranks with now, for whoever scores more than once.

        It is out of date as soon as `Vault.version` is another one.
        """
        planned, _, _, factors, kept = self._model()
        shared, start = planned.parts(factors)
        own = start if kept is None else kept
        return ModelInUse(planned, kept is not None, planned.trainer(start), shared, own)

    def reading(self, prompt: str, responses: Sequence[str]) -> Reading:
        """How much of responses the model reads, and how many pairs of neighbours it can't tell apart."""
        planned = self._model()[0]
        kept = [response for response in dict.fromkeys(responses) if response.strip()]
        pairs = [Preference(prompt, one, other) for one, other in itertools.pairwise(kept)]
        return planned.model.reading(pairs, [(prompt, response) for response in kept])

    def learner(self, candidates: Sequence[Preference]) -> ActiveLearner:
        """Which of these comparisons to ask about next, given all recorded choices but the held-out ones.

        Raises DataError when they are too many for the size of the personal part.
        """
        planned, _, _, factors, _ = self._model()
        shared, start = planned.parts(factors)
        choices = self.choices().train
        if _too_large([*candidates, *choices], start):
            raise DataError(
                f"{len(candidates)} comparisons are too many to find the most informative one; give fewer"
            )
        laplace = planned.laplace(shared)
        prior = prior_of(planned, laplace, start, candidates)
        return ActiveLearner(laplace, prior, candidates, choices)

    def report(self, *, judged: bool = True) -> Report:
        """What is recorded, what was joined, what left, and how good the model is. Nothing is changed.

        judged: whether the model is loaded and judged by the held-out choices, which takes a while.
        """
        quality, unknown = self._quality() if judged else (None, "it was not looked at")
        latest = self.vault.latest()
        in_rounds = self.uses_rounds()
        run, number = (latest[0].hex(), latest[1].round) if latest and in_rounds else ("", 0)
        rounds = {(joined, at) for joined, at, unmasked in self.vault.rounds() if unmasked}
        return Report(
            choices=len(self.store),
            held_out=len(self.store.validation()),
            sources=self.store.sources(),
            member=self.member,
            absent=self._absent(),
            run=run,
            round=number,
            rounds_joined=len(rounds),
            refused=tuple(self.vault.refusals()),
            left=tuple(self.vault.sent()),
            quality=quality,
            blend=blend_of(latest[1].context) if latest else None,
            unknown=unknown,
            disk=self.vault.disk_use(),
            disk_most=self._disk_most(),
            runs=tuple(self.vault.ledger.runs()),
            each_run=self._accepts_each(),
            privacy=self.privacy(),
            last_taken=self.vault.ledger.last_taken(),
            ties=self.store.count_ties(),
            lost_ties=self.store.lost_ties(),
            other_settings=self._other_settings(),
            release=self.release(),
        )

    def privacy(self) -> PrivacyReport:
        """What taking part has cost, and what of it can't be taken back."""
        try:
            policy = self.policy()
            most, delta = policy.max_epsilon, policy.delta
        except ConfigError:  # `absent` says so
            most, delta = None, OwnerPolicy().delta
        return privacy_report(self.vault, most, delta)

    def _disk_most(self) -> int | None:
        try:
            return self.policy().max_disk_mb << 20
        except ConfigError:  # `absent` says so
            return None

    def _quality(self) -> tuple[Quality | None, str]:
        """(quality, or None, and why)."""
        held = self.choices().validation
        if not without_ties(held):
            return None, "no choices are held out yet: record more"
        try:
            planned, _, _, factors, kept = self._model()
        except (BaseModelError, ConfigError, DeviceError) as error:  # what else there is to say is said
            return None, str(error)
        shared, start = planned.parts(factors)
        trainer, prepared = planned.trainer(start), planned.model.prepare(held)
        nu = nu_of(self.choices().train)
        common = trainer.evaluate(shared, start, prepared, nu)
        personal = common if kept is None else trainer.evaluate(shared, kept, prepared, nu)
        return Quality(personal, common), ""

    def _accepts_each(self) -> bool:
        try:
            return self.policy().runs == "each"
        except ConfigError:  # said by `_absent`
            return False

    def _absent(self) -> str:
        """Why this device takes part in nothing now; empty when it does."""
        try:
            policy = self.policy()
            if self.member is None:
                return "in no fleet"
            policy.check_time()
        except (ConfigError, PolicyRefusal) as error:
            return str(error)
        return ""

    def export(self, directory: Path, base: str | None = None, *, gguf: bool = False) -> str:
        """Write the personal model as plain peft files (`client.export`); `base`: where its loader finds
        the base model, if not where it was published; `gguf`: with an adapter for llama.cpp. -> Why they hold
        no classifier of transformers, empty when they do."""
        merged = self._merged()
        return export_peft(Export.of(merged, base, gguf=gguf), directory, tried=merged)

    def export_onnx(self, directory: Path) -> None:
        """Write the personal model as one ONNX file with its tokenizer; errors as of `onnx_export`."""
        export_onnx(self._merged(), directory)

    def forget_choices(self, chosen: Sequence[Recorded], ties: Sequence[RecordedTie] = ()) -> Forgotten:
        """Delete these choices and ties and all that was learned from them, and fit the personal part to the
        rest.

        On this device all then is as if they had never been recorded; what left it in earlier rounds can't be
        taken back (`privacy`). Personal parts of all runs go, since each may have learned from them; that of
        the model in use is fitted anew, as a newcomer's is. A round that is open is given up. What was
        learned goes before the choices do, so that this can be done again where it was broken off.

        DeviceError when the disk refuses.
        """
        pairs = [choice.preference for choice in chosen]
        trained_on = not all(held_out(pair) for pair in (*pairs, *(tie.pair for tie in ties)))
        learned = trained_on or bool(chosen and self._held_out_counted())  # which asks no ties
        had_model, marks = self.vault.latest() is not None, set() if learned else self._marks(chosen, ties)
        if learned:
            self._forget_learned()
        else:
            self._fitted.leave_out(marks)
        untied = self.store.remove_ties(ties) if ties else 0
        removed = self.store.remove_these(chosen) if chosen else 0
        if learned:
            self._forget_learned()  # what an agent began or ended with them since
        else:
            self.vault.give_up_open()
            self._fitted.leave_out(marks)  # of what was fitted with them since
            with suppress(PenchantError):  # they are forgotten all the same, and nothing is said of the model
                self._judge_anew()
        fitted, why_not = False, ""
        if learned and had_model and self.store.train():
            try:
                self.train()
                fitted = True
            except PenchantError as error:  # they are forgotten all the same
                why_not = str(error)
        return Forgotten(removed, len(self.store), learned, fitted, why_not, untied)

    def forget(self) -> int:
        """Delete all that this device knows of its owner, its membership too; -> how many choices.

        Burnt attempts stay burnt, the owner's policy and a pause stay as they are. A running agent refuses
        everything from then on, and what it had trained in an open round is neither kept nor sent.
        """
        count = self.store.forget()
        self.vault.forget()
        self._fitted.forget()
        return count

    # --- the fleet's release -------------------------------------------------------------------------

    def release(self) -> KnownRelease | None:
        """The newest release that was meant for this device, used or not; None before the first."""
        return known_release(self.vault)

    def uses_rounds(self) -> bool:
        """Whether the model in use was made by rounds that this device was in."""
        latest = self.vault.latest()
        return latest is not None and latest[0] not in (ALONE, RELEASED)

    def release_ask(self, now: int, factors: bytes = b"") -> ReleaseAsk:
        """What asks the server for its releases, or for the numbers with this digest. UsageError when this
        device is in no fleet. now: Unix seconds."""
        digest = authority_digest(self.vault.blob(AUTHORITY))
        return ReleaseAsk.of(member_identity(self), digest, now, factors)

    def offered_release(self, offer: bytes) -> tuple[bytes, ReleaseManifest] | None:
        """(signed bytes, manifest) of the newest release in a server's offer that is meant for this device;
        None where none is, or none newer than a canary that it knows. Nothing is changed.

        Raises as `newest_offered` does, PolicyRefusal as well where the owner does not allow such a model,
        and UsageError when this device is in no fleet.
        """
        member, authority = member_identity(self).member, self.vault.blob(AUTHORITY)
        found = newest_offered(offer, member, authority, KnownFleets.of(self.vault.blob))
        if found is not None:
            refuse_use(found[1].contents, self.policy())
        return found

    def known_canary(self) -> ReleaseManifest | None:
        """The newest release of this device's fleet that it knows, where that one is a canary."""
        known, fleet = self.release(), authority_digest(self.vault.blob(AUTHORITY))
        if known is None or known.manifest.contents.fleet != fleet:
            return None
        return known.manifest if known.manifest.contents.is_canary else None

    def note_release(self, signed: bytes, now: int) -> None:
        """Remember a release of `offered_release` without using it. now: Unix seconds.

        Raises as `take_release` does of a manifest that is not signed, takes the device back, or is not meant
        for it.
        """
        self.vault.change_blobs(noted(signed, self._meant(signed), now))

    def take_release(self, signed: bytes, data: bytes, now: int, *, use: bool = False) -> None:
        """Use a release from now on, with no personal part until `train` has fitted one.

        All is checked here, whoever fetched it; what is not as it should be changes nothing.

        Args:
            signed: the signed manifest.
            data: the numbers that it names.
            now: Unix seconds.
            use: also where the model in use was made by rounds.

        Raises:
            AgreementError: manifest or numbers are malformed, or not those of each other.
            PolicyRefusal: the authority has not signed it, it takes the device back, or the owner does not
                allow such a model or its size on the disk.
            BaseModelError: the base model here is another one.
            DeviceError: a round has made the model in use, or the model changed meanwhile.
            UsageError: this device is in no fleet, or the release is not meant for it.
        """
        version = self.vault.version()
        if self.uses_rounds() and not use:
            raise DeviceError("a round has made the model in use; it stays unless its owner says otherwise")
        manifest, policy = self._meant(signed), self.policy()
        KnownFleets.of(self.vault.blob).refuse_set_back(manifest)  # at once, and once more when it is kept
        contents = manifest.contents
        planned, factors = checked_release(contents, data, policy, self._model_cache)
        context = kept_with(_context(planned, factors), None)
        row = len(context) + 4 * planned.split.personal.size
        room = Room(row=row, most=policy.max_disk_mb << 20, runs=policy.keep_runs, what="release")
        self.vault.keep_release(contents.round, context, noted(signed, manifest, now), room, version=version)

    def _meant(self, signed: bytes) -> ReleaseManifest:
        """A manifest that the authority has signed for this device."""
        authority, member = self.vault.blob(AUTHORITY), member_identity(self).member
        found = ReleaseOffer((signed,)).newest_for(member, authority)
        if found is None:
            raise UsageError("this release is for other devices of the fleet first")
        return found[1]

    def offline(self) -> OfflineConfig:
        """The settings for work without a run."""
        try:
            table = tomllib.loads(read_owned(self.directory / MODEL))
        except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no TOML
            raise ConfigError(f"can't read {self.directory / MODEL}: {error}") from None
        return build_section(OfflineConfig, table, "")

    def _forget_learned(self) -> None:
        self.vault.forget_learned()
        self._fitted.forget()

    def _about(self) -> About | None:
        """What was fitted with the model in use; None where nothing was."""
        version, latest = self.vault.version(), self.vault.latest()
        digest = None if latest is None else personal_digest(*latest, version)
        return self._fitted.of(digest, lambda: self.vault.version() == version)

    def _fit_errors(self, choices: Sequence[Preference], marks: bytes, version: int) -> None:
        """Keep how sure the model in use is, after these choices.

        version: of the vault, when the choices were read or later. DeviceError, and nothing is kept, when the
        model has changed since, or what was learned was forgotten.
        """
        latest = self.vault.latest()
        planned, _, _, factors, kept = self._model()
        if latest is None or kept is None:
            raise DataError("nothing personal is fitted yet: `penchant device train`")
        doubt = _doubt(planned, factors, kept, choices)
        about = About(
            personal=personal_digest(*latest, version),
            marks=marks,
            conversations=learned_from_conversations(choices),
            errors=doubt is not None,
        )
        if not self._fitted.keep(about, doubt, lambda: self.vault.version() == version):
            raise DeviceError(
                "the model on this device changed while its errors were fitted; they were not kept; try again"
            )
        self._judge_anew()

    def _gap(self, about: About) -> ProxyGap | None:
        """How far the model in use is right where it is surest, by the held-out choices among those that it
        was fitted with. Errors as `rank`."""
        known = marks_of(about.marks)
        rows = (row.preference for mark, row in self.store.marked() if mark in known)
        held = [preference for preference in rows if held_out(preference)]
        if not held:
            return None
        planned, _, _, factors, kept = self._model()
        shared, start = planned.parts(factors)
        own = start if kept is None else kept
        return proxy_gap(planned.trainer(start).margins(shared, own, planned.model.prepare(held)))

    def _marks(self, chosen: Sequence[Recorded], ties: Sequence[RecordedTie]) -> set[bytes]:
        """The marks of those of these choices and ties that are recorded still."""
        rows, tied = set(chosen), set(ties)
        marks = {mark for mark, row in self.store.marked() if row in rows} if rows else set()
        return marks | ({mark for mark, row in self.store.marked_ties() if row in tied} if tied else set())

    def _judge_anew(self) -> None:
        """Judge what was fitted with the model in use by those held-out choices that have a say in it.

        Nothing of it is kept where another process has fitted or forgotten something meanwhile: that one
        judges after it. Errors as `rank`.
        """
        version, mark = self.vault.version(), self._fitted.mark()
        about = self._about()
        if about is not None:
            gap = self._gap(about)
            self._fitted.judge(gap, mark, lambda: self.vault.version() == version)

    def _model(self) -> tuple[PlannedModel, bytes, int, Vector, Vector | None]:
        """(model, run, round, announced factors, personal part or None) of what was committed last."""
        latest = self.vault.latest()
        if latest is None or not latest[1].context:
            return self._begun_alone()
        run, kept = latest
        model = model_of(kept.context)
        planned = self._model_cache.of(Plan.decode(model.plan, canonical=False))
        known = kept.vector.size == planned.split.personal.size  # not where what was learned was forgotten
        if run == ALONE and not known:
            return self._begun_alone()
        if model.base != planned.model_signature.digest:
            raise DeviceError("the base model is not the one that the personal factor was learned with")
        factors = np.frombuffer(model.factors, dtype="<f4").copy()
        return planned, run, kept.round, factors, kept.vector if known else None

    def _merged(self) -> MergedModel:
        """The model of `_model`, and the form in which it knows conversations."""
        planned, _, _, factors, kept = self._model()
        return MergedModel.of(planned, factors, kept, conversations=self.conversational())

    def _plan_in_use(self) -> Plan:
        """That of `_model`."""
        latest = self.vault.latest()
        if latest is None or not latest[1].context or (latest[0] == ALONE and not latest[1].vector.size):
            return self._alone()
        return Plan.decode(model_of(latest[1].context).plan, canonical=False)

    def _begun_alone(self) -> tuple[PlannedModel, bytes, int, Vector, Vector | None]:
        """As `_model`: what model.toml asks for now, before anything is learned."""
        planned = self._model_cache.of(self._alone())
        return planned, ALONE, 0, planned.split.initial(SEED)[0], None

    def _other_settings(self) -> bool:
        """Whether the model in use was trained alone, by other settings than model.toml has now."""
        latest = self.vault.latest()
        if latest is None or latest[0] != ALONE or not latest[1].vector.size:
            return False
        try:
            trained = Plan.decode(model_of(latest[1].context).plan, canonical=False)
            return trained != self._alone()
        except PenchantError:  # of one of the two, which are then not the same; training says what is wrong
            return True

    def _held_out_counted(self) -> bool:
        """Whether held-out choices had a say in a personal part that is kept: that of a run whose rule has a
        spread, or whose rule can't be found any more."""
        for context in filter(None, self.vault.contexts()):
            try:
                plan = Plan.decode(model_of(context).plan, canonical=False)
            except PenchantError:
                return True
            if plan.adapter.rule.spread is not None:
                return True
        return False

    def _alone(self) -> Plan:
        own = self.offline()
        return Plan(
            phase="main",
            cohort=1,
            start_sent=False,
            seed=SEED,
            model=own.model,
            adapter=own.adapter,
            training=own.training,
            clip=10.0,
            max_weight=1,
            ring_bits=32,
            group_size=3,
        )


def _counted(pairs: Sequence[Preference]) -> str:
    """How many choices, and how many ties if there are any."""
    choices = len(without_ties(pairs))
    said = counted(choices, "choice")
    return said if choices == len(pairs) else f"{said} and {counted(len(pairs) - choices, 'tie')}"


def _too_large(choices: Sequence[Preference], personal: Vector) -> bool:
    """Whether the gradients of both sides of all choices would be too many numbers at once."""
    return 2 * len(choices) * personal.size > POSTERIOR_MOST


def _doubt(
    planned: PlannedModel, factors: Vector, kept: Vector, choices: Sequence[Preference]
) -> Doubt | None:
    """How sure a personal part is; None where there is nothing personal, or too much of it."""
    if not kept.size or numbers_kept(len(choices), kept.size) > KEPT_MOST:
        return None
    shared, start = planned.parts(factors)
    laplace = planned.laplace(shared)
    return doubt_of(laplace, prior_of(planned, laplace, start, choices), kept, choices)


def _with_doubt(
    laplace: Laplace, doubt: Doubt, kept: Vector, prompt: str, ranked: list[Ranked]
) -> list[Ranked]:
    """The same rows, with standard errors and with how sure each place is."""
    scores, gradients = laplace.score_gradients(kept, [(prompt, row.response) for row in ranked])
    steps = doubt.error(gradients[:-1] - gradients[1:])
    over = [*probability(scores[:-1] - scores[1:], steps), None]
    errors = doubt.error(gradients)
    return [
        replace(row, error=float(error), over_next=None if sure is None else float(sure))
        for row, error, sure in zip(ranked, errors, over, strict=True)
    ]


def _context(planned: PlannedModel, factors: Vector) -> Model:
    return Model(
        planned.model_signature.digest, planned.plan.encode(), np.ascontiguousarray(factors, "<f4").tobytes()
    )


def _epochs(plan: Plan) -> int:
    """Passes of a refit on the device: what the run asks for, and never none."""
    return plan.training.final_fit_epochs or plan.training.local_epochs
