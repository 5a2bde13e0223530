"""README and docs/: links lead somewhere, lines fit, and the commands, keys, files and tests that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from rlef_jax import config, overrides

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCE = (".py", ".sh", ".yaml")
WIDTH = 120
MARKDOWN = MarkdownIt("commonmark").enable("table")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def tokens(page: Path) -> Iterator[Token]:
    """All tokens, those of a line's text behind their line."""
    for token in MARKDOWN.parse(page.read_text()):
        yield token
        yield from token.children or ()


def anchors(page: Path) -> set[str]:
    """What GitHub names a page's headings: of equal ones the second is NAME-1."""
    counts: Counter[str] = Counter()
    names = set()
    parsed = MARKDOWN.parse(page.read_text())
    for opening, heading in zip(parsed, parsed[1:]):
        if opening.type == "heading_open":
            text = "".join(child.content for child in heading.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            names.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
            counts[slug] += 1
    return names


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(text, target) of each link and image that stays in the repository."""
    text, target = "", None
    for token in tokens(page):
        if token.type == "image":
            yield token.content, str(token.attrs["src"])
        elif token.type == "link_open":
            text, target = "", str(token.attrs["href"])
        elif token.type == "link_close" and target is not None:
            yield text, target
            target = None
        elif target is not None:
            text += token.content


@pages
def test_every_link_leads_somewhere(page):
    for _, target in links(page):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target}: no such file"
        assert ROOT in file.parents, f"{target}: outside of the repository"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading; there are {sorted(anchors(file))}"


@pages
def test_lines_fit(page):
    """A table's row is one line, however long; its cells must fit."""
    lines = page.read_text().splitlines()
    wide = [n for n, line in enumerate(lines, 1) if len(line) > WIDTH and not line.startswith("|")]
    assert not wide, f"lines {wide} are over {WIDTH} characters"
    for token in MARKDOWN.parse(page.read_text()):
        if token.type == "inline" and token.map is not None and lines[token.map[0]].startswith("|"):
            shown = "".join(child.content for child in token.children or ())
            assert len(shown) <= WIDTH, f"line {token.map[0] + 1}: a cell of {len(shown)} characters: {shown}"


def snippets(page: Path) -> Iterator[str]:
    """Inline code, and each command of a block without what follows it as a comment."""
    for token in tokens(page):
        if token.type == "code_inline":
            yield token.content
        elif token.type in ("code_block", "fence"):
            for line in re.sub(r"\\\n\s*", "", token.content).splitlines():
                yield from re.sub(r"\s+# .*", "", line).split(" && ")


# What stands for a value that the reader must fill in.
PLACEHOLDER = re.compile(r"\.\.\.|…|[A-Z]+")
ENTRY_POINT = re.compile(r"(?:\.venv/bin/)?python -m (rlef_jax[\w.]*)(.*)")
SCRIPT = re.compile(r"(?:\.venv/bin/)?python (benchmarks/\w+\.py)(.*)")


@pages
def test_commands_exist_with_their_options(page):
    make_targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
    for snippet in snippets(page):
        if match := ENTRY_POINT.match(snippet.strip()):
            module = ROOT / match[1].replace(".", "/")
            files = [f for f in (module.with_suffix(".py"), module / "__main__.py") if f.is_file()]
            assert files, f"{snippet}: no module {match[1]}"
            check_options(snippet, match[2], files[0])
        elif match := SCRIPT.match(snippet.strip()):
            assert (ROOT / match[1]).is_file(), f"{snippet}: no such file"
            check_options(snippet, match[2], ROOT / match[1])
        elif match := re.match(r"(?:sbatch )?(launch/\w+\.sh)\b", snippet.strip()):
            assert (ROOT / match[1]).is_file(), f"{snippet}: no such file"
        elif match := re.match(r"make ([a-z0-9-]+)", snippet.strip()):
            assert match[1] in make_targets, f"{snippet}: no such target"


def check_options(snippet: str, arguments: str, file: Path) -> None:
    """Every `--option` is one that `file`, or the command line that it shares, defines; configs load as given."""
    known = file.read_text()
    if "command_line." in known:
        known += (ROOT / "rlef_jax" / "command_line.py").read_text()
    config_file, settings = "", []
    for word in shlex.split(arguments):
        name, _, value = word.partition("=")
        if name.startswith("--config."):
            settings += [] if PLACEHOLDER.fullmatch(value) else [word]
        elif name.startswith("--"):
            config_file = value if name == "--config" else config_file
            assert f'"{name}"' in known or f'"{name[2:]}"' in known, f"{snippet}: {name} is no option of {file.name}"
    if config_file and not PLACEHOLDER.fullmatch(config_file):
        config.load(str(ROOT / config_file), overrides=overrides.extract(settings)[0])


@pages
def test_keys_exist(page):
    """`section.key`, `section.key=value` and `--config.section.key=value` are keys of the configuration."""
    base = config.base_config()
    known = set(config.leaf_keys(base))
    sections = "|".join(key for key in base if hasattr(base[key], "keys"))
    for snippet in snippets(page):
        for key in re.findall(rf"(?:^|--config\.|config\.)((?:{sections})\.\w+)(?=$|[= ])", snippet):
            assert key in known or key.endswith((".py", ".json", ".jsonl", ".safetensors")), (
                f"{snippet}: {key} is no key"
            )


@pages
def test_files_of_the_code_exist(page):
    """A path to a Python file is one from the root, or from the package."""
    for snippet in snippets(page):
        for name in re.findall(r"(?:^| )((?:\w+/)+\w+\.(?:py|sh|yaml|txt))(?=$|[: ])", snippet):
            assert (ROOT / name).is_file() or (ROOT / "rlef_jax" / name).is_file(), f"{snippet}: no file {name}"


@pages
def test_environment_variables_exist(page):
    code = [
        f.read_text() for folder in ("rlef_jax", "launch") for f in (ROOT / folder).rglob("*") if f.suffix in SOURCE
    ]
    for name in re.findall(r"RLEF_JAX_\w+", page.read_text()):
        assert any(name in text for text in code), f"nothing reads {name}"


@pages
def test_tests_that_are_named_exist(page):
    for text, target in links(page):
        if re.fullmatch(r"test_\w+", text):
            assert f"def {text}(" in (page.parent / target).read_text(), f"{target} has no {text}"


def test_every_invariant_names_a_test():
    section = (ROOT / "docs" / "architecture.md").read_text().split("\n## What always holds\n")[1].split("\n## ")[0]
    invariants = re.split(r"^\d+\. ", section, flags=re.M)[1:]
    assert len(invariants) == 8
    for invariant in invariants:
        assert re.search(r"\[`test_\w+`\]\(", invariant), f"no test of: {invariant}"


# What reads a clock, owns a thread or process, or touches files.
IMPURE = set(
    "concurrent gzip io logging multiprocessing os pathlib queue random shutil signal socket subprocess sys tempfile"
    " threading time".split()
)


def test_pure_files_import_nothing_impure():
    page = ROOT / "docs" / "architecture.md"
    section = page.read_text().split("\n## Pure files\n")[1].split("\n## ")[0]
    files = {(page.parent / name).resolve() for name in re.findall(r"\]\((\.\./rlef_jax/[\w/]+\.py)\)", section)}
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            impure = {name.split(".")[0] for name in names} & IMPURE
            assert not impure, f"{file.name} imports {impure}: it is not pure"


def test_pages_that_code_names_exist():
    files = [ROOT / "Makefile", ROOT / "setup.py"]
    for folder in ("rlef_jax", "configs", "benchmarks", "launch", "scripts", "tests"):
        files += [f for f in (ROOT / folder).rglob("*") if f.suffix in SOURCE]
    for file in files:
        for name in re.findall(r"\bdocs/[\w/]+\.md", file.read_text()):
            assert (ROOT / name).is_file(), f"{file.relative_to(ROOT)} names {name}"


def test_every_page_can_be_found_from_the_readme():
    reached, pending = set(), [PAGES[0]]
    while pending:
        page = pending.pop()
        reached.add(page)
        targets = {(page.parent / target.partition("#")[0]).resolve() for _, target in links(page)}
        pending += [p for p in targets if p.suffix == ".md" and p.is_file() and p not in reached]
    assert set(PAGES) <= reached, f"not linked: {[str(p) for p in set(PAGES) - reached]}"
