"""Whether episode memory finds the lived chunk that a cue was made from, and how fast.

``top1``: share of cues whose first match is the chunk they were made from, with 10, 20 and 30% of
bytes replaced at random, or inserted, deleted and transposed; beside the exact reference, a search
by trigram Jaccard similarity over all distinct chunks. ``contained``: for the first, middle and
last half of a chunk as cue, share of first matches that contain it. ``p50_ms``: of a search among
100,000 chunks. Chunks are the distinct lines of a file, or of a synthetic stream.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from organism.figures import to_json
from organism.tasks.streams import StreamConfig, damage, sample_stream
from server.episodes import Episodes

_LINES, _MANY = 2000, 100_000
_REPLACED, _EDITED = (0.1, 0.2, 0.3), (0.1, 0.2)
_HALVES: dict[str, Callable[[bytes], bytes]] = {
    "first half": lambda chunk: chunk[: len(chunk) // 2],
    "middle half": lambda chunk: chunk[len(chunk) // 4 : len(chunk) // 4 + len(chunk) // 2],
    "last half": lambda chunk: chunk[len(chunk) // 2 :],
}


def remember(chunks: Sequence[bytes]) -> Episodes:
    """Fill a memory with chunks."""
    memory = Episodes(_MANY, 1 << 30)
    sizes = np.array([len(chunk) for chunk in chunks], np.int64)
    ends = np.cumsum(sizes)
    spans = np.stack([ends - sizes, ends], axis=1)
    memory.add(b"".join(chunks), spans, spans[:, 0])
    return memory


def edited(chunk: bytes, fraction: float, rng: random.Random) -> bytes:
    """Insert, delete or transpose at each byte, with a probability in all."""
    out, i = bytearray(), 0
    while i < len(chunk):
        kind = rng.choice("idt") if rng.random() < fraction else ""
        if kind == "t" and i + 1 < len(chunk):
            out += bytes([chunk[i + 1], chunk[i]])
            i += 2
            continue
        if kind == "i":
            out.append(rng.randrange(0x20, 0x7F))
        if kind != "d":
            out.append(chunk[i])
        i += 1
    return bytes(out) or chunk


def trigrams(chunk: bytes) -> set[bytes]:
    """Distinct trigrams; a shorter chunk is its own."""
    return {chunk[i : i + 3] for i in range(max(1, len(chunk) - 2))}


def jaccard_top1(cues: Sequence[tuple[bytes, bytes]], chunks: Sequence[bytes]) -> float:
    """Share of cues for which the exact search finds their chunk first."""
    sets = [trigrams(chunk) for chunk in chunks]
    right = 0
    for cue, chunk in cues:
        own = trigrams(cue)
        scores = [len(own & other) / len(own | other) for other in sets]
        right += chunks[scores.index(max(scores))] == chunk
    return right / len(cues)


def found_first(memory: Episodes, cue: bytes) -> bytes:
    """The first match."""
    return memory.search(cue, 1)[0].episode.chunk


def median_search_ms(count: int) -> float:
    """Median milliseconds of a search among so many chunks of log lines."""
    rng = random.Random("retrieval")
    base = sample_stream(StreamConfig(damaged_streams=0), _LINES, rng).chunks
    chunks = list({b"%s %d" % (base[i % len(base)], i): None for i in range(count)})
    memory, times = remember(chunks), []
    for chunk in rng.sample(chunks, 50):
        cue = damage(chunk, 0.1, rng)
        start = time.perf_counter()
        memory.search(cue, 8)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=Path, help="file whose distinct lines are the chunks")
    parser.add_argument("--cues", type=int, default=500, help="cues of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the cues")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.cues < 1:
        parser.error("--cues: at least 1")
    rng = random.Random(f"retrieval:{options.seed}")
    if options.lines:
        lines = options.lines.read_bytes().splitlines()
    else:
        lines = sample_stream(StreamConfig(damaged_streams=0), _LINES, rng).chunks
    chunks = list({line: None for line in lines if line.strip()})
    memory = remember(chunks)
    kinds: dict[str, Callable[[bytes], bytes]] = {}
    for fraction in _REPLACED:
        kinds[f"{fraction:.0%} replaced"] = lambda c, f=fraction: damage(c, f, rng)  # type: ignore[misc]
    for fraction in _EDITED:
        kinds[f"{fraction:.0%} edited"] = lambda c, f=fraction: edited(c, f, rng)  # type: ignore[misc]
    top1, reference, contained = {}, {}, {}
    for name, spoil in kinds.items():
        cues = [(spoil(chunk), chunk) for chunk in rng.choices(chunks, k=options.cues)]
        right = [found_first(memory, cue) == chunk for cue, chunk in cues]
        top1[name], reference[name] = sum(right) / len(cues), jaccard_top1(cues, chunks)
    for name, cut in _HALVES.items():
        halves = [half for chunk in rng.choices(chunks, k=options.cues) if (half := cut(chunk))]
        contained[name] = sum(half in found_first(memory, half) for half in halves) / len(halves)
    figures = {
        "chunks": len(chunks),
        "top1": top1,
        "jaccard_top1": reference,
        "contained": contained,
        "p50_ms": median_search_ms(_MANY),
    }
    if options.json:
        print(to_json(figures))
        return 0
    table = Table(title=f"Recall of bytes among {len(chunks)} distinct chunks")
    for heading in ("cue", "top-1", "exact trigram Jaccard"):
        table.add_column(heading, justify="left" if heading == "cue" else "right")
    for name in top1:
        table.add_row(name, f"{top1[name]:.3f}", f"{reference[name]:.3f}")
    for name, share in contained.items():
        table.add_row(f"{name}: first match contains it", f"{share:.3f}", "")
    Console().print(table)
    print(f"median search among {_MANY:,} chunks: {figures['p50_ms']:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
