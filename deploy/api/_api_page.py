"""Writes docs/api.md from the public names: `python -m penchant._api_page > docs/api.md`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cached_property
from typing import Any

import penchant

__all__ = ["page"]

_START = """# The Python API

Everything that `import penchant` offers; `python -m penchant._api_page > docs/api.md` writes this page.
Importing it loads nothing heavy: each name is loaded when it is first used.
The examples in `docs/examples/` use it.

Not offered here yet: an aggregation protocol or a role in one of your own.
A callback may end a call with an exception; the same call with the same `out` then goes on.
"""


def page() -> str:
    """The page: every public name with its signature and what it does."""
    parts = [_START]
    for name in penchant._PLACES:
        parts.append("\n".join(_entry(name, getattr(penchant, name))))
    text = re.sub(r"(?<!`)``(?!`)", "`", "\n".join(parts))
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)  # a default that is a function: its name
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _entry(name: str, member: Any) -> Iterator[str]:
    yield f"## `penchant.{name}`"
    yield ""
    if inspect.isclass(member):
        yield _said(member)
        yield ""
        if dataclasses.is_dataclass(member):
            names = ", ".join(f"`{f.name}`" for f in dataclasses.fields(member) if not f.name.startswith("_"))
            yield f"Fields: {names}."
            yield ""
        yield from _methods(member)
    else:
        yield "```python"
        yield _signature(name, member)
        yield "```"
        yield ""
        yield _arguments(_doc(member))
    yield ""


def _methods(member: type[Any]) -> Iterator[str]:
    """A line for each public method or property; errors and enumerations have none of their own."""
    for name, inner in inspect.getmembers_static(member):
        if name.startswith("_") or name in _field_names(member) or issubclass(member, BaseException | Enum):
            continue
        if isinstance(inner, property | cached_property):
            yield f"- `{name}`: {_said(inner)}"
        elif isinstance(inner, classmethod) or callable(inner):
            function = inner.__func__ if isinstance(inner, classmethod) else inner
            yield f"- `{_signature(name, function, inner=True)}`: {_said(function)}"


def _field_names(member: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(member)} if dataclasses.is_dataclass(member) else set()


def _signature(name: str, function: Callable[..., Any], *, inner: bool = False) -> str:
    """A signature: on one line within a list, else one parameter a line."""
    found = inspect.signature(function)
    parameters = [p for p in found.parameters.values() if not (inner and p.name in ("self", "cls"))]
    written: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        written.append(_parameter(parameter))
    returned = found.return_annotation
    arrow = "" if returned is found.empty else f" -> {returned}"
    if inner:
        return f"{name}({', '.join(written)}){arrow}"
    lines = "".join(f"    {one},\n" for one in written)
    return f"{name}(\n{lines}){arrow}"


def _parameter(parameter: inspect.Parameter) -> str:
    """A parameter with its annotation as it is written, without the quotes of an annotation that waits."""
    bare = str(parameter.replace(annotation=parameter.empty))
    if parameter.annotation is parameter.empty:
        return bare
    name, equals, default = bare.partition("=")
    return f"{name}: {parameter.annotation}" + (f" = {default}" if equals else "")


def _arguments(doc: str) -> str:
    """A docstring as Markdown: its sections of arguments and errors as lists."""
    lines: list[str] = []
    for line in doc.splitlines():
        if line in ("Args:", "Raises:"):
            lines += [f"{'Arguments' if line == 'Args:' else 'Errors'}:", ""]
        elif line.startswith("        "):
            lines[-1] += f" {line.strip()}"
        elif line.startswith("    "):
            name, colon, text = line.strip().partition(": ")
            lines.append(f"- `{name}`: {text}" if colon and " " not in name else f"- {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


def _said(member: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(_doc(member).split("\n\n")[0].split())


def _doc(member: Any) -> str:
    return inspect.getdoc(member) or ""


if __name__ == "__main__":
    print(page(), end="")
