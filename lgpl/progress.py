"""Progress bars: drawn in a terminal, and a plain line now and then in a log file."""

import sys
import time
from typing import Any

from tqdm import tqdm

SHARE, SECONDS = 0.1, 60.0  # a line in a log after a tenth, or a minute
PAUSE = 5.0  # seconds between two lines, and before the first: what is done by then says so itself


class Bar(tqdm):
    """tqdm's, which draws over its own line only where that is a terminal."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._said, self._said_at = 0.0, time.monotonic()
        self._plain = not is_terminal(options.get("file") or sys.stderr)
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self._plain:
            return bool(super().display(msg, pos))
        done = self.n / self.total if self.total else 0.0
        now = time.monotonic()
        passed = now - self._said_at
        if passed >= SECONDS or (passed >= PAUSE and done >= self._said + SHARE):
            self._said, self._said_at = done, now
            of = f"{done:.0%} of {self.total:.0f}" if self.total else f"{int(self.n)}"
            name = f"{self.desc.strip(': ')}: " if self.desc else ""
            rest = f", {self.postfix}" if getattr(self, "postfix", None) else ""
            plural = "" if self.total == 1 else "s"
            print(f"{name}{of} {self.unit}{plural}{rest}", file=self.fp, flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        if not self._plain:
            super().clear(nolock)

    def close(self) -> None:
        if self._plain and not self.disable:
            self.leave = False  # neither its last state again nor what clears it
            self.fp = _Nowhere()
            super().close()
        else:
            super().close()


class _Nowhere:
    """What tqdm writes to end a line that was never begun."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def is_terminal(file: Any) -> bool:
    return bool(getattr(file, "isatty", lambda: False)())


def end_lines() -> None:
    """Close the bars that are drawn, so that what follows begins on a new line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        if not bar.disable and is_terminal(getattr(bar, "fp", None)):
            bar.leave = True
            bar.close()
