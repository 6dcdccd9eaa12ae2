"""What stands in one JSON-RPC message of any length, found while its bytes pass by. No I/O.

A message of gigabytes must not be held, and its `id` may stand behind its `result` (TypeScript servers write it last).
The message itself and a `result` that is an object are walked member by member; what is nested deeper is skimmed a
window at a time: its brackets and its strings are looked at, and nothing else. So this is no validator of all JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

ERROR_HEAD_BYTES: Final = 4096
MAX_DEPTH: Final = 1000
"""About what `json` can read."""

_WINDOW_BYTES: Final = 64 * 1024
_NAME_BYTES: Final = 64
"""Room for the longest name that counts, with every character of it written as an escape."""
_HEAD_BYTES: Final = {"id": 64, "jsonrpc": 64, "error": ERROR_HEAD_BYTES}
_COUNTED: Final = {"id", "jsonrpc", "method", "result", "error"}
_SKIM_PASSES: Final = 100
"""Each takes the innermost pairs of brackets away. What is deeper within one window is read bracket by bracket."""

_QUOTE, _COLON, _COMMA, _OPEN, _CLOSE = b'":,{}'
_SPACE: Final = b" \t\r\n"
_OPENERS: Final = b"{["
_CLOSER_OF: Final = bytes.maketrans(b"{[", b"}]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"{}[]"))
_SPACES: Final = re.compile(rb"[ \t\r\n]*")
_SCALAR: Final = re.compile(rb'[^ \t\r\n,:"{}\[\]]*')
_STRING_OR_BRACKET: Final = re.compile(rb'"[^"]*"?|[{}\[\]]')
_CLOSERS_THEN_OPENERS: Final = re.compile(rb"([}\]]*)([{\[]*)")


class _NotJson(Exception):
    pass


class AnswerScanner:
    """Feed it one message, cut anywhere, then `close()` it. What it has found stands in its fields.

    Between two pieces it holds less than 8 KiB. A member that counts and stands twice is refused, because the first
    one has been handed out already; of `isError` the last one counts, as for `json`.
    """

    def __init__(self) -> None:
        self.fault = ""
        """Why it is no message. Nothing more is handed out then."""
        self.members: set[str] = set()
        """Which of `id`, `jsonrpc`, `method`, `result` and `error` it has."""
        self.id: Any = None
        self.version: Any = None
        """The value of `jsonrpc`."""
        self.result_is_object = False
        self.is_error = False
        """The result's `isError` is true."""
        self.error = b""
        """The beginning of the error's JSON."""
        self.error_size = 0

        self._step: Callable[[int], int] = self._before_message
        """Reads on at a place in the window and returns the place behind; from the window's end on it waits."""
        self._after_string: Callable[[int], int] = self._end_name
        self._raw = b""
        self._clean = b""
        """The window with `__` in place of each escaped backslash or quote: a quote in it begins or ends a string."""
        self._escaped = False
        """The next window's first byte is."""
        self._stack = bytearray()
        """The brackets that are open."""
        self._nested_in = 0
        """How many of them are around the value that is being skimmed."""
        self._may_skim = True
        self._may_close = True
        self._name = ""
        self._result_from = -1
        """Where in the window the result's value begins or goes on; -1: nowhere."""
        self._part = b""
        self._head = bytearray()
        """The beginning of the name or value that is being read."""
        self._head_room = 0
        self._head_from = -1
        self._head_size = 0

    def feed(self, data: bytes) -> bytes:
        """The bytes of the value of `result` in this piece, exactly."""
        if len(data) <= _WINDOW_BYTES:
            return self._feed(data)
        return b"".join(self._feed(data[at : at + _WINDOW_BYTES]) for at in range(0, len(data), _WINDOW_BYTES))

    def close(self) -> None:
        """The message has ended."""
        if not self.fault and self._step != self._after_message:
            self.fault = "it ends too early"

    def _feed(self, window: bytes) -> bytes:
        if self.fault or not window:
            return b""
        self._raw, self._clean = window, self._cleaned(window)
        self._may_skim = True
        self._part = b""
        at = 0
        try:
            while at < len(window):
                at = self._step(at)
        except _NotJson as exc:
            self.fault = str(exc)
            self._raw = self._clean = b""
            return b""
        if self._head_from >= 0:
            self._keep_head(len(window))
            self._head_from = 0
        if self._result_from >= 0:
            self._part = window[self._result_from :]
            self._result_from = 0
        part, self._part, self._raw, self._clean = self._part, b"", b"", b""
        return part

    def _cleaned(self, window: bytes) -> bytes:
        if self._escaped:
            window = b"_" + window[1:]
            self._escaped = False
        if b"\\" in window:
            window = window.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            self._escaped = window.endswith(b"\\")
        return window

    # --- members of the message and of its result --------------------------------------------------------------

    def _before_message(self, at: int) -> int:
        byte = self._clean[at]
        if byte in _SPACE:
            return self._behind_spaces(at)
        if byte != _OPEN:
            raise _NotJson("it is no object")
        return self._open_object(at)

    def _open_object(self, at: int) -> int:
        self._stack.append(_OPEN)
        self._may_close = True
        self._step = self._before_name
        return at + 1

    def _before_name(self, at: int) -> int:
        byte = self._clean[at]
        if byte in _SPACE:
            return self._behind_spaces(at)
        if byte == _CLOSE and self._may_close:
            return self._close_object(at)
        if byte != _QUOTE:
            raise _NotJson("a name is missing")
        self._begin_head(at, _NAME_BYTES)
        return self._begin_string(at, self._end_name)

    def _end_name(self, at: int) -> int:
        size = self._end_head(at)
        self._name = "" if size > _NAME_BYTES else str(_parsed(bytes(self._head)))
        if len(self._stack) == 1 and self._name in _COUNTED:
            if self._name in self.members:
                raise _NotJson(f"its member {self._name!r} stands twice")
            self.members.add(self._name)
        self._step = self._before_colon
        return at

    def _before_colon(self, at: int) -> int:
        byte = self._clean[at]
        if byte in _SPACE:
            return self._behind_spaces(at)
        if byte != _COLON:
            raise _NotJson("a colon is missing")
        self._step = self._before_value
        return at + 1

    def _before_value(self, at: int) -> int:
        byte = self._clean[at]
        if byte in _SPACE:
            return self._behind_spaces(at)
        if len(self._stack) == 1 and self._name == "result":
            self._result_from = at
            self.result_is_object = byte == _OPEN
            if self.result_is_object:
                return self._open_object(at)
        self._begin_head(at, _HEAD_BYTES.get(self._name, _NAME_BYTES))
        if byte == _QUOTE:
            return self._begin_string(at, self._end_value)
        if byte in _OPENERS:
            self._nested_in = len(self._stack)
            self._stack.append(byte)
            self._step = self._nested
            return at + 1
        if _end(_SCALAR, self._clean, at) == at:
            raise _NotJson("a value is missing")
        self._step = self._scalar
        return at

    def _scalar(self, at: int) -> int:
        end = _end(_SCALAR, self._clean, at)
        return end if end == len(self._clean) else self._end_value(end)

    def _end_value(self, at: int) -> int:
        size = self._end_head(at)
        head = bytes(self._head)
        if len(self._stack) > 1:
            if self._name == "isError":
                self.is_error = head == b"true"
        elif self._name == "id":
            self.id = _parsed(head) if size == len(head) else None
        elif self._name == "jsonrpc":
            self.version = _parsed(head) if size == len(head) else None
        elif self._name == "error":
            self.error, self.error_size = head, size
        elif self._name == "result":
            self._end_result(at)
        self._step = self._after_value
        return at

    def _after_value(self, at: int) -> int:
        byte = self._clean[at]
        if byte in _SPACE:
            return self._behind_spaces(at)
        if byte == _CLOSE:
            return self._close_object(at)
        if byte != _COMMA:
            raise _NotJson("a comma is missing")
        self._may_close = False
        self._step = self._before_name
        return at + 1

    def _close_object(self, at: int) -> int:
        self._stack.pop()
        if self._stack:
            self._end_result(at + 1)
            self._step = self._after_value
        else:
            self._step = self._after_message
        return at + 1

    def _end_result(self, at: int) -> None:
        self._part = self._raw[self._result_from : at]
        self._result_from = -1

    def _after_message(self, at: int) -> int:
        if self._clean[at] not in _SPACE:
            raise _NotJson("more follows behind its end")
        return self._behind_spaces(at)

    def _behind_spaces(self, at: int) -> int:
        return _end(_SPACES, self._clean, at)

    # --- strings, and values that are skimmed ------------------------------------------------------------------

    def _begin_string(self, at: int, after: Callable[[int], int]) -> int:
        self._step = self._string
        self._after_string = after
        return at + 1

    def _string(self, at: int) -> int:
        end = self._clean.find(b'"', at)
        return len(self._clean) if end < 0 else self._after_string(end + 1)

    def _nested(self, at: int) -> int:
        self._step = self._nested
        if self._may_skim:
            self._may_skim = False  # once a window, or many short values in one would each skim the rest of it
            if self._skim(at):
                return len(self._clean)
        for found in _STRING_OR_BRACKET.finditer(self._clean, at):
            start, end = found.span()
            byte = self._clean[start]
            if byte == _QUOTE:
                if end == start + 1 or self._clean[end - 1] != _QUOTE:
                    self._begin_string(start, self._nested)
            elif byte in _OPENERS:
                self._open(self._clean[start:end])
            else:
                self._close(self._clean[start:end])
                if len(self._stack) == self._nested_in:
                    return self._end_value(end)
        return len(self._clean)

    def _skim(self, at: int) -> bool:
        """Read to the end of the window; False, with nothing done, if the value may end in it or is nested deeply."""
        parts = self._clean[at:].split(b'"')
        brackets = b"".join(parts[::2]).translate(None, _NOT_BRACKETS)
        for _ in range(_SKIM_PASSES):
            paired = brackets
            brackets = paired.replace(b"{}", b"").replace(b"[]", b"")
            if len(brackets) == len(paired):
                break
        else:
            return False
        found = _CLOSERS_THEN_OPENERS.fullmatch(brackets)
        if found is None:
            raise _NotJson("its brackets do not match")
        closers, openers = found.groups()
        if len(closers) >= len(self._stack) - self._nested_in:
            return False
        self._close(closers)
        self._open(openers)
        if len(parts) % 2 == 0:
            self._begin_string(at, self._nested)
        return True

    def _open(self, openers: bytes) -> None:
        if len(self._stack) + len(openers) > MAX_DEPTH:
            raise _NotJson(f"it is nested more than {MAX_DEPTH} deep")
        self._stack += openers

    def _close(self, closers: bytes) -> None:
        left = len(self._stack) - len(closers)
        if self._stack[left:][::-1].translate(_CLOSER_OF) != closers:
            raise _NotJson("its brackets do not match")
        del self._stack[left:]

    # --- the beginning of a name or a value --------------------------------------------------------------------

    def _begin_head(self, at: int, room: int) -> None:
        self._head.clear()
        self._head_size, self._head_room, self._head_from = 0, room, at

    def _keep_head(self, to: int) -> None:
        self._head += self._raw[self._head_from : min(to, self._head_from + self._head_room - len(self._head))]
        self._head_size += to - self._head_from

    def _end_head(self, at: int) -> int:
        """How long it was in all."""
        self._keep_head(at)
        self._head_from = -1
        return self._head_size


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Where the match ends, of a pattern that matches everywhere."""
    found = pattern.match(data, at)
    assert found is not None
    return found.end()


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except ValueError as exc:
        raise _NotJson("a name or a value in it is no JSON") from exc
