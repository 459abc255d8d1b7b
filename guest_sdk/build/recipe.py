"""`task.toml`: what a task is called, what it is written in, and what it asks for.

Every mistake in the file is reported at once. The values are checked here for their type alone;
their bounds are the manifest's, which refuses what it does not allow.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from executor.core import manifest
from executor.errors import ExecutorError

FILE: Final = "task.toml"
FILE_MAX: Final = 64 * 1024  # bytes; the manifest made of it has the same bound
LANGUAGES: Final = {"c": ".c", "wat": ".wat", "zig": ".zig"}

_TEXTS: Final = ("name", "version", "source", "summary", "language", "input", "output")
_REQUIRED: Final = ("name", "version", "source")
_KNOWN: Final = frozenset(_TEXTS) | {"idempotent", "uses", "limits", "sample"}
_WANT: Final = ("capability", "scope", "reason")
_SAMPLE: Final = ("input", "output", "outcome")


@dataclass(frozen=True, slots=True)
class Sample:
    """An input beside `task.toml`, and what it leads to: a file or an outcome's code."""

    input: str = ""
    output: str = ""
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One task as its author describes it."""

    name: str
    version: str
    source: str  # relative to the folder of `task.toml`, inside it
    language: str
    summary: str = ""
    input: str = ""
    output: str = ""
    idempotent: bool = False
    uses: tuple[manifest.Want, ...] = ()
    limits: tuple[tuple[str, int], ...] = ()
    sample: Sample = Sample()

    def manifest(self, built_with: str) -> manifest.Manifest:
        """Say what the module will say of itself; limits sorted, as the manifest keeps them."""
        return manifest.Manifest(
            task=self.name,
            version=self.version,
            summary=self.summary,
            wants=self.uses,
            limits=self.limits,
            input=self.input,
            output=self.output,
            idempotent=self.idempotent,
            built_with=built_with,
        )


def load(folder: Path) -> Recipe:
    """Read the recipe in `folder`.

    Errors  `config.invalid` with every mistake in the file.
    """
    try:
        with (folder / FILE).open("rb") as file:
            data = file.read(FILE_MAX + 1)
        if len(data) > FILE_MAX:
            raise _invalid([f"larger than {FILE_MAX} bytes"])
        table = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _invalid([f"cannot be read: {reason}"]) from error
    return _Reader(table).recipe(folder)


def _invalid(mistakes: list[str]) -> ExecutorError:
    return ExecutorError("config.invalid", "\n".join(f"{FILE}: {each}" for each in mistakes))


class _Reader:
    """Takes values out of one table and remembers what was wrong with them."""

    def __init__(self, table: Mapping[str, object]) -> None:
        self.table = table
        self.mistakes = [f"unknown key `{key}`" for key in table if key not in _KNOWN]

    def recipe(self, folder: Path) -> Recipe:
        text = {key: self.text(self.table, key) for key in _TEXTS}
        self.mistakes += [f"`{key}` is missing" for key in _REQUIRED if key not in self.table]
        idempotent = self.table.get("idempotent", False)
        if not isinstance(idempotent, bool):
            self.mistakes.append("`idempotent` must be true or false")
        uses, limits, sample = self.uses(), self.limits(), self.sample()
        for name in (text["source"], sample.input, sample.output):
            if name and not self._inside(folder, name):
                self.mistakes.append(f"`{name}` is no file in the folder of {FILE}")
        suffix = PurePosixPath(text["source"]).suffix
        language = text["language"] or next((n for n, s in LANGUAGES.items() if s == suffix), "")
        if language not in LANGUAGES:
            self.mistakes.append(f"`language` must be one of {', '.join(LANGUAGES)}")
        if self.mistakes:
            raise _invalid(self.mistakes)
        return Recipe(
            name=text["name"],
            version=text["version"],
            source=text["source"],
            language=language,
            summary=text["summary"],
            input=text["input"],
            output=text["output"],
            idempotent=idempotent is True,
            uses=uses,
            limits=limits,
            sample=sample,
        )

    @staticmethod
    def _inside(folder: Path, name: str) -> bool:
        path = PurePosixPath(name)
        return not path.is_absolute() and ".." not in path.parts and (folder / path).is_file()

    def text(self, table: Mapping[str, object], key: str, path: str = "") -> str:
        value = table.get(key, "")
        if isinstance(value, str):
            return value
        self.mistakes.append(f"`{path}{key}` must be a text")
        return ""

    def part(self, table: object, path: str, known: tuple[str, ...]) -> dict[str, str]:
        if not isinstance(table, dict):
            self.mistakes.append(f"`{path}` must be a table")
            return {}
        self.mistakes += [f"unknown key `{path}.{key}`" for key in table if key not in known]
        return {key: self.text(table, key, f"{path}.") for key in known if key in table}

    def uses(self) -> tuple[manifest.Want, ...]:
        entries = self.table.get("uses", [])
        if not isinstance(entries, list):
            self.mistakes.append("`uses` must be a list of tables: [[uses]]")
            return ()
        parts = [self.part(entry, f"uses[{at}]", _WANT) for at, entry in enumerate(entries)]
        if any(not part.get("reason") for part in parts):
            self.mistakes.append("every `uses` needs a `reason`: an operator reads it")
        return tuple(manifest.Want(**{"capability": "", **part}) for part in parts)

    def limits(self) -> tuple[tuple[str, int], ...]:
        table = self.table.get("limits", {})
        if not isinstance(table, dict):
            self.mistakes.append("`limits` must be a table")
            return ()
        pairs: list[tuple[str, int]] = []
        for key in sorted(table):
            value = table[key]
            if key not in manifest.LIMITS:
                self.mistakes.append(f"unknown key `limits.{key}`")
            elif not isinstance(value, int) or isinstance(value, bool):
                self.mistakes.append(f"`limits.{key}` must be an integer")
            else:
                pairs.append((key, value))
        return tuple(pairs)

    def sample(self) -> Sample:
        return Sample(**self.part(self.table.get("sample", {}), "sample", _SAMPLE))
