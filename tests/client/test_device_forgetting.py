"""Forgetting chosen choices: on the device all is as if they had never been recorded."""

from __future__ import annotations

import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from support.command_line import device_command

from penchant.client.agent.kept_model import Model, model_of
from penchant.client.device.device import Device, Forgotten
from penchant.client.device.home import OfflineConfig
from penchant.client.device.preference_store import KEYS as CHOICE_KEYS
from penchant.client.device.preference_store import PreferenceStore, Recorded, held_out
from penchant.client.device.privacy_report import PrivacyReport, RunShare
from penchant.client.learning.model_cache import PlannedModel
from penchant.client.learning.newcomer import fit_newcomer
from penchant.client.vault.budget import ALONE
from penchant.client.vault.privacy_ledger import ANCHOR, Cost, LedgerEntry
from penchant.client.vault.vault import KEYS as VAULT_KEYS
from penchant.client.vault.vault import Contributed
from penchant.common.config import Plan, RunConfig
from penchant.common.data.preferences import Preference
from penchant.common.errors import DeviceError, StageError
from penchant.common.settings import section_table
from penchant.common.wire.codec import encode_record

RUN, OLD = bytes(range(16)), bytes(range(1, 17))
WORDS = ("bill", "vote", "judge", "budget", "tax", "cloture")
RESPONSES = ["the table tax", "the motion tax", "cloture"]
SECRET = "a judge"  # in the choices that are to be forgotten, and in no other


def choices() -> tuple[list[Preference], list[Preference]]:
    """(those that stay, those that are to be forgotten): the latter say the opposite of the former."""
    stay = [Preference(f"on {WORDS[n % 6]} {n}: ", "the motion", f"the table {n % 4}") for n in range(20)]
    go = [Preference(f"on {WORDS[n % 6]} {n}: ", f"the table {SECRET}", "the motion") for n in range(20, 30)]
    return stay, go


def meant(device: Device) -> list[Recorded]:
    return [choice for choice in device.store.recorded() if SECRET in choice.preference.chosen]


@pytest.fixture
def homes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Device]:
    """Makes devices whose model is a tiny one."""

    def make(name: str) -> Device:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        settings = section_table(OfflineConfig())
        settings["model"] |= {"base_model": str(tiny_model("bert")), "max_tokens": 16}
        settings["training"] |= {"lr_personal": 3e-2, "lr_head": 3e-2, "local_epochs": 8, "prior_spread": 1.0}
        (folder / "model.toml").write_text(tomli_w.dumps(settings))
        return Device(folder)

    return make


def filled(device: Device) -> Device:
    stay, go = choices()
    device.record(stay[:10], "file first.jsonl")
    device.record(go, "file second.jsonl")
    device.record(stay[10:], "label")
    return device


def model_of_a_run(device: Device) -> Model:
    """Shared factors as a run announced them."""
    offline = device.offline()
    config = RunConfig().changed(
        {"model.base_model": offline.model.base_model, "model.max_tokens": 16, "training.prior_spread": 1.0}
    )
    plan = config.plan("main", 4)
    planned = device._model_cache.of(plan)
    factors = planned.split.initial(config.seed)[0] + np.float32(0.01)
    return Model(planned.model_signature.digest, plan.encode(), factors.astype("<f4").tobytes())


def personal(device: Device) -> tuple[bytes, np.ndarray, bytes]:
    latest = device.vault.latest()
    assert latest is not None
    return latest[0], latest[1].vector, latest[1].context


def commit(device: Device, run: bytes, vector: np.ndarray, context: bytes) -> None:
    """A round of `run` that finished."""
    device.vault.begin(run, 1, 1, [])
    device.vault.stage(run, 1, 1, vector, context)
    device.vault.mark_unmasked(run, 1, 1)
    device.vault.settle(run, [(1, 1)])


# --- as if they had never been there ----------------------------------------------------------------


