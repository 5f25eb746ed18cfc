"""METEOR and the official tokenizer, by choice: pycocoevalcap's Java programs, each run with a time limit.

The one place that looks into pycocoevalcap. Its own wrappers are not used: they write next to the package, wait without
end after a Java exception, and print decimal commas where the locale has them.
"""

import gzip
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from tempfile import TemporaryDirectory
from types import FrameType

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation.tokenize import PUNCTUATION, one_line

_LOCALE = (
    *("-Duser.language=en", "-Duser.country=US"),
    *("-Duser.language.format=en", "-Duser.country.format=US"),  # set apart on macOS, and wins in numbers
    *("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"),
)
_METEOR = "meteor/meteor-1.5.jar"
_TOKENIZER = "tokenizer/stanford-corenlp-3.4.1.jar"

_NEUTRAL = "zzz"
"""Stands between captions: the tokenizer looks ahead, and so the next caption's first word would change a token."""

Tokens = Sequence[str]


def meteor(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], *, timeout: float = 600.0
) -> tuple[float, list[float]]:
    """METEOR 1.5 (Denkowski and Lavie, 2014) in [0, 1], of the corpus and of each image.

    Args:
        candidates: Tokens of each image's caption.
        references: Tokens of each image's references.
        timeout: Seconds that Java may take for each of its two passes.

    Raises:
        UsageError: There is no Java, or it fails or takes too long; with what it said.
    """
    if not candidates:
        raise UsageError("METEOR of no captions is not defined")
    lines = [
        " ||| ".join(["SCORE", *(_words(tokens) for tokens in own), _words(caption)])
        for caption, own in zip(candidates, references, strict=True)
    ]
    command = ["-Xmx2G", "-jar", str(_jar(_METEOR)), "-", "-", "-stdio", "-l", "en", "-norm"]
    # Two passes: a program that is asked and answers in turns can wait for ever. The second one aligns no words, and
    # so it need not spend seconds on the table of paraphrases.
    statistics = _run(command, lines, timeout, expected=len(lines))
    with TemporaryDirectory() as folder:
        paraphrases = Path(folder) / "none.gz"
        paraphrases.write_bytes(gzip.compress(b""))
        evaluate = [*command, "-a", str(paraphrases)]
        scores = _run(evaluate, [" ||| ".join(["EVAL", *statistics])], timeout, expected=len(lines) + 1)
    *per_image, corpus = map(float, scores)
    return corpus, per_image


def java_tokens(captions: Sequence[str], *, timeout: float = 600.0) -> list[list[str]]:
    """Tokens of pycocoevalcap's own tokenizer, each caption as if it stood alone.

    Raises:
        UsageError: As `meteor`.
    """
    lines = [line for caption in captions for line in (one_line(caption), _NEUTRAL)]
    command = [
        *("-cp", str(_jar(_TOKENIZER)), "edu.stanford.nlp.process.PTBTokenizer"),
        *("-preserveLines", "-lowerCase", "-encoding", "UTF-8"),
    ]
    found = _run(command, lines, timeout, expected=len(lines))
    return [[token for token in line.split(" ") if token and token not in PUNCTUATION] for line in found[::2]]


def _words(tokens: Tokens) -> str:
    return " ".join(tokens).replace("|||", "")


def _jar(name: str) -> Path:
    package = find_spec("pycocoevalcap")
    folder = next(iter(package.submodule_search_locations or ()), None) if package else None
    if folder is None or not (path := Path(folder) / name).is_file():
        raise UsageError("pycocoevalcap is not whole: pip install --force-reinstall pycocoevalcap")
    return path


def find_java() -> str:
    """The Java runtime.

    Raises:
        UsageError: There is none.
    """
    java = shutil.which("java")
    if java is None:
        raise UsageError(
            "METEOR and the Java tokenizer need a Java runtime, and no java is on the PATH: install one (on Debian: "
            "apt-get install default-jre-headless), or leave eval.meteor and eval.verify_java off"
        )
    return java


def _run(arguments: Sequence[str], lines: Sequence[str], timeout: float, *, expected: int) -> list[str]:
    """Standard output of a Java program, line by line."""
    java = find_java()
    text = "".join(line + "\n" for line in lines).encode(errors="replace")  # half a surrogate pair is no UTF-8
    with _stopped_at_the_end([java, *_LOCALE, *arguments]) as process:
        try:
            out, err = process.communicate(text, timeout=timeout)
        except TimeoutExpired:
            raise UsageError(
                f"Java did not finish within {timeout:g} s and was stopped: give it fewer captions"
            ) from None
    found = out.decode(errors="replace").split("\n")[:-1]
    if process.returncode or len(found) != expected:
        unborn = out.startswith(b"Error occurred during initialization of VM")  # the one error on standard output
        raise UsageError(
            f"Java ended with {process.returncode} after {len(found)} of {expected} lines"
            f"{_said(out if unborn else err)}; eval.meteor and eval.verify_java can be left off"
        )
    return found


def _said(output: bytes) -> str:
    """The end of what a Java program wrote, without the frames of a stack trace: they hide the exception's own line."""
    lines = output.decode(errors="replace").splitlines()
    words = [line for line in lines if line.strip() and not line.startswith(("\tat ", "Picked up "))]
    return f"; it said: {' / '.join(words[-3:])}" if words else ""


@contextmanager
def _stopped_at_the_end(command: Sequence[str]) -> Iterator[Popen[bytes]]:
    """A process that is gone with all it started once the context ends, also by a signal that ends this process.

    ``java`` may be a script that starts the real one: its process group is its own, and is killed as a whole. A signal
    that someone else already handles stays theirs.
    """

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    free = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    taken = free if threading.current_thread() is threading.main_thread() else []
    for number in taken:
        signal.signal(number, leave)
    try:
        with Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError, PermissionError):  # the second: macOS, of one that has just ended
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
