"""docs/api.md out of the docstrings of the public interface: python scripts/api_docs.py"""

from __future__ import annotations

import enum
import inspect
import re
from pathlib import Path
from typing import Any

from rlef_jax import api

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "api.md"
HEAD = """# The public interface

`import rlef_jax as rj` offers these names. Everything else is internal: it may change from version to version. This
page is made from the docstrings by `python scripts/api_docs.py`.

    import rlef_jax as rj

    policy = rj.load_policy("runs/demo", checkpoint="best")
    problem = rj.Problem("double", "Print twice the number.", (rj.TestCase("2", "4"),), (rj.TestCase("7", "14"),))
    [episode] = rj.solve(policy, [problem])
    print(rj.show(policy, episode))
"""
GROUPS = {
    "Functions": ("load_policy", "sample", "solve", "judge_programs", "run_evaluation", "read_run", "show"),
    "Objects": ("Policy", "Run"),
    "Vocabulary": ("Problem", "TestCase", "Episode", "Turn", "Verdict", "TestResult", "Status"),
}


def page() -> str:
    """The page's text."""
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(api.__all__)
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(name, getattr(api, name)) for name in names]
    return "\n".join(parts)


def _entry(name: str, exported: Any) -> str:
    lines = [f"### `rj.{name}`", ""]
    if isinstance(exported, type) and issubclass(exported, enum.Enum):
        lines += [inspect.getdoc(exported) or "", "", _code("\n".join(member.name for member in exported))]
        return "\n".join([*lines, ""])
    hidden = name in GROUPS["Objects"]  # made by a function, not by their users
    if not hidden:
        lines += [_code(name + _signature(exported)), ""]
    lines += [_code(inspect.getdoc(exported) or ""), ""]
    if isinstance(exported, type):
        members = {n: m for n, m in vars(exported).items() if not n.startswith("_") and inspect.getdoc(m)}
        for member, member_value in members.items():
            if isinstance(member_value, property) or inspect.isfunction(member_value):
                signature = "" if isinstance(member_value, property) else _signature(member_value)
                docstring = "\n".join(f"    {line}" for line in (inspect.getdoc(member_value) or "").splitlines())
                lines.append(_code(f"{member}{signature}\n{docstring}"))
        lines.append("")
    return "\n".join(lines)


def _signature(function: Any) -> str:
    """As in the code: annotations are kept as texts, which would be shown in quotes."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
    if len(text) < 90:
        return text
    inner, _, result = text[1:].rpartition(")")
    parts = re.split(r", (?=\*|\w+: )", inner)
    return "(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def _code(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


if __name__ == "__main__":
    OUTPUT.write_text(page().rstrip() + "\n", encoding="utf-8")
    print(OUTPUT)
