"""The configuration store, and the operations on it as the real SDK client asks for them."""

from __future__ import annotations

import datetime
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.configuration import ConfigurationStore, KeyPath
from support.nucleus import ipc, refused

KEYS = st.sampled_from("abc")
VALUES = st.recursive(
    st.integers(0, 3) | st.none() | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=3)


def at(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def leaves(value: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    if isinstance(value, dict) and (value or not path):
        return {p: v for key, part in value.items() for p, v in leaves(part, (*path, key)).items()}
    return {path: value}


def test_what_somebody_has_set_outlives_new_defaults() -> None:
    store = ConfigurationStore()
    store.defaults("c", {"a": 1, "b": {"x": 1, "gone": 1}})
    store.merge("c", ("b",), {"x": 5, "mine": 6}, 10.0)
    store.defaults("c", {"a": 2, "b": {"x": 2, "new": 3}})
    assert store.read("c") == {"a": 2, "b": {"x": 5, "mine": 6, "new": 3}}


def test_reset_goes_back_to_the_default_or_takes_away() -> None:
    store = ConfigurationStore()
    store.defaults("c", {"a": {"x": 1, "y": {"z": 1}}, "list": [1]})
    store.merge("c", (), {"a": {"x": 2, "y": 3, "own": 4}, "other": {"k/e~y": 5}, "list": [2, 3]}, 10.0)
    store.reset("c", ["/a/y", "/a/own", "/other/k~1e~0y", "/nothing/here"])
    assert store.read("c") == {"a": {"x": 2, "y": {"z": 1}}, "list": [2, 3]}
    # After a reset anything is newer.
    assert store.merge("c", ("a",), {"y": {"z": 9}}, 1.0) == ()
    store.reset("c", [""])
    assert store.read("c") == {"a": {"x": 1, "y": {"z": 1}}, "list": [1]}
    with pytest.raises(ConfigError, match="JSON pointer"):
        store.reset("c", ["a/x"])


def test_an_older_write_beats_no_newer_one() -> None:
    store = ConfigurationStore()
    store.merge("c", (), {"a": {"x": 1, "y": 1}}, 10.0)
    assert store.merge("c", ("a",), {"x": 2, "z": 2}, 5.0) == (("a", "x"),)
    assert store.read("c") == {"a": {"x": 1, "y": 1, "z": 2}}
    assert store.merge("c", ("a",), 7, 9.0) == (("a",),)
    assert store.merge("c", ("a", "x", "deep"), 7, 9.0) == (("a", "x", "deep"),)
    assert store.merge("c", ("a",), 7, 10.0) == ()
    assert store.read("c", ("a",)) == 7


def test_the_whole_is_a_mapping() -> None:
    with pytest.raises(ConfigError, match="mapping"):
        ConfigurationStore().merge("c", (), 5, 1.0)


def test_what_is_not_there_is_a_key_error() -> None:
    store = ConfigurationStore()
    store.merge("c", (), {"a": {"x": [1]}}, 1.0)
    for component, path in (("d", ()), ("c", ("b",)), ("c", ("a", "x", "0"))):
        with pytest.raises(KeyError):
            store.read(component, path)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(DOCUMENTS, st.integers(1, 5)), max_size=5))
