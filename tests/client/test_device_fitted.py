"""What training keeps beside the personal part: `rank` fits nothing, says what it lacks, and forgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from penchant.client.device.device import Device, Standing
from penchant.client.device.fitted import About, Fitted
from penchant.client.device.home import OfflineConfig
from penchant.client.device.preference_store import Recorded, held_out, marks_of
from penchant.client.device.warm_model import WarmModel, small_cache
from penchant.client.learning.laplace import Laplace, probability
from penchant.client.learning.newcomer import prior_of
from penchant.client.learning.proxy_gap import ProxyGap, proxy_gap
from penchant.client.vault.fitted_store import KEYS
from penchant.client.vault.vault import Vault
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.data.preferences import Preference
from penchant.common.errors import DataError, DeviceError
from penchant.common.settings import section_table

WORDS = ("bill", "vote", "judge", "budget", "tax", "cloture")
RESPONSES = ["the table tax", "the motion tax", "cloture", "a vote on the judge"]


def choices(count: int = 30) -> list[Preference]:
    """Somebody who likes motions and not tables."""
    return [
        Preference(f"on {WORDS[n % 6]} {n}: ", f"the motion {WORDS[n % 5]}", f"the table {WORDS[n % 5]}")
        for n in range(count)
    ]


@pytest.fixture
def home(tiny_model: Callable[[str], Path], tmp_path: Path) -> Device:
    """A trained device with a tiny model."""
    folder = tmp_path / "device"
    folder.mkdir()
    settings = section_table(OfflineConfig())
    settings["model"] |= {"base_model": str(tiny_model("bert")), "max_tokens": 16}
    settings["training"] |= {"lr_personal": 3e-2, "lr_head": 3e-2, "local_epochs": 20, "prior_spread": 1.0}
    (folder / "model.toml").write_text(tomli_w.dumps(settings))
    device = Device(folder)
    device.record(choices())
    device.train()
    return device


def computed_anew(device: Device) -> list[tuple[str, float, float, float | None]]:
    """(response, score, error, how likely over the next) with everything fitted to the choices when asked, as
    `rank` did before anything was kept."""
    planned, _, _, factors, kept = device._model()
    assert kept is not None
    shared, start = planned.parts(factors)
    texts = planned.model.prepare_texts([("on bill 99: ", response) for response in RESPONSES])
    scores = planned.trainer(start).score(shared, kept, texts)
    order = sorted(range(len(RESPONSES)), key=lambda index: -scores[index])
    laplace, train = Laplace(planned.model, planned.split, shared), device.store.train()
    posterior = laplace.around(prior_of(planned, laplace, start, train), kept, train)
    raw, slopes = laplace.score_gradients(kept, [("on bill 99: ", RESPONSES[index]) for index in order])
    sure = probability(raw[:-1] - raw[1:], posterior.error(slopes[:-1] - slopes[1:]))
    errors = posterior.error(slopes)
    return [
        (RESPONSES[index], float(scores[index]), float(error), float(over) if over is not None else None)
        for index, error, over in zip(order, errors, [*sure, None], strict=True)
    ]


def test_ranking_gives_what_fitting_anew_gives(home: Device) -> None:
    ranked = Device(home.directory).rank("on bill 99: ", RESPONSES)
    for row, expected in zip(ranked, computed_anew(home), strict=True):
        found = (row.response, row.personal, row.error, row.over_next)
        assert found == pytest.approx(expected, abs=1e-5)


def test_ranking_opens_no_choice_and_takes_no_gradient_of_one(
    home: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Device(home.directory)

    def opened(*_: Any) -> None:
        raise AssertionError("the choices were opened")

    monkeypatch.setattr(type(again.store), "_rows", opened)
    monkeypatch.setattr(Laplace, "margin_gradients", opened)
    ranked = again.rank("on bill 99: ", RESPONSES)
    assert all(row.error is not None for row in ranked)
    assert again.standing() == Standing(newer=0, errors=True)
    assert not WarmModel(again).conversational


def test_newer_choices_are_counted_until_they_are_trained_on(home: Device) -> None:
    home.record([Preference("on it: ", f"the motion {word}", "the table") for word in WORDS])
    assert home.standing() == Standing(newer=6, errors=True)
    home.train()
    assert home.standing() == Standing(newer=0, errors=True)


def test_of_a_model_that_a_round_has_made_errors_are_known_once_they_are_fitted(home: Device) -> None:
    run, kept = home.vault.latest() or (b"", None)
    assert kept is not None
    moved = kept.vector + np.float32(0.1)
    home.vault.keep_personal(run, 1, moved, kept.context, version=home.vault.version())
    before = home.rank("on bill 99: ", RESPONSES)
    assert [row.error for row in before] == [None] * 4
    assert "`penchant device train`" in home.standing().why_not
    assert not any((home.directory / KEYS).read_bytes())  # the other model's were destroyed when looked at
    home.fit_errors()
    after = home.rank("on bill 99: ", RESPONSES)
    assert [(row.response, row.personal) for row in after] == [(row.response, row.personal) for row in before]
    assert all(row.error is not None for row in after)


def test_without_choices_or_a_personal_part_there_are_no_errors_to_fit(home: Device) -> None:
    home.forget()
    assert home.standing() == Standing(newer=0, errors=False)
    with pytest.raises(DataError, match="no choices"):
        home.fit_errors()
    home.record(choices())
    with pytest.raises(DataError, match="nothing personal is fitted yet"):
        home.fit_errors()


@pytest.mark.parametrize("how", ["all", "some"])
def test_forgetting_destroys_what_was_fitted(home: Device, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise DataError("not trained again")

    key = (home.directory / KEYS).read_bytes()
    assert any(key)
    monkeypatch.setattr(Device, "train", refuses)  # so that nothing new takes its place
    if how == "all":
        home.forget()
    else:
        learned = [choice for choice in home.store.recorded() if not held_out(choice.preference)]
        home.forget_choices(learned[:1])
    assert not any((home.directory / KEYS).read_bytes())


def test_what_was_fitted_to_choices_that_were_forgotten_meanwhile_is_not_kept(
    home: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner forgets in another process, between the fit and the moment at which it is kept."""
    whole = Fitted.keep

    def keep(fitted: Fitted, *given: Any) -> bool:
        Device(home.directory).forget()
        return whole(fitted, *given)

    monkeypatch.setattr(Fitted, "keep", keep)
    with pytest.raises(DeviceError, match="changed while its errors were fitted"):
        home.fit_errors()
    assert not any((home.directory / KEYS).read_bytes())


