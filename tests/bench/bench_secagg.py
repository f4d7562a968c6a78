"""What secure aggregation costs, beside the primitives of Flower's SecAgg+.

    python tests/bench/bench_secagg.py [--full] [--only PART] [--out DIR]

Parts: `groups` (a whole round by group size and vector length), `cohorts` (linear above a group), `memory`
(of a device and of the server, each by itself), `masks` (expansion and addition against the raw AES-CTR
keystream), `unmask` (n=100, d=1M, 30 lost, against its 2,170 expansions), `flower` (unit costs of SecAgg+ by
group size, and what they make a client and the server pay), `noise` (what differential privacy adds to a
device's time and message, and which ring its sums need). A minute or so; `--full` has groups to 500,
vectors to 1M and cohorts to 10,000, and takes a quarter of an hour.
Writes secagg.json, secagg.md (all cases as tables) and, with matplotlib, secagg.png.

A round runs in this process with real messages. Three devices verify every signature as a device does, and
are the ones that are timed; the others remember signatures that held (`SignatureCache`) so that n^2
verifications of one machine don't drown the rest. For n >= 256 with 1M numbers the other devices send vectors
without masks, which costs the server the same: its sum is not checked there. Times are medians of the three.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import scene as stage_door
from support.scene import Scene, plain_sum

from penchant.client import secagg
from penchant.common.crypto import masks as prg
from penchant.common.crypto.keys import AgreementKey, verify
from penchant.common.crypto.masks import accumulate
from penchant.common.crypto.shamir import Combiner, split
from penchant.common.privacy.discrete_gaussian import discrete_gaussian
from penchant.common.privacy.noise import SIGMA, solve
from penchant.common.secagg.transcript import threshold
from penchant.common.secagg.update_vector import COUNTERS
from penchant.server.secagg.aggregation import Take

HERE = Path(__file__).resolve().parent
STAGES = ("keys", "shares", "masked", "confirm", "unmask")
TIMED = 3  # devices

client: Any = secagg  # the module whose masking is timed, and left out of what others pay


def best(
    work: Callable[[], object], repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of the fastest of some repeats: on a busy machine the least disturbed one."""
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append(clock() - began)
    return min(times)


def on_one_core(work: Callable[[], object], repeats: int) -> float:
    """Seconds of one core: what a job on one thread takes, whoever else uses the machine."""
    return best(work, repeats, time.process_time)


# --- masks ----------------------------------------------------------------------------------------


def raw_keystream(keys: list[bytes], size: int) -> None:
    """The keystreams of `keys`, `size` bytes each, into a buffer that stays in the cache; nothing else."""
    chunk = prg.CHUNK
    zeros, out = memoryview(bytes(chunk)), bytearray(chunk)
    for key in keys:
        stream = prg._keystream(key, 0)
        for at in range(0, size, chunk):
            stream.update_into(zeros[: min(chunk, size - at)], out)


