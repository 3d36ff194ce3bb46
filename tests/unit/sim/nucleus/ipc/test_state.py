"""Operations about components, deployments, metrics and secrets, asked by the real SDK client."""

from __future__ import annotations

import base64
import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

from lisiere.errors import ConfigError, Rejected
from lisiere_sim.nucleus.ipc.metrics import Metrics
from lisiere_sim.nucleus.ipc.secrets import Secrets, read_secrets
from lisiere_sim.nucleus.ipc.state import ComponentInfo, DeploymentInfo, DeploymentRequest, StateOperations
from lisiere_sim.nucleus.ipc.updates import ComponentUpdates
from support.nucleus import Ipc, ipc, refused

CLI = "aws.greengrass.Cli"


class Recorded:
    """Components that do nothing but keep what they were asked."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, str]] = []
        self.requests: list[DeploymentRequest] = []

    def components(self) -> list[ComponentInfo]:
        return [ComponentInfo("a", "1.0.0", "RUNNING", {"x": 1}), ComponentInfo("b", "2.0.0", "BROKEN")]

    def details(self, name: str) -> ComponentInfo:
        return {one.name: one for one in self.components()}[name]

    def report(self, name: str, state: Literal["RUNNING", "ERRORED"]) -> None:
        self.details(name)
        self.reported.append((name, state))

    async def restart(self, name: str) -> None:
        if self.details(name).state == "BROKEN":
            raise Rejected("b is BROKEN; deploy it again.")

    async def stop(self, name: str) -> None:
        await self.restart(name)

    def deploy(self, request: DeploymentRequest) -> str:
        if "ghost" in request.root_component_versions_to_add:
            raise ConfigError("There is no recipe of ghost.")
        self.requests.append(request)
        return "d1"

    def deployments(self) -> list[DeploymentInfo]:
        return [DeploymentInfo("d1", "FAILED", 12.5, "FAILED_ROLLBACK_COMPLETE", "b went BROKEN")]


def with_state(nucleus: Ipc) -> Recorded:
    components = Recorded()
    nucleus.operations.update(StateOperations(components, nucleus.access, nucleus.tokens).operations())
    return components


def test_components_are_listed_and_restarted_by_who_may() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        with_state(nucleus)
        for ask in (client.list_components, lambda: client.restart_component(component_name="a")):
            with refused("UnauthorizedError"):
                ask()
        nucleus.allow("a", CLI, ["*"], ["*"])
        assert [(one.component_name, one.version, one.state) for one in client.list_components().components] == [
            ("a", "1.0.0", "RUNNING"),
            ("b", "2.0.0", "BROKEN"),
        ]
        details = client.get_component_details(component_name="a").component_details
        assert (details.component_name, details.configuration) == ("a", {"x": 1})
        with refused("ResourceNotFoundError", "ghost"):
            client.get_component_details(component_name="ghost")
        assert client.restart_component(component_name="a").restart_status == "SUCCEEDED"
        failed = client.restart_component(component_name="b")
        assert (failed.restart_status, failed.message) == ("FAILED", "b is BROKEN; deploy it again.")
        assert client.stop_component(component_name="a").stop_status == "SUCCEEDED"
        with refused("ComponentNotFoundError"):
            client.stop_component(component_name="ghost")


def test_a_right_on_one_component_is_none_on_another() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        with_state(nucleus)
        nucleus.allow("a", CLI, ["RestartComponent"], ["a"])
        client.restart_component(component_name="a")
        with refused("UnauthorizedError", "on resource b"):
            client.restart_component(component_name="b")
        with refused("UnauthorizedError", "#StopComponent"):
            client.stop_component(component_name="a")


def test_a_component_reports_its_state() -> None:
    with ipc() as nucleus, nucleus.client("a") as client, nucleus.client("unknown") as unknown:
        components = with_state(nucleus)
        client.update_state(state="RUNNING")
        client.update_state(state="ERRORED")
        assert components.reported == [("a", "RUNNING"), ("a", "ERRORED")]
        with refused("InvalidArgumentsError", "FINE"):
            client.update_state(state="FINE")
        with refused("ResourceNotFoundError"):
            unknown.update_state(state="RUNNING")


def test_a_component_deploys() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        components = with_state(nucleus)
        nucleus.allow("a", CLI, ["*"], ["*"])
        asked: dict[str, Any] = {
            "root_component_versions_to_add": {"b": "2.1.0"},
            "component_to_configuration": {"b": {"MERGE": {}}},
        }
        assert client.create_local_deployment(**asked, failure_handling_policy="DO_NOTHING").deployment_id == "d1"
        assert components.requests == [DeploymentRequest(**asked, failure_handling_policy="DO_NOTHING")]
        with refused("InvalidArgumentsError", "no recipe of ghost"):
            client.create_local_deployment(root_component_versions_to_add={"ghost": "1.0.0"})
        with refused("InvalidArgumentsError", "failureHandlingPolicy"):
            client.create_local_deployment(failure_handling_policy="SHRUG")
        one = client.get_local_deployment_status(deployment_id="d1").deployment
        assert (one.deployment_id, one.status, one.created_on) == ("d1", "FAILED", "12500")
        assert one.deployment_status_details.detailed_deployment_status == "FAILED_ROLLBACK_COMPLETE"
        assert client.list_local_deployments().local_deployments == [one]
        with refused("ResourceNotFoundError"):
            client.get_local_deployment_status(deployment_id="d2")


def test_a_token_is_one_of_this_nucleus_or_not() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        with_state(nucleus)
        assert client.validate_authorization_token(token=nucleus.token("b")).is_valid is True
        with refused("InvalidTokenError"):
            client.validate_authorization_token(token="made up")


def test_an_update_waits_until_the_component_agrees() -> None:
    heard: queue.Queue[Any] = queue.Queue()
    updates = ComponentUpdates()
    with ipc(more=updates.operations()) as nucleus, nucleus.client("a") as client:
        client.subscribe_to_component_updates(on_stream_event=heard.put)
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(nucleus.loop.call, updates.ask("d1", ["a", "silent"], 5.0))
            for after in (20, 20, 0):
                event = heard.get(timeout=5).pre_update_event
                assert (event.deployment_id, event.is_ggc_restarting) == ("d1", False)
                assert not late.done()
                client.defer_component_update(deployment_id="d1", recheck_after_ms=after)
            assert late.result(5) == []
        nucleus.run(lambda: updates.done("d1", ["a"]))
        assert heard.get(timeout=5).post_update_event.deployment_id == "d1"


def test_a_component_that_does_not_answer_is_updated_all_the_same() -> None:
    updates = ComponentUpdates()
    with ipc(more=updates.operations()) as nucleus, nucleus.client("a") as client:
        client.subscribe_to_component_updates(on_stream_event=print)
        assert nucleus.loop.call(updates.ask("d1", ["a"], 0.02)) == ["a"]


def test_a_component_that_leaves_is_not_waited_for() -> None:
    heard: queue.Queue[Any] = queue.Queue()
    updates = ComponentUpdates()
    with ipc(more=updates.operations()) as nucleus, ThreadPoolExecutor(1) as pool:
        with nucleus.client("a") as client:
            client.subscribe_to_component_updates(on_stream_event=heard.put)
            asked = pool.submit(nucleus.loop.call, updates.ask("d1", ["a"], 60.0))
            heard.get(timeout=5)
        assert asked.result(5) == []


def test_an_update_that_nobody_asked_about_cannot_be_deferred() -> None:
    updates = ComponentUpdates()
    with ipc(more=updates.operations()) as nucleus, nucleus.client("a") as client:
        with refused("InvalidArgumentsError", "subscribe"):
            client.defer_component_update(deployment_id="d1", recheck_after_ms=0)
        client.subscribe_to_component_updates(on_stream_event=print)
        with refused("InvalidArgumentsError", "d1"):
            client.defer_component_update(deployment_id="d1", recheck_after_ms=0)
        with refused("InvalidArgumentsError", "recheckAfterMs"):
            client.defer_component_update(deployment_id="d1", recheck_after_ms=-1)


def test_metrics_are_checked_and_counted() -> None:
    from awsiot.greengrasscoreipc.model import Metric

    metrics = Metrics()
    with ipc(more=metrics.operations()) as nucleus, nucleus.client("a") as client:
        for value in (1, 2):
            client.put_component_metric(metrics=[Metric(name="n", unit="COUNT", value=value)])
        assert (metrics.last["a", "n"].value, metrics.last["a", "n"].count) == (2.0, 2)
        for wrong in (
            [],
            [Metric(name="", unit="COUNT", value=1)],
            [Metric(name="n", unit="FURLONGS", value=1)],
            [Metric(name="n", unit="COUNT", value=-1)],
        ):
            with refused("InvalidArgumentsError"):
                client.put_component_metric(metrics=wrong)
        assert metrics.last["a", "n"].count == 2


def test_a_secret_goes_to_who_may_have_it_and_into_no_log(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yaml"
    binary = base64.b64encode(b"\x00hidden").decode()
    file.write_text(
        "secrets:\n- {name: db, arn: 'arn:db', string: hunter2}\n"
        f"- {{name: db, arn: 'arn:db', versionId: old, versionStage: AWSPREVIOUS, binary: {binary}}}\n"
    )
    with ipc() as nucleus, nucleus.client("a") as client:
        nucleus.operations.update(Secrets(read_secrets(file), nucleus.access).operations())
        nucleus.journal.verbose = True
        for unknown in ("db", "other"):
            with refused("UnauthorizedError"):
                client.get_secret_value(secret_id=unknown)
        nucleus.allow("a", "aws.greengrass.SecretManager", ["GetSecretValue"], ["arn:db"])
        found = client.get_secret_value(secret_id="db")
        assert (found.secret_id, found.version_stage) == ("arn:db", ["AWSCURRENT"])
        assert found.secret_value.secret_string == "hunter2"
        assert client.get_secret_value(secret_id="arn:db", version_id="old").secret_value.secret_binary == b"\x00hidden"
        assert client.get_secret_value(secret_id="db", version_stage="AWSPREVIOUS").version_id == "old"
        with refused("ResourceNotFoundError"):
            client.get_secret_value(secret_id="db", version_id="older")
        said = "\n".join(nucleus.lines) + repr(nucleus.journal.entries)
        assert "GetSecretValue db: ok" in said
        assert "hunter2" not in said
        assert binary not in said


@pytest.mark.parametrize(
    "text",
    [
        "secrets: [{name: db}]",
        "secrets: [{name: db, string: hunter2, binary: aGk=}]",
        "secrets: [{name: db, string: hunter2, colour: red}]",
        "secrets: [{name: db, binary: hunter2hunter2}, {name: x, binary: '%%hunter2'}]",
        "secrets: [hunter2",
        "secrets: {db: hunter2}",
    ],
)
def test_a_wrong_file_of_secrets_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secrets.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_secrets(file)
    assert "hunter2" not in str(caught.value)
    assert "secrets.yaml" in str(caught.value)


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "thinks again"])
def test_a_component_that_has_put_an_update_off_may_leave_or_think_again(leaves: bool) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    updates = ComponentUpdates()
    with ipc(more=updates.operations()) as nucleus, ThreadPoolExecutor(1) as pool:
        with nucleus.client("a") as client:
            client.subscribe_to_component_updates(on_stream_event=heard.put)
            asked = pool.submit(nucleus.loop.call, updates.ask("d1", ["a"], 60.0))
            heard.get(timeout=5)
            client.defer_component_update(deployment_id="d1", recheck_after_ms=20_000)
            assert not asked.done()
            if not leaves:
                client.defer_component_update(deployment_id="d1", recheck_after_ms=0)
                assert asked.result(5) == []
        assert asked.result(5) == []
