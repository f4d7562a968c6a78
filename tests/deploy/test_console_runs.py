"""Runs that the console starts: real processes, stopped, resumed, deleted, found again after a restart."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from support.console_scene import PASSWORD, Console, make_run
from support.fleet_directory import make_server
from support.processes import free_port
from support.tastes import write_choices

from penchant.common.errors import ConfigError, ConsoleError, RunDirectoryError, UsageError
from penchant.common.shares import share_names, share_rule
from penchant.deploy.cli.main import main
from penchant.deploy.console import local
from penchant.deploy.console.local import OperationsOnThisMachine, fleet_id
from penchant.server.console import second_factor
from penchant.server.console.accounts import ConsoleStore, RunProcess
from penchant.server.monitoring.run_history import Activity, RunLocation, summary_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConsoleStore]:
    made = ConsoleStore(tmp_path / "state")
    yield made
    for job in made.jobs().values():  # what a failed test left
        if Path(f"/proc/{job.pid}").exists():
            os.killpg(job.pid, signal.SIGKILL)
    made.close()


@pytest.fixture
def operations(tmp_path: Path, store: ConsoleStore) -> OperationsOnThisMachine:
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    return OperationsOnThisMachine([tmp_path / "runs"], store, tmp_path / "data")


@pytest.fixture
def config(tmp_path: Path, operations: OperationsOnThisMachine, tiny_model: Callable[[str], Path]) -> str:
    """Four people on a tiny model; as many rounds as a test likes to wait for."""
    data = tmp_path / "data"
    write_choices(data / "choices.jsonl", [12] * 4)
    (data / "model").mkdir()
    for path in tiny_model("bert").iterdir():
        (data / "model" / path.name).write_bytes(path.read_bytes())
    return (
        f'[data]\nperson_column = "user"\npairs = 4\nvalidation_pairs = 1\ntest_pairs = 3\n'
        f'dataset = "{data / "choices.jsonl"}"\n[model]\nbase_model = "{data / "model"}"\n'
        "[federation]\nrounds = ROUNDS\n[training]\nlocal_epochs = 1\nfinal_fit_epochs = 1\n"
    )


def wait_for(what: str, happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


def state(operations: OperationsOnThisMachine, location: RunLocation) -> str:
    return summary_of(location, operations.activity([location])[location.id]).state


def settled(operations: OperationsOnThisMachine, location: RunLocation) -> int:
    return summary_of(location, operations.activity([location])[location.id]).settled


def started(operations: OperationsOnThisMachine, name: str, config: str) -> RunLocation:
    """A simulation, which waits for no turn."""
    location = operations.start(name, config)
    assert location is not None
    return location


def test_a_run_is_started_stopped_resumed_and_ends(
    operations: OperationsOnThisMachine, store: ConsoleStore, config: str
) -> None:
    location = started(operations, "small", config.replace("ROUNDS", "400"))
    assert state(operations, location) == "running"
    with pytest.raises(RunDirectoryError, match="a process is at work in small"):
        operations.resume(location)
    with pytest.raises(RunDirectoryError, match="a process is at work in small"):
        operations.delete(location)
    wait_for("a round", lambda: settled(operations, location) >= 2)
    facts = summary_of(location, operations.activity([location])[location.id])
    assert facts.activity.ours
    operations.stop(location)
    stood = settled(operations, location)
    assert state(operations, location) == "stopped"
    with pytest.raises(ConsoleError, match="nothing that this console started"):
        operations.stop(location)
    operations.resume(location)
    wait_for("more rounds", lambda: settled(operations, location) > stood)
    operations.stop(location)
    operations.delete(location)
    assert not location.directory.exists()
    assert operations.locations() == []
    assert store.jobs() == {}


def test_a_run_that_ends_is_finished_and_its_adapter_can_be_had(
    operations: OperationsOnThisMachine, config: str
) -> None:
    location = started(operations, "short", config.replace("ROUNDS", "1"))
    wait_for("the end", lambda: state(operations, location) in ("finished", "failed"))
    assert state(operations, location) == "finished", operations.log(location, 20)
    wait_for("its process", lambda: not operations.activity([location])[location.id].running)
    data = operations.releases(location).export(1)
    assert data == operations.releases(location).export(1)  # the same round, the same bytes
    with zipfile.ZipFile(BytesIO(data)) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "release.json"} < set(
            archive.namelist()
        )
        told = json.loads(archive.read("release.json"))
        assert (told["round"], told["share"], len(told["checkpoint_sha256"])) == (1, "A", 64)
        assert told["measured_in_round"] == 2  # the closing one
        card = archive.read("README.md").decode()
        assert "tags: [reward-model, shared, penchant]" in card
        assert "# The shared part of a fleet's reward models" in card
    with pytest.raises(ConsoleError, match="round 7 has no checkpoint"):
        operations.releases(location).export(7)


def test_a_run_that_can_not_be_is_failed_with_the_reason(
    operations: OperationsOnThisMachine, config: str
) -> None:
    wrong = config.replace("ROUNDS", "1").replace('"user"', '"nobody"')
    location = started(operations, "wrong", wrong)
    wait_for("the end", lambda: state(operations, location) != "running")
    facts = summary_of(location, operations.activity([location])[location.id])
    assert facts.state == "failed"
    assert "nobody" in facts.why
    assert "Traceback" not in "".join(operations.log(location, 100))


@pytest.fixture
def other_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that is started says errors to people in other words than ours."""
    folder = tmp_path / "patched"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from penchant.deploy import error_report\nerror_report.PREFIX = 'Oh no! '\n", encoding="utf-8"
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    )


