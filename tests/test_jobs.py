"""Jobs over HTTP: asked for, watched, over."""

from __future__ import annotations

import pytest

from service.errors import ScriptFailed
from service.worker import work

GROUPS = "/platform/workspaces/1/groups"
JOBS = "/platform/workspaces/1/jobs"
NEW = {"id": "household", "source_user_attribute": "$address"}


@pytest.fixture
async def people(api):
    """Five profiles in production and one in development."""
    demo = await api.store.registry.application("demo")
    for name, count in (("production", 5), ("development", 1)):
        names = [f"user {n}" for n in range(count)]
        await api.store.profiles.resolve_identities(
            demo.environments[name], "customer_id", names, create=True
        )


async def test_a_job_that_is_asked_for_is_202_and_then_done(api, admin, people):
    await admin.post(GROUPS, NEW)
    await work(api.store)
    asked = (await admin.post(f"{GROUPS}/household/recompute", None, 202)).plain
    assert {"state": "queued", "done": 0, "total": 0} == {
        name: asked[name] for name in ("state", "done", "total")
    }
    assert asked == (await admin.get(f"{JOBS}/{asked['id']}")).plain
    await work(api.store)
    expected = {"id": asked["id"], "state": "done", "done": 6, "total": 6}
    assert expected == (await admin.get(f"{JOBS}/{asked['id']}")).plain


async def test_jobs_are_listed_the_latest_first(api, admin, people):
    assert [] == (await admin.get(JOBS)).plain
    first = (await admin.post(GROUPS, NEW)).headers["x-belong-job"]
    await work(api.store)
    second = (await admin.delete(f"{GROUPS}/household")).headers["x-belong-job"]
    listed = (await admin.get(JOBS)).plain
    assert [(second, "queued"), (first, "done")] == [(each["id"], each["state"]) for each in listed]


async def test_who_asks_twice_gets_the_same_job(admin):
    await admin.post(GROUPS, NEW)
    path = f"{GROUPS}/household/recompute"
    one, two = [(await admin.post(path, body, 202)).plain for body in (None, {"x": 1})]
    assert one == two


async def test_a_job_that_failed_says_why(api, admin, people, monkeypatch):
    job = (await admin.post(GROUPS, NEW)).headers["x-belong-job"]

    async def fail(env, mixed, **_options):
        raise ScriptFailed("broken")

    with monkeypatch.context() as patched:
        patched.setattr(api.store.derivation, "derive_profiles", fail)
        await work(api.store)
    found = (await admin.get(f"{JOBS}/{job}")).plain
    assert ("failed", 6) == (found["state"], found["done"])
    assert found["error"].endswith("because of: broken")


async def test_what_does_not_exist_is_404(admin):
    await admin.post(f"{GROUPS}/nobody/recompute", None, 404)
    for jid in ("nobody", "%00", "x" * 300, "174cc6dd-c1da-42d2-886e-c48b2bf803a8"):
        await admin.get(f"{JOBS}/{jid}", 404)


async def test_jobs_of_another_workspace_are_not_shown(api, admin):
    other = await api.store.registry.create_application("other")
    job = (await admin.post(GROUPS, NEW)).headers["x-belong-job"]
    theirs = await api.client("admin", applications=("other",))
    await theirs.get(f"/platform/workspaces/{other.workspace_id}/jobs/{job}", 404)
    await theirs.get(f"{JOBS}/{job}", 403)
    assert [] == (await theirs.get(f"/platform/workspaces/{other.workspace_id}/jobs")).plain
