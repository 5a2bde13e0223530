"""Dialogues about function problems: the paper's templates byte for byte, and programs extracted from responses."""

import base64

import pytest

from rlef_jax.dialog.extract import program_of
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.prompts import first_message
from rlef_jax.types import FunctionTest, Problem, Status, TestResult, Verdict

# The listings of C.4 and C.5, byte for byte.
TEMPLATES = {
    "human_eval": (
        "V3JpdGUgYSBzb2x1dGlvbiB0byB0aGUgZm9sbG93aW5nIHByb2JsZW0gYW5kIG1ha2Ugc3VyZSB0aGF0IGl0IHBhc3NlcyB0aGUgdGVzdHM6"
        "CiR7cHJvYmxlbX0=",
        "WW91ciBjb2RlIGZhaWxlZCBzb21lIHRlc3QgY2FzZXM6CgotIEZhaWx1cmU6IGAke3Rlc3R9YDoKYCR7YXNzZXJ0aW9uX2Vycm9yfWAKLSBG"
        "YWlsdXJlOiBgJHt0ZXN0fWA6CiR7c3RhY2t0cmFjZX0KLSBGYWlsdXJlOiBgJHt0ZXN0fWA6CkV4ZWN1dGlvbiB0b29rIHRvbyBsb25nLgot"
        "IFN1Y2Nlc3M6IGAke3Rlc3R9YAoKR2l2ZSBpdCBhbm90aGVyIHRyeS4=",
    ),
    "mbpp": (
        "UHJvdmlkZSBhIFB5dGhvbiBzb2x1dGlvbiBmb3IgdGhlIGZvbGxvd2luZyBwcm9ibGVtOiAke3Byb2JsZW19CllvdXIgY29kZSBzaG91bGQg"
        "cGFzcyB0aGVzZSB0ZXN0czoKCiR7dGVzdH0KCllvdXIgY29kZSBzaG91bGQgYmUgZW5jbG9zZWQgaW4gdHJpcGxlIGJhY2t0aWNrcyBsaWtl"
        "IHNvOiBgYGBweXRob24gWU9VUiBDT0RFIEhFUkUgYGBgLiBVc2UgdGhlIGJhY2t0aWNrcyBmb3IgeW91ciBjb2RlIG9ubHku",
        "WW91ciBjb2RlIGZhaWxlZCBzb21lIHRlc3QgY2FzZXM6CgotIEZhaWx1cmU6IGAke3Rlc3R9YDoKYCR7ZXJyb3J9YAotIEZhaWx1cmU6IGAk"
        "e3Rlc3R9YDoKJHtzdGFja3RyYWNlfQotIEZhaWx1cmU6IGAke3Rlc3R9YDoKRXhlY3V0aW9uIHRvb2sgdG9vIGxvbmcuCi0gU3VjY2Vzczog"
        "YCR7dGVzdH1gCgpHaXZlIGl0IGFub3RoZXIgdHJ5LgpZb3VyIGNvZGUgc2hvdWxkIGJlIGVuY2xvc2VkIGluIHRyaXBsZSBiYWNrdGlja3Mg"
        "bGlrZSBzbzogYGBgcHl0aG9uIFlPVVIgQ09ERSBIRVJFIGBgYC4gVXNlIHRoZSBiYWNrdGlja3MgZm9yIHlvdXIgY29kZSBvbmx5Lg==",
    ),
}


def problem(style, texts=("${test}",), start=""):
    tests = tuple(FunctionTest("f", ((1,),), (1,), text=text) for text in texts)
    return Problem("p", "${problem}", tests, tests, style=style, start=start, shown_tests=("${test}",))


def verdict(*results):
    return Verdict(next((r.status for r in results if r.status is not Status.PASSED), Status.PASSED), results)


def result(status, error=""):
    return TestResult(Status(status), error=error)


@pytest.mark.parametrize("style", TEMPLATES)
def test_the_papers_words(style):
    prompt, feedback = (base64.b64decode(text).decode() for text in TEMPLATES[style])
    assert first_message(problem(style)) == prompt
    message = "${assertion_error}" if style == "human_eval" else "${error}"
    results = [result("WRONG_ANSWER", message), result("RUNTIME_ERROR", "${stacktrace}"), result("TIME_LIMIT"),
               result("PASSED")]  # fmt: skip
    assert feedback_message(problem(style, ["${test}"] * 4), verdict(*results)) == feedback