def test_the_console_does_not_read_the_words_for_people(
    operations: OperationsOnThisMachine, config: str, tmp_path: Path, other_words: None
) -> None:
    """A run that fails, and an export that does: their reasons come as JSON, whatever people are told."""
    words = [*local.PROGRAM, "simulate", "--dataset", "sentae"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False).stderr
    assert said.startswith("Oh no! unknown data set 'sentae'")

    location = started(operations, "wrong", config.replace("ROUNDS", "1").replace('"user"', '"nobody"'))
    wait_for("the end", lambda: state(operations, location) != "running")
    facts = summary_of(location, operations.activity([location])[location.id])
    assert (facts.state, facts.why.count("{")) == ("failed", 0)
    assert "nobody" in facts.why
    assert operations.log(location, 1) == [facts.why]  # for people, too

    make_run(tmp_path / "runs" / "alone", 1, **{"adapter.share": "none"})
    alone = next(location for location in operations.locations() if location.name == "alone")
    with pytest.raises(ConsoleError, match=r"^this run shares nothing"):
        operations.releases(alone).export(1)


def test_a_console_that_is_started_again_finds_its_run(
    operations: OperationsOnThisMachine, store: ConsoleStore, config: str, tmp_path: Path
) -> None:
    location = started(operations, "small", config.replace("ROUNDS", "400"))
    wait_for("a round", lambda: settled(operations, location) >= 1)
    again = OperationsOnThisMachine([tmp_path / "runs"], store)
    activity = again.activity([location])[location.id]
    assert (activity.running, activity.ours) == (True, True)
    child = operations._children[location.id]
    with pytest.MonkeyPatch.context() as patch:  # as init would, once its parent is gone
        patch.setattr(time, "sleep", lambda _: child.poll())
        again.stop(location)
    assert state(again, location) == "stopped"


def test_another_process_is_never_taken_for_ours(
    operations: OperationsOnThisMachine, store: ConsoleStore, tmp_path: Path
) -> None:
    directory = make_run(tmp_path / "runs" / "first")
    (location,) = operations.locations()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        store.keep_job(location.id, RunProcess(stranger.pid, "12345"))  # the number was given out again
        assert not operations.activity([location])[location.id].running
        with pytest.raises(ConsoleError, match="nothing that this console started"):
            operations.stop(location)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert directory.is_dir()


