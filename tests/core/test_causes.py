"""Why a dispatch failed, by stable name (behaviour O2)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.causes import SEARCHED, Cause, cause_in, cause_of


def test_the_names_are_stable() -> None:
    assert [str(cause) for cause in Cause] == [
        "chump-binary-wedge",
        "bot-merge-hung",
        "cargo-build-timeout",
        "API-credit-exhausted",
        "usage-limit",
        "rate-limited",
        "auth",
        "network",
        "out-of-memory",
        "no-pr",
        "ship-refused",
        "exit-code",
        "deadline",
        "spawn",
        "lost",
        "session",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("WARN chump-binary-wedge detected", Cause.BINARY_WEDGE),
        ("No conversation found with session ID: 8f7c1c1e-0f0b", Cause.SESSION),
        ("Error: Session ID 8f7c1c1e-0f0b is already in use.", Cause.SESSION),
        (
            "Error: thread/resume failed: no rollout found for thread id 8f7c (code -3)",
            Cause.SESSION,
        ),
        ("Error resuming session: No previous sessions found for this project.", Cause.SESSION),
        ("No saved session found with ID 8f7c. Run `qwen --resume` without an ID", Cause.SESSION),
        ("\x1b[91m\x1b[1mError: \x1b[0mSession not found", Cause.SESSION),
        ("Error: No session found with name '8f7c'", Cause.SESSION),
        ("target/debug/chump seems to be wedged again", Cause.BINARY_WEDGE),
        ("[bot-merge] gh pr merge timed out after 300s", Cause.BOT_MERGE_HUNG),
        ("[bot-merge] step 3: timeout", Cause.BOT_MERGE_HUNG),
        ("[bot-merge] ended by signal: 15", Cause.BOT_MERGE_HUNG),
        ("[BOT-MERGE] cargo test Killed", Cause.BOT_MERGE_HUNG),
        ("error: cargo build timed out", Cause.BUILD_TIMEOUT),
        ("cargo-test: timeout of 600s", Cause.BUILD_TIMEOUT),
        ("provider answered HTTP 402", Cause.CREDIT_EXHAUSTED),
        ("HTTP/1.1 402 Payment Required", Cause.CREDIT_EXHAUSTED),
        ('{"api_error_status":402,"is_error":true}', Cause.CREDIT_EXHAUSTED),
        ("request failed with status code 402", Cause.CREDIT_EXHAUSTED),
        ("Credit balance is too low", Cause.CREDIT_EXHAUSTED),
        ("your API credits are exhausted", Cause.CREDIT_EXHAUSTED),
        ("you have exhausted your monthly quota", Cause.CREDIT_EXHAUSTED),
        ("You exceeded your current quota, please check your plan", Cause.CREDIT_EXHAUSTED),
        ("error: insufficient_quota", Cause.CREDIT_EXHAUSTED),
        ("Claude AI usage limit reached|1767225600", Cause.USAGE_LIMIT),
        ("You've hit your session limit", Cause.USAGE_LIMIT),
        ("5-hour limit reached ∙ resets 3pm", Cause.USAGE_LIMIT),
        ("API Error: Request rejected (429)", Cause.RATE_LIMITED),
        ("API Error: 529 Overloaded", Cause.RATE_LIMITED),
        ("API rate limit exceeded for user ID 1", Cause.RATE_LIMITED),
        ("You have exceeded a secondary rate limit", Cause.RATE_LIMITED),
        ("Error: rate_limit_error", Cause.RATE_LIMITED),
        ("HTTP 429: Too Many Requests", Cause.RATE_LIMITED),
        ("Invalid API key · Please run /login", Cause.AUTH),
        ("Not logged in", Cause.AUTH),
        ("gh: Bad credentials (HTTP 401)", Cause.AUTH),
        ("Incorrect API key provided: sk-***", Cause.AUTH),
        ("Unable to connect to API (ConnectionRefused)", Cause.NETWORK),
        ("fatal: Could not resolve host: github.com", Cause.NETWORK),
        ("Couldn't resolve host", Cause.NETWORK),
        ("read ECONNRESET", Cause.NETWORK),
        ("ssh: connect to host x port 22: Connection timed out", Cause.NETWORK),
        ("API Error: 500 Internal server error", Cause.NETWORK),
        # As claude 2.1 has them, with what it appends.
        ("Invalid API key · Fix external API key", Cause.AUTH),
        ("Not logged in · Please run /login", Cause.AUTH),
        ("Failed to authenticate. API Error: 403 Your account does not have access", Cause.AUTH),
        ("OAuth token has expired. Please obtain a new token", Cause.AUTH),
        ("API Error: 402 Payment required", Cause.CREDIT_EXHAUSTED),
        ("API Error: Request rejected (429) · too fast", Cause.RATE_LIMITED),
        ("API Error: 529 Overloaded. If it persists, check your gateway", Cause.RATE_LIMITED),
        ("API Error: 500 boom. This is usually temporary", Cause.NETWORK),
        ("API Error: Unable to connect to API (ConnectionRefused)", Cause.NETWORK),
        ("API Error: Connection closed mid-response", Cause.NETWORK),
        ("Request timed out", Cause.NETWORK),
        ("You've hit your session limit · resets 8:53pm (Europe/Berlin)", Cause.USAGE_LIMIT),
        ("You've hit your weekly limit · resets Dec 1, 5:53pm (UTC)", Cause.USAGE_LIMIT),
        ("Error: Reached max turns (9)", Cause.NO_PULL),
        ("Reached maximum number of turns (9)", Cause.NO_PULL),
        ("Error: Exceeded USD budget (0.5)", Cause.NO_PULL),
        ("Reached maximum budget ($0.5)", Cause.NO_PULL),
        ('{"subtype":"error_max_turns"}', Cause.NO_PULL),
        ("Unknown command: /init", Cause.NO_PULL),
        # As the other clients have them.
        ("unexpected status 401 Unauthorized: no such key, url: http://x", Cause.AUTH),
        ("exceeded retry limit, last status: 429 Too Many Requests", Cause.RATE_LIMITED),
        ("Quota exceeded. Check your plan and billing details.", Cause.CREDIT_EXHAUSTED),
        ("We are currently experiencing high demand", Cause.RATE_LIMITED),
        ("stream disconnected before completion: error sending request", Cause.NETWORK),
        ("waiting for network (Connection failed: error sending request)", Cause.NETWORK),
        ("You've hit your usage limit. Try again at 3:05 PM.", Cause.USAGE_LIMIT),
        ('[API Error: {"error":{"code":401,"status":"UNAUTHENTICATED"}}]', Cause.AUTH),
        ('{"error":{"code":503,"message":"The model is overloaded."}}', Cause.RATE_LIMITED),
        ("Resource has been exhausted (e.g. check quota).", Cause.RATE_LIMITED),
        ("Quota exceeded for quota metric 'Requests per minute'", Cause.RATE_LIMITED),
        ("You have exhausted your capacity. Your quota will reset after 5h.", Cause.USAGE_LIMIT),
        ("Invalid auth method selected.", Cause.AUTH),
        ("[API Error: Connection error. (cause: fetch failed)]", Cause.NETWORK),
        ("Authentication failed for http://x. Status: 401 Unauthorized", Cause.AUTH),
        ("Rate limit exceeded: Rate limit reached for a model", Cause.RATE_LIMITED),
        ("Server error (500 Internal Server Error) at http://x", Cause.NETWORK),
        ("Network error: Could not connect to 127.0.0.1:9", Cause.NETWORK),
        ("litellm.AuthenticationError: AuthenticationError: no", Cause.AUTH),
        ("litellm.RateLimitError: slow down", Cause.RATE_LIMITED),
        ("FATAL ERROR: Reached heap limit Allocation failed", Cause.OUT_OF_MEMORY),
        ("fork: Cannot allocate memory", Cause.OUT_OF_MEMORY),
        ("MemoryError", Cause.OUT_OF_MEMORY),
        ("oom-kill: constraint=NONE", Cause.OUT_OF_MEMORY),
    ],
)
def test_what_agents_say_has_its_cause(text: str, cause: Cause) -> None:
    """The texts are those that the programs print."""
    assert cause_in(text) is cause
    assert cause_in(f"fine\n{text.upper()}\nfine\n") is cause


@pytest.mark.parametrize(
    "text",
    [
        "",
        "402 lines changed",
        "error on line 402",
        "error: 402 tests failed",
        "exit status: 402 files",
        "took 402 ms",
        "HTTP 4021",
        "429 tests passed, 401 skipped",
        "[bot-merge] skilled in merging",
        "[bot-merge] merged\nthe other one timed out",
        "a credit to the team\nexhausted",
        "credit" + " x" * 30 + " exhausted",
        "cargo build finished; no timers",
        "the room was booked",
        "implements the rate limiter",
        "documents the usage limit and when it is shown",
        "the loop reached max depth",
        "exit code 500 of 502 tests",
        "402 quota",
        "requests timed out of band",
        "found 50 internal server errors in the log",
        "panic: something else",
    ],
)
def test_what_only_looks_alike_has_none(text: str) -> None:
    """A bare number is no answer of a server, and two words on two lines are no sentence."""
    assert cause_in(text) is None


def test_the_first_cause_of_the_list_wins_not_the_first_line() -> None:
    text = "connection refused\nHTTP 429\nHTTP 402\n[bot-merge] timed out\n"

    assert cause_in(text) is Cause.BOT_MERGE_HUNG
    assert cause_in(text.replace("[bot-merge]", "")) is Cause.CREDIT_EXHAUSTED


def test_the_second_word_may_follow_the_nearest_first_one() -> None:
    assert cause_in("credit" + " x" * 40 + " credit exhausted") is Cause.CREDIT_EXHAUSTED


def test_only_the_end_of_the_text_is_searched() -> None:
    assert cause_in("HTTP 402 " + "x" * (SEARCHED - 9)) is Cause.CREDIT_EXHAUSTED
    assert cause_in("HTTP 402 " + "x" * SEARCHED) is None


WORDS = (
    "[bot-merge] ",
    "cargo build ",
    "cargo-",
    "credit ",
    "quota ",
    "exhausted ",
    "rate limit ",
    "rate-",
    "exceeded ",
    "hit ",
    "hit your ",
    "limit reached ",
    "usage ",
    "http ",
    "http/1.1 ",
    "http:/",
    "api error: ",
    "status code ",
    "_status",
    "402 ",
    "429 ",
    "529 ",
    "401 ",
    "api ",
    "auth",
    "not logged ",
    "invalid api ",
    "connect",
    "connection ",
    "could n",
    "out of ",
    "oo",
    "chump ",
    "wedged",
    "network ",
    "unable ",
    "a",
    "-",
    " ",
    "\n",
    "\t",
    "é",
    "\u0130",
    "insufficient ",
    "exceeded a b c d e f g ",
    "usage limit ",
    "reached max ",
    "could not ",
    "quota will ",
    "resource has ",
    "status",
    "500 ",
    '"code":',
)


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.parametrize("word", WORDS)
def test_hostile_text_is_searched_in_time_that_grows_no_faster_than_it(word: str) -> None:
    """A pattern that backtracks takes many seconds for such a text; a sound one some 50 ms."""
    text = (word * (SEARCHED // len(word) + 1))[:SEARCHED]

    assert seconds(lambda: cause_in(text)) < 2


@given(st.lists(st.sampled_from(WORDS), max_size=40).map("".join))
def test_any_text_has_one_cause_or_none(text: str) -> None:
    found = cause_in(text)

    assert found is cause_in(text.upper().replace("\u0130", "x").replace("i\u0307", "x")) or (
        "\u0130" in text
    )
    assert found is None or found in Cause


@pytest.mark.parametrize(
    ("given_cause", "words", "cause"),
    [
        (None, "fine", Cause.UNKNOWN),
        (None, "HTTP 402", Cause.CREDIT_EXHAUSTED),
        (Cause.EXIT_CODE, "fine", Cause.EXIT_CODE),
        (Cause.EXIT_CODE, "Not logged in", Cause.AUTH),
        (Cause.NO_PULL, "fine", Cause.NO_PULL),
        (Cause.NO_PULL, "usage limit reached", Cause.USAGE_LIMIT),
        (Cause.DEADLINE, "HTTP 402", Cause.DEADLINE),
        (Cause.SPAWN, "HTTP 402", Cause.SPAWN),
        (Cause.LOST, "out of memory", Cause.LOST),
        (Cause.NETWORK, "HTTP 402", Cause.NETWORK),
    ],
)
def test_last_words_tell_more_than_an_exit_code_and_less_than_what_is_known(
    given_cause: Cause | None, words: str, cause: Cause
) -> None:
    assert cause_of(given_cause, words) is cause
