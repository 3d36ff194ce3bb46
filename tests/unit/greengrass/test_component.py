"""The component against a real IPC server: it starts, changes, suffers and ends as a nucleus would have it."""

from __future__ import annotations

import base64
import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest

from lisiere.clock import SystemClock
from lisiere.errors import ConfigError, LisiereError
from lisiere.greengrass import Component
from lisiere.ipc import Environment, Nucleus, NucleusLost
from lisiere.schema import json_schema
from lisiere.spool import SpoolReader
from lisiere_sim.nucleus.call import Call, IpcError, Operation
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from support import tiny
from support.brokers import free_port
from support.nucleus import THING, Ipc, ipc

NAME = "io.lisiere.EdgeInference"
BASE = f"lisiere/v1/{THING}"
POLICY = {"operations": ["aws.greengrass#PublishToIoTCore"]}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are gathered for a moment only, and what failed is tried again at once."""
    monkeypatch.setattr("lisiere.greengrass.component._DEBOUNCE_S", 0.05)
    monkeypatch.setattr("lisiere.supervisor._FIRST_WAIT_S", 0.1)


@pytest.fixture(params=[CLASSIC, LITE], ids=["classic", "lite"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.param
    return found


@pytest.fixture
def classic() -> Iterator[Ipc]:
    with ipc(CLASSIC) as running:
        yield running


@pytest.fixture
def lite() -> Iterator[Ipc]:
    with ipc(LITE) as running:
        yield running


@pytest.fixture
def nucleus(flavour: Flavour) -> Iterator[Ipc]:
    with ipc(flavour) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.classifier(tmp_path / "trees")
    tiny.forecaster(tmp_path / "tide")
    (tmp_path / "photos").mkdir()
    for at in range(3):
        cv2.imwrite(str(tmp_path / "photos" / f"{at}.png"), np.full((10, 10, 3), 40 * at, np.uint8))
    return tmp_path


def pipeline(name: str = "photos", **changes: Any) -> dict[str, Any]:
    source = {"type": "images", "path": "photos", "loop": "true", "fps": "50"}
    return {"name": name, "source": source, "model": "trees", "threads": "1", **changes}


def configuration(*pipelines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    quick = {"retry_max_s": "1", "health_interval_s": "0.2", "stop_drain_s": "0.3"}
    return {"pipelines": list(pipelines), **quick, **changes}


def wait(condition: Callable[[], Any], seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return found


class Running:
    """A component in a thread, with a work folder, stopped at the end whatever happens."""

    def __init__(self, nucleus: Ipc, folder: Path, document: dict[str, Any]) -> None:
        self.nucleus = nucleus
        self.merge(document)
        environment = Environment.read(nucleus.environment(NAME))
        self.component = Component(Nucleus(environment, 5), SystemClock(), folder)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.component.run()
        except LisiereError as error:
            self.error = error

    def merge(self, document: dict[str, Any]) -> None:
        """What a deployment does."""

        def work() -> None:
            for key, value in document.items():
                self.nucleus.store.merge(NAME, (key,), value, time.time())

        self.nucleus.run(work)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.component.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def of(self, topic: str) -> list[dict[str, Any]]:
        found = list(self.nucleus.cloud.published)
        return [json.loads(payload) for name, payload in found if name == f"{BASE}/{topic}"]


def test_it_takes_its_configuration_and_tells_that_it_runs(nucleus: Ipc, folder: Path) -> None:
    with Running(nucleus, folder, configuration(pipeline())) as running:
        wait(lambda: (NAME, "RUNNING") in nucleus.cloud.states)
        wait(lambda: len(running.of("result/photos")) > 5)
    assert running.error is None
    assert [message["state"] for message in running.of("status")] == ["online", "stopped"]
    result = running.of("result/photos")[0]
    assert (result["device"], result["model"]["name"]) == (THING, "tiny")
    reader = SpoolReader(folder / "spool")
    counts, waiting = reader.counts()["photos"], reader.waiting()
    reader.close()
    assert counts.accepted == counts.acknowledged
    assert waiting == {}


def test_without_a_configuration_it_says_so_and_ends(nucleus: Ipc, folder: Path) -> None:
    with Running(nucleus, folder, {}) as running:
        running.thread.join(15)
    assert isinstance(running.error, ConfigError)
    assert "no configuration" in str(running.error)
    assert nucleus.cloud.states == [(NAME, "ERRORED")]


def test_a_changed_configuration_takes_over_and_nothing_is_lost(classic: Ipc, folder: Path) -> None:
    with Running(classic, folder, configuration(pipeline())) as running:
        wait(lambda: len(running.of("result/photos")) > 3)
        running.merge(configuration(pipeline("yard")))
        wait(lambda: len(running.of("result/yard")) > 3)
    assert [message["state"] for message in running.of("status")] == ["online", "online", "stopped"]
    delivered = running.of("result/photos") + running.of("backlog/photos") + running.of("result/yard")
    delivered += running.of("backlog/yard")
    whole(delivered)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"colour": "red"}, "colour"),
        (configuration(pipeline(model="nowhere")), "nowhere"),
        (configuration(pipeline(model="tide")), "The source gives frames"),
    ],
)
def test_a_bad_change_is_refused_and_what_runs_goes_on(
    folder: Path, change: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ipc() as nucleus, Running(nucleus, folder, configuration(pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        running.merge(change)
        health = wait(lambda: [one for one in running.of("health") if one["configuration_failure"]])[0]
        assert why in health["configuration_failure"]
        assert health["state"] == "degraded"
        before = len(running.of("result/photos"))
        wait(lambda: len(running.of("result/photos")) > before + 3)
        assert len(running.of("status")) == 1
        # Told once for each configuration, or who tries again would look for an answer in vain.
        running.merge({"health_interval_s": "0.3"})
        wait(lambda: sum("is refused" in record.message for record in caplog.records) == 2)
    assert sum("is refused" in record.message for record in caplog.records) == 2


def test_a_change_that_cannot_start_gives_way_to_what_ran(folder: Path) -> None:
    """Checked and found good, it still fails when its spool is opened."""
    (folder / "bad" / "spool.db").mkdir(parents=True)
    with ipc() as nucleus, Running(nucleus, folder, configuration(pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        running.merge({"spool": {"path": "bad"}})
        health = wait(lambda: [one for one in running.of("health") if one["configuration_failure"]])[0]
        assert "bad/spool.db cannot be used" in health["configuration_failure"]
        before = len(running.of("result/photos"))
        wait(lambda: len(running.of("result/photos")) > before + 3)
    assert running.error is None


def test_when_nothing_can_run_it_is_errored_with_the_reason(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "trees" / "labels.txt").unlink()
    with ipc() as nucleus, Running(nucleus, folder, configuration(pipeline())) as running:
        running.thread.join(15)
        assert nucleus.cloud.states == [(NAME, "ERRORED")]
    assert "labels.txt" in str(running.error)
    assert any("labels.txt" in record.message for record in caplog.records)


def test_one_bad_model_does_not_keep_the_others_from_running(folder: Path) -> None:
    (folder / "tide" / "model.onnx").write_bytes(b"tampered")
    tide = {"name": "tide", "source": {"type": "csv", "path": "tide.csv"}, "model": "tide"}
    with ipc() as nucleus, Running(nucleus, folder, configuration(tide, pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        assert nucleus.cloud.states == [(NAME, "RUNNING")]
        wait(lambda: running.of("health"))
    assert "model.onnx" in running.of("health")[0]["pipelines"]["tide"]["why"]


def test_while_the_cloud_is_away_results_wait_and_then_arrive(nucleus: Ipc, folder: Path) -> None:
    nucleus.cloud.outcome = IpcError("ServiceError", "Failed to publish")
    with Running(nucleus, folder, configuration(pipeline())) as running:
        wait(lambda: (NAME, "RUNNING") in nucleus.cloud.states)
        wait(lambda: waiting(folder) > 20)
        assert running.of("result/photos") == []
        nucleus.cloud.outcome = None
        wait(lambda: len(running.of("backlog/photos")) > 20)
    whole(running.of("backlog/photos") + running.of("result/photos"))


def whole(delivered: list[dict[str, Any]]) -> None:
    """Every seq has come; more than once is allowed."""
    found = {message["seq"] for message in delivered}
    assert found == set(range(1, max(found) + 1))


def waiting(folder: Path) -> int:
    if not (folder / "spool" / "spool.db").exists():
        return 0
    reader = SpoolReader(folder / "spool")
    try:
        return reader.waiting().get("photos", 0)
    finally:
        reader.close()


def guarded(nucleus: Ipc) -> None:
    """Have the test's cloud ask the policies, as the nucleus does."""

    def ask(name: str, operation: Operation) -> None:
        async def checked(call: Call) -> dict[str, Any]:
            topic = call.request["topicName"]
            nucleus.access.check(call.component, "aws.greengrass.ipc.mqttproxy", call.operation, topic)
            return await operation(call)

        nucleus.operations[name] = checked

    for name in ("PublishToIoTCore", "SubscribeToIoTCore"):
        ask(name, nucleus.operations[name])


