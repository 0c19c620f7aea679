"""One load at a time: a lock file per server, held while an experiment runs.

It keeps apart the processes of one user on one machine: the workers of pytest-xdist, and sessions that run at the same
time. The files are in a folder that only this user can write to, so other users can neither guess nor create them. The
operating system releases a lock when its process ends, however that ends. A file is removed when its lock is released.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pytest_ollama_perf.core import ServerBusyError
from pytest_ollama_perf.core.text import sanitize

if sys.platform == "win32":
    import msvcrt

    _LOCK_OFFSET = 1 << 30  # a locked byte cannot be read on Windows, so the lock is behind the text

    def _lock_file(descriptor: int) -> None:
        os.lseek(descriptor, _LOCK_OFFSET, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


LOCK_POLL_S = 0.05
_TAG = "pytest-ollama-perf"
_LOCKED_ERRNOS = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_MAX_OWNER_BYTES = 2000


@dataclass(frozen=True)
class LockOwner:
    """The process that holds a lock: its id, the session it belongs to, and the test it measures.

    All are empty while another process is taking the lock.
    """

    process: str = ""
    session: str = ""
    test: str = ""

    def __str__(self) -> str:
        return f"process {self.process}, {self.test}" if self.process else "another process"


@dataclass(frozen=True)
class Waiting:
    """How to wait for a lock.

    ``sleep`` lets some seconds pass; an exception of it ends the wait. ``announce`` is called once for each other
    session that holds the lock. ``limit_s`` is the longest time, in seconds, to wait for other sessions.
    """

    sleep: Callable[[float], object] = time.sleep
    announce: Callable[[str], object] = lambda text: None
    limit_s: float = math.inf


class ServerLock:
    """The lock of one process on its servers. The process itself may take it several times.

    ``session`` is the id that the processes of one session share: they wait for each other without a message and
    without a limit. ``folder`` is for tests.
    """

    def __init__(self, session: str = "", folder: Path | None = None) -> None:
        self._session = session
        self._folder = folder
        self._mutex = threading.Lock()
        self._held: dict[Path, tuple[int, int]] = {}  # path -> descriptor, number of times it is held

    @contextlib.contextmanager
    def hold(self, urls: Iterable[str], test: str, waiting: Waiting) -> Iterator[None]:
        """Hold the locks of all ``urls``. ``test`` is what other sessions show while they wait.

        Locks are taken in one order, so that two processes that need the same servers never wait for each other.

        Raises:
            ServerBusyError: another session held a lock for longer than ``waiting.limit_s``.
        """
        with contextlib.ExitStack() as stack:
            for url in sorted({_normalize_url(url) for url in urls}):
                stack.enter_context(self._hold_one(url, test, waiting))
            yield

    @contextlib.contextmanager
    def _hold_one(self, url: str, test: str, waiting: Waiting) -> Iterator[None]:
        try:
            path = (find_lock_folder() if self._folder is None else self._folder) / make_lock_name(url)
            self._wait(path, url, test, waiting)
        except OSError as error:
            waiting.announce(f"cannot keep other loads away from {url}: {error}")
            yield
            return
        try:
            yield
        finally:
            self._release(path)

    def _wait(self, path: Path, url: str, test: str, waiting: Waiting) -> None:
        announced: set[str] = set()
        since: float | None = None
        while not self._acquire(path, test):
            owner = _read_owner(path)
            if not owner.session or owner.session != self._session:
                since = time.monotonic() if since is None else since
                if owner.process and owner.process not in announced:
                    announced.add(owner.process)
                    waiting.announce(f"waiting for another load on {url}: {owner}")
                if time.monotonic() - since >= waiting.limit_s:
                    raise ServerBusyError(
                        f"another session used {url} for more than {waiting.limit_s:g} s: {owner}; "
                        "wait for it to end, or raise --ollama-wait"
                    )
            waiting.sleep(LOCK_POLL_S)

    def _acquire(self, path: Path, test: str) -> bool:
        """Take the lock unless another process holds it; ``OSError`` if the file cannot be locked at all."""
        with self._mutex:
            if path in self._held:
                descriptor, times = self._held[path]
                self._held[path] = descriptor, times + 1
                return True
            if (opened := _open_locked_file(path)) is None:
                return False
            self._held[path] = opened, 1
            _write_owner(opened, LockOwner(str(os.getpid()), self._session, test))
            return True

    def _release(self, path: Path) -> None:
        with self._mutex:
            descriptor, times = self._held[path]
            if times > 1:
                self._held[path] = descriptor, times - 1
                return
            del self._held[path]
            _remove_locked_file(descriptor, path)


def find_lock_folder() -> Path:
    """Return the folder of this user's lock files, created when missing.

    That is ``locks`` in the user's cache folder, or a folder of this user in the temporary folder if there is no
    writable home. Raises ``OSError`` if neither can be had, or if the folder belongs to another user.
    """
    try:
        return _create_private_folder(_get_cache_folder() / "locks")
    except (OSError, RuntimeError):
        user = os.getuid() if sys.platform != "win32" else os.environ.get("USERNAME", "user")
        return _create_private_folder(Path(tempfile.gettempdir()) / f"{_TAG}-{user}")


def _get_cache_folder() -> Path:
    """Return this package's folder for data that may be lost."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / _TAG
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / _TAG
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _TAG


def _create_private_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "the folder belongs to another user", str(folder))
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder is not writable", str(folder))
    return folder


def make_lock_name(url: str) -> str:
    """Return the name of the lock file of the server at ``url``, as this machine sees it."""
    text = f"{socket.gethostname()} {_normalize_url(url)}"
    return f"{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:32]}.lock"


def _normalize_url(url: str) -> str:
    """Return ``url`` in one form: without credentials and trailing slash, ``localhost`` as 127.0.0.1."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    name, colon, port = host.partition(":")
    host = f"127.0.0.1{colon}{port}" if name == "localhost" else host
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _open_locked_file(path: Path) -> int | None:
    """Return the descriptor of the locked file, ``None`` if another process holds the lock."""
    while True:
        # A link could redirect what is written to another file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is not a regular file")
            _lock_file(descriptor)
            if _is_current(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _LOCKED_ERRNOS:
                return None
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_current(descriptor: int, path: Path) -> bool:
    """Whether ``path`` is still the opened file: the process that held the lock before removes it."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    return False


def _remove_locked_file(descriptor: int, path: Path) -> None:
    """Release a lock and remove its file. Only a file that this package wrote is removed."""
    is_own = _read_owner(path).process == str(os.getpid())
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            os.close(descriptor)  # an open file cannot be removed
        if is_own:
            path.unlink()
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            # Closing is not enough: a forked child may have inherited the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _write_owner(descriptor: int, owner: LockOwner) -> None:
    """Write who holds the lock, unless the file holds something else."""
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        if (written := os.read(descriptor, _MAX_OWNER_BYTES)) and not written.startswith(_TAG.encode()):
            return
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, "\n".join((_TAG, owner.process, owner.session, owner.test)).encode(errors="replace"))


def _read_owner(path: Path) -> LockOwner:
    with contextlib.suppress(OSError):
        lines = path.read_bytes()[:_MAX_OWNER_BYTES].decode(errors="replace").split("\n", 3)
        if len(lines) == 4 and lines[0] == _TAG:
            return LockOwner(sanitize(lines[1], 20), sanitize(lines[2], 40), sanitize(lines[3], 200))
    return LockOwner()
