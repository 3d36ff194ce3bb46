"""PublishToIoTCore and SubscribeToIoTCore."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from lisiere_sim.nucleus.access import Access, Service
from lisiere_sim.nucleus.call import Call, IpcError, Operation
from lisiere_sim.nucleus.cloud.iotcore import IotCore
from lisiere_sim.nucleus.cloud.limits import Refused
from lisiere_sim.nucleus.flavour import Flavour

SERVICE: Service = "aws.greengrass.ipc.mqttproxy"


class IotCoreOperations:
    """The operations of the MQTT proxy."""

    def __init__(self, core: IotCore, access: Access, flavour: Flavour) -> None:
        self._core = core
        self._access = access
        self._default_qos = 1 if flavour.spools else 0

    def operations(self) -> dict[str, Operation]:
        """Return them by their short names."""
        return {"PublishToIoTCore": self.publish, "SubscribeToIoTCore": self.subscribe}

    async def publish(self, call: Call) -> dict[str, Any]:
        """Publish. MQTT 5 fields are accepted and not passed on: the broker is spoken to by MQTT 3.1.1."""
        topic, qos = self._topic(call), self._qos(call)
        self._access.check(call.component, SERVICE, call.operation, topic)
        try:
            payload = base64.b64decode(call.request.get("payload") or "", validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise IpcError("InvalidArgumentsError", "`payload` is not base64.") from None
        try:
            await self._core.publish(topic, payload, qos, bool(call.request.get("retain")))
        except Refused as refusal:
            raise IpcError("ServiceError", f"Publish to topic {topic} failed with error {refusal}") from refusal
        return {}

    async def subscribe(self, call: Call) -> dict[str, Any]:
        """Subscribe until the stream closes."""
        topic = self._topic(call)
        self._qos(call)
        self._access.check(call.component, SERVICE, call.operation, topic)

        def forward(name: str, payload: bytes) -> None:
            message = {"topicName": name, "payload": base64.b64encode(payload).decode()}
            call.stream.send("IoTCoreMessage", {"message": message})

        try:
            unsubscribe = await self._core.subscribe(topic, forward)
        except Refused as refusal:
            raise IpcError("ServiceError", f"Subscribe to topic {topic} failed with error {refusal}") from refusal
        call.stream.on_close(unsubscribe)
        return {}

    def _topic(self, call: Call) -> str:
        topic = call.request.get("topicName")
        if not isinstance(topic, str) or not topic:
            raise IpcError("InvalidArgumentsError", "`topicName` is missing.")
        return topic

    def _qos(self, call: Call) -> int:
        qos = call.request.get("qos")
        if qos is None:
            return self._default_qos
        if str(qos) not in ("0", "1"):
            raise IpcError("InvalidArgumentsError", f"`qos` is {qos!r}; IoT Core has 0 and 1.")
        return int(qos)
