"""How putting, getting and listing files of a leased container can end.

JobError                        (common.job_errors) stands in the job's `result` event, with its `outcome`
├── InvalidPath                 failed: it breaks a rule of paths
├── InvalidFilesCall            failed: no call that this worker knows
├── NoSuchFile                  failed: nothing stands there
├── NotAFile                    failed: a folder, a symlink (never followed) or something else stands there
├── NotAFolder                  failed: something else stands there, or on the way
├── FileTooLarge                failed: beyond what a transfer may carry
├── NoSpace                     failed: the files directory is full, or too small
├── ContentMismatch             failed: what came is not what was announced
├── FileChanged                 failed: the tool changed what stands there during the transfer
├── UploadUnavailable           failed: the uploaded bytes cannot be read from the store
└── FilesUnavailable            failed: the server's containers have no files directory
"""

from __future__ import annotations

from common.job_errors import JobError
from worker.engine import PathKind

_KINDS: dict[PathKind, str] = {
    "file": "a file",
    "folder": "a folder",
    "symlink": "a symlink",
    "other": "neither file nor folder (a pipe, a socket or a device)",
}


class InvalidPath(JobError):
    type = "invalid_path"

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(f"the path {path[:256]!r} cannot be used: {rule}", path=path[:256], rule=rule)


class InvalidFilesCall(JobError):
    """Of a gateway of another version."""

    type = "invalid_files_call"

    def __init__(self, what: str) -> None:
        super().__init__(f"the worker does not know this call: {what}; are gateways and workers of one version?")


class NoSuchFile(JobError):
    type = "no_such_file"

    def __init__(self, path: str) -> None:
        super().__init__(f"nothing stands at {path!r}", path=path)


def _described(path: str, kind: PathKind, target: str) -> str:
    leads = f" that leads to {target!r}, and is not followed" if target else ", and is not followed"
    return f"{path!r} is {_KINDS[kind]}{leads if kind == 'symlink' else ''}"


class NotAFile(JobError):
    """`target` is where a symlink leads to, seen from the container's root."""

    type = "not_a_file"

    def __init__(self, path: str, kind: PathKind, target: str = "") -> None:
        super().__init__(_described(path, kind, target), path=path, kind=kind, target=target)


class NotAFolder(JobError):
    """As `NotAFile`."""

    type = "not_a_folder"

    def __init__(self, path: str, kind: PathKind, target: str = "") -> None:
        super().__init__(_described(path, kind, target), path=path, kind=kind, target=target)


class FileTooLarge(JobError):
    type = "file_too_large"

    def __init__(self, path: str, size: int, limit: int) -> None:
        super().__init__(
            f"{path!r} has {size} bytes; at most {limit} can be transferred", path=path, size=size, limit=limit
        )


class NoSpace(JobError):
    """What the container has in its files directory already counts too."""

    type = "no_space"

    def __init__(self, path: str, size: int | None = None, limit: int | None = None) -> None:
        what = f"the {size} bytes of {path!r}" if size is not None else repr(path)
        holds = f", which holds {limit} bytes in all (limits.files_mb)" if limit is not None else ""
        super().__init__(
            f"there is no space for {what} in the files directory{holds}", path=path, size=size, limit=limit
        )


class ContentMismatch(JobError):
    """`what` is `size` or `sha256`; nothing of it is kept."""

    type = "content_mismatch"

    def __init__(self, path: str, what: str, announced: int | str, found: int | str) -> None:
        super().__init__(
            f"the bytes of {path!r} are not the announced ones: {what} is {found}, announced was {announced}",
            path=path,
            what=what,
            announced=announced,
            found=found,
        )


class FileChanged(JobError):
    type = "file_changed"
    retryable = True

    def __init__(self, path: str) -> None:
        super().__init__(f"what stands at {path!r} was changed while it was transferred; try again", path=path)


class UploadUnavailable(JobError):
    type = "upload_unavailable"
    retryable = True

    def __init__(self, why: str) -> None:
        super().__init__(f"the uploaded bytes cannot be read: {why}")


class FilesUnavailable(JobError):
    type = "files_unavailable"

    def __init__(self) -> None:
        super().__init__("the container has no files directory: only servers of scope session have one")