def test_without_a_policy_it_spools_and_says_so_until_a_deployment_allows_it(
    nucleus: Ipc, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guarded(nucleus)
    with Running(nucleus, folder, configuration(pipeline())) as running:
        wait(lambda: (NAME, "RUNNING") in nucleus.cloud.states)
        wait(lambda: waiting(folder) > 5)
        runtime = running.component._running.runtime
        failure = wait(lambda: runtime.reports.delivery_failure())
        for part in ("PublishToIoTCore", f"{BASE}/", "aws.greengrass.ipc.mqttproxy", "accessControl"):
            assert part in failure
        assert runtime.reports.health_message(runtime._spool).state == "degraded"
        nucleus.allow(NAME, "aws.greengrass.ipc.mqttproxy", ["PublishToIoTCore"], [f"{BASE}/*"])
        wait(lambda: len(running.of("backlog/photos")) > 5)
        wait(lambda: runtime.reports.delivery_failure() is None)
        assert running.component._running.runtime is runtime, "the pipelines were started anew for it"
    whole(running.of("backlog/photos") + running.of("result/photos"))
    said = [record.message for record in caplog.records if "does not allow PublishToIoTCore" in record.message]
    assert 2 <= len(said) <= 4, "of the status and of results, each the first time and at most the tenth"


def test_a_policy_that_goes_and_comes_back_costs_nothing_and_is_tried_at_once(
    classic: Ipc, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lisiere.supervisor._FIRST_WAIT_S", 3600.0)  # only being hurried can end a wait
    guarded(classic)
    service = "aws.greengrass.ipc.mqttproxy"
    classic.allow(NAME, service, ["PublishToIoTCore"], [f"{BASE}/*"])
    with Running(classic, folder, configuration(pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        running.merge({"accessControl": {service: {f"{NAME}:{service}:1": {**POLICY, "resources": ["none"]}}}})
        reports = running.component._running.runtime.reports
        wait(reports.delivery_failure)
        wait(lambda: waiting(folder) > 5)
        before = len(running.of("status"))
        running.merge({"accessControl": {service: {f"{NAME}:{service}:1": {**POLICY, "resources": [f"{BASE}/*"]}}}})
        wait(lambda: len(running.of("status")) > before)
        wait(lambda: reports.delivery_failure() is None)
    whole(running.of("backlog/photos") + running.of("result/photos"))


def test_a_topic_that_is_not_allowed_holds_up_no_other(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As with the accessControl of AWS's sample, which has its own topic alone."""
    with ipc() as nucleus:
        guarded(nucleus)
        nucleus.allow(NAME, "aws.greengrass.ipc.mqttproxy", ["PublishToIoTCore"], ["ml/dlr/x", f"{BASE}/health"])
        sample = pipeline("sample", output="aws-dlr", publish_topic="ml/dlr/x")
        with Running(nucleus, folder, configuration(pipeline(), sample)) as running:
            wait(lambda: sum(topic == "ml/dlr/x" for topic, _ in list(nucleus.cloud.published)) > 30)
            health = wait(lambda: [one for one in running.of("health") if one["delivery_failure"]])[0]
            assert "PublishToIoTCore" in health["delivery_failure"]
            assert waiting(folder) > 10
            nucleus.allow(NAME, "aws.greengrass.ipc.mqttproxy", ["PublishToIoTCore"], ["*"])
            wait(lambda: len(running.of("backlog/photos")) > 10)
    assert running.error is None


def test_a_result_too_large_for_nucleus_lite_is_told_in_a_gap_and_holds_up_no_other(lite: Ipc, folder: Path) -> None:
    tiny.forecaster(folder / "far", horizon=300)
    (folder / "tide.csv").write_text("time,level\n" + "\n".join(f"{1_700_000_000 + at},{at}" for at in range(6)))
    far = {"name": "far", "source": {"type": "csv", "path": "tide.csv"}, "model": "far"}
    with Running(lite, folder, configuration(far, pipeline())) as running:
        gap = wait(lambda: running.of("gap"))[0]
        before = len(running.of("result/photos"))
        wait(lambda: len(running.of("result/photos")) > before + 3)
    assert (gap["reason"], gap["counts"]) == ("too_large", {"far": 1})
    jsonschema.validate(gap, json_schema("gap"))
    assert running.of("result/far") == running.of("backlog/far") == []


def test_the_keys_of_awss_sample_run_and_its_message_comes(lite: Ipc, folder: Path) -> None:
    sample = {
        "ImageDirectory": "photos",
        "ImageName": "1.png",
        "InferenceInterval": "0.02",
        "ModelResourceKey": {platform.machine(): "trees"},
        "PublishResultsOnTopic": "ml/dlr/x",
    }
    with Running(lite, folder, sample) as running:
        wait(lambda: sum(topic == "ml/dlr/x" for topic, _ in list(lite.cloud.published)) > 3)
        assert running.component._running.config.pipelines[0].output == "aws-dlr"
    message = next(json.loads(payload) for topic, payload in lite.cloud.published if topic == "ml/dlr/x")
    jsonschema.validate(message, json_schema("aws-dlr"))
    assert waiting(folder) == 0


def test_direct_mqtt_works_in_a_component_too(classic: Ipc, folder: Path) -> None:
    transport = {"type": "mqtt", "host": "127.0.0.1", "port": str(free_port())}
    with Running(classic, folder, configuration(pipeline(), transport=transport)) as running:
        wait(lambda: (NAME, "RUNNING") in classic.cloud.states)
        failure = wait(lambda: running.component._running.runtime.reports.delivery_failure())
        assert "The broker 127.0.0.1" in failure
    assert classic.cloud.published == []


def test_the_end_of_the_subscription_is_heard_and_changes_are_still_seen(classic: Ipc, folder: Path) -> None:
    with Running(classic, folder, configuration(pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        running.component._unwatched()
        wait(lambda: running.component._watching)
        running.merge(configuration(pipeline("yard")))
        wait(lambda: running.of("result/yard"))


def test_a_lost_connection_is_made_again_with_the_same_token(classic: Ipc, folder: Path) -> None:
    with Running(classic, folder, configuration(pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        classic.run(lambda: classic.server.disconnect(NAME))
        wait(lambda: len(running.of("status")) == 2)
        wait(lambda: classic.cloud.states.count((NAME, "RUNNING")) == 2)
        running.merge(configuration(pipeline("yard")))
        wait(lambda: running.of("result/yard"))
    assert running.error is None
    messages = [json.loads(payload) for topic, payload in classic.cloud.published if "/result/" in topic]
    messages += [json.loads(payload) for topic, payload in classic.cloud.published if "/backlog/" in topic]
    whole(messages)


def test_a_token_that_is_worth_nothing_any_more_ends_it(folder: Path) -> None:
    with ipc() as nucleus, Running(nucleus, folder, configuration(pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        nucleus.run(lambda: nucleus.tokens.revoke(NAME))
        nucleus.run(lambda: nucleus.server.disconnect(NAME))
        running.thread.join(15)
        assert isinstance(running.error, NucleusLost)
        assert nucleus.token(NAME) not in str(running.error)
    reader = SpoolReader(folder / "spool")
    counts, left = reader.counts()["photos"], reader.waiting().get("photos", 0)
    reader.close()
    assert counts.accepted == counts.acknowledged + left


def test_a_nucleus_that_stays_away_is_waited_for_as_long_as_was_said(folder: Path) -> None:
    transport = {"type": "greengrass", "reconnect_s": "0.3"}
    with ipc() as nucleus, Running(nucleus, folder, configuration(pipeline(), transport=transport)) as running:
        wait(lambda: running.of("result/photos"))
        nucleus.loop.call(nucleus.server.stop())
        running.thread.join(15)
    assert isinstance(running.error, NucleusLost)
    assert "0.3 s" in str(running.error)


def test_a_stop_while_the_cloud_is_away_is_quick(folder: Path) -> None:
    with ipc() as nucleus, Running(nucleus, folder, configuration(pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        nucleus.cloud.outcome = IpcError("ServiceError", "offline")
        wait(lambda: waiting(folder) > 5)
        began = time.monotonic()
        running.component.stop()
        running.thread.join(15)
        assert time.monotonic() - began < 8
    assert waiting(folder) > 5


def test_commands_are_answered(lite: Ipc, folder: Path) -> None:
    with Running(lite, folder, configuration(pipeline())) as running:
        wait(lambda: running.of("result/photos"))
        for name in ("ping", "health", "metrics", "dance"):
            lite.run(partial(lite.cloud.deliver, f"{BASE}/cmd/{name}", b'{"id": "7"}'))
            wait(partial(running.of, f"reply/{name}"))
        assert running.of("reply/ping")[0]["id"] == "7"
        assert running.of("reply/health")[0]["answer"]["pipelines"]["photos"]["state"] == "running"
        assert running.of("reply/dance")[0]["done"] is False


def test_results_go_to_other_components_too(lite: Ipc, folder: Path) -> None:
    nucleus = lite
    transport = {"type": "greengrass", "publish_locally": "true"}
    nucleus.allow(NAME, "aws.greengrass.ipc.pubsub", ["PublishToTopic"], [f"{BASE}/result/*"])
    nucleus.allow("reader", "aws.greengrass.ipc.pubsub", ["SubscribeToTopic"], ["*"])
    nucleus.cloud.outcome = IpcError("ServiceError", "the cloud is away, the device is not")
    heard: list[dict[str, Any]] = []
    with nucleus.client("reader") as reader:
        _, stream = reader.subscribe_to_topic(
            topic=f"{BASE}/result/photos",
            on_stream_event=lambda event: heard.append(json.loads(event.binary_message.message)),
            on_stream_error=lambda _error: True,
            on_stream_closed=lambda: None,
        )
        with Running(nucleus, folder, configuration(pipeline(), transport=transport)) as running:
            wait(lambda: len(heard) > 5)
            local = running.component._running.runtime.reports.local()
        stream.close()
    assert [message["seq"] for message in heard[:6]] == list(range(1, 7))
    assert local["published"] > 0
    assert "failed" not in local


def test_what_runs_is_in_the_shadow(folder: Path) -> None:
    shadows: list[dict[str, Any]] = []

    async def update(call: Call) -> dict[str, Any]:
        assert (call.request["thingName"], call.request["shadowName"]) == (THING, "lisiere")
        shadows.append(json.loads(base64.b64decode(call.request["payload"]))["state"]["reported"])
        return {"payload": call.request["payload"]}

    with ipc(more={"UpdateThingShadow": update}) as nucleus, Running(nucleus, folder, configuration(pipeline())):
        told = wait(lambda: shadows)[0]
    assert told["configuration"] == {"state": "accepted", "why": ""}
    photos = told["pipelines"]["photos"]
    assert (photos["model"], photos["version"], photos["backend"]) == ("tiny", "1.0.0", "onnx")
    assert photos["digest"].startswith("sha256:")


def test_without_a_nucleus_it_gives_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lisiere.greengrass.component._BEGIN_S", 0.0)
    component = Component(Nucleus(Environment(str(folder / "none"), "x")), SystemClock(), folder)
    with pytest.raises(NucleusLost, match="cannot be reached"):
        component.run()
