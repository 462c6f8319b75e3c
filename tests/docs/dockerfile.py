"""The Dockerfile as data: its stages, what each inherits, its words with their variables filled in.

Knows the instructions that this Dockerfile uses, and refuses any other. Builds nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from docs.project_files import ROOT

KNOWN = {"ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK", "USER", "CMD"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass
class Stage:
    name: str
    base: str  # another stage, or an image
    steps: list[tuple[str, str]] = field(default_factory=list)  # (instruction, its arguments)


@dataclass
class Dockerfile:
    arguments: dict[str, str]  # the build arguments before the first stage, with their defaults
    stages: dict[str, Stage]

    def chain(self, name: str) -> list[Stage]:
        """A stage after those it stands on, the one that stands on an image first."""
        stage = self.stages[name]
        return [*(self.chain(stage.base) if stage.base in self.stages else []), stage]

    def steps(self, name: str) -> list[tuple[str, str]]:
        """All steps of the chain."""
        return [step for stage in self.chain(name) for step in stage.steps]

    def arguments_of(self, name: str, instruction: str) -> list[str]:
        return [arguments for kind, arguments in self.steps(name) if kind == instruction]

    def environment_of(self, name: str) -> dict[str, str]:
        """What ENV sets in the end."""
        return {key: value for line in self.arguments_of(name, "ENV") for key, value in pairs_in(line)}


def read_dockerfile(**build_arguments: str) -> Dockerfile:
    """The Dockerfile as a build with these arguments sees it."""
    made = Dockerfile({}, {})
    for instruction, arguments in _instructions((ROOT / "Dockerfile").read_text()):
        if instruction not in KNOWN:
            raise ValueError(f"the Dockerfile has an instruction that the tests do not know: {instruction}")
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", arguments).groups()
            stage = made.stages[name] = Stage(name, filled(base, made.arguments))
        elif made.stages:
            stage.steps.append((instruction, arguments))
        else:
            key, _, default = arguments.partition("=")
            made.arguments[key] = build_arguments.get(key, default)
    return made


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for line in without_comments.replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, arguments = line.strip().partition(" ")
            yield instruction, re.sub(r"\s+", " ", arguments.strip())


def pairs_in(line: str) -> list[tuple[str, str]]:
    """KEY=VALUE words."""
    return [(key, value) for key, _, value in (word.partition("=") for word in shlex.split(line))]


def filled(text: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables[match[1]], text)


def words_of(arguments: str) -> list[str]:
    """The words of an instruction in its JSON form."""
    words: list[str] = json.loads(arguments)
    return words