def test_alone_the_model_is_to_the_bit_the_one_of_a_device_that_never_had_them(
    homes: Callable[[str], Device],
) -> None:
    device, other = filled(homes("one")), homes("other")
    device.train()
    before = device.rank("on bill 99: ", RESPONSES)
    done = device.forget_choices(meant(device))
    assert done == Forgotten(removed=10, left=20, learned=True, fitted=True)
    other.record(choices()[0])
    other.train()
    run, vector, context = personal(device)
    assert (run, context) == (ALONE, personal(other)[2])
    assert np.array_equal(vector, personal(other)[1])
    ranked = device.rank("on bill 99: ", RESPONSES)  # with the posterior, from which errors come
    assert ranked == other.rank("on bill 99: ", RESPONSES) != before
    assert ranked[0].error is not None
    assert device.report().quality == other.report().quality


def test_in_a_run_the_personal_part_is_a_newcomers_on_the_choices_that_are_left(
    homes: Callable[[str], Device],
) -> None:
    device, other = filled(homes("one")), homes("other")
    context = encode_record(model_of_a_run(device))
    planned = device._model_cache.of(RunConfig.plan(_config(device), "main", 4))
    learned = planned.split.initial(3)[1] + np.float32(0.5)
    commit(device, OLD, learned, context)
    commit(device, RUN, learned, context)
    device.vault.begin(RUN, 2, 1, [])
    device.vault.stage(RUN, 2, 1, learned, context)  # of a round that is still open
    assert device.forget_choices(meant(device)).fitted
    factors = np.frombuffer(model_of_a_run(device).factors, "<f4").copy()
    train = [p for p in choices()[0] if not held_out(p)]
    run, vector, kept = personal(device)
    assert (run, model_of(kept)) == (RUN, model_of(context))
    assert np.array_equal(vector, fit_newcomer(planned, factors, train))
    assert device.vault.personal(OLD) is None  # an older run's had learned from them as well
    device.vault.settle(RUN, [(2, 1)])
    assert np.array_equal(personal(device)[1], vector)

    other.record(choices()[0])  # never had them, and has no personal part in this run either
    commit(other, RUN, np.zeros(0, np.float32), context)
    other.train()
    assert np.array_equal(vector, personal(other)[1])
    assert device.rank("on tax: ", RESPONSES) == other.rank("on tax: ", RESPONSES)


def _config(device: Device) -> RunConfig:
    base = device.offline().model.base_model
    return RunConfig().changed(
        {"model.base_model": base, "model.max_tokens": 16, "training.prior_spread": 1.0}
    )


