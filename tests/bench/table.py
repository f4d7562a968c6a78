"""One table of the benches that give ratios: `python tests/bench/table.py [--only NAME …] [--out DIR]`.

Each bench runs in sizes that take a minute or two, in a process of its own, one after the other. A row is
what was measured, and what it is held against in the same run: a peer's loop, the floor of the work, or the
bytes of one vector. Such ratios bear a busy machine, and another one, where seconds do not. Beside each is
the ratio that was recorded last (results/table.json), and how much it has changed: nothing fails by it.
Writes table.json and table.txt into --out, with hardware and versions, and prints the text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("penchant", "torch", "transformers", "peft", "numpy", "cryptography", "flwr")
INSTRUCTIONS = ("aes", "sha_ni", "avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Row:
    """One figure and what it is held against.

    Attributes:
        what: what was measured.
        value: the figure, in `unit`.
        against: what it is held against.
        ratio: the figure over that, or for a rate the other way round: which is meant is in `aim`.
        aim: what the ratio should be, as text.
    """

    what: str
    value: float
    unit: str
    against: str
    ratio: float
    aim: str


@dataclass(frozen=True)
class Bench:
    """How a bench is run, and which rows are in what it wrote.

    words: its command; {json} is a file and {folder} a folder that it writes to. read: its JSON -> rows.
    """

    words: tuple[str, ...]
    read: Callable[[Any], list[Row]]


# --- rows -----------------------------------------------------------------------------------------


def protocol(found: Mapping[str, Any]) -> list[Row]:
    """Of bench_secagg.py, parts masks, unmask and memory."""
    one, unmask = found["masks"]["1 workers"], found["unmask"]
    rows = [
        Row(
            "masks, a million words",
            one["ours_ms_per_million"],
            "ms",
            "AES-CTR keystream alone",
            one["ratio"],
            "≤ 1.5",
        ),
        Row(
            f"unmasking, {unmask['n']} devices, {unmask['lost']} lost",
            unmask["server_s"],
            "s",
            f"its {unmask['expansions']:,} expansions alone",
            unmask["ratio_to_expansions"],
            "≤ 1.3",
        ),
    ]
    for case in found["memory"]:
        vector = 4 * case["words"] / 2**20
        of = f"one vector, {vector:.1f} MiB"
        rows.append(
            Row(
                f"server, a group of {case['n']}",
                case["server_mb"],
                "MiB",
                of,
                case["server_mb"] / vector,
                "≤ 6",
            )
        )
    return rows


def streaming(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Of bench_streaming.py: what one more device takes, in vectors."""
    first, last = found[0], found[-1]
    more = last["devices"] - first["devices"]
    vector = 4 * last["words"] / 1e6
    memory = (last["peak MB"] - first["peak MB"]) / more
    disk = (last["journal MB"] - first["journal MB"]) / more
    return [
        Row(
            "server, memory for one more device", memory, "MB", "its vector", memory / vector, "< 1: not kept"
        ),
        Row("server, journal for one more device", disk, "MB", "its vector", disk / vector, "< 1: not kept"),
    ]


