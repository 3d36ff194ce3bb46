"""The two nuclei: classic (Java) and lite (C). What differs between them stands here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["classic", "lite"]


@dataclass(frozen=True, slots=True)
class Flavour:
    """How one nucleus behaves.

    Attributes:
        version: what `GGC_VERSION` says.
        socket: the name of the components' socket, by which a component can tell lite from classic.
        needs_runtime: whether a manifest applies only when its platform names a `runtime` (`*` or this one's).
        yaml_scalars_are_strings: whether numbers, booleans and null of a YAML recipe arrive as strings.
        ipc_payload_max: bytes of an IPC message's payload.
        in_flight: unacknowledged publishes to IoT Core at most; lite refuses what is more.
        opens_connections: whether a further connection takes the subscriptions that IoT Core allows none for any more.
        spools: whether what cannot be sent to IoT Core waits in a spooler; else it is refused.
        runs_shutdown: whether `shutdown`, `recover` and `Skipif` are heeded; else stopping is SIGTERM alone.
        finishes_install_only: whether a component without `run` and `startup` reaches FINISHED.
        crosses_components: whether `{OTHER.COMPONENT:artifacts:path}` is known.
        unpacks_local_artifacts: whether a local deployment unzips artifacts.
        path_suffix: what `{artifacts:path}` ends with.
        message_key: under which key an error's body has its sentence.
        shadows: whether there is a shadow manager.
        pubsub_filters: whether `+` and `#` are wildcards in the resources of aws.greengrass.ipc.pubsub; `*` always is.
        fills_in_configuration: whether `{iot:thingName}` in accessControl becomes the thing's name. The classic nucleus
            does that where its interpolateComponentConfiguration is on, as AWS recommends, and lite never.
        every_brace_is_a_variable: whether a script's `{` must begin a variable; else braces that are none stay.
        receive_modes: whether SubscribeToTopic heeds `receiveMode`; else a component gets its own messages too.
    """

    name: Name
    version: str
    socket: str
    runtime: str
    needs_runtime: bool
    yaml_scalars_are_strings: bool
    ipc_payload_max: int
    in_flight: int
    opens_connections: bool
    spools: bool
    runs_shutdown: bool
    finishes_install_only: bool
    crosses_components: bool
    unpacks_local_artifacts: bool
    path_suffix: str
    message_key: str
    shadows: bool
    pubsub_filters: bool
    fills_in_configuration: bool
    every_brace_is_a_variable: bool
    receive_modes: bool


CLASSIC = Flavour(
    name="classic",
    version="2.15.0",
    socket="ipc.socket",
    runtime="aws_nucleus_classic",
    needs_runtime=False,
    yaml_scalars_are_strings=False,
    ipc_payload_max=10 * 1024 * 1024,
    in_flight=5,
    opens_connections=True,
    spools=True,
    runs_shutdown=True,
    finishes_install_only=True,
    crosses_components=True,
    unpacks_local_artifacts=True,
    path_suffix="",
    message_key="message",
    shadows=True,
    pubsub_filters=True,
    fills_in_configuration=True,
    every_brace_is_a_variable=False,
    receive_modes=True,
)
LITE = Flavour(
    name="lite",
    version="2.6.0",
    socket="gg-ipc.socket",
    runtime="aws_nucleus_lite",
    needs_runtime=True,
    yaml_scalars_are_strings=True,
    ipc_payload_max=10_000,
    in_flight=10,
    opens_connections=False,
    spools=False,
    runs_shutdown=False,
    finishes_install_only=False,
    crosses_components=False,
    unpacks_local_artifacts=False,
    path_suffix="/",
    message_key="_message",
    shadows=False,
    pubsub_filters=False,
    fills_in_configuration=False,
    every_brace_is_a_variable=True,
    receive_modes=False,
)
FLAVOURS: dict[str, Flavour] = {flavour.name: flavour for flavour in (CLASSIC, LITE)}
