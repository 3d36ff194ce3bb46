"""The topics of one device, `<prefix>/v1/<device>/…`; the configuration has checked their length."""

from __future__ import annotations


class Topics:
    """Builds the topics of one device."""

    def __init__(self, prefix: str, device: str) -> None:
        self.base = f"{prefix}/v1/{device}"
        self.status = f"{self.base}/status"
        self.gap = f"{self.base}/gap"
        self.health = f"{self.base}/health"
        self.metrics = f"{self.base}/metrics"
        self.commands = f"{self.base}/cmd/#"

    def live(self, pipeline: str, kind: str = "result") -> str:
        """Where a pipeline's live results go, or its events or scores."""
        return f"{self.base}/{kind}/{pipeline}"

    def backlog(self, pipeline: str) -> str:
        """Where what waited out an outage goes."""
        return f"{self.base}/backlog/{pipeline}"

    def packed(self, pipeline: str) -> str:
        """Where batches of it go that are compressed."""
        return f"{self.backlog(pipeline)}/zstd"

    def reply(self, command: str) -> str:
        """Where a command is answered."""
        return f"{self.base}/reply/{command}"

    def command(self, topic: str) -> str:
        """Return which command a message on a topic below `cmd/` is."""
        return topic.removeprefix(f"{self.base}/cmd/")