def scale(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Of bench_scale.py: whether memory and disk are linear in the people."""
    small, middle, large = found
    rows = []
    for name, what in (("peak MB", "memory"), ("disk MB", "disk")):
        early = (middle[name] - small[name]) / (middle["people"] - small["people"])
        late = (large[name] - middle[name]) / (large["people"] - middle["people"])
        people = f"{middle['people']:,} people"
        rows.append(
            Row(
                f"simulation, {what} for one more person",
                late,
                "MB",
                f"below {people}",
                late / early,
                "1: linear",
            )
        )
    return rows


def language_model(found: Mapping[str, Any]) -> list[Row]:
    """Of bench_language_model.py: a step beside the peft loop's."""
    return [
        Row(
            f"training step, SmolLM2-135M, {row['pairs_a_prompt']} pairs a prompt",
            row["pairs_per_cpu_second"],
            "pairs/CPU s",
            "a plain peft loop",
            row["ratio"],
            "≥ 2.2" if row["pairs_a_prompt"] > 1 else "≥ 1.5",
        )
        for row in found["rows"]
        if row["who"] == "penchant"
    ]


def people(found: Mapping[str, Any]) -> list[Row]:
    """Of bench_people.py: one person of the largest group, beside that person alone."""
    last = {row["case"]: row for row in found["rows"]}
    return [
        Row(
            f"training {row['people']} people in lockstep, {case}",
            row["lockstep_ms"],
            "CPU ms each",
            "one by one",
            row["ratio"],
            "> 2" if case == "heads" else "> 1; off by default",
        )
        for case, row in last.items()
    ]


def peers(found: Mapping[str, Any]) -> list[Row]:
    """Of bench_peers.py: a whole simulation beside each peer's, loading included."""
    seconds = {row["who"]: row["cpu_seconds"] for row in found["rows"]}
    own, size = seconds.pop("penchant"), found["given"]
    what = f"a simulation, {size['people']} people, {size['rounds']} rounds"
    aims = {"Flower app on Ray": "≥ 10 at 100 people, 10 rounds"}
    return [
        Row(f"{what}, and {who}", own, "CPU s", f"{taken:.0f} CPU s", taken / own, aims.get(who, "≥ 3 there"))
        for who, taken in seconds.items()
    ]


def grid(found: Mapping[str, Any]) -> list[Row]:
    """Of bench_grid.py: a message there and back, at the largest number of clients."""
    last = found["exchanges"][-1]
    ms = last["wall_ms_best"]
    clients = f"{last['clients']:,} clients"
    return [Row(f"in-process grid, a message, {clients}", ms, "ms", "1 ms", ms, "≤ 1")]


def roofline(found: Mapping[str, Any]) -> list[Row]:
    """Of bench_roofline.py: work beside the floor of its operations."""
    return [
        Row(
            row["what"],
            row["p50_ms"],
            "CPU ms",
            f"{row['gigaflop']:.3g} GFLOP at {row['gigaflop_a_second']:.0f} a second",
            row["ratio"],
            "≤ 1.5" if row["what"].startswith("ranking") else "memory, not products",
        )
        for row in found["rows"]
    ]


BENCHES: dict[str, Bench] = {
    "protocol": Bench(
        ("bench_secagg.py", "--only", "masks", "--only", "unmask", "--only", "memory", "--out", "{folder}"),
        protocol,
    ),
    "streaming": Bench(
        ("bench_streaming.py", "64", "256", "--group", "64", "--words", "200000", "--json", "{json}"),
        streaming,
    ),
    "scale": Bench(("bench_scale.py", "200", "400", "600", "--cohort", "20", "--json", "{json}"), scale),
    "grid": Bench(("bench_grid.py", "--repeats", "3", "--json", "{json}"), grid),
    "peers": Bench(
        (
            *("bench_peers.py", "--people", "34", "--rounds", "2", "--json", "{json}"),
            *("--only", "penchant", "--only", "Flower app on Ray"),
        ),
        peers,
    ),
    "roofline": Bench(("bench_roofline.py", "--repeats", "15", "--json", "{json}"), roofline),
    "people": Bench(("bench_people.py", "--people", "16", "--repeats", "2", "--json", "{json}"), people),
    # One step alone is half start-up: what is measured of memory, and first calls of each product.
    "language model": Bench(("bench_language_model.py", "--steps", "4", "--json", "{json}"), language_model),
}


def run(bench: Bench) -> list[Row]:
    """Run a bench; what it prints goes to standard error. SystemExit when it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "secagg.json" if "{folder}" in bench.words else folder / "found.json"
        words = [word.format(json=file, folder=folder) for word in bench.words]
        done = subprocess.run(
            [sys.executable, str(HERE / words[0]), *words[1:]], stdout=sys.stderr, check=False
        )
        if done.returncode:
            raise SystemExit(f"{words[0]} failed with {done.returncode}")
        return bench.read(json.loads(file.read_text(encoding="utf-8")))


# --- the table ------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, memory, versions."""
    processor, flags = platform.machine(), set[str]()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            processor = value.strip()
        elif name.strip() == "flags":
            flags = set(value.split())
    return {
        "processor": processor,
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(terse=True),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def text(found: Mapping[str, Any], recorded: Mapping[str, float]) -> str:
    """The table. recorded: what -> the ratio that was recorded before."""
    of = found["machine"]
    head = [
        f"{of['processor']}, {of['cores']} cores, {of['memory_gb']:g} GB, {' '.join(of['instructions'])}; "
        f"load {of['load']:g} at the end",
        f"{of['system']}; " + ", ".join(f"{name} {number}" for name, number in of["versions"].items()),
        "",
    ]
    lines = [("what", "measured", "held against", "ratio", "aim", "recorded", "change")]
    for row in found["rows"]:
        before = recorded.get(row["what"])
        change = "" if not before else f"{row['ratio'] / before:.2f} x"
        measured = f"{row['value']:.3g} {row['unit']}"
        was = "" if before is None else f"{before:.2f}"
        lines.append((row["what"], measured, row["against"], f"{row['ratio']:.2f}", row["aim"], was, change))
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in [*head, *body]) + "\n"


def ratios(path: Path) -> dict[str, float]:
    """what -> ratio, of a table that was written before; none if there is none."""
    if not path.exists():
        return {}
    return {row["what"]: row["ratio"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def main() -> None:
    """Run the benches and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=BENCHES, action="append")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    recorded = ratios(RESULTS / "table.json")
    rows = [asdict(row) for name in asked.only or BENCHES for row in run(BENCHES[name])]
    found = {"machine": machine(), "rows": rows}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "table.json").write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    written = text(found, recorded)
    (asked.out / "table.txt").write_text(written, encoding="utf-8")
    print(written, end="")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