def test_writes_in_any_order_leave_what_is_newest(writes: list[tuple[dict[str, Any], int]]) -> None:
    store = ConfigurationStore()
    for document, timestamp in writes:
        before = leaves(store.read("c")) if "c" in store.components() else {}
        left_alone = store.merge("c", (), document, float(timestamp))
        after = leaves(store.read("c"))
        for path, value in leaves(document).items():
            if not path or any(path == one for one in left_alone):
                continue
            # It is there, unless it is an empty mapping for which there was a full one.
            assert after.get(path, value) == value
        for path in left_alone:
            clash = [p for p in before if p[: len(path)] == path or path[: len(p)] == p]
            assert clash
            assert all(after.get(p, before[p]) == before[p] for p in clash)


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS, DOCUMENTS)
def test_what_is_saved_is_what_is_loaded(defaults: dict[str, Any], document: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first = ConfigurationStore(Path(folder) / "c.json")
        first.defaults("c", defaults)
        first.merge("c", (), document, 5.0)
        second = ConfigurationStore(Path(folder) / "c.json")
        assert second.load() == ""
        assert second.read("c") == first.read("c")
        assert second.merge("c", (), document, 4.0) == first.merge("c", (), document, 4.0)
        second.reset("c", [""])
        first.reset("c", [""])
        assert second.read("c") == first.read("c")


@pytest.mark.parametrize("damage", [b"", b'{"components": {"c', b"[" * 100_000, b"\xff", b'{"components": {"c": {}}}'])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "configuration.json"
    file.write_bytes(damage)
    store = ConfigurationStore(file)
    said = store.load()
    assert str(file) in said
    assert "configuration.json.damaged" in said
    assert (tmp_path / "configuration.json.damaged").read_bytes() == damage
    store.merge("c", (), {"a": 1}, 1.0)
    assert ConfigurationStore(file).load() == ""


def test_a_kill_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "configuration.json"
    program = (
        "import sys; from pathlib import Path; from lisiere_sim.nucleus.configuration import ConfigurationStore\n"
        "store = ConfigurationStore(Path(sys.argv[1]))\n"
        "for n in range(10**9): store.merge('c', (), {'n': n, 'x': 'y' * 5000}, float(n + 1)); print(n, flush=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        said = next(line for line in child.stdout if int(line) >= 200)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
    said = (said + child.stdout.read()).split("\n")[-2]
    child.stdout.close()
    store = ConfigurationStore(file)
    assert store.load() == ""
    # What was told is there; at most one more is.
    assert store.read("c", ("n",)) in (int(said), int(said) + 1)


def test_watchers_are_told_what_changed_at_below_and_above_and_nothing_else() -> None:
    store = ConfigurationStore()
    store.merge("c", (), {"a": {"x": 1, "y": 1}, "b": 1}, 1.0)
    told: list[KeyPath] = []
    unwatch = store.watch("c", ("a", "x"), told.append)
    store.merge("c", (), {"a": {"x": 1, "y": 2}, "b": 2}, 2.0)
    assert told == []
    store.merge("c", (), {"a": {"x": {"deep": 2}}}, 3.0)
    assert set(told) == {("a", "x"), ("a", "x", "deep")}
    told.clear()
    store.reset("c", ["/a"])
    assert told == [("a", "x", "deep")]
    unwatch()
    store.merge("c", (), {"a": {"x": 4}}, 4.0)
    assert told == [("a", "x", "deep")]
    unwatch()


def test_a_component_updates_its_own_configuration() -> None:
    heard: queue.Queue[Any] = queue.Queue()
    with ipc() as nucleus, nucleus.client("a") as client, nucleus.client("b") as other:
        nucleus.run(lambda: nucleus.store.defaults("a", {"mqtt": {"port": 1}, "leaf": 1}))
        other.subscribe_to_configuration_update(component_name="a", key_path=["mqtt"], on_stream_event=heard.put)
        client.update_configuration(key_path=["mqtt"], timestamp=at(10), value_to_merge={"port": 2, "new": {"x": []}})
        assert client.get_configuration(key_path=["mqtt"]).value == {"port": 2, "new": {"x": []}}
        paths = [heard.get(timeout=5).configuration_update_event.key_path for _ in range(2)]
        assert sorted(paths) == [["mqtt", "new", "x"], ["mqtt", "port"]]
        with refused("FailedUpdateConditionCheckError", "/mqtt"):
            client.update_configuration(key_path=["mqtt"], timestamp=at(9), value_to_merge={"port": 3})
        client.update_configuration(timestamp=at(11), value_to_merge={"mqtt": {"port": 4}})
        assert other.get_configuration(component_name="a", key_path=["mqtt", "port"]).value == {"port": 4}


def test_a_component_gives_itself_no_rights() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        nucleus.run(lambda: nucleus.store.defaults("a", {"accessControl": {}}))
        for path in ([], ["accessControl"], ["accessControl", "aws.greengrass.Cli"]):
            value: dict[str, Any] = {} if path else {"accessControl": {}}
            with refused("InvalidArgumentsError", "accessControl"):
                client.update_configuration(key_path=path, timestamp=at(1), value_to_merge=value)
        # Somebody else's cannot even be named.
        client.update_configuration(timestamp=at(1), value_to_merge={"x": 1})
        assert nucleus.run(nucleus.store.components) == ["a"]


def test_wrong_updates_are_refused() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        nucleus.run(lambda: nucleus.store.defaults("a", {"leaf": 1}))
        deep: dict[str, Any] = {}
        for _ in range(200):
            deep = {"x": deep}
        for word, asked in (
            ("timestamp", {"value_to_merge": {"x": 1}}),
            ("valueToMerge", {"timestamp": at(1)}),
            ("/leaf is no mapping", {"key_path": ["leaf"], "timestamp": at(1), "value_to_merge": {"leaf": 2}}),
            ("levels", {"timestamp": at(1), "value_to_merge": deep}),
            ("bytes", {"timestamp": at(1), "value_to_merge": {"x": "y" * 2**20}}),
        ):
            with refused("InvalidArgumentsError", word):
                client.update_configuration(**asked)
        assert client.get_configuration().value == {"leaf": 1}
        with refused("ResourceNotFoundError", "/nothing"):
            client.subscribe_to_configuration_update(key_path=["nothing"], on_stream_event=print)


def test_a_leaf_is_read_fast() -> None:
    """The bound is ten times what it takes on a slow machine; `make bench` measures."""
    with ipc() as nucleus, nucleus.client("a") as client:
        nucleus.run(lambda: nucleus.store.defaults("a", {"x": {"y": 1}}))
        taken = []
        for _ in range(200):
            start = time.perf_counter()
            client.get_configuration(key_path=["x", "y"])
            taken.append(time.perf_counter() - start)
        assert sorted(taken)[100] < 0.02


def test_very_many_keys_do_not_keep_the_nucleus_busy() -> None:
    # Each in a fraction of a second: were every leaf compared with every other, this would take minutes.
    store = ConfigurationStore()
    for number in (1, 2):
        store.merge("a", ("z",), {f"k{key}": number for key in range(20_000)}, float(number))
    store.reset("a", [f"/z/k{key}" for key in range(19_999)])
    assert store.read("a") == {"z": {"k19999": 2}}
