"""The application resource, which the SDK reads first and without a token."""

from __future__ import annotations

from tests.client import HOST, Api, Client


async def test_an_application_tells_every_address(admin: Client) -> None:
    body = (await admin.using(None).get("/api/v1/applications/demo/")).body

    base = f"{HOST}/api/v1"
    assert (body.client_id, body.name) == ("demo", "demo")
    assert f"{base}/applications/demo/" == body.url
    assert f"{base}/applications/demo/profile/" == body.profile_url
    assert f"{base}/applications/demo/profile-groups/" == body.profile_groups_url
    assert f"{base}/profiles/{{profile_id}}/?client_id=demo" == body.profile_detail_url_template


async def test_what_the_sdk_reads_is_there_and_null_where_it_is_not_offered(admin: Client) -> None:
    body = (await admin.get("/api/v1/applications/demo")).plain

    for name in (
        "program_detail_url_template",
        "chat_room_detail_url_template",
        "leaderboard_detail_url_template",
        "create_chat_room_url",
        "chat_room_invitation_detail_url_template",
        "chat_rooms_invitations_url",
        "pinned_messages_url",
        "api_polling_interval",
        "pubnub_subscribe_key",
        "pubnub_publish_key",
        "pubnub_origin",
        "pubnub_heartbeat_interval",
        "pubnub_presence_timeout",
    ):
        assert body[name] is None


async def test_it_is_public_whatever_token_comes_with_it(api: Api, admin: Client) -> None:
    await api.store.registry.create_application("second", name="The second")

    for token in (admin.token, "nonsense", ""):
        body = (await admin.using(token).get("/api/v1/applications/second/")).body
        assert body.name == "The second"


async def test_an_unknown_application_is_404(admin: Client) -> None:
    answer = await admin.using(None).get("/api/v1/applications/never-existed/", 404)

    assert (answer.body.detail, answer.body.error_code) == ("Not found.", "not_found")


async def test_urls_of_a_group_are_those_that_the_application_tells(admin: Client) -> None:
    body = (await admin.get("/api/v1/applications/demo/")).body

    created = await admin.post(body.profile_groups_url, {"name": "n"}, 201)

    await admin.get(f"{body.profile_groups_url}{created.body.id}/")