def test_a_personal_part_too_large_for_a_posterior_is_trained_from_the_common_start(
    homes: Callable[[str], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.client.device.device.POSTERIOR_MOST", 1000)
    device, other = filled(homes("one")), homes("other")
    context = encode_record(model_of_a_run(device))
    start = device._model_cache.of(_config(device).plan("main", 4)).split.initial(0)[1]
    commit(device, RUN, start + np.float32(0.5), context)
    device.forget_choices(meant(device))
    other.record(choices()[0])
    commit(other, RUN, start, context)
    other.train()
    assert np.array_equal(personal(device)[1], personal(other)[1])


def test_where_none_is_left_there_is_no_personal_part(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    context = encode_record(model_of_a_run(device))
    start = device._model_cache.of(_config(device).plan("main", 4)).split.initial(0)[1]
    commit(device, RUN, start + np.float32(0.5), context)
    done = device.forget_choices(device.store.recorded())
    assert done == Forgotten(removed=30, left=0, learned=True, fitted=False)
    run, vector, kept = personal(device)
    assert (run, vector.size, kept) == (RUN, 0, context)  # the run's shared factors stay in use
    ranked = device.rank("on tax: ", RESPONSES)
    assert all(row.personal == row.common and row.error is None for row in ranked)


def test_choices_that_were_held_out_taught_nothing_and_the_model_stays(
    homes: Callable[[str], Device],
) -> None:
    device = filled(homes("one"))
    device.train()
    before = personal(device)[1]
    device.vault.begin(RUN, 1, 1, [])
    aside = [choice for choice in device.store.recorded() if held_out(choice.preference)]
    assert aside
    done = device.forget_choices(aside)
    assert done == Forgotten(removed=len(aside), left=30 - len(aside), learned=False, fitted=False)
    assert np.array_equal(personal(device)[1], before)
    assert device.store.validation() == ()
    with pytest.raises(StageError, match="forgotten while this round was open"):  # it counted them
        device.vault.stage(RUN, 1, 1, before)


def test_held_out_choices_that_decided_how_personal_the_model_is_are_forgotten_as_the_others(
    homes: Callable[[str], Device],
) -> None:
    """Share mixed, in a run that is not the one in use: its personal part goes."""
    device = filled(homes("one"))
    config = _config(device).changed({"adapter.share": "mixed"})
    planned = device._model_cache.of(config.plan("main", 4))
    shared, start = planned.split.initial(0)
    model = Model(planned.model_signature.digest, planned.plan.encode(), shared.astype("<f4").tobytes())
    commit(device, OLD, start, encode_record(model))
    usual = device._model_cache.of(_config(device).plan("main", 4))
    commit(device, RUN, usual.split.initial(0)[1], encode_record(model_of_a_run(device)))
    aside = [choice for choice in device.store.recorded() if held_out(choice.preference)]
    assert device.forget_choices(aside).learned
    assert device.vault.personal(OLD) is None


def test_a_device_that_never_trained_does_not_begin_to(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    (device.directory / "model.toml").write_text('[model]\nbase_model = "nowhere-at-all"\n')
    assert device.forget_choices(meant(device)) == Forgotten(10, 20, learned=True, fitted=False)
    assert device.vault.latest() is None


def test_without_its_base_model_a_device_forgets_all_the_same(
    homes: Callable[[str], Device], tmp_path: Path
) -> None:
    device = filled(homes("one"))
    device.train()
    device = Device(device.directory)

    def missing(plan: Plan) -> PlannedModel:
        raise DeviceError("the model is gone")

    device._model_cache.of = missing  # type: ignore[method-assign]
    done = device.forget_choices(meant(device))
    assert (done.removed, done.fitted, done.why_not) == (10, False, "the model is gone")
    assert personal(device)[1].size == 0
    again = Device(device.directory)  # and is trained when the model is back
    again.train()
    other = homes("other")
    other.record(choices()[0])
    other.train()
    assert np.array_equal(personal(again)[1], personal(other)[1])


# --- no trace in the home -----------------------------------------------------------------------------


def keys_in(folder: Path) -> set[bytes]:
    found: set[bytes] = set()
    for name in (CHOICE_KEYS, VAULT_KEYS):
        data = (folder / name).read_bytes()
        found |= {data[i : i + 32] for i in range(0, len(data), 32) if data[i : i + 32].strip(b"\0")}
    return found


def test_every_key_of_what_is_forgotten_is_in_no_file(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    device.train()
    device.vault.tell_owner("masked", "NOTHING", "what training made")
    device.vault.tell_owner("keys", "POLICY", "paused by the owner")
    before = keys_in(device.directory)
    assert len(before) == 30 + 2  # each choice; personal part and what belongs to it
    device.forget_choices(meant(device))
    gone = before - keys_in(device.directory)
    assert len(gone) == 10 + 2
    files = [path.read_bytes() for path in device.directory.rglob("*") if path.is_file()]
    assert not [key for key in gone if any(key in data for data in files)]
    assert not any(SECRET.encode() in data for data in files)
    # What training came to depended on them; what was refused never does.
    assert device.vault.refusals() == [("keys", "POLICY", "paused by the owner")]


def test_what_an_agent_packs_holds_nothing_of_them(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    agents = PreferenceStore(device.directory, device.storage)  # of another process
    assert SECRET.encode() in pickle.dumps(agents.sides())
    device.forget_choices(meant(device))
    assert SECRET.encode() not in pickle.dumps((agents.sides(), device.store.sides()))
    assert agents.unanswered(choices()[1]) == choices()[1]  # they may be asked about again


def test_a_disk_that_refuses_leaves_no_model_of_choices_that_are_gone(
    homes: Callable[[str], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = filled(homes("one"))
    device.train()

    def full(chosen: object) -> int:
        raise DeviceError("the disk is full; nothing was changed")

    with monkeypatch.context() as patch:
        patch.setattr(device.store, "remove_these", full)
        with pytest.raises(DeviceError, match="full"):
            device.forget_choices(meant(device))
    assert len(device.store) == 30
    assert personal(device)[1].size == 0
    assert device.forget_choices(meant(device)).fitted
    other = homes("other")
    other.record(choices()[0])
    other.train()
    assert np.array_equal(personal(device)[1], personal(other)[1])


def test_a_number_that_another_choice_has_by_now_deletes_nothing(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    last = device.store.recorded()[-1]
    device.store.remove(last.preference)
    device.record([Preference("another", "a", "b")])
    assert device.store.recorded()[-1].number == last.number
    assert device.forget_choices([last]).removed == 0
    assert len(device.store) == 30


# --- what can't be taken back -------------------------------------------------------------------------


def spend(device: Device, run: bytes, number: int, rho: float | None) -> None:
    cost = Cost(rho, 10.0, 100)
    with device.vault._transaction() as db:
        device.vault.privacy.charge(db, LedgerEntry.of(run, number, 1, rho), cost)


def test_what_left_is_told_by_run(homes: Callable[[str], Device]) -> None:
    device = homes("one")
    assert device.privacy().lasting == "nothing was contributed to any run"
    spend(device, RUN, 1, 0.05)
    spend(device, RUN, 2, 0.05)
    assert device.vault.contributed() == [Contributed(RUN, rounds=2, rho=0.1, exact=0)]
    told = device.privacy()
    assert told.runs == (RunShare(RUN.hex(), 2, told.spent, 0),)
    epsilon = f"epsilon {told.spent:.3g}"
    assert told.lasting == (
        "what was contributed to runs with choices recorded by then can't be taken back: run 00010203, "
        f"2 rounds ({epsilon}); {epsilon} (delta 1e-05) bounds what all of it says"
    )
    spend(device, OLD, 1, None)
    commit(device, bytes(16), np.zeros(3, np.float32), b"")  # as an earlier version left it: in no ledger
    assert [(c.run, c.rounds, c.exact) for c in device.vault.contributed()] == [
        (bytes(16), 1, 1),
        (RUN, 2, 0),
        (OLD, 1, 1),
    ]
    lasting = device.privacy().lasting
    assert "run 01020304, 1 round (1 vector without noise)" in lasting
    assert lasting.endswith("no epsilon bounds what sums without noise say")
    filled(device).forget_choices(meant(device))
    assert device.privacy().lasting == lasting  # nothing is taken back
    device.forget()
    assert device.privacy().lasting == lasting


def test_many_runs_are_one_line(homes: Callable[[str], Device]) -> None:
    runs = tuple(RunShare(f"{n:032x}", 1, 0.5, 0) for n in range(9))
    lasting = PrivacyReport(2.0, 8.0, 1e-5, 9, 0, runs=runs).lasting
    assert "4 earlier runs; run 00000000, 1 round (epsilon 0.5)" in lasting
    assert lasting.count("round") == 5


def test_what_is_not_known_is_not_said(homes: Callable[[str], Device]) -> None:
    device = homes("one")
    spend(device, RUN, 1, 0.05)
    (device.directory / ANCHOR).unlink()
    assert "can't be said: the ledger" in device.privacy().lasting
    device.give_up_budget()
    told = device.privacy()
    assert told.lost
    assert told.lasting.endswith("more may have left, and no epsilon is known to bound it")
    assert (told.noised, told.exact) == (1, 0)  # what was given up is no vector


def test_status_counts_no_vector_for_a_budget_that_was_given_up(homes: Callable[[str], Device]) -> None:
    device = homes("one")
    assert command(device, "spent", "--yes").returncode == 0
    said = command(device, "status", "--json")
    told = json.loads(said.stdout)["privacy"]
    assert (told["noised"], told["exact"], told["lost"]) == (0, 0, True)
    assert 7.9 < told["spent"] <= told["most"] == 8
    assert "epsilon 8 of 8 (delta 1e-05), 0 vectors" in " ".join(command(device, "status").stdout.split())


def test_status_says_what_is_wrong_with_a_policy(homes: Callable[[str], Device]) -> None:
    """Whether or not the device is in a fleet."""
    device = homes("one")
    (device.directory / "policy.toml").write_text("max_epsilon = -1\n")
    (device.directory / "policy.toml").chmod(0o600)
    why = "max_epsilon is -1"
    told = json.loads(command(device, "status", "--json").stdout)
    assert why in told["why_not"]
    assert told["privacy"]["most"] is None
    said = command(device, "status")
    assert said.returncode == 0
    assert why in said.stdout
    assert "of a budget that policy.toml does not say" in " ".join(said.stdout.split())


def test_a_home_whose_ledger_is_gone_says_so_and_goes_on_when_told(homes: Callable[[str], Device]) -> None:
    device = homes("one")
    spend(device, RUN, 1, 0.05)
    for path in (*device.directory.glob("vault.db*"), device.directory / ANCHOR):
        path.unlink()
    assert "its anchor is gone" in Device(device.directory).privacy().unknown
    Device(device.directory).give_up_budget()
    told = Device(device.directory).privacy()
    assert (told.unknown, told.noised, told.lost) == ("", 0, True)
    assert 7.9 < told.spent <= 8


# --- the command line -----------------------------------------------------------------------------------


def command(device: Device, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return device_command(*words, home=device.directory, typed=typed)


def test_chosen_choices_are_listed_confirmed_and_forgotten(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    device.train()
    rows = json.loads(command(device, "forget", "--list", "--containing", SECRET, "--json").stdout)
    assert [row["number"] for row in rows] == list(range(11, 21))
    assert {row["source"] for row in rows} == {"file second.jsonl"}
    words = ("forget", "--file", "anywhere/second.jsonl", "--choice", "11", "--choice", "12")
    refused = command(device, *words, typed="n\n")
    assert (refused.returncode, len(device.store)) == (2, 30)
    assert "Delete these 2 of 30 choices" in refused.stdout
    assert "nothing was changed" in refused.stderr
    done = command(device, *words, typed="y\n")
    assert done.returncode == 0, done.stderr
    assert "2 choices are deleted, 28 are left" in done.stdout
    assert "fitted anew" in done.stdout
    assert "nothing was contributed to any run" in done.stdout
    for words, why in (
        (("--choice", "11"), "there is no choice 11"),
        (("--containing", "no such words"), "no choice is meant"),
        (("--containing", "a", "--json"), "--json is for --list"),
    ):
        refused = command(device, "forget", *words, "--yes")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert why in refused.stderr
    assert len(device.store) == 28
    assert command(device, "forget", "--containing", SECRET.upper(), "--yes").returncode == 0
    assert not meant(device)
    assert len(device.store) == 20


def test_a_text_that_is_forgotten_is_in_no_tie_either(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    tie = Preference("on ties: ", "the motion", f"the table {SECRET}")
    device.store.add_tie(tie, "equal", "label")
    device.store.add_tie(Preference("on ties too: ", "one", "another"), "both bad", "label")
    assert json.loads(command(device, "status", "--json").stdout)["ties"] == 2
    rows = json.loads(command(device, "forget", "--list", "--json").stdout)
    assert [(row["number"], row["tie"]) for row in rows[29:]] == [
        (30, ""),
        ("t1", "equal"),
        ("t2", "both bad"),
    ]
    assert rows[30] == {
        "number": "t1", "source": "label", "prompt": tie.prompt,
        "chosen": tie.chosen, "rejected": tie.rejected, "tie": "equal",
    }  # fmt: skip
    words = ("forget", "--containing", SECRET)
    refused = command(device, *words, typed="n\n")
    assert "Delete these 10 of 30 choices, 1 tie, and what was learned from them?" in refused.stdout
    assert (len(device.store), device.store.count_ties()) == (30, 2)
    done = command(device, *words, "--yes")
    assert done.returncode == 0, done.stderr
    assert "1 tie is deleted" in done.stdout
    assert "10 choices are deleted, 20 are left" in done.stdout
    kept = [row.preference for row in device.store.recorded()] + [row.pair for row in device.store.ties()]
    assert len(kept) == 21
    assert SECRET not in repr([(p.prompt, p.chosen, p.rejected) for p in kept])


def ties(*, aside: bool, count: int) -> list[Preference]:
    """So many ties of the held-out side, or of the other one."""
    every = (Preference(f"on ties {n}: ", "one judge", "another bill") for n in range(100))
    return [pair for pair in every if held_out(pair) is aside][:count]


def test_a_tie_is_forgotten_by_its_number_and_what_was_learned_from_it(
    homes: Callable[[str], Device],
) -> None:
    """The model is to the bit the one of a device that never had it."""
    device, other = filled(homes("one")), filled(homes("other"))
    recorded = ties(aside=False, count=3)
    for pair in recorded:
        device.store.add_tie(pair, "equal", "label")
    other.store.add_tie(recorded[1], "equal", "label")
    assert device.standing().newer == 0  # there is no model yet
    device.train()
    before = personal(device)
    assert device.standing().newer == device.standing().gone == 0
    for number, why in (
        ("t9", "there is no tie t9"),
        ("tie", "is no number of a choice"),
        ("-1", "is no number of a choice"),
    ):
        refused = command(device, "forget", "--choice", number, "--choice", "t1", "--yes")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert why in refused.stderr
    done = command(device, "forget", "--choice", "t1", "--choice", "t03", "--yes")
    assert done.returncode == 0, done.stderr
    assert "2 ties are deleted" in done.stdout
    assert "choices are deleted" not in done.stdout
    assert "fitted anew" in done.stdout
    assert [tie.number for tie in device.store.ties()] == [2]
    other.train()
    after = personal(device)
    assert after[1].tobytes() == personal(other)[1].tobytes() != before[1].tobytes()
    assert device.rank("on bill 99: ", RESPONSES) == other.rank("on bill 99: ", RESPONSES)
    done = command(device, "forget", "--yes")
    assert "30 choices, 1 tie and the personal model are deleted" in done.stdout
    assert device.store.count_ties() == 0


def test_ties_that_were_held_out_taught_nothing_and_the_model_stays(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    (pair,) = ties(aside=True, count=1)
    device.store.add_tie(pair, "both bad", "label")
    device.train()
    before = personal(device)
    quality = device.report().quality
    assert quality is not None
    assert quality.personal.ties == quality.common.ties == 1
    assert quality.personal.total == len(device.store.validation())
    done = device.forget_choices([], device.store.ties())
    assert done == Forgotten(removed=0, left=30, learned=False, fitted=False, ties=1)
    assert personal(device)[1].tobytes() == before[1].tobytes()


def test_a_tie_that_is_new_waits_to_be_trained_on(homes: Callable[[str], Device]) -> None:
    device = filled(homes("one"))
    device.train()
    (pair,) = ties(aside=False, count=1)
    before = personal(device)
    tie = device.store.add_tie(pair, "equal", "label")
    assert tie is not None
    assert (device.standing().newer, device.standing().gone) == (1, 0)
    device.train()
    assert personal(device)[1].tobytes() != before[1].tobytes()
    assert device.standing().newer == 0
    device.store.settle(tie, True)
    assert (device.standing().newer, device.standing().gone) == (1, 1)
