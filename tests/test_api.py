"""The public interface: a short list, imported when it is used, that does what a notebook needs."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import rlef_jax as rj
from rlef_jax import api
from rlef_jax.errors import ConfigError

ROOT = Path(__file__).parents[1]
SMALL = {
    "episode.max_turns": 2, "sampling.rows": 4, "sampling.workers": 1, "sampling.cache_lengths": (),
    "sampling.prefill_chunks": (64,), "execution.workers": 1,
}  # fmt: skip
PROBLEM = rj.Problem("double", "Print twice the number.", (rj.TestCase("2", "4"),), (rj.TestCase("7", "14"),))


def test_the_list_is_the_modules_and_is_documented():
    assert rj.__all__ == api.__all__ == sorted(api.__all__) and set(rj.__all__) <= set(dir(rj))
    assert all(getattr(rj, name) is getattr(api, name) and getattr(api, name).__doc__ for name in rj.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'train_everything'"):
        rj.train_everything  # noqa: B018


def test_the_page_is_made_from_the_docstrings():
    page = runpy.run_path(str(ROOT / "scripts" / "api_docs.py"))["page"]()
    assert (ROOT / "docs" / "api.md").read_text() == page.rstrip() + "\n", "run: python scripts/api_docs.py"


def test_importing_the_package_does_no_work():
    code = "import sys, rlef_jax; print(sorted(m for m in sys.modules if m in ('jax', 'numpy', 'transformers')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_a_policy_samples_and_its_dialogues_are_judged(quick_compilation):
    policy = rj.load_policy("package:warm_start", overrides=SMALL)
    assert "parameters, package:warm_start" in repr(policy)
    texts = rj.sample(policy, ["Print 1.", "Print 2."], count=2, max_new_tokens=6)
    assert [len(group) for group in texts] == [2, 2] and all(isinstance(t, str) for group in texts for t in group)
    assert rj.sample(policy, ["Print 1.", "Print 2."], count=2, max_new_tokens=6) == texts
    episodes = rj.solve(policy, [PROBLEM], count=2)
    assert [e.problem for e in episodes] == [PROBLEM] * 2 and all(e.end and e.turns[-1].verdict for e in episodes)
    assert "problem double: " in rj.show(policy, episodes[0])
    with pytest.raises(ConfigError, match="has no room for a prompt"):
        rj.sample(policy, ["word " * 300])


def test_programs_are_judged_on_all_tests():
    right, wrong, none = rj.judge_programs(
        ["print(2 * int(input()))", "print(4)", "print("], PROBLEM, overrides={"execution.workers": 1}
    )
    assert right.passed and not wrong.passed and wrong.public_passed and none.status is rj.Status.SYNTAX_ERROR


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        rj.read_run(tmp_path)
