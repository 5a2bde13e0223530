# mypy: allow-untyped-defs
"""Formats stack traces for feedback: short, and the same under every Python version.

No imports and nothing newer than Python 3.8: the worker executes this file under the judge's Python. Training data is
written with the same function in this process.
"""

FILENAME = "solution.py"
_EDGE_FRAMES = 3  # number of frames of a deep recursion that are shown at either end
_MESSAGE_CHARS = 500


def format_exception(exc, source):
    """The text of an uncaught exception of a program compiled under the name `solution.py`.

    Args:
      exc: the exception, with its traceback; frames outside `solution.py` are left out.
      source: the program's text, to show the frames' lines.

    Returns:
      A str without a trailing newline: the place and message of a syntax error if the program didn't compile, else
      `Traceback (most recent call last):`, two lines per frame, and the exception.
    """
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # Python's line endings
    frames = []
    tb = exc.__traceback__
    while tb is not None:
        code = tb.tb_frame.f_code
        if code.co_filename == FILENAME:
            frames.append((tb.tb_lineno, code.co_name))
        tb = tb.tb_next
    if not frames and isinstance(exc, SyntaxError):
        return _format_syntax_error(exc, lines)
    shown = ["Traceback (most recent call last):"]
    hidden = len(frames) - 2 * _EDGE_FRAMES
    for i, (lineno, name) in enumerate(frames):
        if hidden > 0 and i == _EDGE_FRAMES:
            shown.append("  ...")  # without their number, which depends on the depth at which the program started
        if hidden <= 0 or not _EDGE_FRAMES <= i < len(frames) - _EDGE_FRAMES:
            shown.append(f'  File "{FILENAME}", line {lineno}, in {name}')
            shown.extend(_line(lines, lineno))
    shown.append(_exception_line(exc))
    return "\n".join(shown)


def _format_syntax_error(exc, lines):
    """As CPython 3.10 prints it for `python solution.py`: place, line, carets under what is wrong, message.

    Carets are placed by characters, where CPython counts the bytes of letters outside ASCII that stand before them.
    """
    shown = []
    if exc.lineno:
        shown.append(f'  File "{FILENAME}", line {exc.lineno}')
        # The compiler looks for the line of its errors in the file, which isn't there.
        in_source = lines[exc.lineno - 1] if 0 < exc.lineno <= len(lines) else ""
        text = (in_source if exc.text is None else exc.text).rstrip("\n")
        shown.extend(_marked(text, exc))
    shown.append(f"{type(exc).__name__}: {exc.msg}")
    return "\n".join(shown)


def _marked(text, exc):
    """The line of a syntax error without its indentation, and a line of carets if they would be under it."""
    stripped = text.lstrip(" \t\f").split("\n")[0]
    if not stripped:
        return []
    end = getattr(exc, "end_offset", None) or 0  # since Python 3.10
    if (getattr(exc, "end_lineno", None) or 0) > exc.lineno:
        end = len(text) + 1  # it goes on in further lines: the rest of this one is marked
    offset = exc.offset or 0
    place = min(offset - 1 - (len(text) - len(text.lstrip(" \t\f"))), len(stripped))
    shown = ["    " + stripped]
    if place >= 0:
        shown.append("    " + " " * place + "^" * max(end - offset, 1))
    return shown


def _line(lines, lineno):
    text = lines[lineno - 1].strip() if 0 < lineno <= len(lines) else ""
    return ["    " + text] if text else []


def _exception_line(exc):
    kind = type(exc)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    try:
        message = str(exc)
    except Exception:
        message = "<exception str() failed>"
    if len(message) > _MESSAGE_CHARS:
        message = f"{message[:_MESSAGE_CHARS]}...[{len(message) - _MESSAGE_CHARS} characters cut]"
    return f"{name}: {message}" if message else name
