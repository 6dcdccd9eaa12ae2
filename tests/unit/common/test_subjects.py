"""What may stand in a subject, and what the ids look like that do."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import subjects
from common.errors import InvalidParams

ALLOWED = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def covers(pattern: str, subject: str) -> bool:
    """Whether a NATS filter takes a subject: `*` stands for one token, a last `>` for one or more."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">" and len(tokens) >= len(wanted):
        wanted, tokens = wanted[:-1], tokens[: len(wanted) - 1]
    return len(wanted) == len(tokens) and all(w in ("*", t) for w, t in zip(wanted, tokens, strict=True))


@pytest.mark.parametrize(
    "value",
    [
        "", ".", "a.b", ".a", "a.", "*", "a*", ">", "a>", " ", "a b", "\t", "a\n", "\na", "a\r\n", "a\0", "$", "ä",
        "日本", "a" * 65,
    ],
)  # fmt: skip
def test_a_token_refuses_what_could_widen_a_subject(value: str) -> None:
    """No dot, wildcard, space, line feed; not empty, not above 64; the fault has the param's path."""
    with pytest.raises(InvalidParams) as refused:
        subjects.token(value, "session")

    assert [problem["path"] for problem in refused.value.data["problems"]] == ["$.session"]


@pytest.mark.parametrize("value", ["a", "Z", "0", "-", "_", "a" * 64, "s-1_B"])
def test_a_token_takes_letters_digits_dashes_and_underscores(value: str) -> None:
    """And gives the value back as it is."""
    assert subjects.token(value, "job") == value


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=70))
def test_whatever_text_passes_as_a_token_is_one_token(value: str) -> None:
    """Nothing but the allowed characters gets through, however it is put."""
    passes = subjects.TOKEN.match(value) is not None

    assert passes == (0 < len(value) <= 64 and set(value) <= ALLOWED)


@pytest.mark.parametrize("name", ["time", "a", "0", "a-b_c", "a" * 32])
def test_a_server_name_is_lower_case_and_short(name: str) -> None:
    """It names a NATS consumer and a Docker label too."""
    assert subjects.SERVER_NAME.match(name)
    assert subjects.token(name, "server") == name


@pytest.mark.parametrize("name", ["", "Time", "-a", "_a", "a.b", "a b", "a" * 33, "a\n"])
def test_other_server_names_are_refused(name: str) -> None:
    """Among them each that is no token."""
    assert not subjects.SERVER_NAME.match(name)


@pytest.mark.parametrize("make", [subjects.new_session_id, subjects.new_job_id, subjects.new_worker_id])
def test_new_ids_are_tokens_and_differ(make: object) -> None:
    """They stand in subjects as they are."""
    assert callable(make)
    made = [make() for _ in range(1000)]

    assert len(set(made)) == 1000
    assert all(subjects.TOKEN.match(id_) for id_ in made)


def test_a_session_id_has_96_random_bits() -> None:
    """It is an address that must not be guessed: 24 hex digits, none of them fixed."""
    made = [subjects.new_session_id() for _ in range(200)]

    assert {len(id_) for id_ in made} == {24}
    assert all(len({id_[place] for id_ in made}) > 8 for place in range(24))


def test_job_ids_sort_by_the_time_of_their_making(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text order is time order, also where the number gains a digit."""
    moments_ms = [1, 15, 16, 255, 256, 1_700_000_000_000, 1_800_000_000_000, 0xFFFFFFFFFFFF]
    made = []
    for moment in moments_ms:
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000_000)
        made.append(subjects.new_job_id())

    assert made == sorted(made)
    assert {len(id_) for id_ in made} == {24}


@pytest.mark.parametrize(
    ("subject", "patterns"),
    [
        (
            subjects.jobs("srv", "s1"),
            [subjects.ALL_JOBS, subjects.jobs_of_server("srv"), subjects.jobs_of_session("s1")],
        ),
        (subjects.event("s1", "j1"), [subjects.ALL_EVENTS, subjects.events_of_session("s1")]),
        (subjects.queued_event("s1", "j1"), [subjects.ALL_EVENTS, subjects.events_of_session("s1")]),
        (subjects.dead("srv", "s1"), [subjects.ALL_DEAD]),
        (subjects.cancel_event("s1", "j1"), [subjects.ALL_EVENTS]),
        (subjects.close("s1"), [subjects.ALL_CLOSES]),
    ],
)
def test_a_subject_falls_under_its_filters(subject: str, patterns: list[str]) -> None:
    """What is published by one function is heard by the other."""
    assert [covers(pattern, subject) for pattern in patterns] == [True] * len(patterns)


@pytest.mark.parametrize(
    ("subject", "pattern"),
    [
        (subjects.jobs("srv", "s1"), subjects.jobs_of_server("other")),
        (subjects.jobs("srv", "s1"), subjects.jobs_of_session("s2")),
        (subjects.event("s1", "j1"), subjects.events_of_session("s2")),
        (subjects.event("s1", "j1"), subjects.live_of_session("s1")),
    ],
)
def test_a_subject_does_not_fall_under_the_filters_of_others(subject: str, pattern: str) -> None:
    """Neither another session's, nor another server's, nor another stream's."""
    assert not covers(pattern, subject)


def test_the_keys_of_a_bucket_fall_under_its_stream() -> None:
    """NATS ADR-8: a bucket is a stream over `$KV.<bucket>.>`."""
    prefix = subjects.keys_of_bucket("leases").removesuffix(">")

    assert subjects.bucket_key("leases", subjects.lease_key("s1", "srv")) == f"{prefix}s1.srv"
