"""Metrics: what is shown is what happened, under the names that the table has."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import falcon.testing
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as classic

from service import metrics, worker
from service.app import ROUTES, create_app
from service.config import Config
from service.counters import SECONDS, SIZES, Counters, key, split
from service.errors import ScriptFailed
from service.groups import NewGroup
from service.metrics import METRICS
from tests.client import DEMO, GROUPS, P1, P2

README = Path(__file__).parent.parent / "README.md"
ROOT = "/api/v1/applications/{cid}"


async def scraped(api, **headers):
    result = await api.conductor.simulate_get("/metrics", headers=headers)
    assert 200 == result.status_code
    return result


async def samples(api):
    """Every sample by its name and labels."""
    text = (await scraped(api)).text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in classic(text)
        for sample in family.samples
    }


def answered(found, method, route, status):
    labels = sorted({"method": method, "route": route, "status": str(status)}.items())
    return found.get(("belong_http_requests_total", *labels), 0)


def test_the_readme_has_the_metrics_of_the_code():
    text = README.read_text()
    table = text.partition("service/metrics.py -->\n")[2].partition("\n<!-- /metrics -->")[0]
    assert metrics.metrics_table().strip() == table.strip()


def test_every_metric_has_a_good_name_and_stands_in_the_table_once():
    names = [each.name for each in METRICS]
    assert len(set(names)) == len(names)
    for each in METRICS:
        assert re.fullmatch(r"belong_[a-z_]+", each.name)
        assert (each.kind == "counter") == each.name.endswith("_total")
        assert (each.kind == "histogram") == bool(each.bounds)


async def test_what_is_shown_is_what_the_table_has(api, admin):
    await admin.get(f"{GROUPS}/")
    text = (await scraped(api)).text
    shown = {family.name: family for family in classic(text)}
    for each in METRICS:
        family = shown.pop(each.name.removesuffix("_total"))
        assert (each.kind, each.meaning) == (family.type, family.documentation)
        for sample in family.samples:
            assert set(each.labels) == set(sample.labels) - {"le"}
    assert {} == shown


async def told(api):
    """The counters of an application object that has answered something."""
    counters = Counters("alone")
    async with falcon.testing.ASGIConductor(create_app(Config(), api.store, counters)) as conductor:
        await conductor.simulate_get("/healthz")
    return counters


async def test_everything_that_is_counted_has_a_place_in_the_table(api, admin):
    await admin.get(f"{GROUPS}/")
    counters = Counters("worker")
    counters.sources.append(api.store.tell)
    await worker.work(api.store, counters=counters)
    await worker.count(api.store, counters)
    table = {each.name: each for each in METRICS}
    for snapshot in (counters.snapshot(), (await told(api)).snapshot()):
        for kind in ("counters", "gauges", "histograms"):
            for joined, value in getattr(snapshot, kind).items():
                name, labels = split(joined)
                assert kind == f"{table[name].kind}s"
                assert len(table[name].labels) == len(labels)
                if kind == "histograms":
                    assert len(table[name].bounds) + 2 == len(value)


async def test_requests_are_counted_by_template_and_status(api, admin):
    group = await admin.group()
    before = await samples(api)
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})
    await admin.post(f"{GROUPS}/{group}/members", {"profile_ids": [P2]})
    await admin.get(f"{GROUPS}/{P1}/", 404)
    await admin.using(None).get(f"{GROUPS}/{group}/", 401)
    after = await samples(api)

    def rise(*of):
        return answered(after, *of) - answered(before, *of)

    members = f"{ROOT}/profile-groups/{{gid}}/members"
    assert 2 == rise("POST", members, 200)
    assert 1 == rise("GET", f"{ROOT}/profile-groups/{{gid}}", 404)
    assert 1 == rise("GET", f"{ROOT}/profile-groups/{{gid}}", 401)
    assert 1 == rise("GET", "/metrics", 200)
    of = (("method", "POST"), ("route", members))
    assert 2 == after["belong_http_request_duration_seconds_count", *of]
    assert 0 < after["belong_http_request_duration_seconds_sum", *of] < 10
    buckets = [
        after["belong_http_request_duration_seconds_bucket", ("le", str(bound)), *of]
        for bound in (*SECONDS, "+Inf")
    ]
    assert sorted(buckets) == buckets
    assert 2 == buckets[-1]


async def test_paths_and_methods_that_clients_make_up_make_no_labels(api):
    for number in range(30):
        await api.conductor.simulate_get(f"/made/up/{number}")
        await api.conductor.simulate_get(f"{DEMO}/{number}")
    for method in ("GET", "PUT", "DELETE"):
        await api.conductor.simulate_request(method, "/nothing")
    found = await samples(api)
    assert 61 == answered(found, "GET", "(none)", 404)
    routes = {dict(name[1:]).get("route") for name in found} - {None}
    assert routes <= {path for path, _ in ROUTES} | {"(none)"}
    app = create_app(Config(), api.store)
    assert app.route("BREW", None) is app.route("SPILL", None)


async def test_what_is_being_answered_is_in_flight(api, admin, monkeypatch):
    gate, reached = asyncio.Event(), asyncio.Event()

    async def slow(*_, **__):
        reached.set()
        await gate.wait()
        raise ScriptFailed("slow")

    monkeypatch.setattr(api.store.groups, "get_group", slow)
    request = asyncio.create_task(admin.get(f"{GROUPS}/{P1}/", 500))
    await reached.wait()
    # That one, and the one that asks.
    assert 2 == (await samples(api))["belong_http_requests_in_flight",]
    gate.set()
    await request
    assert 1 == (await samples(api))["belong_http_requests_in_flight",]


async def test_what_goes_to_the_store_is_counted(api, admin):
    before = await samples(api)
    await admin.post(f"{DEMO}/memberships/check/", {"pairs": [{"profile_id": P1, "group_id": P2}]})
    await admin.post(f"{GROUPS}/", {"name": "one", "custom_id": "taken"}, 201)
    await admin.post(f"{GROUPS}/", {"name": "two", "custom_id": "taken"}, 409)
    after = await samples(api)
    assert after["belong_store_commands_total",] > before["belong_store_commands_total",]
    refused = ("belong_store_refusals_total", ("code", "TAKEN"))
    other = ("belong_store_refusals_total", ("code", "CONFLICT"))
    assert 1 == after.get(refused, 0) + after.get(other, 0)
    assert 1 <= after["belong_store_connects_total",]
    assert after["belong_store_commands_total",] == after["belong_store_pipeline_commands_sum",]
    buckets = [
        after["belong_store_pipeline_commands_bucket", ("le", bound)]
        for bound in (*(str(float(size)) for size in SIZES), "+Inf")
    ]
    assert sorted(buckets) == buckets
    assert buckets[-1] == after["belong_store_pipeline_commands_count",]


async def test_commands_that_leave_together_are_one_batch(api, admin):
    stats = api.store.connection.stats
    group = await admin.group()
    before = list(stats.sizes)
    await asyncio.gather(*(admin.get(f"{GROUPS}/{group}/") for _ in range(16)))
    rise = [after - had for after, had in zip(stats.sizes, before, strict=True)]
    assert sum(rise[3:]) >= 1


async def test_lookups_in_the_near_cache_are_hits_and_misses(api, admin):
    group = await admin.group()
    env = (await api.store.registry.application("demo")).production
    directory = api.store.cache.directory(env.directory)
    pairs = {"pairs": [{"profile_id": P1, "group_id": group}]}
    # Once its version is known nothing drops it but a change.
    while directory.version is None:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    await admin.post(f"{DEMO}/memberships/check/", pairs)
    before = await samples(api)
    for _ in range(3):
        await admin.post(f"{DEMO}/memberships/check/", pairs)
    after = await samples(api)

    def rise(*name):
        return after[name] - before[name]

    assert 3 == rise("belong_nearcache_lookups_total", ("result", "hit"))
    assert 0 == rise("belong_nearcache_lookups_total", ("result", "miss"))
    assert 2 == after["belong_nearcache_entries",]
    api.store.cache._forget_all()
    before = after
    after = await samples(api)
    assert 1 == rise("belong_nearcache_drops_total")
    assert 0 == after["belong_nearcache_entries",]
    await admin.post(f"{DEMO}/memberships/check/", pairs)
    after = await samples(api)
    assert 1 == rise("belong_nearcache_lookups_total", ("result", "miss"))


async def test_metrics_are_shown_while_the_store_is_gone(api, valkey):
    app = create_app(Config(redis_url="unix:///nowhere"))
    async with falcon.testing.ASGIConductor(app) as conductor:
        result = await conductor.simulate_get("/metrics")
        assert 503 == (await conductor.simulate_get("/readyz")).status_code
    assert 200 == result.status_code
    assert "belong_build_info{" in result.text


async def test_both_formats_of_prometheus_are_spoken(api):
    plain = await scraped(api)
    assert plain.headers["content-type"].startswith("text/plain; version=")
    modern = await scraped(api, Accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert {each.name for each in open_metrics(modern.text)} >= {"belong_http_requests"}


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "text/html",
        ",;=,",
        "application/openmetrics-text; version=x; escaping=y",
        "text/plain; version=0.0.4; escaping=nothing",
        "application/openmetrics-text;;q=z, text/plain",
    ],
)
async def test_whatever_is_accepted_is_answered(api, accept):
    assert "belong_build_info" in (await scraped(api, Accept=accept)).text


async def test_a_metric_of_many_rows_is_one_metric(api):
    await api.conductor.simulate_get("/healthz")
    counters = Counters("alone")
    for number in range(3 * metrics.SLICE + 1):
        counters.gauge("belong_groups", f"app{number}", "production", value=number)
    async with falcon.testing.ASGIConductor(create_app(Config(), api.store, counters)) as conductor:
        for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
            text = (await conductor.simulate_get("/metrics", headers={"Accept": accept})).text
            assert 1 == text.count("# HELP belong_groups ")
            parse = classic if accept == "text/plain" else open_metrics
            [family] = [each for each in parse(text) if each.name == "belong_groups"]
            assert set(range(3 * metrics.SLICE + 1)) == {each.value for each in family.samples}


async def test_the_worker_tells_what_it_finished(api, admin):
    counters = Counters("worker")
    group = await admin.group()
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})
    await admin.delete(f"{GROUPS}/{group}/")
    env = (await api.store.registry.application("demo")).production
    await worker.count(api.store, counters)
    assert 1 == counters.snapshot().gauges[key("belong_worker_backlog", ["sweep"])]
    await worker.work(api.store, grace_us=0, counters=counters)
    told = counters.snapshot()
    assert 1 == told.counters[key("belong_worker_finished_total", ["sweep"])]
    assert 0 == told.counters["belong_worker_failures_total"]
    assert told.gauges["belong_worker_last_pass_timestamp_seconds"] > 1.7e9
    await worker.count(api.store, counters)
    assert 0 == counters.snapshot().gauges[key("belong_worker_backlog", ["sweep"])]
    assert 0 == (await api.store.totals.count(env)).sweeps


async def test_a_pass_that_failed_is_counted_and_is_not_the_last_good_one(api, monkeypatch):
    counters = Counters("worker")

    async def broken(*_, **__):
        raise ScriptFailed("broken")

    monkeypatch.setattr(api.store.upkeep, "finish_intents", broken)
    await worker.work(api.store, counters=counters)
    told = counters.snapshot()
    assert 2 == told.counters["belong_worker_failures_total"]
    assert "belong_worker_last_pass_timestamp_seconds" not in told.gauges


async def test_what_applications_hold_is_told_and_forgotten_with_them(api, admin):
    counters = Counters("worker")
    await admin.group()
    await api.store.registry.create_application("other")
    await worker.count(api.store, counters)
    gauges = counters.snapshot().gauges
    assert 1 == gauges[key("belong_groups", ["demo", "production"])]
    assert 0 == gauges[key("belong_groups", ["other", "development"])]
    await api.store.registry.delete_application("other")
    await worker.count(api.store, counters)
    gauges = counters.snapshot().gauges
    assert 1 == gauges[key("belong_groups", ["demo", "production"])]
    assert key("belong_groups", ["other", "development"]) not in gauges
    assert gauges["belong_counted_timestamp_seconds"] > 1.7e9


async def test_counting_goes_on_after_a_failure(api, monkeypatch, caplog):
    counters = Counters("worker")
    tries = 0

    async def once_broken(*_):
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("broken")
        raise asyncio.CancelledError

    monkeypatch.setattr(worker, "count", once_broken)
    monkeypatch.setattr(worker, "COUNT_SECONDS", 0.01)
    with pytest.raises(asyncio.CancelledError):
        await worker.keep_counting(api.store, counters)
    assert "not counted" in caplog.text


async def test_lines_of_bulk_requests_are_counted(api, admin):
    await api.store.groups.create_group(
        (await api.store.registry.application("demo")).production,
        NewGroup(name="g", custom_id="g"),
    )
    line = '{"op":"add","group_id":"g","profile_id":"%s"}\n'
    await admin.call("POST", f"{DEMO}/memberships/bulk/", line % P1 + line % P2 + "{}\n")
    found = await samples(api)
    assert 2 == found["belong_bulk_lines_total", ("result", "added")]
    assert 1 == found["belong_bulk_lines_total", ("result", "failed")]
