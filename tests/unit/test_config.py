"""The configuration: every mistake is a ConfigError that names its place, and what is right comes out resolved."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lisiere import config as module
from lisiere.config import Config, load_config, parse_config
from lisiere.documents import MAX_BYTES
from lisiere.errors import ConfigError
from lisiere.settings.links import MqttConfig, exposed
from lisiere.settings.sensors import (
    UNIX_PATH_MAX_BYTES,
    CsvSource,
    JsonlSource,
    ModbusSource,
    MqttSource,
    SerialSource,
    SocketSource,
    SysfsSource,
    SystemSource,
)
from lisiere.settings.sources import CameraSource, ImagesSource, VideoSource


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a model folder in it, as far as a configuration looks into one."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.yaml").write_text("schema: lisiere.model/1\n")
    for name in ("ca.pem", "cert.pem", "key.pem", "secret"):
        (tmp_path / name).write_text("-----BEGIN-----\n")
        (tmp_path / name).chmod(0o600)
    return tmp_path


def document(**changes: Any) -> dict[str, Any]:
    return {
        "device": "pi-dock-3",
        "pipelines": [{"name": "dock", "model": "model", "source": {"type": "images", "path": "pictures"}}],
        "transport": {"type": "mqtt", "host": "broker.example"},
        **changes,
    }


def with_value(path: str, value: Any) -> dict[str, Any]:
    """The document with one place set, such as `pipelines.0.source`; missing parents are made."""
    made = document()
    *parents, last = path.split(".")
    place: Any = made
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return made


def refused(made: Any, base: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(made, base)
    return caught.value


def test_the_least_configuration_gets_the_defaults(base: Path) -> None:
    made = parse_config({key: value for key, value in document().items() if key != "transport"}, base)
    assert made.transport is None
    assert made.topic_prefix == "lisiere"
    assert made.pipelines[0].backend == "auto"
    assert made.pipelines[0].queue.policy is None
    assert made.spool.max_rows == 1_000_000
    assert made.stop_drain_s == 5.0


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("health_interval_s", "5", 5.0),
        ("retry_max_s", "12.5", 12.5),
        ("transport.port", "8883", 8883),
        ("transport.window", "1", 1),
        ("spool.max_rows", "100", 100),
        ("pipelines.0.threads", "2", 2),
        ("pipelines.0.queue.size", "7", 7),
        ("pipelines.0.source.fps", "2.5", 2.5),
        ("pipelines.0.source.loop", "true", True),
        ("pipelines.0.source.loop", "false", False),
    ],
)
def test_numbers_and_booleans_may_come_as_text(base: Path, path: str, text: str, value: object) -> None:
    place: Any = parse_config(with_value(path, text), base)
    for key in path.split("."):
        place = place[int(key)] if key.isdigit() else getattr(place, key)
    assert place == value
    assert type(place) is type(value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        # Unknown keys, wherever there are keys.
        ("devise", "x"),
        ("pipelines.0.modell", "x"),
        ("pipelines.0.source.pfad", "x"),
        ("pipelines.0.queue.depth", 5),
        ("transport.broker", "x"),
        ("transport.tls.cafile", "x"),
        ("spool.size", 5),
    ],
)
def test_unknown_keys_are_errors_at_their_parent(base: Path, path: str, value: object) -> None:
    error = refused(with_value(path, value), base)
    *parents, last = path.split(".")
    expected = "$" + "".join(f"[{key}]" if key.isdigit() else f".{key}" for key in parents)
    assert error.path == expected
    assert last in str(error)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("device", 5),
        ("device", ""),
        ("device", "a/b"),
        ("device", "a+"),
        ("device", "#"),
        ("device", "$aws"),
        ("device", "pi\n"),
        ("device", "pi dock"),
        ("device", "é"),
        ("device", "x" * 129),
        ("device", None),
        ("device", ["pi"]),
        ("topic_prefix", ""),
        ("topic_prefix", "/lisiere"),
        ("topic_prefix", "$aws/things"),
        ("topic_prefix", "a/+/b"),
        ("topic_prefix", "a/#"),
        ("topic_prefix", "a\x00b"),
        ("topic_prefix", "lisiere\n"),
        ("pipelines", []),
        ("pipelines", {}),
        ("pipelines", "dock"),
        ("pipelines[0]", "dock"),
        ("pipelines[0].name", "a/b"),
        ("pipelines[0].name", "dock\n"),
        ("pipelines[0].name", 7),
        ("pipelines[0].model", None),
        ("pipelines[0].model", 7),
        ("pipelines[0].model", ""),
        ("pipelines[0].model", "absent"),
        ("pipelines[0].model", "ca.pem"),
        ("pipelines[0].model", "."),
        ("pipelines[0].model", "model\x00"),
        ("pipelines[0].model", "~nobody-of-this-name/model"),
        ("pipelines[0].backend", "tvm"),
        ("pipelines[0].threads", 0),
        ("pipelines[0].threads", 65),
        ("pipelines[0].threads", 1.5),
        ("pipelines[0].threads", "many"),
        ("pipelines[0].queue", "latest"),
        ("pipelines[0].queue.policy", "newest"),
        ("pipelines[0].queue.size", 0),
        ("pipelines[0].queue.size", 100_001),
        ("pipelines[0].source", "images"),
        ("pipelines[0].source", {}),
        ("pipelines[0].source", {"path": "x"}),
        ("pipelines[0].source", {"type": "images"}),
        ("pipelines[0].source", {"type": "camera"}),
        ("pipelines[0].source", {"type": "camera", "device": "/dev/video0", "url": "rtsp://camera"}),
        ("pipelines[0].source.path", 5),
        ("pipelines[0].source.path", ""),
        ("pipelines[0].source.path", "a\x00b"),
        ("pipelines[0].source.fps", -1),
        ("pipelines[0].source.fps", 1001),
        ("pipelines[0].source.fps", float("nan")),
        ("pipelines[0].source.fps", float("inf")),
        ("pipelines[0].source.fps", "nan"),
        ("pipelines[0].source.loop", "perhaps"),
        ("transport", "mqtt"),
        ("transport", {}),
        ("transport", {"type": "mqtt"}),
        ("transport.host", ""),
        ("transport.host", None),
        ("transport.port", 0),
        ("transport.port", 65536),
        ("transport.client_id", "x" * 129),
        ("transport.host", "mqtt://h"),
        ("transport.password_file", ""),
        ("transport.keepalive_s", 4),
        ("transport.keepalive_s", 1201),
        ("transport.connect_timeout_s", 0),
        ("transport.ack_timeout_s", float("nan")),
        ("transport.window", 0),
        ("transport.window", 101),
        ("transport.tls", True),
        ("transport.tls.ca", "absent.pem"),
        ("transport.tls.ca", "model"),
        ("transport.tls.ca", "\x00"),
        ("spool", "here"),
        ("spool.path", ""),
        ("spool.max_rows", 99),
        ("spool.max_mb", 0.5),
        ("pipelines[0].delivery.importance", "gold"),
        ("pipelines[0].delivery.ttl_s", 0),
        ("pipelines[0].delivery.ttl_s", float("inf")),
        ("spool.max_mb", float("nan")),
        ("spool.max_mb", float("inf")),
        ("spool.linger_ms", -1),
        ("spool.linger_ms", 1001),
        ("health_interval_s", 0),
        ("health_interval_s", 1e7),
        ("metrics_interval_s", "often"),
        ("retry_max_s", 0.5),
        ("retry_max_s", 3601),
        ("stop_drain_s", -1),
        ("stop_drain_s", 3601),
    ],
)
def test_each_wrong_value_is_an_error_at_its_place(base: Path, path: str, value: object) -> None:
    dotted = path.replace("[", ".").replace("]", "")
    assert refused(with_value(dotted, value), base).path.startswith(f"$.{path}".removesuffix(".type"))


def test_a_place_is_exact_and_without_decoration(base: Path) -> None:
    assert refused(with_value("pipelines.0.source", {"type": "webcam"}), base).path == "$.pipelines[0].source.type"
    assert refused(with_value("pipelines.0.threads", 0), base).path == "$.pipelines[0].threads"
    assert refused({}, base).path == "$"


@pytest.mark.parametrize("value", [None, [], "text", 5, True, {"device"}])
def test_a_document_that_is_no_mapping_is_an_error_at_the_root(base: Path, value: object) -> None:
    assert refused(value, base).path == "$"


@pytest.mark.parametrize("key", ["device", "pipelines"])
def test_what_is_required_must_be_there(base: Path, key: str) -> None:
    made = document()
    del made[key]
    error = refused(made, base)
    assert error.path == "$"
    assert key in str(error)


def test_a_wrong_key_of_a_mapping_is_an_error_at_the_mapping(base: Path) -> None:
    made = with_value("pipelines.0.source", {"type": "csv", "path": "x.csv", "columns": {5: "level"}})
    assert refused(made, base).path == "$.pipelines[0].source.columns"


def test_an_unknown_key_cannot_forge_a_place(base: Path) -> None:
    assert refused(with_value("x` - at `$.device", 1), base).path == "$"


@pytest.mark.parametrize(
    ("listen", "good"),
    [
        ("tcp:127.0.0.1:0", True),
        ("tcp:localhost:65535", True),
        ("unix:/run/sensor.sock", True),
        ("unix:", False),
        ("tcp:127.0.0.1", False),
        ("tcp:127.0.0.1:", False),
        ("tcp::5000", False),
        ("tcp:127.0.0.1:65536", False),
        ("tcp:127.0.0.1:123456", False),
        ("tcp:127.0.0.1:٣", False),
        ("tcp:127.0.0.1:80\n", False),
        ("udp:127.0.0.1:80", False),
        ("unix:" + "x" * 200, False),
        ("unix:/run/\x00", False),
    ],
)
def test_where_a_socket_listens(base: Path, listen: str, good: bool) -> None:
    made = with_value("pipelines.0.source", {"type": "socket", "listen": listen})
    if good:
        source = parse_config(made, base).pipelines[0].source
        assert isinstance(source, SocketSource)
        assert source.listen == listen
    else:
        assert refused(made, base).path == "$.pipelines[0].source.listen"


def test_a_unix_path_is_measured_once_it_is_absolute() -> None:
    at = Path("/" + "f" * (UNIX_PATH_MAX_BYTES - 3))
    with pytest.raises(ConfigError, match="model folder"):  # the path is right, and the next check comes
        parse_config(with_value("pipelines.0.source", {"type": "socket", "listen": "unix:s"}), at)
    with pytest.raises(ConfigError, match="at most") as caught:
        parse_config(with_value("pipelines.0.source", {"type": "socket", "listen": "unix:sss"}), at)
    assert caught.value.path == "$.pipelines[0].source.listen"


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("rtsp://camera/1", True),
        ("rtsps://user:secret@camera/1", True),
        ("http://camera/mjpeg", True),
        ("https://camera/mjpeg", True),
        ("file:///etc/passwd", False),
        ("camera/1", False),
        ("", False),
    ],
)
def test_a_camera_is_at_a_network_address(base: Path, url: str, good: bool) -> None:
    made = with_value("pipelines.0.source", {"type": "camera", "url": url})
    if good:
        assert isinstance(parse_config(made, base).pipelines[0].source, CameraSource)
    else:
        assert refused(made, base).path == "$.pipelines[0].source.url"


def test_a_wrong_address_is_not_repeated_in_the_message(base: Path) -> None:
    made = with_value("pipelines.0.source", {"type": "camera", "url": "ftp://user:secret@camera"})
    assert "secret" not in str(refused(made, base))


def test_relative_paths_start_from_the_given_folder(base: Path) -> None:
    made = document(
        spool={"path": "var/spool"},
        transport={
            "type": "mqtt",
            "host": "h",
            "username": "pi",
            "password_file": "secret",
            "tls": {"ca": "ca.pem", "certificate": "cert.pem", "key": "key.pem"},
        },
        pipelines=[
            {"name": "a", "model": "model", "source": {"type": "images", "path": "pictures"}},
            {"name": "b", "model": "./model", "source": {"type": "video", "path": "clip.mp4"}},
            {"name": "c", "model": str(base / "model"), "source": {"type": "csv", "path": "/data/tide.csv"}},
            {"name": "d", "model": "model", "source": {"type": "socket", "listen": "unix:s"}},
        ],
    )
    found = parse_config(made, base)
    sources = [pipeline.source for pipeline in found.pipelines]
    assert isinstance(sources[0], ImagesSource)
    assert isinstance(sources[1], VideoSource)
    assert isinstance(sources[2], CsvSource)
    assert isinstance(sources[3], SocketSource)
    assert sources[0].path == str(base / "pictures")
    assert sources[1].path == str(base / "clip.mp4")
    assert sources[2].path == "/data/tide.csv"
    assert sources[3].listen == f"unix:{base / 's'}"
    assert [Path(pipeline.model or "") for pipeline in found.pipelines] == [base / "model"] * 4
    assert found.spool.path == str(base / "var/spool")
    assert isinstance(found.transport, MqttConfig)
    assert found.transport.password_file == str(base / "secret")
    assert found.transport.tls is not None
    assert found.transport.tls.key == str(base / "key.pem")


def test_a_tilde_is_the_home_folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse_config(document(spool={"path": "~/spool"}), base).spool.path == "/home/ada/spool"


def test_what_is_resolved_can_be_resolved_again(base: Path) -> None:
    once = module._resolve(parse_config(document(), base), base)
    assert module._resolve(once, Path("/elsewhere")) == once


def test_two_pipelines_of_one_name_are_an_error_at_the_second(base: Path) -> None:
    made = document()
    made["pipelines"].append(copy.deepcopy(made["pipelines"][0]))
    assert refused(made, base).path == "$.pipelines[1].name"


def test_sixty_four_pipelines_are_the_most(base: Path) -> None:
    one = document()["pipelines"][0]
    made = document(pipelines=[{**one, "name": f"p{at}"} for at in range(64)])
    assert len(parse_config(made, base).pipelines) == 64
    made["pipelines"].append({**one, "name": "more"})
    assert refused(made, base).path == "$.pipelines"


def topic_bytes(prefix: str) -> int:
    return len(f"{prefix}/v1/pi-dock-3/backlog/dock".encode())


def test_topics_have_at_most_256_bytes(base: Path) -> None:
    longest = "p" * (256 - topic_bytes(""))
    assert topic_bytes(longest) == 256
    assert parse_config(document(topic_prefix=longest), base).topic_prefix == longest
    assert refused(document(topic_prefix=longest + "p"), base).path == "$.pipelines[0].name"
    # Bytes, not characters.
    assert refused(document(topic_prefix="é" * (len(longest) // 2 + 1)), base).path == "$.pipelines[0].name"


def test_topics_have_at_most_seven_slashes(base: Path) -> None:
    assert parse_config(document(topic_prefix="a/b/c/d"), base).topic_prefix == "a/b/c/d"
    assert refused(document(topic_prefix="a/b/c/d/e"), base).path == "$.topic_prefix"


@pytest.mark.parametrize("given_keys", [("certificate",), ("key",)])
def test_certificate_and_key_go_together(base: Path, given_keys: tuple[str, ...]) -> None:
    tls = dict.fromkeys(given_keys, "cert.pem")
    error = refused(document(transport={"type": "mqtt", "host": "h", "tls": tls}), base)
    assert error.path == "$.transport.tls"


@pytest.mark.parametrize("key", ["ca", "certificate", "key"])
def test_each_tls_file_must_exist(base: Path, key: str) -> None:
    tls = {"ca": "ca.pem", "certificate": "cert.pem", "key": "key.pem", key: "absent.pem"}
    error = refused(document(transport={"type": "mqtt", "host": "h", "tls": tls}), base)
    assert error.path == f"$.transport.tls.{key}"
    assert "absent.pem" in str(error)


def test_a_password_has_no_place_in_a_configuration(base: Path) -> None:
    assert refused(with_value("transport.password", "hunter2"), base).path == "$.transport"
    assert "hunter2" not in str(refused(with_value("transport.password", "hunter2"), base))


def test_a_configuration_cannot_be_changed(base: Path) -> None:
    made = parse_config(document(), base)
    with pytest.raises(AttributeError):
        made.device = "other"  # type: ignore[misc]


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps])
def test_a_file_may_be_yaml_or_json_and_is_its_own_base(base: Path, dump: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "device.yaml").write_text(dump(document()))
    monkeypatch.chdir(base)
    made = load_config(Path("device.yaml"))
    assert made == parse_config(document(), base)
    assert Path(made.pipelines[0].model or "").is_absolute()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"a: [",
        b"a: b: c",
        b"\x00",
        b"device: 2026-99-99",
        b"device: !!bool perhaps",
        b'device: !!int ""',
        b"device: !!timestamp never",
        b"device: !!python/object/apply:os.getcwd []",
        b"? [a]\n: b",
        b"[" * 20_000,
        b"a: &a\n  b: *c",
        b"---\na: 1\n---\nb: 2\n",
    ],
)
def test_a_file_that_is_not_yaml_is_named(base: Path, data: bytes) -> None:
    (base / "device.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match="is not YAML") as caught:
        load_config(base / "device.yaml")
    assert str(caught.value).startswith(str(base / "device.yaml"))  # no place within it


@pytest.mark.parametrize("data", [b"", b"device: .nan", b"[]", b"~", b"device: &a [*a]", b"1", b"&a {x: *a}"])
def test_a_file_of_yaml_that_is_no_configuration_is_an_error(base: Path, data: bytes) -> None:
    (base / "device.yaml").write_bytes(data)
    with pytest.raises(ConfigError):
        load_config(base / "device.yaml")


def test_a_file_that_is_not_there_or_is_a_folder_is_an_error(base: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(base / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(base)


def test_a_file_too_large_is_not_read(base: Path) -> None:
    with (base / "device.yaml").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than"):
        load_config(base / "device.yaml")


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["images", "5"])
)
KEYS = st.sampled_from(
    ["device", "pipelines", "transport", "type", "path", "name", "model", "source", "host", "tls", "spool", "columns"]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_document_is_a_configuration_or_an_error_with_a_place(base: Path, data: st.DataObject) -> None:
    made = document()
    place = data.draw(st.sampled_from(["", "pipelines", "pipelines.0", "pipelines.0.source", "transport", "spool"]))
    value = data.draw(ANYTHING)
    made = with_value(place, value) if place else value  # type: ignore[assignment]
    try:
        found = parse_config(made, base)
    except ConfigError as error:
        assert error.path.startswith("$")  # noqa: PT017 - both ends are allowed
    else:
        assert isinstance(found, Config)


def test_two_pipelines_do_not_share_a_socket(base: Path) -> None:
    one = {"name": "a", "model": "model", "source": {"type": "socket", "listen": "unix:s"}}
    error = refused(document(pipelines=[one, {**one, "name": "b"}]), base)
    assert error.path == "$.pipelines[1].source.listen"
    free = {"type": "socket", "listen": "tcp:127.0.0.1:0"}
    parse_config(document(pipelines=[{**one, "source": free}, {**one, "name": "b", "source": free}]), base)


@pytest.mark.parametrize(("transport", "port"), [({}, 1883), ({"tls": {}}, 8883), ({"tls": {}, "port": 443}, 443)])
def test_the_port_is_the_usual_one_unless_given(base: Path, transport: dict[str, Any], port: int) -> None:
    made = parse_config(document(transport={"type": "mqtt", "host": "broker.example", **transport}), base)
    assert isinstance(made.transport, MqttConfig)
    assert made.transport.address == ("broker.example", port)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o660])
@pytest.mark.parametrize(
    ("secret", "at"), [("key.pem", "$.transport.tls.key"), ("secret", "$.transport.password_file")]
)
def test_secrets_that_others_can_read_are_refused(base: Path, secret: str, at: str, mode: int) -> None:
    (base / secret).chmod(mode)
    tls = {"ca": "ca.pem", "certificate": "cert.pem", "key": "key.pem"}
    made = document(transport={"type": "mqtt", "host": "h", "username": "pi", "password_file": "secret", "tls": tls})
    error = refused(made, base)
    assert error.path == at
    assert f"chmod 600 {base / secret}" in str(error)
    (base / secret).chmod(0o400)
    assert parse_config(made, base).transport is not None


def test_a_group_may_read_what_only_root_can_change(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = 0o100640
    monkeypatch.setattr(Path, "stat", lambda _path: os.stat_result((mode, 0, 0, 1, 0, 7, 0, 0, 0, 0)))
    assert exposed(base / "key.pem") == ""
    monkeypatch.setattr(Path, "stat", lambda _path: os.stat_result((mode, 0, 0, 1, 1000, 7, 0, 0, 0, 0)))
    assert "chmod 600" in exposed(base / "key.pem")


def test_compressing_needs_batches(base: Path) -> None:
    error = refused(document(transport={"type": "mqtt", "host": "h", "backlog_zstd": True}), base)
    assert (error.path, "backlog_batch_kb" in str(error)) == ("$.transport.backlog_zstd", True)


@pytest.mark.parametrize("protocol", ["auto", "3.1.1", "5", 5])
def test_the_protocol_may_come_as_text_or_number(base: Path, protocol: object) -> None:
    found = parse_config(document(transport={"type": "mqtt", "host": "h", "protocol": protocol}), base)
    assert isinstance(found.transport, MqttConfig)
    assert str(found.transport.protocol) == str(protocol)


def sensor(**source: Any) -> dict[str, Any]:
    return document(pipelines=[{"name": "dock", "model": "model", "source": source}])


REGISTER = {"flow": {"address": 0}}
MQTT = {"type": "mqtt", "host": "h", "topics": [{"topic": "a"}]}


@pytest.mark.parametrize(
    ("source", "at"),
    [
        ({"type": "jsonl"}, ""),
        ({"type": "jsonl", "path": ""}, ".path"),
        ({"type": "jsonl", "path": "f", "time_unit": "us"}, ".time_unit"),
        ({**MQTT, "host": ""}, ".host"),
        ({**MQTT, "host": "x" * 64}, ".host"),
        ({**MQTT, "host": "a b"}, ".host"),
        ({**MQTT, "port": 0}, ".port"),
        ({**MQTT, "topics": []}, ".topics"),
        ({**MQTT, "topics": [{"topic": "a/#/b"}]}, ".topics[0].topic"),
        ({**MQTT, "topics": [{"topic": "a"}, {"topic": "a+"}]}, ".topics[1].topic"),
        ({**MQTT, "topics": [{"topic": "a"}, {"topic": "a"}]}, ".topics[1].topic"),
        ({**MQTT, "topics": [{"topic": "a", "channel": "x", "keys": {"x": "y"}}]}, ".topics[0]"),
        ({**MQTT, "topics": [{"topic": "a", "qos": 3}]}, ".topics[0].qos"),
        ({**MQTT, "password": "swordfish"}, ""),
        ({**MQTT, "password_file": "secret"}, ""),
        ({**MQTT, "tls": {"certificate": "cert.pem"}}, ".tls"),
        ({**MQTT, "tls": {"ca": "absent.pem"}}, ".tls.ca"),
        ({"type": "modbus", "values": REGISTER}, ""),
        ({"type": "modbus", "values": REGISTER, "host": "h", "device": "/dev/x"}, ""),
        ({"type": "modbus", "values": {}, "host": "h"}, ".values"),
        ({"type": "modbus", "values": {"x": {"address": 65536}}, "host": "h"}, ".values[...].address"),
        ({"type": "modbus", "values": {"x": {"address": 65535, "number": "int32"}}, "host": "h"}, ".values.x"),
        ({"type": "modbus", "values": {"x": {"address": 1, "unit": 256}}, "host": "h"}, ".values[...].unit"),
        ({"type": "modbus", "values": REGISTER, "host": "h", "interval_s": 0}, ".interval_s"),
        ({"type": "modbus", "values": REGISTER, "host": "a..b"}, ".host"),
        ({"type": "modbus", "values": REGISTER, "host": "h", "line": {"baud": 19200}}, ".line"),
        ({"type": "modbus", "values": {"x": {"address": 1, "scale": 0}}, "host": "h"}, ".values.x"),
        ({"type": "modbus", "values": {"x": {"address": 1, "offset": float("nan")}}, "host": "h"}, ".values.x"),
        (
            {"type": "modbus", "values": {"x": {"address": 1, "kind": "coil", "words": "little"}}, "host": "h"},
            ".values.x",
        ),
        ({"type": "serial", "device": "/dev/x", "line": {"baud": 1}}, ".line.baud"),
        ({"type": "serial", "device": "/dev/x", "columns": ["a"], "pattern": "(?P<a>.)"}, ""),
        ({"type": "serial", "device": "/dev/x", "separator": ","}, ".separator"),
        ({"type": "serial", "device": "/dev/x", "columns": ["a"], "keys": {"a": "b"}}, ".keys"),
        ({"type": "serial", "device": "/dev/x", "columns": ["a", "", "", "a"]}, ".columns"),
        ({"type": "serial", "device": "/dev/x", "pattern": "(?P<a>"}, ".pattern"),
        ({"type": "serial", "device": "/dev/x", "pattern": "a+"}, ".pattern"),
        ({"type": "sysfs", "values": {"x": {"device": "a", "file": "../name"}}}, ".values[...].file"),
        ({"type": "sysfs", "values": {"x": {"device": "a/b", "file": "name"}}}, ".values[...].device"),
        ({"type": "system", "values": {"x": "vibration"}}, ".values[...]"),
        ({"type": "system", "interval_s": 0.01}, ".interval_s"),
    ],
)
def test_what_is_wrong_with_a_sensor_is_named_with_its_place(base: Path, source: dict[str, Any], at: str) -> None:
    assert refused(sensor(**source), base).path == f"$.pipelines[0].source{at}"


def test_two_clients_of_one_broker_have_ids_of_their_own(base: Path) -> None:
    def made(*ids: str | None, **transport: Any) -> dict[str, Any]:
        found = sensor(**MQTT)
        found["pipelines"] = [
            {"name": f"p{at}", "model": "model", "source": {**MQTT, **({"client_id": one} if one else {})}}
            for at, one in enumerate(ids)
        ]
        return {**found, **({"transport": transport} if transport else {})}

    parse_config(made("a", "b", None, None, type="mqtt", host="h"), base)
    parse_config(made("c", type="mqtt", host="elsewhere", client_id="c"), base)
    assert refused(made("a", "b", "a"), base).path == "$.pipelines[2].source.client_id"
    assert refused(made("c", type="mqtt", host="h", client_id="c"), base).path == "$.pipelines[0].source.client_id"
    device = made()["device"]
    assert refused(made(device, type="mqtt", host="h"), base).path == "$.pipelines[0].source.client_id"


def test_paths_of_sensors_start_from_the_file(base: Path) -> None:
    def made(**source: Any) -> Any:
        return parse_config(sensor(**source), base).pipelines[0].source

    jsonl = made(type="jsonl", path="f.jsonl")
    assert isinstance(jsonl, JsonlSource)
    assert jsonl.path == str(base / "f.jsonl")
    serial = made(type="serial", device="/dev/ttyUSB0", columns=["a"], line={"parity": "even", "stop_bits": "2"})
    assert isinstance(serial, SerialSource)
    assert (serial.device, serial.line.stop_bits) == ("/dev/ttyUSB0", 2)
    modbus = made(type="modbus", device="tty", values={"x": {"address": "7", "scale": "0.1"}})
    assert isinstance(modbus, ModbusSource)
    assert (modbus.device, modbus.values["x"].address) == (str(base / "tty"), 7)
    sysfs = made(type="sysfs", root="tree", values={"x": {"device": "lm75@1-0048", "file": "temp1_input"}})
    assert isinstance(sysfs, SysfsSource)
    assert sysfs.root == str(base / "tree")
    system = made(type="system", disk="data")
    assert isinstance(system, SystemSource)
    assert system.disk == str(base / "data")
    mqtt = made(
        **MQTT, username="pi", password_file="secret", tls={"ca": "ca.pem", "certificate": "cert.pem", "key": "key.pem"}
    )
    assert isinstance(mqtt, MqttSource)
    assert (mqtt.password_file, mqtt.address) == (str(base / "secret"), ("h", 8883))
    assert mqtt.tls is not None
    assert mqtt.tls.key == str(base / "key.pem")


@pytest.mark.parametrize(("secret", "at"), [("key.pem", "tls.key"), ("secret", "password_file")])
def test_secrets_of_a_sensors_broker_that_others_can_read_are_refused(base: Path, secret: str, at: str) -> None:
    (base / secret).chmod(0o644)
    tls = {"certificate": "cert.pem", "key": "key.pem"}
    error = refused(sensor(**MQTT, username="pi", password_file="secret", tls=tls), base)
    assert error.path == f"$.pipelines[0].source.{at}"
    assert f"chmod 600 {base / secret}" in str(error)


@pytest.mark.parametrize(
    ("channel", "at"),
    [
        ({"min": 2, "max": 1}, ".x"),
        ({"min": "low"}, "[...].min"),
        ({"stuck_s": 0}, "[...].stuck_s"),
        ({"max_rate": -1}, "[...].max_rate"),
        ({"stuck_tolerance": 1}, ".x.stuck_tolerance"),
        ({"policy": "drop"}, "[...].policy"),
        ({"minimum": 1}, "[...]"),
    ],
)
def test_what_is_wrong_with_a_channel_is_named_with_its_place(base: Path, channel: dict[str, Any], at: str) -> None:
    made = sensor(type="csv", path="f")
    made["pipelines"][0]["channels"] = {"x": channel}
    assert refused(made, base).path == f"$.pipelines[0].channels{at}"


def test_frames_have_no_channels(base: Path) -> None:
    made = document()
    made["pipelines"][0]["channels"] = {"x": {}}
    assert refused(made, base).path == "$.pipelines[0].channels"