def test_a_run_of_the_terminal_is_seen_and_left_alone(
    operations: OperationsOnThisMachine, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs" / "first")
    (location,) = operations.locations()
    with (location.directory / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        activity = operations.activity([location])[location.id]
        assert (activity.running, activity.ours) == (True, False)
        for act in (operations.stop, operations.resume, operations.delete):
            with pytest.raises((ConsoleError, RunDirectoryError)):
                act(location)
    assert not operations.activity([location])[location.id].running
    assert location.directory.is_dir()


def test_names_and_sources_are_checked_before_anything_is_made(
    operations: OperationsOnThisMachine, config: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs" / "first")
    fine = config.replace("ROUNDS", "1")
    for name in ("", "..", "a/b", "first", ".x"):
        with pytest.raises(ConfigError):
            operations.start(name, fine)
    outside = tmp_path / "outside.jsonl"
    outside.write_text("{}", encoding="utf-8")
    (tmp_path / "data" / "link.jsonl").symlink_to(outside)
    for source in (outside, tmp_path / "data" / "link.jsonl", tmp_path / "data" / ".." / "outside.jsonl"):
        with pytest.raises(ConfigError, match="may not read"):
            operations.check(f'[data]\ndataset = "{source}"')
        with pytest.raises(ConfigError, match="may not read"):
            operations.check(fine.replace("[model]", f'test = "{source}"\n[model]'))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[federation]\ncohort = 99999", "federation.cohort is 99999 but there are 101 people"),
        ("[federation]\ncohort = 500", "federation.cohort is 500 but there are 101 people; lower it"),
        ("[federation]\nrounds = 0", "federation.rounds is 0"),
        ("[data]\nclients = 2", "secure aggregation needs a cohort of at least 3, here it is 2"),
    ],
)
def test_what_the_people_of_a_simulation_do_not_allow_is_refused_before_it_starts(
    operations: OperationsOnThisMachine, tmp_path: Path, config: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        operations.start("new", config)
    assert "--no-secagg" not in str(refused.value)  # nobody has a command line in a browser
    assert not (tmp_path / "runs" / "new").exists()


def test_a_link_is_not_deleted_through(operations: OperationsOnThisMachine, tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (location,) = operations.locations()
    with pytest.raises(ConsoleError, match="only a link leads to"):
        operations.delete(location)
    assert (tmp_path / "elsewhere" / "config.toml").is_file()


def test_however_a_link_loops_the_other_runs_are_shown(
    operations: OperationsOnThisMachine, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs" / "first")
    (tmp_path / "runs" / "loop").symlink_to("loop")
    (tmp_path / "runs" / "again").symlink_to("first")
    assert [location.name for location in operations.locations()] == ["first"]


def test_a_log_is_shown_without_what_steers_terminals(
    operations: OperationsOnThisMachine, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs" / "first")
    (location,) = operations.locations()
    assert operations.log(location, 10) == []
    operations._log_of(location).write_bytes(
        b"one\n\x1b[31mred\x1b[0m\rover\n\x00\xff\n" + b"x" * 100_000 + b"\nlast\n"
    )
    assert operations.log(location, 1) == ["last"]
    assert all("\x1b" not in line and "\x00" not in line for line in operations.log(location, 10))


def test_single_runs_take_no_new_ones(store: ConsoleStore, tmp_path: Path) -> None:
    operations = OperationsOnThisMachine([make_run(tmp_path / "only")], store)
    assert [location.name for location in operations.locations()] == ["only"]
    with pytest.raises(ConfigError, match="single runs only"):
        operations.start("new", "seed = 1")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="is not a directory"):
        OperationsOnThisMachine([tmp_path / "file"], store)


@pytest.mark.parametrize("there", ["nothing", "a file", "a folder of other things", "a misplaced command"])
def test_the_console_does_not_start_on_what_is_not_a_run(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "other" / "folder").mkdir(parents=True)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("it listens"))
    names = {"nothing": ["nope"], "a file": ["file"], "a folder of other things": ["other"]}
    words = [str(tmp_path / name) for name in names.get(there, [])] or ["--port", "8901", "account", "list"]
    monkeypatch.setattr(sys, "argv", ["penchant", "console", *words, "--state", str(tmp_path / "state")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip()
    assert line.endswith("; name a run, a fleet's server, or a folder for runs")
    assert "\n" not in line
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("form", ["--state {}", "--state={}"])
def test_the_console_s_directory_may_be_named_before_a_command(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ConsoleStore(tmp_path / "state")
    store.add("olga", "operator", PASSWORD)
    store.close()
    words = form.format(tmp_path / "state").split()
    monkeypatch.setattr(sys, "argv", ["penchant", "console", *words, "account", "list"])
    with suppress(SystemExit):
        main()
    assert capsys.readouterr().out.split()[:2] == ["olga", "operator"]


def account_command(monkeypatch: pytest.MonkeyPatch, state: Path, *words: str) -> int:
    """`penchant console account WORDS…`; -> its exit status."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
    monkeypatch.setattr(sys, "argv", ["penchant", "console", "account", *words, "--state", str(state)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_roles_by_fleet_are_given_at_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state, server = tmp_path / "state", make_server(tmp_path).path
    assert (
        account_command(monkeypatch, state, "add", "nora", "--role", "none", "--fleet", f"{server}=viewer")
        == 0
    )
    assert capsys.readouterr().out == f"nora may log in as none, viewer on {server}\n"
    assert account_command(monkeypatch, state, "role", "nora", "--fleet", f"{server}=operator") == 0
    capsys.readouterr()
    assert account_command(monkeypatch, state, "list") == 0
    assert capsys.readouterr().out.split()[-2:] == [f"{fleet_id(server)}:", "operator"]
    for words, why in (
        (["role", "nora"], "say which role"),
        (["role", "nora", "--fleet", str(server)], "write DIR=ROLE"),
        (["role", "nora", "--fleet", f"{tmp_path}=viewer"], "is not the directory of a fleet's server"),
        (["role", "nora", "--role", "root"], "a role is one of none, viewer, operator"),
        (["role", "nobody", "--role", "viewer"], "there is no account 'nobody'"),
        (["reset-second-factor", "nora"], "nora has no second factor"),
    ):
        assert account_command(monkeypatch, state, *words) == 2
        assert why in capsys.readouterr().err
    store = ConsoleStore(state)
    assert [one.action for one in store.audit_entries()] == ["change a role", "make an account"]
    store.close()


def test_the_owner_of_the_machine_takes_a_second_factor_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, key = ConsoleStore(tmp_path / "state"), second_factor.new_key()
    store.add("olga", "operator", PASSWORD)
    assert store.set_second_factor("olga", key, second_factor._totp(key).generate(int(time.time())).decode())
    account_command(monkeypatch, tmp_path / "state", "list")
    assert "second factor" in capsys.readouterr().out
    assert account_command(monkeypatch, tmp_path / "state", "reset-second-factor", "olga") == 0
    assert not store.has_second_factor("olga")
    assert [one.action for one in store.audit_entries()] == ["reset a second factor"]
    store.close()


def test_the_console_does_not_start_with_a_provider_that_is_set_up_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "console.toml").write_text('[oidc]\nissuer = "https://id.example.org"\n')
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("it listens"))
    words = [
        "console",
        str(tmp_path / "runs"),
        "--state",
        str(tmp_path / "state"),
        "--port",
        str(free_port()),
    ]
    monkeypatch.setattr(sys, "argv", ["penchant", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "oidc.allowed is empty" in capsys.readouterr().err


def test_a_role_on_a_fleet_that_is_not_served_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state, server = tmp_path / "state", make_server(tmp_path).path
    account_command(monkeypatch, state, "add", "nora", "--role", "viewer", "--fleet", f"{server}=none")
    (state / "console.toml").write_text(
        '[oidc]\nissuer = "https://id.example.org"\nclient_id = "console"\n'
        f'[[oidc.allowed]]\ngroup = "ops"\nrole = "operator"\nfleet = "{server}"\n'
    )
    (state / "console.toml").chmod(0o600)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    about = {}
    for name in ("server", "runs"):
        words = ["console", str(tmp_path / name), "--state", str(state), "--port", str(free_port())]
        monkeypatch.setattr(sys, "argv", ["penchant", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main()
        err = capsys.readouterr().err
        about[name] = [who for who in ("nora", "a rule about group ops") if f"{who} has a role on" in err]
        assert (fleet_id(server) in err) == (name == "runs")
    assert about == {"server": [], "runs": ["nora", "a rule about group ops"]}


@pytest.mark.parametrize("there", ["an empty folder", "a run", "a folder of runs"])
def test_the_console_starts_on_runs_and_folders_for_them(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    make_run(tmp_path / "runs" / "one")
    served: list[object] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, **_: served.append(server))
    name = {"an empty folder": "new", "a run": "runs/one", "a folder of runs": "runs"}[there]
    words = ["console", str(tmp_path / name), "--state", str(tmp_path / "state"), "--port", str(free_port())]
    monkeypatch.setattr(sys, "argv", ["penchant", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (None, 0)
    assert len(served) == 1


def test_a_console_whose_port_is_taken_does_not_say_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["console", str(tmp_path / "runs"), "--state", str(tmp_path / "state"), "--port", str(port)]
        monkeypatch.setattr(sys, "argv", ["penchant", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert err.splitlines()[-1] == (
        f"penchant: can't listen at 127.0.0.1:{port}: Address already in use; choose another address"
    )


def test_every_rule_of_a_share_gives_a_recipe(operations: OperationsOnThisMachine) -> None:
    for name in share_names():
        text = operations.recipes()[f"Senate, {share_rule(name).label}"]
        assert operations.check(text).adapter.share == name


def test_recipes_can_all_be_run(operations: OperationsOnThisMachine) -> None:
    for name, text in operations.recipes().items():
        assert operations.check(text).to_toml() == text, name


def test_a_run_that_was_stopped_before_it_said_anything_has_no_log_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(tmp_path)
    make_run(console.runs / "first", 0)
    page = f"/runs/{console.id_of('first')}"
    ended = {
        Activity(stopped=True): "Nothing was said yet.",  # the console had started it
        Activity(running=True, ours=True): "Nothing was said yet.",
        Activity(running=True): "Its log is in the terminal that it was started from.",
        Activity(): "Nothing was started yet.",
    }
    for activity, said in ended.items():
        monkeypatch.setattr(console.operations, "_activity", lambda *_, now=activity: now)
        assert said in console.browser("olga").get(page).text
    console.store.close()
