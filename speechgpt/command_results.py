"""What commands give back: each result as soon as it is there, a whole wav or none, a line for an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

from speechgpt.cli import OK, complain, one_line
from speechgpt.data.audio import write_wav

T = TypeVar("T")


class Faults:
    """Turns the errors of single inputs into one line each, and remembers that there were any."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.code = OK

    def report(self, name: object, error: Exception) -> None:
        message = one_line(error)
        if str(name) not in message:
            message = f"{name}: {message}"
        self.code = complain(f"speechgpt {self._command}: {message}")

    def attempt(self, name: object, work: Callable[..., T], *args: Any) -> T | None:
        """work(*args), or None when it refuses its input, which is then reported under `name`."""
        try:
            return work(*args)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, MemoryError) as error:
            self.report(name, error)
            return None


def save_speech(path: Path, waveform, sample_rate: int) -> None:
    """Writes a whole wav or none. Raises OSError that names it."""
    check_target(path)
    try:
        write_wav(path, waveform, sample_rate)
    except OSError as error:
        raise OSError(f"cannot write {path}: {one_line(OSError(error.errno, error.strerror))}") from error


def check_target(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a regular file; --out names the wav to write")


def emit(line: str, out: TextIO | None = None) -> None:
    """Each result leaves at once, so that a reader sees it while the next one is being made."""
    print(line, file=out, flush=True)
