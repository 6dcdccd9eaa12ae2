"""What operators see of a system at work: metrics, the lines of the log, and what the runbook asks NATS."""

from __future__ import annotations

import asyncio
import json
import os
import re
from asyncio.subprocess import PIPE, STDOUT
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from client import Refused, Session, connect
from tests.cluster import DEADLINE_S, Cluster, Service, run_cluster
from tests.monitoring import ROOT, expressions, recorded, unknown
from tests.nats_exporter import EXPORTED, QUERY, values_at
from tests.nats_server import NatsServer
from tests.programs import program
from tests.prometheus import run_prometheus
from tests.promql import selectors

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

CATALOG = """
servers:
  fixture:
    image: mcp-orchestrator/fixture:local
    tools: {hang: {timeout_ms: 500}}
  narrow:
    image: mcp-orchestrator/fixture:local
    concurrency: {per_container: 1, per_worker: 1, cluster: 1}
    pool: {min: 1, max: 1}
    timeouts: {queue_s: 2}
"""
MODEL = {"CHAT_MODEL": "openai:never-asked", "CHAT_BASE_URL": "http://127.0.0.1:9/v1", "CHAT_API_KEY": "unused"}
LINE = {
    "job", "session", "tenant", "server", "tool", "attempt", "outcome", "error",
    "queue_ms", "acquire_ms", "tool_ms", "total_ms",
}  # fmt: skip


Ended = dict[str, tuple[str, str | None]]
"""Outcome and error of every job, as its client was told."""


async def begun(session: Session, server: str, tool: str, until: str, **arguments: object) -> str:
    """The id of a job, once it has told an event of that type. It goes on."""
    async with aclosing(session.call(server, tool, arguments)) as events:
        async for event in events:
            if event.type == until:
                return event.job
    raise AssertionError(f"{tool} ended without {until}")


async def until_listed(session: Session) -> None:
    """Returns when the gateway knows the tools: a worker tells them when it is ready already."""
    async with asyncio.timeout(DEADLINE_S):
        while any(server["status"] != "ready" for server in await session.servers()):
            await asyncio.sleep(0.05)


async def end_jobs_in_every_way(session: Session) -> Ended:
    await until_listed(session)
    results = [
        # One after the other, as a container that ends takes all its calls with it.
        await session.run("fixture", "echo", {"text": "succeeds"}),
        await session.run("fixture", "fail", {"message": "fails"}),
        await session.run("fixture", "hang"),
        await session.run("fixture", "crash"),
        await session.run("fixture", "break_down", {"words": "is given up"}),
    ]
    ended: Ended = {result.job: (result.outcome, result.error["type"] if result.error else None) for result in results}
    running = await begun(session, "narrow", "sleep", "started", ms=60_000)
    withdrawn = await begun(session, "narrow", "sleep", "queued", ms=1)
    await session.cancel(withdrawn)
    expired = await session.run("narrow", "sleep", {"ms": 2})
    await session.cancel(running)
    with pytest.raises(Refused):
        await session.run("fixture", "no_such_tool")
    for job in (running, withdrawn, expired.job):
        async with aclosing(session.follow(job)) as events:
            async for event in events:
                if event.terminal:
                    error = event.data.get("error")
                    ended[job] = (event.data["outcome"], error and error["type"])
    return ended


