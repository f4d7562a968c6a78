"""The runner of `make mutants`: which changes it makes, whom it takes for dead, and its lists."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "mutants"
sys.path.insert(0, str(HERE))

import run  # noqa: E402
from mutations import mutants  # noqa: E402

CHECKS = b"""
class Door:
    def opens(self, age: int, ticket: bytes, name: str) -> bool:
        if age < 18 or not ticket:
            raise ValueError("no")
        check_name(name)
        if self.verify(name, ticket):
            self.count += 1
        else:
            self.log.lose("door", name)
        text = domain("door", name, ticket)
        self.db.execute("SELECT a FROM b WHERE run = ? AND used = 0", (name,))
        return text == self.text
"""


def test_each_kind_of_check_is_disabled() -> None:
    found = mutants("door.py", CHECKS)
    assert [mutant.key.removeprefix("door.py::Door.opens: ") for mutant in found] == [
        "always text == self.text",
        "never age < 18 or not ticket",
        "age < 18 or not ticket without age < 18",
        "age < 18 or not ticket without not ticket",
        "age < 18 as age <= 18",
        "without check_name(name)",
        "never not self.verify(name, ticket)",
        "'door' without name",
        "'door' without ticket",
        '"SELECT a FROM b WHERE run = ? AND used = 0"… without run = ?',
        '"SELECT a FROM b WHERE run = ? AND used = 0"… without used = 0',
    ]
    changed = {mutant.key.rpartition(": ")[2]: mutant.of(CHECKS).decode() for mutant in found}
    assert "if False:" in changed["never age < 18 or not ticket"]
    assert "if (not ticket):" in changed["age < 18 or not ticket without age < 18"]
    assert "if (age <= 18) or not ticket:" in changed["age < 18 as age <= 18"]
    assert "if True:" in changed["never not self.verify(name, ticket)"]
    assert "domain('door', ticket)" in changed["'door' without name"]
    assert "WHERE ? IS NOT NULL AND used = 0" in changed[found[-2].key.rpartition(": ")[2]]


def test_every_mutant_of_the_real_files_is_a_program_of_its_own() -> None:
    files = [file for group in run.nearest() for file in group.files]
    assert {"client/secagg.py", "client/agent/agent.py", "common/membership/identity.py"} <= set(files)
    keys = Counter[str]()
    for path in dict.fromkeys(files):
        source = (run.ROOT / path).read_bytes()
        for mutant in mutants(path, source):
            changed = mutant.of(source)
            assert changed != source
            compile(changed, path, "exec")
            keys[mutant.key] += 1
    assert len(keys) > 300
    assert set(keys.values()) == {1}
    gone = [key for key in run.survivors() if key not in keys]
    assert not gone, "survivors.toml argues for mutants that are no more"


def test_the_nearest_tests_exist() -> None:
    for group in run.nearest():
        assert group.files
        for argument in (*group.quick, *group.wider):
            path = argument.removeprefix("--deselect=").partition("::")[0]
            assert argument.startswith("-k=") or (run.ROOT / path).is_file(), argument


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A project of one file with three checks, of which its test notices two."""
    for folder in (*run.ROOMS, "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "deploy" / "api").mkdir()
    (tmp_path / "deploy" / "api" / "__init__.py").touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "client" / "age.py").write_text(
        'def check_age(age):\n    if age < 0:\n        raise ValueError("below")\n    return age\n'
    )
    (tmp_path / "docs" / "age.md").write_text("Nobody is below 0.")
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    for name in ("run.py", "mutations.py"):
        shutil.copy(HERE / name, tmp_path / "tests" / "mutants" / name)
    (tmp_path / "tests" / "test_age.py").write_text(
        "import pytest\nfrom pathlib import Path\nfrom {} import check_age\n\n"
        "def test_age():\n    assert 'below 0' in Path('docs/age.md').read_text()\n"
        "    with pytest.raises(ValueError):\n        check_age(-1)\n".format("penchant.client.age")
    )
    (tmp_path / "tests" / "mutants" / "nearest.toml").write_text(
        '[[group]]\nfiles = ["client/*.py"]\nquick = ["tests/test_age.py"]\n'
    )
    (tmp_path / "tests" / "mutants" / "survivors.toml").touch()
    return tmp_path


def play(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(project / "tests" / "mutants" / "run.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_survivor_fails_the_command_until_somebody_argues_for_it(small: Path) -> None:
    before = (small / "client" / "age.py").read_bytes()
    first = play(small)
    assert first.returncode == 1, first.stderr
    assert "2 mutants, 1 died, 1 survived" in first.stdout
    survivor = "client/age.py::check_age: age < 0 as age <= 0"
    assert f"UNARGUED  {survivor}" in first.stdout
    argued = f'[[survivor]]\nmutants = ["{survivor}"]\nwhy = "newborns are let in, or not: nobody cares"\n'
    (small / "tests" / "mutants" / "survivors.toml").write_text(argued)
    assert play(small).returncode == 0
    (small / "tests" / "mutants" / "survivors.toml").write_text(argued.replace("age <= 0", "age <= 1"))
    stale = play(small)
    assert stale.returncode == 1
    assert "died or is no more" in stale.stdout
    assert (small / "client" / "age.py").read_bytes() == before


def test_tests_that_fail_without_a_mutant_are_said(small: Path) -> None:
    (small / "tests" / "test_age.py").write_text("def test_age():\n    assert False\n")
    told = play(small)
    assert told.returncode == 1
    assert "the tests fail as they are" in told.stderr
