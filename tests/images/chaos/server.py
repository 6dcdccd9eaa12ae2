#!/usr/bin/env -S python3 -I -S
"""The MCP server of the fault run: stdio, standard library only. Every execution is written down outside.

Three tools that do the same and differ in what they say of themselves: `look` (read-only), `put` (idempotent) and
`pay` (neither). Each writes one line to the ledger as its first act, then takes its time, then answers. The ledger
is a folder of the host that is mounted at /ledger: `executions` has the lines of `put` and `pay`, `reads` those of
`look`. A line is one write to a file opened for appending, so lines of many processes do not mix.
"""

import json
import os
import sys
import threading
import time

LEDGER = "/ledger"
BOOT = os.urandom(4).hex()


class Cancelled(Exception):
    """Answered as a JSON-RPC error."""


class Call:
    """One tools/call request while it runs in its thread."""

    def __init__(self, server, request_id, progress_token):
        self.server = server
        self.request_id = request_id
        self.progress_token = progress_token
        self.cancelled = threading.Event()

    def sleep(self, seconds, stubborn):
        """Returns after the time; unless stubborn, raises Cancelled as soon as the call is cancelled."""
        if stubborn:
            time.sleep(seconds)
        elif self.cancelled.wait(seconds):
            raise Cancelled

    def progress(self, done, total):
        if self.progress_token is not None:
            params = {"progressToken": self.progress_token, "progress": done, "total": total}
            self.server.send(method="notifications/progress", params=params)


def record(file, tool, key):
    line = f"{key} {tool} {BOOT} {time.time_ns() // 1_000_000}\n".encode()
    ledger = os.open(f"{LEDGER}/{file}", os.O_WRONLY | os.O_APPEND)
    try:
        written = os.write(ledger, line)
    finally:
        os.close(ledger)
    if written != len(line):
        raise OSError(f"the ledger took {written} of {len(line)} bytes")


def work(call, name, key, ms, steps=0, stubborn=False):
    record("reads" if name == "look" else "executions", name, key)
    for done in range(1, steps + 1):
        call.sleep(ms / 1000 / (steps + 1), stubborn)
        call.progress(done, steps)
    call.sleep(ms / 1000 / (steps + 1), stubborn)
    return {"content": [{"type": "text", "text": key}]}


# What each tool says of itself.
TOOLS = {"look": {"readOnlyHint": True}, "put": {"idempotentHint": True}, "pay": {}}
SCHEMA = {
    "type": "object",
    "properties": {
        "key": {"type": "string", "description": "what the execution is written down under"},
        "ms": {"type": "integer", "minimum": 0, "description": "how long it takes"},
        "steps": {"type": "integer", "minimum": 0, "description": "progress notifications on the way"},
        "stubborn": {"type": "boolean", "description": "goes on when it is cancelled"},
    },
    "required": ["key", "ms"],
    "additionalProperties": False,
}


def listing():
    for name, annotations in TOOLS.items():
        yield {"name": name, "description": "Writes its key down.", "inputSchema": SCHEMA, "annotations": annotations}


class Server:
    def __init__(self):
        self.calls = {}
        self.lock = threading.Lock()

    def send(self, **message):
        data = json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n"
        with self.lock:
            while data:
                data = data[os.write(1, data) :]

    def run(self):
        """Returns at the end of stdin; calls that still run then are dropped."""
        for line in sys.stdin.buffer:
            message = json.loads(line)
            method = message.get("method")
            if "id" in message and method is not None:
                self.request(message["id"], method, message.get("params") or {})
            elif method == "notifications/cancelled":
                call = self.calls.get((message.get("params") or {}).get("requestId"))
                if call is not None:
                    call.cancelled.set()

    def request(self, request_id, method, params):
        if method == "initialize":
            result = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "chaos", "version": "1.0.0"},
            }
        elif method == "ping":
            result = {}
        elif method == "tools/list":
            result = {"tools": list(listing())}
        elif method == "tools/call":
            token = (params.get("_meta") or {}).get("progressToken")
            call = self.calls[request_id] = Call(self, request_id, token)
            threading.Thread(target=self.call_tool, args=(call, params), daemon=True).start()
            return
        else:
            self.send(id=request_id, error={"code": -32601, "message": f"Method not found: {method}"})
            return
        self.send(id=request_id, result=result)

    def call_tool(self, call, params):
        try:
            answer = {"result": work(call, params["name"], **params["arguments"])}
        except Cancelled:
            answer = {"error": {"code": -32800, "message": "cancelled"}}
        self.calls.pop(call.request_id, None)
        self.send(id=call.request_id, **answer)


if __name__ == "__main__":
    Server().run()
    sys.stdout.flush()
    os._exit(0)  # without waiting for the threads of calls that still run
