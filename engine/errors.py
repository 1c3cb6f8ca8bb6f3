"""What a user is told: lines fit to print, lists of problems, and errors that end a program in one line.

Exit codes of plain `python`: 0 done, 2 the user can mend it, 3 the data or the numbers went wrong, 1 a bug, 143 after SIGTERM
and 130 after Ctrl-C, both with a checkpoint.
"""

import contextlib
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

MAX_PROBLEMS = 1_000_000    # lines of a list: a hundred million files may each have something to tell


def printable(text: str) -> str:
    """The text with everything replaced that a terminal or a log could not print (names of files hold anything)."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def plural(n: int, noun: str) -> str:
    """1 window, 2 windows"""
    return f"{n} {noun}{'s' * (n != 1)}"


def tell(problems: list[str], line: str) -> None:
    """Adds a printable line to `problems`; past `MAX_PROBLEMS` lines only a last one that says so."""
    if len(problems) < MAX_PROBLEMS:
        problems.append(printable(line))
    elif len(problems) == MAX_PROBLEMS:
        problems.append("... and more problems in other files")


def report(problems: list[str], path: Path) -> None:
    """Keep the lines in a file, which is there only if there are any; warn of the first ones, and the last, which are sums."""
    path.unlink(missing_ok=True)
    if problems:
        path.write_text("\n".join([*problems, ""]), encoding="utf-8", errors="replace")
        shown = problems[:5] + problems[5:][-8:]
        more = f"; all are in {path}" if len(shown) < len(problems) else ""
        print("\n".join(f"warning: {line}" for line in shown) + more, file=sys.stderr, flush=True)


def warn(problems: Iterable[str]) -> None:
    """Warn of the first ten"""
    for line in islice(problems, 10):
        print(f"warning: {printable(line)}", file=sys.stderr)


class Unreadable(Exception):
    """A file that cannot give what was asked; `reason` is one of a few fixed phrases, fit for counting."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path!r}: {self.reason}"


class TooManyBad(RuntimeError):
    """So many files could not be read that the data cannot be trusted; names what failed and why."""

    def __str__(self) -> str:
        return super().__str__().split("TooManyBad: ")[-1].strip()  # from a worker it comes with its traceback


class WorkerError(RuntimeError):
    """A worker of a loader died or hangs; `path` is the file that it had in hand, or None."""

    def __init__(self, what: str, path: str | None):
        super().__init__(f"{what}; it had in hand: {path or 'no file (is memory short? try fewer --workers)'}")
        self.path = path


class Unbroken:
    """A stream that goes on when nobody reads it any more: a closed pipe or terminal does not end a run."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> None:
        """Write and flush what can be"""
        with contextlib.suppress(OSError):
            self.stream.write(text)
            self.stream.flush()

    def flush(self) -> None:
        """Nothing is left to do"""

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def keep_speaking() -> None:
    """Let stdout and stderr fail without a word."""
    sys.stdout, sys.stderr = Unbroken(sys.stdout), Unbroken(sys.stderr)


@contextlib.contextmanager
def user_errors(stopped: str = "stopped before the first step"):
    """What a user can mend becomes one line and exit code 2, bad data or numbers exit code 3; `stopped` is what Ctrl-C says."""
    try:
        yield
    except (ValueError, OSError, Unreadable) as e:
        fail(2, str(e))
    except (FloatingPointError, TooManyBad) as e:
        fail(3, str(e))
    except WorkerError as e:
        fail(3, f"{e}: move the file away, and try again")
    except KeyboardInterrupt:
        fail(130, stopped)


def fail(code: int, text: str) -> None:
    """One line, then the end with this exit code"""
    print(f"error: {printable(text)}\n", end="", file=sys.stderr, flush=True)  # written at once: all processes may say it
    sys.exit(code)