@pytest.mark.parametrize("style", TEMPLATES)
def test_a_program_that_does_not_parse_fails_each_test_with_its_trace(style):
    failed = verdict(*[result("SYNTAX_ERROR", "${stacktrace}")] * 2)
    head, _, rest = feedback_message(problem(style, ["a", "b"]), failed, syntax_errors="per_test").partition("\n\n")
    entries, _, ending = rest.partition("\n\n")
    assert head == "Your code failed some test cases:" and ending.startswith("Give it another try.")
    assert entries == "- Failure: `a`:\n${stacktrace}\n- Failure: `b`:\n${stacktrace}"
    assert feedback_message(problem(style, ["a", "b"]), failed).startswith(
        "Your code does not parse:\n\n${stacktrace}\n"
    )


def test_what_the_paper_has_no_words_for():
    two = problem("human_eval", ["a", "bcdefg"])
    message = feedback_message(two, verdict(result("PASSED"), result("MEMORY_LIMIT")))
    assert message == (
        "Your code failed some test cases:\n\n- Success: `a`\n- Failure: `bcdefg`:\nOut of memory."
        "\n\nGive it another try."
    )
    assert "`:\nToo much output." in feedback_message(two, verdict(result("PASSED"), result("OUTPUT_LIMIT")))
    assert feedback_message(two, Verdict(Status.NO_CODE)) == "Your response has no code.\n\nGive it another try."
    assert feedback_message(two, Verdict(Status.NO_CODE), kind="none") == "Give it another try."
    assert feedback_message(problem("mbpp"), Verdict(Status.NO_CODE)).startswith("Your response has no code block.\n\n")
    assert feedback_message(problem("mbpp"), Verdict(Status.NO_CODE), kind="none").endswith("for your code only.")
    both = verdict(result("WRONG_ANSWER", "12345"), result("WRONG_ANSWER", "67890"))
    cut = feedback_message(two, both, max_failures=1, max_chars=3)
    assert "- Failure: `a`:\n`123...[2 characters cut]`\n...[1 failed tests cut]\n" in cut and "bcd" not in cut
    with pytest.raises(ValueError, match="every public test passed"):
        feedback_message(two, verdict(result("PASSED"), result("PASSED")))
    with pytest.raises(ValueError, match="no prompt of style 'x'"):
        first_message(problem("x"))


START = 'import math\ndef f(x):\n    """Says x."""\n'
BODY = "    return x\n"


@pytest.mark.parametrize(
    "response, program",
    [
        (BODY, START + BODY),
        (BODY + "\nprint(f(1))\n", START + BODY + "\nprint(f(1))\n"),
        (BODY + "```\nThis returns x.", START + BODY),  # closes a fence that was never opened
        (BODY + "\nThis returns x, which is right.", START + BODY + "\n"),
        (BODY + "```\nUse it so:\n```python\nprint(f(1))\n```", START + BODY),
        ("```python\ndef f(x):\n    return x\n```", START + "\ndef f(x):\n    return x"),  # starts again
        ("Here it is:\n```python\n    return x\n```\n", START + "\n    return x"),
        ("    return (x\n", START + "    return (x\n"),  # judged unchanged: a syntax error
        ("    y = x +\n    return x\n", START + "    y = x +\n    return x\n"),  # no line is cut out of a body
        (" \n", None),
        ("", None),
    ],
)
def test_programs_that_go_on_after_a_given_start(response, program):
    assert program_of(problem("human_eval", start=START), response) == program


def test_programs_of_other_problems_are_in_a_block():
    assert program_of(problem("mbpp"), "```python\nx\n```") == "x"
    assert program_of(problem("mbpp"), "x") is None


def test_a_check_without_a_call_is_shown_as_it_is():
    test = FunctionTest("f", (), (), check=("import math", "assert math.isclose(f(2), 4)"))
    made = Problem("p", "", (test,), (test,), style="function")
    assert "`assert math.isclose(f(2), 4)`" in feedback_message(made, verdict(result("WRONG_ANSWER")), max_failures=1)