@pytest.fixture
async def cluster(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as running:
        yield running


async def scraped(service: Service) -> list[Sample]:
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{service.url}/metrics")).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def lines(folder: Path) -> list[dict[str, object]]:
    """Every `job ended` of every process."""
    found = [
        json.loads(line) for log in folder.glob("*.log") for line in log.read_text().splitlines() if line[:1] == "{"
    ]
    return [line for line in found if line["event"] == "job ended"]


async def test_what_operators_see_of_jobs_that_ended_in_every_way(
    cluster: Cluster, nats_server: NatsServer, tmp_path: Path
) -> None:
    """One line for each job, the same numbers in the metrics, every metric that anybody asks for, and the commands of
    the runbook."""
    gateway = await cluster.start_gateway(SWEEP_PERIOD_S="0.2")
    worker = await cluster.start_worker(**MODEL)
    async with connect(gateway.url, record=True) as session:
        async with asyncio.timeout(DEADLINE_S):
            ended = await end_jobs_in_every_way(session)
        await cluster.until_settled()
        samples = [*await scraped(gateway), *await scraped(worker)]
    outcomes = {"succeeded", "failed", "cancelled", "timed_out", "outcome_unknown", "dead_lettered"}
    assert {outcome for outcome, _ in ended.values()} == outcomes
    assert {"job_timeout", "queue_timeout"} <= {error for _, error in ended.values()}

    check_lines(ended, lines(tmp_path))
    check_counts(ended, samples)
    check_names(samples)
    await check_exported(nats_server)
    await check_commands(nats_server, tmp_path)


def check_lines(ended: Ended, told: list[dict[str, object]]) -> None:
    """Exactly one for each job, with everything that is known of it."""
    assert Counter(line["job"] for line in told) == Counter(ended.keys())
    for line in told:
        assert line.keys() >= LINE
        assert (line["outcome"], line["error"]) == ended[str(line["job"])]
        assert line["tenant"] == "development"
        assert line["server"] in ("fixture", "narrow")
        assert line["tool"]
        assert isinstance(line["total_ms"], int)
    by_tool = {line["tool"]: line for line in told if line["server"] == "fixture"}
    assert all(isinstance(by_tool["echo"][stage], int | float) for stage in ("queue_ms", "acquire_ms", "tool_ms"))
    assert by_tool["break_down"]["attempt"] == 3


def check_counts(ended: Ended, samples: list[Sample]) -> None:
    def total(name: str, **labels: str) -> float:
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    for outcome, count in Counter(outcome for outcome, _ in ended.values()).items():
        assert total("jobs_ended_total", outcome=outcome) == count, outcome
    jobs = len(ended)
    assert total("jobs_accepted_total") == total("job_total_seconds_count") == jobs
    # Of those that a container was found for, whose attempt was the last; what was given up had three.
    assert total("job_queue_seconds_count") == total("job_tool_seconds_count") == jobs - 3
    assert total("jobs_retried_total", server="fixture") == 2
    assert total("dead_letters_total", server="fixture") == 1
    # Or more: a container may be found dead when a call is put to it, which goes to another one then.
    assert total("container_calls_total", server="fixture") >= 7
    assert total("container_boots_total", result="ready") >= total("containers_limit", server="narrow") == 1
    assert total("service_ready") == 2
    assert total("conversation_plain_bytes_total") > total("conversation_stored_bytes_total") > 0


def check_names(samples: list[Sample]) -> None:
    """Rules and dashboards name nothing that is not in a scrape, recorded, or the exporter's."""
    known = {"up": frozenset[str]()} | dict.fromkeys(recorded(), frozenset({"server"}))
    known |= {name: each.labels for name, each in EXPORTED.items()}
    for sample in samples:
        known[sample.name] = known.get(sample.name, frozenset()) | sample.labels.keys()
    assert unknown(known) == {}


async def check_exported(nats_server: NatsServer) -> None:
    """What the exporter makes its metrics of is there."""
    async with httpx.AsyncClient(base_url=nats_server.monitor_url, trust_env=False) as http:
        for name, (endpoint, path, _) in EXPORTED.items():
            answer = (await http.get(QUERY.get(endpoint, endpoint))).json()
            assert values_at(answer, path), name


async def check_commands(nats_server: NatsServer, folder: Path) -> None:
    """Every `nats …` of the runbook does what it says; `SERVER` stands for one."""
    commands = re.findall(r"^nats (.+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert commands
    for command in sorted(set(commands)):
        arguments = command.replace("SERVER", "fixture").split()
        process = await asyncio.create_subprocess_exec(
            program("nats"), "--server", nats_server.url, *arguments,
            env={**os.environ, "XDG_CONFIG_HOME": str(folder)}, stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
        assert process.returncode == 0, f"nats {command}: {output.decode()}"
        assert output.strip(), command


async def test_a_real_prometheus_evaluates_every_rule_and_panel_and_alerts_of_what_happened(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Of a letter and a lost call, and of nothing else but the store, whose exporter is not here."""
    gateway = await cluster.start_gateway()
    worker = await cluster.start_worker(**MODEL)
    targets = {"gateway": gateway.url.removeprefix("http://"), "worker": worker.url.removeprefix("http://")}
    async with run_prometheus(tmp_path, targets) as prometheus, connect(gateway.url, record=True) as session:
        await until_listed(session)
        assert (await session.run("fixture", "echo", {"text": "x"})).succeeded
        assert (await session.run("fixture", "crash")).outcome == "outcome_unknown"
        assert (await session.run("fixture", "break_down", {"words": "x"})).outcome == "dead_lettered"
        with pytest.raises(Refused):
            await session.run("fixture", "no_such_tool")
        for alert in ("JobsDeadLettered", "JobOutcomesUnknown"):
            await prometheus.until(f'ALERTS{{alertname="{alert}",alertstate="firing"}}')
        for expression in panels_of_ours():
            await prometheus.until(expression)
        rules = await prometheus.rules()

    assert {rule["name"]: rule for rule in rules if rule["health"] != "ok"} == {}
    active = {rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] != "inactive"}
    assert active == {"JobsDeadLettered", "JobOutcomesUnknown", "NatsNoQuorum"}


def panels_of_ours() -> list[str]:
    """Those that ask nothing of the exporter, which is not here, nor what is recorded of it."""
    absent = EXPORTED.keys() | {"server:jobs_waiting:max"}
    return [
        expression
        for place, expression in expressions().items()
        if ".json: " in place and not {each.metric for each in selectors(expression)} & absent
    ]
