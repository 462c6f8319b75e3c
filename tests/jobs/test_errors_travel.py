"""Every error of ours comes through a pipe as it is: type, text, attributes; never its traceback."""

import inspect
import pickle
from pathlib import Path

import pytest

import server.app  # noqa: F401  # with it, every module that defines errors
from pulid.errors import EngineFailed, PulidError
from server.errors import FieldProblem

ARGUMENTS = {
    "str": "A sentence. What to do next.",
    "int": 3,
    "float": 2.5,
    "Path": Path("/data/jobs.sqlite3"),
    "Sequence[FieldProblem]": [FieldProblem("seed", "seed is wrong."), FieldProblem("width", "It is wide.")],
}


def all_errors(base=PulidError):
    """The tree from `base` down, without the errors that tests define."""
    if base.__module__.startswith(("pulid.", "server.", "weights.")):
        yield base
    for child in base.__subclasses__():
        yield from all_errors(child)


def example(kind):
    """An error, made as its own __init__ wants it."""
    if kind.__init__ is PulidError.__init__:
        return kind("A sentence. What to do next.")
    positional, named = [], {}
    for parameter in inspect.signature(kind).parameters.values():
        value = ARGUMENTS[getattr(parameter.annotation, "__name__", parameter.annotation)]
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[parameter.name] = value
        else:
            positional.append(value)
    return kind(*positional, **named)


@pytest.mark.parametrize("kind", sorted(set(all_errors()), key=lambda kind: kind.__name__))
def test_an_error_survives_the_pipe(kind):
    error = example(kind)
    arrived = sent(error)
    assert type(arrived) is kind
    assert str(arrived) == str(error) != ""
    assert (arrived.args, arrived.code, vars(arrived)) == (error.args, error.code, vars(error))


def sent(error):
    return pickle.loads(pickle.dumps(error))  # noqa: S301  # our own, a line ago


@pytest.mark.parametrize("name", ["NoFaceFound", "JobCancelled", "StoreFull", "InvalidParameters"])
def test_the_tree_holds_the_errors_with_an_init_of_their_own(name):
    assert name in {kind.__name__ for kind in all_errors()}


def test_no_traceback_and_no_cause_travels_with_an_error():
    def fail():
        photo = lambda: None  # noqa: E731  # like a tensor, it cannot be pickled
        try:
            raise RuntimeError(photo)
        except RuntimeError as exc:
            raise EngineFailed("The engine failed.") from exc

    with pytest.raises(EngineFailed) as caught:
        fail()
    assert caught.value.__cause__ is not None
    arrived = sent(caught.value)
    assert (arrived.__traceback__, arrived.__cause__, arrived.__context__) == (None, None, None)
