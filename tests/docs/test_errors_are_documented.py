"""docs/troubleshooting.md has every error code there is, with its status, and quotes what is really said."""

import ast
import re
from functools import cache

import pytest

from docs.markdown import tables
from docs.project_files import PACKAGES, ROOT, text_of
from pulid.errors import BadRequest, PulidError
from server.app import create_app
from server.cli.failures import BAD_INPUT, FAILED
from server.errors import ClientLeft, status_of
from server.jobs.worker import EXIT_FAULT, EXIT_NO_ENGINE, EXIT_ORPHANED
from server.settings import SettingsError
from weights.errors import WeightsError

TEXT = text_of("docs/troubleshooting.md")
HOLE = "\0"  # in place of what an f-string fills in
ANSWERS = [row[:3] for row in tables(TEXT, "| it says | code | status |")]
ENDINGS = [row[:3] for row in tables(TEXT, "| it says | code | exit code |")]
QUOTED = [row[0] for row in tables(TEXT, "| it says |")]
NEVER_ANSWERED = {"client_left"}


@cache
def sources():
    return [ast.parse(path.read_text()) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


@cache
def said_in_the_code():
    """Every text of the code, neighbouring literals joined."""
    texts = set()
    for node in (node for tree in sources() for node in ast.walk(tree)):
        texts.add(text_of_node(node))
    return frozenset(texts)


def text_of_node(node):
    """Of a text or an f-string; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def codes_in_the_code():
    """What classes have as `code`."""
    return {
        statement.value.value
        for tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.Assign)
        and [ast.unparse(target) for target in statement.targets] == ["code"]
    }


def classes(root):
    return {root}.union(*(classes(child) for child in root.__subclasses__()))


def codes_in_the_page():
    named = {row[1] for row in tables(TEXT, "| it says | code |")} - {""}
    return named | set(re.findall(r"`(\w+)` \(499\)", TEXT))


def is_said(quote, *texts):
    """Whether a text (of those in the code) has the words of a quote, with anything in place of its dots."""
    pattern = pattern_of(quote)
    return any(pattern.search(text.replace(HOLE, " ")) for text in texts or said_in_the_code())


@cache
def pattern_of(quote):
    words = [re.escape(part.strip()) for part in quote.split("...") if part.strip()]
    return re.compile(".*".join(words), re.DOTALL)


def test_every_code_is_in_the_page_and_no_other():
    assert codes_in_the_page() == codes_in_the_code()


@pytest.mark.parametrize("quote", QUOTED)
def test_what_is_quoted_is_really_said(quote):
    assert is_said(quote)


def texts_of_errors():
    """What is given to an error of ours where it is made, and to whatever makes one of a wrong field."""
    assert create_app  # its imports bring every class of errors
    makers = {kind.__name__ for root in (PulidError, WeightsError) for kind in classes(root) - {ClientLeft}}
    calls = (node for tree in sources() for node in ast.walk(tree) if isinstance(node, ast.Call))
    for call in calls:
        if ast.unparse(call.func).rpartition(".")[2] in makers | {"FieldProblem", "explained"}:
            yield from (text for text in map(text_of_node, call.args) if len(re.findall(r"\w+", text)) > 2)


def test_every_error_with_a_text_is_quoted():
    silent = {text for text in texts_of_errors() if not any(is_said(quote, text) for quote in QUOTED)}
    assert not silent


@pytest.mark.parametrize("quote", ["No head found.", "devices names a GPU ... three times"])
def test_a_text_that_nobody_says_would_be_noticed(quote):
    assert not is_said(quote)


@pytest.mark.parametrize(("quote", "code", "status"), ANSWERS)
def test_the_status_of_each_answer_is_the_real_one(quote, code, status):
    assert int(status) == status_of(code)


@pytest.mark.parametrize(("quote", "code", "exit_code"), ENDINGS)
def test_the_exit_code_of_each_failed_start_is_the_real_one(quote, code, exit_code):
    kind = next(one for one in classes(PulidError) if one.__dict__.get("code") == code)
    assert int(exit_code) == (BAD_INPUT if issubclass(kind, SettingsError | BadRequest) else FAILED)


def test_the_exit_codes_of_workers_are_the_real_ones():
    told = {int(number) for row in tables(TEXT, "| exit code |") for number in row[0].split(",")}
    assert {number for number in told if number >= 0} == {EXIT_FAULT, EXIT_ORPHANED, EXIT_NO_ENGINE}
