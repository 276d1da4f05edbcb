"""Replies on disk: one file of JSON lines that survives `kill -9` and can be shared by several processes."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from psr_lens.errors import InputError
from psr_lens.judges.llm_judge.reply import Reply

FILE: Final = "replies.jsonl"
_FORMAT: Final = 1


def key_of(content: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of everything that a reply depends on; the order of keys does not matter."""
    text = json.dumps({"format": _FORMAT, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies by the hash of their request; questions and answers are not stored.

    Each reply is one line with its own checksum, appended in one write under a lock. A killed process loses at most the reply that it
    was writing, and lines are never modified. Windows has no lock: use one process there.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the cache, or create it.

        Raises:
            InputError: the folder cannot be created or written to.
        """
        self.path = Path(folder) / FILE
        self._replies: dict[str, Reply] = {}
        self._read = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise InputError("cache", repr(str(folder)), "a folder that can be written to", f"({error.strerror})") from error

    def refresh(self) -> None:
        """Read the lines added since the last call, by this process or another; damaged lines are skipped with a warning."""
        try:
            content = self._added()
        except OSError as error:
            warnings.warn(f"{self.path}: cannot be read ({error.strerror}).", RuntimeWarning, stacklevel=2)
            return
        damaged = 0
        for line in content.splitlines():
            if line.strip():
                try:
                    key, reply = _parse(line)
                    self._replies[key] = reply
                except (ValueError, KeyError, TypeError, RecursionError):
                    damaged += 1
        if damaged:
            lines_are = "1 line is" if damaged == 1 else f"{damaged} lines are"
            warnings.warn(f"{self.path}: {lines_are} damaged; the judge is asked again.", RuntimeWarning, stacklevel=2)

    def get(self, key: str) -> Reply | None:
        """The reply to the request with this hash, if it was in the cache at the last `refresh`."""
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Add a reply.

        Raises:
            OSError: it cannot be written to disk; it is kept in memory regardless.
        """
        self._replies[key] = reply
        content = {"key": key, "reply": reply.to_json()}
        line = json.dumps({**content, "check": _check(content)}, separators=(",", ":")).encode() + b"\n"
        with self._locked() as file:
            size = os.fstat(file).st_size
            os.lseek(file, max(size - 1, 0), os.SEEK_SET)
            if os.read(file, 1) not in (b"", b"\n"):  # a process was killed in the middle of a line
                line = b"\n" + line
            while line:
                line = line[os.write(file, line) :]

    def _added(self) -> bytes:
        with self._locked() as file:
            if os.fstat(file).st_size < self._read:  # the file was replaced
                self._replies, self._read = {}, 0
            os.lseek(file, self._read, os.SEEK_SET)
            with os.fdopen(os.dup(file), "rb") as lines:
                content = lines.read()
        self._read += len(content)
        return content

    @contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _lock(file)
            yield file
        finally:
            os.close(file)  # releases the lock


def _lock(file: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _parse(line: bytes) -> tuple[str, Reply]:
    found = json.loads(line)
    if not isinstance(found, dict) or not isinstance(found.get("key"), str):
        raise ValueError("not an entry")
    if found.pop("check") != _check(found):
        raise ValueError("wrong checksum")
    return found["key"], Reply.from_json(found["reply"])


def _check(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
