"""The numbers in docs/security.md and docs/operations.md are those of the code and the default settings."""

import pytest

from docs.project_files import text_of
from pulid.flux.text import CACHED_PROMPTS
from pulid.identity.reader import CACHED_IDENTITIES
from server.app import BODIES_AT_ONCE
from server.jobs.ends import MAX_TRIES
from server.jobs.files import MAX_PHOTOS
from server.jobs.photos import FETCHES_AT_ONCE
from server.jobs.worker import MAX_UNSAVED
from server.jobs.worker_pool import DEATHS_TO_GIVE_UP, DEATHS_WITHIN_S
from server.security import image_fetch
from server.security.image_decode import FORMATS, MAX_MASK_MEGAPIXELS, MIN_SIDE
from server.settings import Settings

SECURITY = " ".join(text_of("docs/security.md").split())
OPERATIONS = " ".join(text_of("docs/operations.md").split())
DEFAULT = {name: field.default for name, field in Settings.model_fields.items()}
IN_WORDS = {3: "three", 4: "four", 6: "six", 8: "eight", 10: "ten"}
T = 13  # seconds, in the example of "Capacity"


@pytest.mark.parametrize(
    "words",
    [
        f"at most {image_fetch._MAX_REDIRECTS}, and each is judged",
        f"at most {image_fetch._CONNECT_TIMEOUT_S:g} seconds",
        f"`fetch_timeout_s` ({DEFAULT['fetch_timeout_s']:g})",
        f"`fetch_max_mb` ({DEFAULT['fetch_max_mb']:g})",
        f"at most {FETCHES_AT_ONCE} fetches at once",
        f"one of {IN_WORDS[len(FORMATS)]} formats, at least {MIN_SIDE} pixels a side",
        f"`max_image_mp` ({DEFAULT['max_image_mp']:g})",
        f"({MAX_MASK_MEGAPIXELS:g} megapixels at most",
        f"identities of the last {CACHED_IDENTITIES} photos and the last {CACHED_PROMPTS} prompts",
    ],
)
def test_the_limits_in_the_page_about_security_are_the_real_ones(words):
    assert words in SECURITY


def test_nothing_is_limited_by_key_unless_it_is_set():
    assert "both are off by default" in SECURITY
    assert DEFAULT["rate_limit"] == DEFAULT["concurrency_per_key"] == 0


def test_the_times_that_things_are_kept_are_the_real_ones():
    assert "`result_ttl_s` after the end (an hour)" in SECURITY
    assert DEFAULT["result_ttl_s"] == 3600
    assert "`media_ttl_s` (a week)" in SECURITY
    assert DEFAULT["media_ttl_s"] == 7 * 86_400


def deadline():
    return min(DEFAULT["job_deadline_s"], DEFAULT["v1_timeout_s"])


def unfinished_jobs():
    """One key, one device: those that wait, one that runs, one prepared, and those being saved."""
    return DEFAULT["max_queued_jobs"] + 2 + MAX_UNSAVED


@pytest.mark.parametrize(
    "words",
    [
        f"example: T = {T}, one device",
        f"| devices x 3600 / T | {3600 // T} |",
        f"| {DEFAULT['max_queued_jobs'] * T} with the default of {DEFAULT['max_queued_jobs']} |",
        f"| {int(deadline() / T - 1)} with the default of {deadline():g} |",
        f"The defaults fit T up to {int(deadline() / (DEFAULT['max_queued_jobs'] + 1))} seconds",
        f"for the server {BODIES_AT_ONCE} x `max_body_mb`, and {FETCHES_AT_ONCE} x `fetch_max_mb`",
        f"| {3600 // T} x 0.5 MB x 168 = {3600 // T * 0.5 * 168 / 1000:.0f} GB |",
        f"with the defaults, one key and one device {unfinished_jobs()} jobs, "
        f"{unfinished_jobs() * 1.75 * DEFAULT['max_body_mb'] / 1000:.0f} GB, "
        f"or {unfinished_jobs() * MAX_PHOTOS * DEFAULT['fetch_max_mb'] / 1000:.0f} GB in the worst case",
        f"{MAX_PHOTOS} times `fetch_max_mb` where {IN_WORDS[MAX_PHOTOS]} photos come by URL",
        f"have died {IN_WORDS[DEATHS_TO_GIVE_UP]} times within {IN_WORDS[DEATHS_WITHIN_S // 60]} minutes",
    ],
)
def test_the_numbers_in_the_page_about_operations_follow_from_code_and_defaults(words):
    assert words in OPERATIONS


def test_a_job_is_begun_as_often_as_the_architecture_says():
    assert f"It is begun at most {IN_WORDS[MAX_TRIES]} times" in " ".join(
        text_of("docs/architecture.md").split()
    )
