"""The table of the benches: each row says what it is held against, and a change of a ratio shows."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from bench import table
from bench.table import BENCHES, Bench, Row

BENCH = Path(__file__).parent / "bench"

SECAGG: dict[str, Any] = {
    "masks": {"1 workers": {"ours_ms_per_million": 0.6, "ratio": 1.2}},
    "unmask": {"n": 100, "lost": 30, "server_s": 0.8, "expansions": 2170, "ratio_to_expansions": 1.1},
    "memory": [{"n": 10, "words": 2**20, "server_mb": 20.0}],
}
MACHINE: dict[str, Any] = {
    "processor": "A processor", "instructions": ["aes"], "cores": 2, "memory_gb": 24.0, "load": 1.5,
    "system": "Linux", "versions": {"python": "3.11.2", "torch": "2.13.0"},
}  # fmt: skip


def test_a_ratio_is_the_figure_over_what_it_is_held_against() -> None:
    rows = table.protocol(SECAGG)
    assert [row.ratio for row in rows] == [1.2, 1.1, 5.0]
    assert rows[2].against == "one vector, 4.0 MiB"


def test_streaming_counts_one_more_device_in_vectors() -> None:
    found = [
        {"devices": 64, "words": 250_000, "peak MB": 10.0, "journal MB": 2.0},
        {"devices": 164, "words": 250_000, "peak MB": 20.0, "journal MB": 7.0},
    ]
    memory, disk = table.streaming(found)
    assert (memory.value, memory.ratio) == pytest.approx((0.1, 0.1))  # a vector is 1 MB
    assert (disk.value, disk.ratio) == pytest.approx((0.05, 0.05))


def test_of_people_the_largest_group_is_the_row() -> None:
    found = {
        "rows": [
            {"case": "heads", "people": 8, "lockstep_ms": 5.0, "ratio": 2.0},
            {"case": "heads", "people": 32, "lockstep_ms": 2.5, "ratio": 4.0},
            {"case": "blocks", "people": 32, "lockstep_ms": 50.0, "ratio": 0.9},
        ]
    }
    heads, blocks = table.people(found)
    assert (heads.ratio, heads.value, heads.aim) == (4.0, 2.5, "> 2")
    assert "32 people" in heads.what
    assert blocks.ratio == 0.9


def test_work_is_held_against_the_floor_of_its_operations() -> None:
    row = {"p50_ms": 30.0, "gigaflop": 1.0, "gigaflop_a_second": 50.0, "ratio": 1.5}
    ranking, training = table.roofline(
        {"rows": [row | {"what": "ranking 16 answers"}, row | {"what": "training"}]}
    )
    assert (ranking.value, ranking.ratio, ranking.aim) == (30.0, 1.5, "≤ 1.5")
    assert ranking.against == "1 GFLOP at 50 a second"
    assert "memory" in training.aim


def test_a_peer_s_simulation_is_held_against_ours() -> None:
    found = {
        "given": {"people": 34, "rounds": 2},
        "rows": [
            {"who": "penchant", "cpu_seconds": 10.0},
            {"who": "Flower app on Ray", "cpu_seconds": 80.0},
            {"who": "pfl-research", "cpu_seconds": 60.0},
        ],
    }
    flower, pfl = table.peers(found)
    assert (flower.ratio, flower.value, pfl.ratio) == (8.0, 10.0, 6.0)
    assert "34 people, 2 rounds" in flower.what
    assert flower.aim.startswith("≥ 10")


@pytest.mark.parametrize(("large", "ratio"), [(300.0, 1.0), (400.0, 2.0)])
def test_what_grows_with_the_square_is_seen(large: float, ratio: float) -> None:
    found = [
        {"people": people, "peak MB": peak, "disk MB": people * 0.1}
        for people, peak in ((100, 100.0), (200, 200.0), (300, large))
    ]
    memory, disk = table.scale(found)
    assert memory.ratio == pytest.approx(ratio)
    assert disk.ratio == pytest.approx(1.0)


def test_of_the_language_model_ours_is_the_row_and_the_loop_what_it_is_held_against() -> None:
    recorded = json.loads((BENCH / "results" / "language_model.json").read_text(encoding="utf-8"))
    rows = table.language_model(recorded)
    assert [(row.aim, round(row.ratio, 2)) for row in rows] == [("≥ 2.2", 2.37), ("≥ 1.5", 1.77)]


def test_a_change_of_a_recorded_ratio_shows(tmp_path: Path) -> None:
    rows = [
        asdict(Row("a step", 2.0, "ms", "the floor", 1.5, "≤ 2")),
        asdict(Row("new", 1.0, "s", "x", 1, "")),
    ]
    written = {"machine": MACHINE, "rows": rows}
    file = tmp_path / "table.json"
    assert table.ratios(file) == {}
    file.write_text(json.dumps(written))
    assert table.ratios(file) == {"a step": 1.5, "new": 1}
    shown = table.text(written, {"a step": 1.0}).splitlines()
    assert shown[0] == "A processor, 2 cores, 24 GB, aes; load 1.5 at the end"
    assert "torch 2.13.0" in shown[1]
    assert re.split("  +", shown[4]) == ["a step", "2 ms", "the floor", "1.50", "≤ 2", "1.00", "1.50 x"]
    assert re.split("  +", shown[5]) == ["new", "1 s", "x", "1.00"]  # nothing was recorded of it


def test_the_machine_says_what_the_figures_were_measured_on() -> None:
    found = table.machine()
    assert found["cores"] >= 1
    assert found["memory_gb"] > 0
    assert set(found["versions"]) == {"python", *table.PACKAGES}
    assert set(found["instructions"]) <= set(table.INSTRUCTIONS)


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_of_the_table_is_there_and_knows_its_flags(name: str) -> None:
    words = BENCHES[name].words
    source = (BENCH / words[0]).read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))
    assert "{json}" in words or "{folder}" in words


def test_a_bench_that_fails_ends_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bench_broken.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(table, "HERE", tmp_path)
    with pytest.raises(SystemExit, match=r"bench_broken\.py failed with 3"):
        table.run(Bench(("bench_broken.py", "{json}"), lambda found: []))


def test_a_bench_is_run_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bench_small.py").write_text("import sys\nopen(sys.argv[1], 'w').write('[4]')\n")
    monkeypatch.setattr(table, "HERE", tmp_path)
    rows = table.run(Bench(("bench_small.py", "{json}"), lambda found: [Row("n", found[0], "", "", 1, "")]))
    assert rows[0].value == 4
