"""One load at a time: a lock file for each server in the temporary folder, held while an experiment is conducted.

Processes of one user on one machine take turns: the workers of pytest-xdist, and sessions started side by side. The
system gives a lock back when its process ends, however that ends; the files stay, for removing them would let two in.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

if sys.platform == "win32":
    import msvcrt

    _LOCK_OFFSET = 1 << 30  # a locked byte cannot be read on Windows, so none of the text is locked

    def _lock_file(descriptor: int) -> None:
        os.lseek(descriptor, _LOCK_OFFSET, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


LOCK_POLL_S = 0.05
_LOCKED_ERRNOS = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})


class ServerLock:
    """The turn of one process at its servers.

    Within the process it may be had several times over: whoever fires two loads at once in one test means it.
    ``wait`` is asked to let some seconds pass; what it raises ends the waiting.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._mutex = threading.Lock()
        self._held: dict[Path, tuple[int, int]] = {}  # path -> descriptor, how often it is held

    @contextlib.contextmanager
    def hold(
        self, urls: Iterable[str], what: str, *, wait: Callable[[float], object], say: Callable[[str], object]
    ) -> Iterator[None]:
        """Hold the turn at all ``urls``; ``what`` tells those who wait what they wait for, ``say`` tells our own user.

        Taken in one order by everybody, so that two who need the same two servers never wait for each other.
        """
        with contextlib.ExitStack() as stack:
            for url in sorted({_normalize_url(url) for url in urls}):
                stack.enter_context(self._hold_one(url, what, wait, say))
            yield

    @contextlib.contextmanager
    def _hold_one(
        self, url: str, what: str, wait: Callable[[float], object], say: Callable[[str], object]
    ) -> Iterator[None]:
        path = self._folder / make_lock_name(url)
        try:
            while not self._acquire(path, what):
                say(f"waiting for another load on {url}: {_read_owner(path)}")
                wait(LOCK_POLL_S)
        except OSError as error:
            say(f"cannot keep other loads away from {url}: {error}")
            yield
            return
        try:
            yield
        finally:
            self._release(path)

    def _acquire(self, path: Path, what: str) -> bool:
        """Take the lock unless another process has it; ``OSError`` where the file cannot be locked at all."""
        with self._mutex:
            if path in self._held:
                descriptor, times = self._held[path]
                self._held[path] = descriptor, times + 1
                return True
            if (taken := _open_locked_file(path)) is None:
                return False
            self._held[path] = taken, 1
            _write_owner(taken, f"process {os.getpid()}, {what}")
            return True

    def _release(self, path: Path) -> None:
        with self._mutex:
            descriptor, times = self._held[path]
            if times > 1:
                self._held[path] = descriptor, times - 1
                return
            del self._held[path]
            _unlock_file(descriptor)


def make_lock_name(url: str) -> str:
    """Return the name of the lock file of the server at ``url`` for this user."""
    user = ""
    with contextlib.suppress(OSError, KeyError, ImportError):
        user = getpass.getuser()
    return f"pytest-ollama-perf-{hashlib.sha256(f'{user} {_normalize_url(url)}'.encode()).hexdigest()[:16]}.lock"


def _normalize_url(url: str) -> str:
    """Return ``url`` as everybody writes it: ``localhost`` is 127.0.0.1, and no slash at the end."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    place, colon, port = host.partition(":")
    host = f"127.0.0.1{colon}{port}" if place == "localhost" else host
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _open_locked_file(path: Path) -> int | None:
    """Return the descriptor of the locked file, ``None`` where another process has it."""
    # A link in a folder that everybody may write to would let somebody choose which file we write.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        _lock_file(descriptor)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _LOCKED_ERRNOS:
            return None
        raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unlock_file(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        if sys.platform != "win32":
            # Not by closing alone: a forked child may have inherited the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _write_owner(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, text.encode(errors="replace"))


def _read_owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes()[:300].decode(errors="replace") or "another process"
    return "another process"
