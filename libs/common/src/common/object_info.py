"""What is known of an object: as NATS's object store has it (ADR-20), and of the content that its chunks make up."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Final

from common.output import OUTPUT_CHUNK_BYTES, Summary
from common.streams import ARTIFACTS_BUCKET

ENCODING: Final = "zstd"
"""Every chunk is one zstd frame (RFC 8878), so an object is a stream of frames: `nats object get … && zstd -d`."""


@dataclass(frozen=True)
class ObjectInfo:
    """Of an object that is complete, or was cut off and is kept."""

    name: str
    object_id: str
    size: int
    """Bytes of its content."""
    sha256: str
    """Of its content, in hex."""
    stored: Summary
    """Of its chunks as they are stored."""
    chunks: int
    media_type: str

    def encode(self) -> bytes:
        info: dict[str, Any] = {
            "name": self.name,
            "bucket": ARTIFACTS_BUCKET,
            "nuid": self.object_id,
            "size": self.stored.size,
            "chunks": self.chunks,
            "digest": f"SHA-256={base64.urlsafe_b64encode(bytes.fromhex(self.stored.sha256)).decode()}",
            "headers": {"Content-Type": [self.media_type], "Content-Encoding": [ENCODING]},
            "metadata": {"size": str(self.size), "sha256": self.sha256},
            "options": {"max_chunk_size": OUTPUT_CHUNK_BYTES},
        }
        return json.dumps(info).encode()

    @classmethod
    def decode(cls, raw: bytes) -> ObjectInfo:
        info = json.loads(raw)
        digest = base64.urlsafe_b64decode(info["digest"].removeprefix("SHA-256=")).hex()
        return cls(
            name=info["name"],
            object_id=info["nuid"],
            size=int(info["metadata"]["size"]),
            sha256=info["metadata"]["sha256"],
            stored=Summary(info["size"], digest),
            chunks=info["chunks"],
            media_type=info["headers"]["Content-Type"][0],
        )