def raw_on(workers: int, keys: list[bytes], size: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        parts = [pool.submit(raw_keystream, keys[i::workers], size) for i in range(workers)]
        for part in parts:
            part.result()


def masks(full: bool) -> dict[str, Any]:
    """Expansion and addition of masks against the raw keystream for the same words."""
    words, count = 1_000_000, 100
    keys = [os.urandom(32) for _ in range(count)]
    total = np.zeros(words, "<u4")
    result: dict[str, Any] = {"words": words, "masks": count}
    for workers in (1, os.cpu_count() or 1):
        raws, ours = [], []
        for _ in range(9 if full else 5):  # interleaved, so that a disturbance hits both
            raws.append(best(lambda: raw_on(workers, keys, 4 * words), 1))  # noqa: B023 - called at once
            ours.append(best(lambda: accumulate(total, keys, workers=workers), 1))  # noqa: B023
        result[f"{workers} workers"] = {
            "raw_ms_per_million": 1e3 * min(raws) / count,
            "ours_ms_per_million": 1e3 * min(ours) / count,
            "ratio": min(ours) / min(raws),
            "ratio_of_medians": statistics.median(ours) / statistics.median(raws),
        }
    return result


# --- whole rounds ---------------------------------------------------------------------------------


def play(n: int, words: int, *, group: int = 0, lost: int = 0, fake: bool = False) -> dict[str, Any]:
    """One round of n devices; `lost` of them vanish before they send their vectors."""
    scene = Scene(n, group=group, words=words)
    timed = range(n - TIMED, n)  # the last: no device with a lower index than theirs is lost last
    for node in timed:
        scene.devices[node] = replace(scene.devices[node], verify=verify)
    seconds: dict[str, dict[int, float]] = {stage: {} for stage in STAGES}
    up = dict.fromkeys(STAGES, 0)
    down = dict.fromkeys(STAGES, 0)
    outside = 0.0
    masking = client.accumulate

    def exchange(stage: str, requests: Mapping[int, bytes], take: Take | None = None, /) -> dict[int, bytes]:
        nonlocal outside
        replies: dict[int, bytes] = {}
        keep = take or replies.__setitem__
        for node, payload in requests.items():
            if stage == "masked" and node < lost:
                continue
            if stage == "masked" and fake:
                client.accumulate = masking if node in timed else (lambda *_, **__: None)
            began = time.perf_counter()
            reply = scene.tell(stage, node, payload)
            seconds[stage][node] = time.perf_counter() - began
            if stage == "masked":
                del scene.sent[stage][node]
            if node == n - 1:
                up[stage], down[stage] = len(reply), len(payload)
            outside += time.perf_counter() - began
            keep(node, reply)
        return replies

    began = time.perf_counter()
    try:
        aggregate = scene.server.run(scene.announce, range(n), exchange, scene.journal)
    finally:
        client.accumulate = masking
    server = time.perf_counter() - began - outside
    if not fake and (aggregate.total != plain_sum(scene.vectors[lost:])).any():
        raise SystemExit(f"the sum of n={n}, d={words} is wrong")
    return {
        "n": n,
        "words": words,
        "group": group or n,
        "lost": lost,
        "client_ms": {s: 1e3 * statistics.median(seconds[s][i] for i in timed) for s in STAGES},
        "server_s": server,
        "bytes_up": up,
        "bytes_down": down,
        "masked_bytes_per_word": up["masked"] / words,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run in a forked child, so that its peak memory is its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            json.dump(work(), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        raise SystemExit("a case failed in its own process")
    return dict(json.loads(text))


def groups(full: bool) -> list[dict[str, Any]]:
    """A round by group size and vector length, a tenth lost."""
    sizes = (10, 50, 100, 256, 500) if full else (10, 50, 100)
    lengths = (5_000, 50_000, 1_000_000) if full else (5_000, 50_000)
    cases = []
    for n in sizes:
        for words in lengths:
            fake = n >= 256 and words >= 1_000_000
            cases.append(apart(lambda: play(n, words, lost=n // 10, fake=fake)))  # noqa: B023 - called at once
            show(cases[-1])
    return cases


def show(case: dict[str, Any]) -> None:
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in case["client_ms"].items())
    print(
        f"n={case['n']:5d} group={case['group']:4d} d={case['words']:8d}: client ms: {stages}; "
        f"server {case['server_s']:.3f} s; {case['peak_rss_mb']:.0f} MB",
        flush=True,
    )


def cohorts(full: bool) -> list[dict[str, Any]]:
    """Above a group, cost grows with the number of groups."""
    group = 100 if full else 25
    sizes = (100, 500, 1_000, 2_000, 5_000, 10_000) if full else (25, 50, 100, 200)
    cases = []
    for n in sizes:
        cases.append(apart(lambda: play(n, 5_000, group=group)))  # noqa: B023 - called at once
        show(cases[-1])
    return cases


# --- memory ---------------------------------------------------------------------------------------


def memory(full: bool) -> list[dict[str, Any]]:
    """What a device and the server allocate at most, each by itself, d=1M, a tenth lost.

    device_mb: while it answers stage masked, beside its own vector. server_mb: from the arrival of the
    vectors, which it adds one by one, to the sum.
    """
    cases = []
    for n in (10, 50, 100) if full else (10, 50):
        cases.append(apart(lambda: allocated(n, 1_000_000, n // 10)))  # noqa: B023 - called at once
        print(json.dumps(cases[-1]), flush=True)
    return cases


def allocated(n: int, words: int, lost: int) -> dict[str, Any]:
    """One round, traced where it is heaviest. The others send without masks, which weighs the same."""
    scene = Scene(n, words=words)
    masking, device = client.accumulate, 0.0

    def exchange(stage: str, requests: Mapping[int, bytes], take: Take | None = None, /) -> dict[int, bytes]:
        nonlocal device
        replies = {}
        for node, payload in requests.items():
            if stage == "masked" and node < lost:
                continue
            if stage == "masked" and node == n - 1:
                client.accumulate = masking
                tracemalloc.start()
            elif stage == "masked":
                client.accumulate = lambda *_, **__: None
            replies[node] = scene.tell(stage, node, payload)
            if stage == "masked" and node == n - 1:
                device = tracemalloc.get_traced_memory()[1] / 2**20
                tracemalloc.stop()
        if take is None:
            return replies
        scene.sent.clear()
        tracemalloc.start()  # what was made before is not counted
        for node in list(replies):
            take(node, replies.pop(node))
        return {}

    try:
        scene.server.run(scene.announce, range(n), exchange, scene.journal)
        server = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        client.accumulate = masking
        tracemalloc.stop()
    return {
        "n": n,
        "words": words,
        "lost": lost,
        "device_mb": device,
        "server_mb": server,
    }


# --- the server after dropouts --------------------------------------------------------------------


def unmask(full: bool) -> dict[str, Any]:
    """n=100, d=1M, 30 lost before their vectors: all that the server does after the last reply."""
    n, words, lost = 100, 1_000_000, 30
    scene = Scene(n, words=words)
    masking = client.accumulate
    client.accumulate = lambda *_, **__: None  # the server pays the same either way
    try:
        scene.play_to("unmask", silent={"masked": range(lost)})
        replies = {node: scene.tell("unmask", node, payload) for node, payload in scene.requests.items()}
    finally:
        client.accumulate = masking
    records = scene.journal.records
    for node, reply in replies.items():
        scene.journal.record("reply", node, reply)
    expansions = (n - lost) * (1 + lost)
    keys = [os.urandom(32) for _ in range(expansions)]
    total = np.zeros(words, "<u4")
    ours, alone, raw = [], [], []
    for _ in range(3):
        alone.append(best(lambda: accumulate(total, keys), 1))
        ours.append(best(lambda: scene.server.complete(records), 1))
        raw.append(best(lambda: raw_on(os.cpu_count() or 1, keys, 4 * words), 1))
    return {
        "n": n,
        "words": words,
        "lost": lost,
        "expansions": expansions,
        "server_s": min(ours),
        "expansions_s": min(alone),
        "raw_keystream_s": min(raw),
        "ratio_to_expansions": min(ours) / min(alone),
        "ratio_to_raw_keystream": min(ours) / min(raw),
    }


# --- Flower's SecAgg+ -----------------------------------------------------------------------------


def flower(full: bool) -> list[dict[str, Any]]:
    """Unit costs of flwr's SecAgg+ primitives and ours for the same job, by group size, in one run.

    Seconds of one core. client_s, server_s: what they add up to in a round with d=1M and three tenths lost;
    both schemes with the same complete graph and t.
    """
    cases = []
    for n in (10, 50, 100, 256, 500) if full else (10, 50, 100):
        cases.append(units(n, 1_000_000, lost=3 * n // 10, repeats=3 if n <= 100 else 1))
        ratios = ", ".join(f"{name.removesuffix('_s')} {r:,.0f}" for name, r in cases[-1]["ratios"].items())
        print(f"n={n:4d}: flwr / penchant: {ratios}", flush=True)
    return cases


def units(n: int, words: int, *, lost: int, repeats: int) -> dict[str, Any]:
    """Unit costs for a group of n, and their sums for a client and the server."""
    t, seed = threshold(n), os.urandom(32)
    theirs, ours = their_units(n, t, words, seed, repeats), our_units(n, t, words, seed)
    for cost in (theirs, ours):
        cost["client_s"] = (
            cost["split_key_s"]
            + cost["split_seed_s"]
            + (n - 1) * 2 * cost["agree_s"]
            + n * cost["mask_million_s"]
        )
        cost["server_s"] = (
            (n - lost) * cost["combine_seed_s"]
            + lost * cost["combine_key_s"]
            + (n - lost) * lost * cost["agree_s"]
            + (n - lost) * (1 + lost) * cost["mask_million_s"]
        )
    ours["server_s"] += on_one_core(lambda: Combiner(range(1, t + 1)), 5)  # once for all secrets
    return {
        "n": n,
        "threshold": t,
        "words": words,
        "lost": lost,
        "flower": theirs,
        "penchant": ours,
        "ratios": {name: theirs[name] / ours[name] for name in theirs},
        "bytes_per_word": {"flower": 8, "penchant": 4},
    }


def their_units(n: int, t: int, words: int, seed: bytes, repeats: int) -> dict[str, float]:
    """flwr's functions, called as they are. A mask key is shared as its PEM, as SecAgg+ does."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    key = ec.generate_private_key(ec.SECP384R1())
    peer = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    cost = {
        "split_key_s": on_one_core(lambda: create_shares(pem, t, n), repeats),
        "split_seed_s": on_one_core(lambda: create_shares(seed, t, n), repeats),
        "agree_s": on_one_core(lambda: generate_shared_key(key, peer), 20),
        "mask_million_s": on_one_core(lambda: pseudo_rand_gen(seed, 2**32, [(words,)]), 5),
    }
    shares, seeds = create_shares(pem, t, n)[:t], create_shares(seed, t, n)[:t]
    cost["combine_key_s"] = on_one_core(lambda: combine_shares(shares), repeats)
    cost["combine_seed_s"] = on_one_core(lambda: combine_shares(seeds), repeats)
    return cost


def our_units(n: int, t: int, words: int, seed: bytes) -> dict[str, float]:
    """Ours for the same jobs; a key and a seed are both 32 bytes."""
    entropy = stage_door.SeededEntropy(b"", "")
    mine, other = AgreementKey(os.urandom(32)), AgreementKey(os.urandom(32)).public()
    shares = split(seed, t, n, entropy)[:t]
    combiner = Combiner(range(1, t + 1))
    total = np.zeros(words, "<u4")
    split_s = on_one_core(lambda: split(seed, t, n, entropy), 20)
    combine_s = on_one_core(lambda: combiner.combine(shares), 20)
    return {
        "split_key_s": split_s,
        "split_seed_s": split_s,
        "agree_s": on_one_core(lambda: mine.agree(other), 50),
        "mask_million_s": on_one_core(lambda: accumulate(total, [seed], workers=1), 20),
        "combine_key_s": combine_s,
        "combine_seed_s": combine_s,
    }


# --- noise ----------------------------------------------------------------------------------------

PROMISES = (
    (8.0, 1e-5, 10),
    (8.0, 1e-5, 1),
    (100.0, 1e-2, 1),
)  # epsilon, delta, sums: the last is the weakest
COUNTS = len(COUNTERS)


def noise(full: bool) -> dict[str, Any]:
    """A device's noise in CPU seconds beside the masks that it adds anyway, the bytes of its message, and how
    much of a ring the sums of a group take: n clip + tail, as `Noise.fits` has it, over half the ring."""
    costs = []
    for parameters in (3_500, 1_000_000):
        words = parameters + COUNTS
        vector, entropy = np.zeros(words, "<u4"), stage_door.SeededEntropy(bytes(32), "noise")
        keys = [os.urandom(32) for _ in range(100)]
        case = apart(lambda: play(4, words))  # noqa: B023 - called at once
        costs.append(
            {
                "parameters": parameters,
                "draw_ms": 1e3
                * on_one_core(
                    lambda: vector + discrete_gaussian(words, SIGMA, entropy).astype("<i4").view("<u4"),  # noqa: B023
                    5 if full else 3,
                ),
                "masks_of_100_ms": 1e3 * on_one_core(lambda: accumulate(vector.copy(), keys, workers=1), 3),  # noqa: B023
                "bytes_a_parameter": case["bytes_up"]["masked"] / parameters,
            }
        )
        print(json.dumps(costs[-1]), flush=True)
    return {"sigma": SIGMA, "costs": costs, "rings": [ring(n, p) for n in RING_SIZES for p in PROMISES]}


RING_SIZES = (34, 100, 256, 1_024, 4_096, 10_000)  # a group holds at most 1,024


def ring(n: int, promise: tuple[float, float, int]) -> dict[str, Any]:
    """How much of a 32-bit ring the sums of n devices take under a promise that all of them carry."""
    epsilon, delta, sums = promise
    words = 1_000_000 + COUNTS
    found = solve(epsilon=epsilon, delta=delta, participations=sums, size=words, honest=n)
    return {
        "n": n,
        "epsilon": epsilon,
        "delta": delta,
        "sums": sums,
        "clip": found.clip,
        "tail": found.tail(n),
        "of_half_a_32_bit_ring": (n * found.clip + found.tail(n)) / 2**31,
        "bits": 32 if found.fits(n, 32) else 64,
    }


# --- all of it ------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[bool], Any]] = {
    "groups": groups,
    "cohorts": cohorts,
    "memory": memory,
    "masks": masks,
    "unmask": unmask,
    "flower": flower,
    "noise": noise,
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Curves: client and server time by group and cohort, Flower's primitives beside ours, ratios."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    parts = ("groups", "cohorts", "flower", "flower")
    drawings = (draw_groups, draw_cohorts, draw_units, draw_ratios)
    for axes, part, drawing in zip(panels.flat, parts, drawings, strict=True):
        if results.get(part):
            drawing(axes, results[part])
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_groups(axes: Any, cases: list[dict[str, Any]]) -> None:
    for words in sorted({case["words"] for case in cases}):
        chosen = [case for case in cases if case["words"] == words]
        sizes = [case["n"] for case in chosen]
        client = [sum(case["client_ms"].values()) / 1e3 for case in chosen]
        (line,) = axes.loglog(sizes, client, "o-", label=f"client, d={words:,}")
        server = [case["server_s"] for case in chosen]
        axes.loglog(sizes, server, "s--", color=line.get_color(), label=f"server, d={words:,}")
    axes.set(title="A round, a tenth lost", xlabel="devices in the group", ylabel="seconds")


def draw_cohorts(axes: Any, cases: list[dict[str, Any]]) -> None:
    sizes = [case["n"] for case in cases]
    axes.loglog(sizes, [case["server_s"] for case in cases], "s-", label="server, measured")
    slope = cases[0]["server_s"] / sizes[0]
    axes.loglog(sizes, [slope * n for n in sizes], ":", color="gray", label="linear from the first")
    title = f"Groups of {cases[0]['group']}, d=5,000"
    axes.set(title=title, xlabel="devices in the cohort", ylabel="seconds")


def draw_units(axes: Any, cases: list[dict[str, Any]]) -> None:
    case = next((case for case in cases if case["n"] == 100), cases[-1])
    names = list(case["ratios"])
    places = np.arange(len(names))
    for shift, who in ((-0.2, "flower"), (0.2, "penchant")):
        label = "flwr SecAgg+ primitives" if who == "flower" else "penchant"
        axes.bar(places + shift, [case[who][name] for name in names], 0.4, label=label)
    axes.set_yscale("log")
    axes.set_xticks(places, [name.removesuffix("_s").replace("_", "\n") for name in names], fontsize=8)
    axes.set(title=f"n={case['n']}, t={case['threshold']}, d=1M, {case['lost']} lost", ylabel="s of one core")


def draw_ratios(axes: Any, cases: list[dict[str, Any]]) -> None:
    sizes = [case["n"] for case in cases]
    for name, label in (("client_s", "a client"), ("server_s", "the server")):
        axes.loglog(sizes, [case["ratios"][name] for case in cases], "o-", label=label)
    title = "flwr's primitives / penchant's, d=1M, three tenths lost"
    axes.set(title=title, xlabel="devices in the group", ylabel="times the cost")


def tables(results: dict[str, Any]) -> str:
    """All cases in Markdown: what a page quotes."""
    lines: list[str] = []
    for part, title in (("groups", "By group, a tenth lost"), ("cohorts", "By cohort, in groups")):
        if results.get(part):
            lines += [f"### {title}", "", *case_table(results[part]), ""]
    if results.get("memory"):
        lines += ["### Memory, a tenth lost", "", *memory_table(results["memory"]), ""]
    if results.get("flower"):
        lines += ["### flwr's primitives / penchant's, by group", "", *ratio_table(results["flower"]), ""]
    if results.get("noise"):
        lines += ["### Noise", "", *noise_tables(results["noise"]), ""]
    return "\n".join(lines)


def noise_tables(found: dict[str, Any]) -> list[str]:
    rows = [
        "| parameters | noise, CPU ms | 100 masks, CPU ms | masked message, B a parameter |",
        "|---|---|---|---|",
    ]
    for cost in found["costs"]:
        rows.append(
            f"| {cost['parameters']:,} | {cost['draw_ms']:,.1f} | {cost['masks_of_100_ms']:,.1f} "
            f"| {cost['bytes_a_parameter']:.4f} |"
        )
    rows += [
        "",
        f"sigma = {found['sigma']:,}, 1,000,000 parameters, everybody's noise counted on:",
        "",
        "| n | epsilon, delta, sums | clip C | tail of the noise | of half a 32-bit ring | bits |",
        "|" + "---|" * 6,
    ]
    for case in found["rings"]:
        rows.append(
            f"| {case['n']:,} | {case['epsilon']:g}, {case['delta']:g}, {case['sums']} | {case['clip']:,} "
            f"| {case['tail']:,} | {case['of_half_a_32_bit_ring']:.5f} | {case['bits']} |"
        )
    return rows


def case_table(cases: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| n | group | d | {' | '.join(f'{stage}, ms' for stage in STAGES)} | server, s | masked, B a word "
        "| shares and the rest up, kB | down without factors, kB | all of it in one process, MB |",
        "|" + "---|" * (len(STAGES) + 8),
    ]
    for case in cases:
        up = sum(case["bytes_up"].values()) - case["bytes_up"]["masked"]
        stages = " | ".join(f"{case['client_ms'][stage]:.1f}" for stage in STAGES)
        rows.append(
            f"| {case['n']:,} | {case['group']} | {case['words']:,} | {stages} | {case['server_s']:.3f} "
            f"| {case['masked_bytes_per_word']:.4f} | {up / 1e3:.1f} "
            f"| {sum(case['bytes_down'].values()) / 1e3:.1f} | {case['peak_rss_mb']:.0f} |"
        )
    return rows


def memory_table(cases: list[dict[str, Any]]) -> list[str]:
    rows = [
        "| n | d | a device, MiB | the server, MiB |",
        "|---|---|---|---|",
    ]
    for case in cases:
        sizes = " | ".join(f"{case[name]:.1f}" for name in ("device_mb", "server_mb"))
        rows.append(f"| {case['n']} | {case['words']:,} | {sizes} |")
    return rows


def ratio_table(cases: list[dict[str, Any]]) -> list[str]:
    names = list(cases[0]["ratios"])
    rows = [
        f"| n | t | {' | '.join(name.removesuffix('_s').replace('_', ' ') for name in names)} |",
        "|" + "---|" * (len(names) + 2),
    ]
    for case in cases:
        values = " | ".join(f"{r:,.0f}" if r >= 10 else f"{r:.1f}" for r in case["ratios"].values())
        rows.append(f"| {case['n']} | {case['threshold']} | {values} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "secagg.json"
    results: dict[str, Any] = json.loads(path.read_text()) if chosen.only and path.exists() else {}
    results["machine"] = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    for part in chosen.only or PARTS:
        print(f"-- {part}", flush=True)
        results[part] = PARTS[part](chosen.full)
        if part in ("masks", "unmask"):
            print(json.dumps(results[part], indent=1), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    (chosen.out / "secagg.md").write_text(tables(results))
    draw(results, chosen.out / "secagg.png")


if __name__ == "__main__":
    main()
