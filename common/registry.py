"""The names that a configuration may use for a share rule, a server optimiser or a data set.

A name refers to one of penchant's own things or to one of another package.

Another package adds a thing by an entry point in its pyproject.toml, or a program by a call. Entry points are
looked up only for a name that is not known without them, and only the one that was asked for is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypeVar

from penchant.common.errors import ConfigError
from penchant.common.printable import quoted

__all__ = ["COMBINATIONS", "SERVER_OPTIMIZERS", "Named", "Registry"]

T = TypeVar("T")

# A name is used in names of files, and in lists with commas.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REASON = 200  # characters of the reason why a plugin can't be loaded


class Named(Protocol):
    """A thing that knows its name."""

    @property
    def name(self) -> str:
        """What a configuration calls it."""
        ...


class Registry:
    """Things of one kind by name.

    Args:
        key: the setting that takes such a name, as messages call it: "adapter.share".
        group: the group of entry points in which other packages offer theirs.
        own: names that penchant itself will fill, where its things are added later than names are checked.
    """

    def __init__(self, key: str, group: str, own: Iterable[str] = ()) -> None:
        self.key = key
        self.group = group
        self._own = dict.fromkeys(own)
        self._things: dict[str, object] = {}
        self._points: dict[str, list[EntryPoint]] | None = None

    def add(self, name: str, thing: object, *, own: bool = False) -> None:
        """Make a thing known by its name. A program may replace its own thing, but none of penchant's.

        Raises:
            ConfigError: the name is one of penchant's, or has characters that a name can't have.
        """
        if not own and name in self._own:
            raise ConfigError(
                f"{self.key} {name} is part of penchant and can't be replaced; choose another name"
            )
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{quoted(name)} can't name a {self.key}; use up to 64 letters, digits, '.', '_' and '-', "
                "a letter or digit first"
            )
        if own:
            self._own[name] = None
        self._things[name] = thing

    def names(self) -> tuple[str, ...]:
        """All names: penchant's own, then those a program added, then those of other packages."""
        return tuple(dict.fromkeys((*self._own, *self._things, *sorted(self._offered()))))

    def __contains__(self, name: str) -> bool:
        return name in self._own or name in self._things or name in self._offered()

    def get(self, name: str) -> object:
        """The thing that a name refers to.

        Raises:
            ConfigError: there is no such name, or the package that offers it can't be loaded.
        """
        if name not in self._things:
            self.check(name)
            self._things[name] = self._load(name)
        return self._things[name]

    def check(self, name: object) -> None:
        """ConfigError that lists the choices unless there is such a name; nothing is loaded."""
        if not isinstance(name, str) or name not in self:
            raise ConfigError(f"{self.key} is {quoted(name)}; choose one of {', '.join(self.names())}")

    def register(self, thing: Named, kind: type[Any], wanted: str) -> None:
        """Make a thing of the right kind known by its own name; `wanted` says in words what that kind is.

        Raises:
            ConfigError: it is of another kind, or `add` refuses its name.
        """
        if isinstance(thing, type) or not isinstance(thing, kind):
            raise ConfigError(f"{quoted(thing)} can't be registered as {self.key}: it must be {wanted}")
        self.add(thing.name, thing)

    def find(self, name: str, kind: type[T], wanted: str) -> T:
        """The thing that a name refers to, if it is of the right kind; `wanted` says what that kind is.

        Raises:
            ConfigError: there is no such name, or what another package offers under it is of another kind.
        """
        found = self.get(name)
        if not isinstance(found, kind):
            raise ConfigError(f'the plugin "{name}" ({self.group}{self._origin(name)}) is not {wanted}')
        return found

    # --- other packages ---------------------------------------------------------------------------

    def _offered(self) -> dict[str, list[EntryPoint]]:
        if self._points is None:
            found: dict[str, list[EntryPoint]] = {}
            for point in entry_points(group=self.group):
                if _NAME.fullmatch(point.name):
                    found.setdefault(point.name, []).append(point)
            self._points = found
        return self._points

    def _load(self, name: str) -> object:
        points = self._offered().get(name, [])
        if len({point.value for point in points}) > 1:
            packages = " and ".join(sorted(_package(point) for point in points))
            raise ConfigError(
                f'{packages} both offer the plugin "{name}" ({self.group}); uninstall one of them'
            )
        try:
            thing = points[0].load()
        except Exception as error:  # whatever another package's code does when it is imported
            reason = " ".join(str(error).split())[:_REASON]
            raise ConfigError(
                f'the plugin "{name}" ({self.group}{self._origin(name)}) can\'t be loaded: '
                f"{type(error).__name__}: {reason}"
            ) from error
        called = getattr(thing, "name", None)
        if called != name:
            raise ConfigError(
                f'the plugin "{name}" ({self.group}{self._origin(name)}) calls itself {quoted(called)}; '
                "its entry point must have the same name"
            )
        return thing

    def _origin(self, name: str) -> str:
        points = self._offered().get(name)
        return f" of {_package(points[0])}" if points else ""


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


SERVER_OPTIMIZERS = Registry(
    "federation.server_optimizer",
    "penchant.server_optimizers",
    ("fedavg", "fedadam", "fedavgm", "fedadagrad", "fedyogi"),
)
"""The server's optimisers. Their names are here, so that a configuration can be checked where no server is;
what they do is in `server/optimizers.py`."""

COMBINATIONS = Registry(
    "federation.combine", "penchant.combinations", ("mean", "median", "trimmed_mean", "multi_krum")
)
"""How groups' sums are combined; what they do is in `server/combination.py`."""
