"""Files that are whole or absent: atomic writes, JSON lines that name the broken line, YAML configs."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

LONGEST_LINE = 1 << 25  # bytes; a longer line is no row (a day of speech takes 20 MB), and is not kept
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on any error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because writers such as libsndfile choose the format by it.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Inside, no other process is inside with the same `path`, which need not exist; it waits for its turn.

    The lock is a file beside `path`, gone afterwards; the system lets go of it when a process is killed.
    """
    import fcntl

    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with open(lock, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(lock, file.fileno()):  # who had it has removed it meanwhile; others lock a new one
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def read_text(path: str | Path) -> str:
    """A whole text file, without the byte order mark that editors may set. Raises ValueError: not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); `iconv -f latin1 -t utf-8` converts it") from error


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path}: JSON nested too deep to be read") from error
    except ValueError as error:  # itself, not JSONDecodeError: a number of thousands of digits
        raise ValueError(f"{path}: not valid JSON ({one_line(error)})") from error


def one_line(what: object, most: int = 500) -> str:
    """`what` as a part of a message: without its middle where it is long, control characters escaped."""
    text = str(what)
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} ... {text[-most // 3 :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def bounded_lines(path: str | Path) -> Iterator[tuple[int, bytes | None]]:
    """Yields (line number from 1, line), None for a line that is longer than `LONGEST_LINE`."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) < LONGEST_LINE or line.endswith(b"\n"):
                yield number, line
                continue
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line). Raises ValueError naming `path:line`: too long, or not UTF-8."""
    for number, line in bounded_lines(path):
        if line is None:
            raise ValueError(
                f"{path}:{number}: more than {LONGEST_LINE >> 20} MB in a line; expected a row a line"
            )
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not UTF-8 (byte {error.start} of the line)") from error


def parse_json(text: str) -> Any:
    """JSON that can be written again. Raises ValueError for the rest, deep nesting, half characters."""
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):  # pairs are characters, and common where all but ASCII is escaped
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("not valid JSON (half of a surrogate pair, which is no character)") from error
    except RecursionError as error:
        raise ValueError("not valid JSON (nested too deep)") from error
    except ValueError as error:  # itself, not JSONDecodeError: a number of thousands of digits
        raise ValueError(f"not valid JSON ({one_line(error)})") from error
    return value


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, object). Raises ValueError naming `path:line` for a broken line."""
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> int:
    """Writes one compact JSON object a line, atomically; returns the number of rows."""
    count = 0
    with atomic_path(path) as part, open(part, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return count


def read_yaml(path: str | Path) -> dict:
    text = read_text(path)
    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(f"{path}: YAML nested too deep to be read") from error
    except (yaml.YAMLError, ValueError) as error:  # also a 30th of February, or a number of 5,000 digits
        raise ValueError(f"{path}: not valid YAML ({one_line(' '.join(str(error).split()))})") from error
    if not isinstance(value, dict):
        found = "nothing" if value is None else type(value).__name__
        raise ValueError(f"{path}: expected a mapping of settings, found {found}")
    return value