def test_what_was_fitted_to_forgotten_choices_takes_no_place_of_what_is_fitted_to_the_rest(
    home: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner forgets a choice, and the model is fitted anew, before what was fitted with it is kept; the
    process is killed right after that."""
    latest, keep = Vault.latest, Fitted.keep

    def after_forgetting(vault: Vault) -> Any:
        monkeypatch.setattr(Vault, "latest", latest)
        learned = [one for one in home.store.recorded() if not held_out(one.preference)]
        assert Device(home.directory).forget_choices(learned[:1]).fitted
        monkeypatch.setattr(Fitted, "keep", killed)
        return latest(vault)

    def killed(fitted: Fitted, *given: Any) -> None:
        keep(fitted, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Vault, "latest", after_forgetting)
    with pytest.raises(KeyboardInterrupt):
        home.fit_errors()
    assert_errors_and_gap_are_those_of_now(home)


def test_a_killed_process_keeps_nothing_after_all_was_forgotten(
    home: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Fitted.keep

    def keep(fitted: Fitted, *given: Any) -> None:
        Device(home.directory).forget()
        whole(fitted, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Fitted, "keep", keep)
    with pytest.raises(KeyboardInterrupt):
        home.fit_errors()
    assert Device(home.directory).standing() == Standing(newer=0, errors=False)
    assert not any((home.directory / KEYS).read_bytes())


def test_a_choice_that_takes_the_place_of_one_taken_back_is_newer(home: Device) -> None:
    last = home.store.recorded()[-1]
    home.store.remove(last.preference)
    assert home.standing() == Standing(newer=0, errors=True, gone=1)
    home.record([Preference("on it: ", "the motion tax", "the table")])
    assert home.store.recorded()[-1].number == last.number
    assert home.standing() == Standing(newer=1, errors=True, gone=1)
    home.store.turn_round(home.store.recorded()[0])
    assert home.standing() == Standing(newer=2, errors=True, gone=2)


# --- whether the model may be that sure ---------------------------------------------------------------


def gap_anew(device: Device) -> ProxyGap | None:
    """The gap of the model in use by all held-out choices that there are now, computed from their scores."""
    model = device.model_in_use()
    held = device.store.validation()
    chosen = model.scores([(p.prompt, p.chosen) for p in held])
    return proxy_gap(chosen - model.scores([(p.prompt, p.rejected) for p in held]))


def assert_errors_and_gap_are_those_of_now(home: Device) -> None:
    """What another process finds is what it would fit and judge itself."""
    again = Device(home.directory)
    assert again.standing() == Standing(newer=0, errors=True)
    assert_same_gap(again.proxy_gap(), gap_anew(again))
    expected = [error for _, _, error, _ in computed_anew(again)]
    assert [row.error for row in again.rank("on bill 99: ", RESPONSES)] == pytest.approx(expected, abs=1e-5)


def assert_same_gap(found: ProxyGap | None, expected: ProxyGap | None) -> None:
    assert found is not None
    assert expected is not None
    assert found.choices == expected.choices
    assert (found.expected, found.observed, found.chance) == pytest.approx(
        (expected.expected, expected.observed, expected.chance), abs=1e-6
    )


def test_the_gap_is_that_of_the_fit_and_no_choice_is_opened_for_it(
    home: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gap_anew(home)
    assert_same_gap(home.proxy_gap(), expected)
    again = Device(home.directory)

    def opened(*_: Any) -> None:
        raise AssertionError("something was opened")

    monkeypatch.setattr(type(again.store), "_rows", opened)
    monkeypatch.setattr(Device, "_model", opened)
    assert_same_gap(again.proxy_gap(), expected)


def test_newer_held_out_choices_change_the_gap_at_the_next_training(home: Device) -> None:
    before = home.proxy_gap()
    home.record(p for p in choices(90) if held_out(p))
    assert home.proxy_gap() == before
    home.train()
    assert_same_gap(home.proxy_gap(), gap_anew(home))
    assert home.proxy_gap() != before


def test_held_out_choices_that_are_forgotten_leave_the_gap_of_a_device_that_never_had_them(
    home: Device,
) -> None:
    aside = [row for row in home.store.recorded() if held_out(row.preference)]
    ranked = home.rank("on bill 99: ", RESPONSES)
    home.forget_choices(aside[:2])
    assert_same_gap(home.proxy_gap(), gap_anew(home))
    assert home.standing() == Standing(newer=0, errors=True)
    assert home.rank("on bill 99: ", RESPONSES) == ranked
    home.forget_choices(aside[2:])
    assert home.proxy_gap() is None


def test_where_forgetting_is_broken_off_nothing_is_kept_that_forgotten_choices_say(
    home: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(home.store), "remove_these", killed)
    aside = [row for row in home.store.recorded() if held_out(row.preference)]
    with pytest.raises(KeyboardInterrupt):
        home.forget_choices(aside[:1])
    again = Device(home.directory)
    assert again.proxy_gap() is None
    assert again.standing() == Standing(newer=1, errors=True)  # as if it had come after the training
    monkeypatch.undo()
    again.forget_choices(aside[:1])
    assert_same_gap(again.proxy_gap(), gap_anew(again))
    assert again.standing() == Standing(newer=0, errors=True)


@pytest.fixture
def meanwhile(home: Device, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Device], object]], None]:
    """Has another process do something once, while this one judges by the held-out choices."""
    whole = Device._gap

    def begin(other: Callable[[Device], object]) -> None:
        def gap(device: Device, about: About) -> ProxyGap | None:
            monkeypatch.setattr(Device, "_gap", whole)
            found = whole(device, about)  # of choices that the other one forgets
            other(Device(home.directory))
            return found

        monkeypatch.setattr(Device, "_gap", gap)

    return begin


def held_out_ones(device: Device) -> list[Recorded]:
    return [row for row in device.store.recorded() if held_out(row.preference)]


def named_in(device: Device) -> set[bytes]:
    """Marks of the choices that what is kept was fitted with or judged by."""
    about = device._about()
    return set() if about is None else marks_of(about.marks)


def test_beside_forgetting_everything_nothing_comes_back(
    home: Device, meanwhile: Callable[[Callable[[Device], object]], None]
) -> None:
    meanwhile(Device.forget)
    home.forget_choices(held_out_ones(home)[:1])
    assert not any((home.directory / KEYS).read_bytes())
    assert (home._fitted._store.read("about"), home._fitted.gap()) == (b"", None)


@pytest.mark.parametrize("begun", ["judging", "fitting"])
def test_beside_forgetting_what_was_trained_on_the_fresh_errors_stay(
    home: Device, meanwhile: Callable[[Callable[[Device], object]], None], begun: str
) -> None:
    learned = [row for row in home.store.recorded() if not held_out(row.preference)]
    meanwhile(lambda other: other.forget_choices(learned[:1]))
    if begun == "judging":
        home.forget_choices(held_out_ones(home)[:1])
    else:
        home.fit_errors()
    assert_errors_and_gap_are_those_of_now(home)


def test_beside_forgetting_another_held_out_choice_neither_has_a_say(
    home: Device, meanwhile: Callable[[Callable[[Device], object]], None]
) -> None:
    aside = held_out_ones(home)
    meanwhile(lambda other: other.forget_choices(aside[1:2]))
    home.forget_choices(aside[:1])
    assert_same_gap(home._fitted.gap(), gap_anew(home))
    assert_same_gap(home.proxy_gap(), gap_anew(home))
    assert named_in(home) == marks_of(home.store.marks())


def test_beside_a_fit_of_errors_the_newer_choices_stay_in(
    home: Device, meanwhile: Callable[[Callable[[Device], object]], None]
) -> None:
    home.record(choices(60)[30:])
    assert home.standing().newer == 30
    meanwhile(Device.fit_errors)
    home.forget_choices(held_out_ones(home)[:1])
    assert home.standing() == Standing(newer=0, errors=True)
    assert_same_gap(home.proxy_gap(), gap_anew(home))
    assert named_in(home) == marks_of(home.store.marks())


def test_a_process_with_an_old_view_destroys_nothing_of_the_model_that_came_after(
    home: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has looked at the model, another process trains, and it looks at what was fitted."""
    whole = Vault.latest

    def latest(vault: Vault) -> Any:
        found = whole(vault)
        monkeypatch.setattr(Vault, "latest", whole)
        Device(home.directory).train()
        return found

    monkeypatch.setattr(Vault, "latest", latest)
    assert home._about() is None
    assert home.standing() == Standing(newer=0, errors=True)
    assert home.proxy_gap() is not None


def test_a_choice_that_is_taken_back_leaves_no_gap_that_it_may_have_a_part_in(home: Device) -> None:
    home.store.remove(home.store.validation()[0])
    assert home.proxy_gap() is None
    home.train()
    assert_same_gap(home.proxy_gap(), gap_anew(home))


def test_held_out_choices_forgotten_during_the_fit_have_no_part_in_its_gap(
    home: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Fitted.keep
    aside = [row for row in home.store.recorded() if held_out(row.preference)]

    def keep(fitted: Fitted, *given: Any) -> bool:
        monkeypatch.setattr(Fitted, "keep", whole)
        Device(home.directory).forget_choices(aside[:2])
        return whole(fitted, *given)

    monkeypatch.setattr(Fitted, "keep", keep)
    home.fit_errors()
    about = home._about()
    assert about is not None
    assert_same_gap(home._fitted.gap(), gap_anew(home))
    assert home.proxy_gap() is None  # until the next training: that one knows what is there
    home.train()
    assert_same_gap(home.proxy_gap(), gap_anew(home))


def test_a_model_that_was_fitted_before_gaps_were_kept_has_none_until_it_is_trained_again(
    home: Device,
) -> None:
    about = home._about()
    assert about is not None
    assert home._fitted.keep(about, home._fitted.doubt(), lambda: True)
    assert home.proxy_gap() is None
    assert home.standing() == Standing(newer=0, errors=True)
    home.train()
    assert home.proxy_gap() is not None


@pytest.mark.parametrize("trains", [True, False])
def test_a_process_that_only_ranks_writes_no_states(
    trains: bool, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = ModelConfig(base_model=str(tiny_model("bert")), max_tokens=16)
    model = small_cache(tmp_path if trains else None).model(settings, AdapterConfig())
    cache = model.cache
    cache._limit = 2000  # bytes, of the 256 MiB
    model.prepare_texts([("", f"the {one} {other}") for one in WORDS for other in WORDS])
    assert cache.forwards == 36
    found = 0 if cache._disk is None else len(cache._disk.keys())
    assert (found > 20) is trains
    assert list(tmp_path.iterdir()) == []
