"""Shadows, asked for by the real SDK client."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere_sim.nucleus.call import IpcError
from lisiere_sim.nucleus.flavour import LITE
from lisiere_sim.nucleus.shadows import SIZE_MAX, Shadows, difference
from support.nucleus import THING, Ipc, ipc, refused

SERVICE = "aws.greengrass.ShadowManager"
OWN = "$aws/things/{iot:thingName}/shadow*"


def allowed(nucleus: Ipc, *operations: str) -> None:
    nucleus.allow("a", SERVICE, list(operations or "*"), [OWN])


def state(desired: Any = ..., reported: Any = ..., **more: Any) -> bytes:
    sections = {"desired": desired, "reported": reported}
    return json.dumps({"state": {key: one for key, one in sections.items() if one is not ...}, **more}).encode()


def test_a_shadow_is_made_read_and_deleted() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        allowed(nucleus)
        of = {"thing_name": THING, "shadow_name": "lisiere"}
        with refused("ResourceNotFoundError", "No shadow found"):
            client.get_thing_shadow(**of)
        accepted = json.loads(
            client.update_thing_shadow(**of, payload=state(reported={"v": 1}, clientToken="t")).payload
        )
        stamp = accepted["timestamp"]
        assert accepted == {
            "state": {"reported": {"v": 1}},
            "metadata": {"reported": {"v": {"timestamp": stamp}}},
            "version": 1,
            "timestamp": stamp,
            "clientToken": "t",
        }
        client.update_thing_shadow(**of, payload=state(desired={"v": 2, "w": {"x": [1]}}))
        document = json.loads(client.get_thing_shadow(**of).payload)
        assert document["state"] == {
            "reported": {"v": 1},
            "desired": {"v": 2, "w": {"x": [1]}},
            "delta": {"v": 2, "w": {"x": [1]}},
        }
        assert document["version"] == 2
        assert document["metadata"]["delta"]["w"]["x"] == [
            {"timestamp": document["metadata"]["desired"]["v"]["timestamp"]}
        ]
        assert client.list_named_shadows_for_thing(thing_name=THING).results == ["lisiere"]
        with refused("ResourceNotFoundError", "classic"):
            client.get_thing_shadow(thing_name=THING)
        assert client.delete_thing_shadow(**of).payload == b""
        with refused("ResourceNotFoundError"):
            client.delete_thing_shadow(**of)
        assert client.list_named_shadows_for_thing(thing_name=THING).results == []
        # A new one of the same name goes on counting, and has nothing of the old one.
        assert json.loads(client.update_thing_shadow(**of, payload=state(desired={"y": 1})).payload)["version"] == 4
        assert json.loads(client.get_thing_shadow(**of).payload)["state"] == {"desired": {"y": 1}, "delta": {"y": 1}}


def test_null_takes_away_and_an_old_version_conflicts() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        allowed(nucleus)

        def update(payload: bytes) -> None:
            client.update_thing_shadow(thing_name=THING, shadow_name="", payload=payload)

        update(state(reported={"a": {"b": 1, "c": 2}}, desired={"a": 1}))
        update(state(reported={"a": {"b": None}}, version=1))
        document = json.loads(client.get_thing_shadow(thing_name=THING).payload)
        assert document["state"]["reported"] == {"a": {"c": 2}}
        assert list(document["metadata"]["reported"]["a"]) == ["c"]
        with refused("ConflictError", "version 2, not 1"):
            update(state(reported={"a": 5}, version=1))
        update(state(desired=None))
        assert json.loads(client.get_thing_shadow(thing_name=THING).payload)["state"] == {"reported": {"a": {"c": 2}}}


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b"", "JSON"),
        (b"[]", "JSON"),
        (b"{}", "state"),
        (state(), "state"),
        (b'{"state": {"wished": {}}}', "state.wished"),
        (b'{"state": {"desired": {}}, "colour": 1}', "colour"),
        (state(desired=[1]), "state.desired"),
        (state(desired={}, version="1"), "version"),
        (state(desired={}, clientToken="x" * 65), "clientToken"),
        (state(desired={"x": "y" * SIZE_MAX}), str(SIZE_MAX)),
        (state(desired={str(n): None for n in range(SIZE_MAX)}), str(SIZE_MAX)),
        (state(desired={"1": {"2": {"3": {"4": {"5": {"6": {"7": {"8": {"9": 1}}}}}}}}}), "levels"),
    ],
)
def test_a_wrong_document_is_refused(payload: bytes, word: str) -> None:
    shadows = Shadows()
    with pytest.raises(IpcError, match=word) as caught:
        shadows.update(THING, "x", payload)
    assert caught.value.code == "InvalidArgumentsError"
    assert shadows.names(THING) == []


def test_named_shadows_come_in_pages() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        allowed(nucleus)
        for name in "dbac":
            client.update_thing_shadow(thing_name=THING, shadow_name=name, payload=state(reported={"x": 1}))
        pages, token = [], None
        while True:
            page = client.list_named_shadows_for_thing(thing_name=THING, page_size=3, next_token=token)
            pages.append(page.results)
            token = page.next_token
            if token is None:
                break
        assert pages == [["a", "b", "c"], ["d"]]
        with refused("InvalidArgumentsError", "pageSize"):
            client.list_named_shadows_for_thing(thing_name=THING, page_size=0)


def test_components_are_told_of_changes() -> None:
    heard: queue.Queue[Any] = queue.Queue()
    with ipc() as nucleus, nucleus.client("a") as client:
        allowed(nucleus)
        nucleus.allow("a", "aws.greengrass.ipc.pubsub", ["SubscribeToTopic"], ["$aws/things/{iot:thingName}/shadow/#"])
        client.subscribe_to_topic(topic=f"$aws/things/{THING}/shadow/name/x/+/+", on_stream_event=heard.put)
        client.update_thing_shadow(thing_name=THING, shadow_name="x", payload=state(desired={"x": 1}))
        client.delete_thing_shadow(thing_name=THING, shadow_name="x")
        said = [heard.get(timeout=5).binary_message for _ in range(3)]
        assert [one.context.topic.partition("/name/x/")[2] for one in said] == [
            "update/accepted",
            "update/delta",
            "delete/accepted",
        ]
        assert json.loads(said[1].message)["state"] == {"x": 1}


def test_only_what_access_control_names_is_allowed() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        allowed(nucleus, "UpdateThingShadow")
        client.update_thing_shadow(thing_name=THING, shadow_name="x", payload=state(reported={}))
        with refused("UnauthorizedError", "GetThingShadow", f"$aws/things/{THING}/shadow/name/x"):
            client.get_thing_shadow(thing_name=THING, shadow_name="x")
        with refused("UnauthorizedError", "$aws/things/other/shadow"):
            client.update_thing_shadow(thing_name="other", payload=state(reported={}))
        with refused("InvalidArgumentsError", "thingName"):
            client.update_thing_shadow(thing_name="a/b", payload=state(reported={}))
        with refused("InvalidArgumentsError", "shadowName"):
            client.update_thing_shadow(thing_name=THING, shadow_name="../x", payload=state(reported={}))


def test_nucleus_lite_has_no_shadow_manager() -> None:
    with ipc(LITE) as nucleus, nucleus.client("a") as client, refused("ServiceError"):
        allowed(nucleus)
        client.get_thing_shadow(thing_name=THING)


def test_shadows_outlive_the_process(tmp_path: Path) -> None:
    file = tmp_path / "shadows.json"
    first = Shadows(file)
    assert first.load() == ""
    first.update(THING, "x", state(reported={"a": 1}))
    second = Shadows(file, clock=lambda: 0.0)
    assert second.load() == ""
    assert second.get(THING, "x")["state"] == {"reported": {"a": 1}}
    file.write_bytes(b'{"shadows": {"x')
    third = Shadows(file)
    assert "set aside" in third.load()
    assert third.names(THING) == []
    assert (tmp_path / "shadows.json.damaged").read_bytes() == b'{"shadows": {"x'


JSON = st.recursive(
    st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
DOCUMENTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS, DOCUMENTS)
def test_what_is_desired_is_what_is_reported_and_the_difference(
    desired: dict[str, Any], reported: dict[str, Any]
) -> None:
    assert difference(desired, desired) == {}
    shadows = Shadows()
    shadows.update(THING, "x", state(desired=desired, reported=reported))
    delta = shadows.get(THING, "x")["state"].get("delta", {})
    shadows.update(THING, "x", state(reported=delta))
    assert "delta" not in shadows.get(THING, "x")["state"]


def test_a_document_of_very_many_levels_is_refused() -> None:
    deep = b'{"state": {"desired": ' + b'{"a":' * 800 + b"1" + b"}" * 800 + b"}}"
    with pytest.raises(IpcError, match="levels"):
        Shadows().update(THING, "x", deep)
    with pytest.raises(IpcError, match="JSON"):
        Shadows().update(THING, "x", b'{"a":' * 3000)
