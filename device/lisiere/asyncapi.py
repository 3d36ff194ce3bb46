"""The AsyncAPI document: which topics there are, who sends on them, and by which schema.

`docs/contract/asyncapi.yaml` holds what this makes. The topics are those that the device uses, and the schemas those
of `lisiere.schema`; tests hold both against the messages of a real run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lisiere.sync.topics import Topics

_SCHEMA_FORMAT = "application/schema+json;version=2020-12"
_PARAMETERS = {
    "prefix": {"description": "`topic_prefix` of the configuration.", "default": "lisiere"},
    "device": {"description": "The device's name: `device` of the configuration, or the thing's name."},
    "pipeline": {"description": "The pipeline's name."},
    "command": {"description": "What is asked for.", "enum": ["ping", "health", "metrics", "ack", "infer"]},
}


@dataclass(frozen=True, slots=True)
class Channel:
    """One topic as the device uses it.

    Attributes:
        address: the topic, with what differs in braces.
        document: the name of its schema in docs/contract.
        action: what the device does: `send` or `receive`.
        says: what it is for.
        qos: at which quality of service it is sent.
        retain: whether the broker keeps the last one.
    """

    address: str
    document: str
    action: str
    says: str
    qos: int = 1
    retain: bool = False


def channels() -> dict[str, Channel]:
    """Return every topic that the device sends on or listens to, by a name of its own."""
    topics = Topics("{prefix}", "{device}")
    backlog = topics.backlog("{pipeline}")
    command = topics.commands.replace("#", "{command}")
    live = "A result as soon as it is on disk. At least once, in the order of `seq`: deduplicate by `id`."
    late = "A result that waited out an outage or a restart: the same envelope, with `replay` true."
    event = "Something that lasts begins, changes or ends: a label, an alarm. Numbered with the results."
    score = "How a forecast did when its time came. Numbered with the results."
    batch = (
        "Many results of the backlog in one message, where `backlog_batch_kb` is set. Deduplicate by the `id` inside."
    )
    packed = "The same, compressed by zstd, where `backlog_zstd` is set."
    ack = "What a consumer has taken for good, where `consumer_ack` is set; never retained."
    infer = "Lets a pipeline's model see the next frame; never retained. The result names the command."
    gap = "What was never delivered, and why, so that every hole in `seq` is explained. At least once."
    status = "`online` at birth, `stopped` after a clean stop, `offline` by the broker's will."
    return {
        "result": Channel(topics.live("{pipeline}"), "result", "send", live),
        "event": Channel(topics.live("{pipeline}", "event"), "event", "send", event),
        "score": Channel(topics.live("{pipeline}", "score"), "score", "send", score),
        "backlog": Channel(backlog, "result", "send", late),
        "late_event": Channel(backlog, "event", "send", "An event that waited out an outage or a restart."),
        "late_score": Channel(backlog, "score", "send", "A score that waited out an outage or a restart."),
        "batch": Channel(backlog, "batch", "send", batch),
        "packed": Channel(topics.packed("{pipeline}"), "batch", "send", packed),
        "gap": Channel(topics.gap, "gap", "send", gap),
        "status": Channel(topics.status, "status", "send", status, retain=True),
        "health": Channel(topics.health, "health", "send", "States, counters and failures, from time to time.", 0),
        "metrics": Channel(topics.metrics, "metrics", "send", "Figures over the last interval.", 0),
        "command": Channel(command, "command", "receive", "Asks the device for something; never retained."),
        "ack": Channel(topics.commands.replace("#", "ack"), "ack", "receive", ack),
        "infer": Channel(topics.commands.replace("#", "infer"), "infer", "receive", infer),
        "reply": Channel(topics.reply("{command}"), "reply", "send", "The answer, with the `id` of the command."),
    }


def asyncapi() -> dict[str, Any]:
    """Return the document, AsyncAPI 3.0."""
    found = channels()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Lisière",
            "version": "1",
            "description": "What devices tell over MQTT. Numbers are numbers, and times are RFC 3339 in UTC. A message "
            "whose `schema` ends in another number than here is of another contract.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(channel) for name, channel in found.items()},
        "operations": {
            f"{channel.action}_{name}": {
                "action": channel.action,
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": channel.says,
                "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.retain, "bindingVersion": "0.2.0"}},
            }
            for name, channel in found.items()
        },
        "components": {
            "messages": {
                document: {
                    "name": document,
                    "contentType": "application/json",
                    "payload": {
                        "schemaFormat": _SCHEMA_FORMAT,
                        "schema": {"$ref": f"./{document}.schema.json"},
                    },
                }
                for document in dict.fromkeys(channel.document for channel in found.values())
            }
        },
    }


def _channel(channel: Channel) -> dict[str, Any]:
    return {
        "address": channel.address,
        "description": channel.says,
        "parameters": {name: about for name, about in _PARAMETERS.items() if f"{{{name}}}" in channel.address},
        "messages": {channel.document: {"$ref": f"#/components/messages/{channel.document}"}},
    }
