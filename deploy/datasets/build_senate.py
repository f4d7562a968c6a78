"""Make ``senate109.json.gz`` from the R package pscl, without R.

    apt-get install r-cran-pscl && pip install rdata
    python -m penchant.deploy.datasets.build_senate [/usr/lib/R/site-library/pscl/data] [OUT]

Debian's r-cran-pscl keeps its data sets in an R lazy-load database: ``Rdata.rdx`` (gzip) says where
in ``Rdata.rdb`` each object's chunk lies; a chunk is its length (4 bytes, big-endian) and zlib data.
The result is the same bytes for the same input; ``senate109.md`` holds its provenance.
"""

from __future__ import annotations

import datetime
import gzip
import io
import json
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

SOURCE = Path("/usr/lib/R/site-library/pscl/data")
RESULT = Path(__file__).with_name("senate109.json.gz")

# pscl's codes: 1 yea, 6 nay; 7 and 9 did not vote; 0 was not a member then.
SIGN_OF_CODE = {0: ".", 1: "+", 6: "-", 7: ".", 9: "."}


def read_lazy_load(folder: Path, name: str) -> Any:
    """One object of an R lazy-load database, converted to Python."""
    import rdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata warns about R classes that it gives back as plain data
        index = rdata.read_rds(io.BytesIO(gzip.decompress((folder / "Rdata.rdx").read_bytes())))
        offset, length = (int(number) for number in index["variables"][name])
        chunk = (folder / "Rdata.rdb").read_bytes()[offset : offset + length]
        return rdata.read_rds(io.BytesIO(zlib.decompress(chunk[4:])))


def compact(roll_calls: Any) -> dict[str, Any]:
    """People, roll calls and votes of a pscl ``rollcall`` object as plain JSON.

    ``votes`` has one line a person and one sign a roll call: ``+`` yea, ``-`` nay, ``.`` neither.
    """
    votes, items = roll_calls["votes"], roll_calls["vote.data"]
    return {
        "people": [str(name) for name in votes.coords["dim_0"].values],
        "items": [
            {
                "session": int(row["session"]),
                "number": int(row["number"]),
                "date": (datetime.date(1970, 1, 1) + datetime.timedelta(int(row["date"]))).isoformat(),
                "bill": str(row["bill"]),
                "question": str(row["question"]),
                "text": str(row["description"]),
            }
            for _, row in items.iterrows()
        ],
        "votes": ["".join(SIGN_OF_CODE[int(code)] for code in line) for line in votes.values],
    }


def main(arguments: list[str]) -> None:
    """Read, convert, write."""
    source = Path(arguments[0]) if arguments else SOURCE
    result = Path(arguments[1]) if len(arguments) > 1 else RESULT
    text = json.dumps(compact(read_lazy_load(source, "s109")), ensure_ascii=False, separators=(",", ":"))
    result.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main(sys.argv[1:])
