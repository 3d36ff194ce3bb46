"""What may be asked of the nucleus from outside, by components over the IPC and by users over the control socket."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Literal

import msgspec

from lisiere.errors import ConfigError, LisiereError, Permanent
from lisiere_sim.nucleus.components.deployments import ConfigurationUpdate, Deployment, Deployments, Outcome
from lisiere_sim.nucleus.components.lifecycle import Component
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.ipc.state import ComponentInfo, DeploymentInfo, DeploymentRequest

_log = logging.getLogger("lisiere_sim.nucleus")
_REMEMBERED = 20
_WAITING_MAX = 20
_DETAILS = {
    "SUCCEEDED": "SUCCESSFUL",
    "FAILED": "FAILED_ROLLBACK_NOT_REQUESTED",
    "ROLLED_BACK": "FAILED_ROLLBACK_COMPLETE",
}


class Administration:
    """Components as `ipc.state.Components` wants them, and the deployments that were asked for."""

    def __init__(self, deployments: Deployments, store: ConfigurationStore) -> None:
        self._deployments = deployments
        self._store = store
        self._history: deque[DeploymentInfo] = deque(maxlen=_REMEMBERED)
        self._tasks: set[asyncio.Task[Any]] = set()

    def components(self) -> list[ComponentInfo]:
        """All components, in the order of their names."""
        return [self._info(one) for _, one in sorted(self._deployments.components.items())]

    def details(self, name: str) -> ComponentInfo:
        """One component; KeyError if it is not there."""
        return self._info(self._deployments.components[name])

    def report(self, name: str, state: Literal["RUNNING", "ERRORED"]) -> None:
        """Take what a component says of itself; KeyError if it is not there."""
        self._deployments.components[name].report(state)

    async def restart(self, name: str) -> None:
        """Stop a component and start it anew; those that need it (HARD) stop and come back with it."""
        # A component that restarts itself loses its connection by that, which must not end the restart.
        await asyncio.shield(self._spawn(self._deployments.components[name].restart()))

    async def stop(self, name: str) -> None:
        """Stop a component. It stays deployed."""
        await asyncio.shield(self._spawn(self._deployments.components[name].stop()))

    def deploy(self, request: DeploymentRequest) -> str:
        """Queue a deployment and return its id.

        Raises:
            ConfigError: it is not as it should be, or too many wait.
        """
        if len(self._tasks) >= _WAITING_MAX:
            raise ConfigError(f"{_WAITING_MAX} requests wait already; try again when they are done.")
        wanted = Deployment(
            components=dict(request.root_component_versions_to_add),
            remove=list(request.root_components_to_remove),
            configuration={name: update(part) for name, part in request.component_to_configuration.items()},
            recipes=request.recipe_directory_path,
            artifacts=request.artifacts_directory_path,
            go_back=request.failure_handling_policy == "ROLLBACK",
        )
        self._spawn(self._quietly(wanted))
        return wanted.id

    def deployments(self) -> list[DeploymentInfo]:
        """The deployments that are remembered, the newest first."""
        return list(self._history)

    async def run(self, wanted: Deployment) -> Outcome:
        """Carry a deployment out and remember what came of it.

        Raises:
            LisiereError: the deployment itself is wrong; nothing has changed.
        """
        created = time.time()
        self._remember(DeploymentInfo(wanted.id, "IN_PROGRESS", created))
        try:
            outcome = await self._deployments.deploy(wanted)
        except LisiereError as error:
            self._remember(DeploymentInfo(wanted.id, "FAILED", created, "FAILED_NO_STATE_CHANGE", str(error)))
            raise
        except Exception as error:  # a full disk, or a defect: no deployment stays in progress for ever
            failure = Permanent(f"It failed in the nucleus: {error!r}.")
            self._remember(DeploymentInfo(wanted.id, "FAILED", created, _DETAILS["FAILED"], str(failure)))
            raise failure from error
        status = "SUCCEEDED" if outcome.status == "SUCCEEDED" else "FAILED"
        self._remember(DeploymentInfo(wanted.id, status, created, _DETAILS[outcome.status], outcome.why))
        return outcome

    async def close(self) -> None:
        """End what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _quietly(self, wanted: Deployment) -> None:
        try:
            await self.run(wanted)
        except LisiereError as error:
            _log.error("Deployment %s: FAILED: %s", wanted.id, error)

    def _remember(self, info: DeploymentInfo) -> None:
        others = [one for one in self._history if one.id != info.id]
        self._history = deque([info, *others], maxlen=_REMEMBERED)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _info(self, one: Component) -> ComponentInfo:
        try:
            configuration = self._store.read(one.name)
        except KeyError:
            configuration = {}
        return ComponentInfo(one.name, one.recipe.version, one.state, configuration)


def update(part: Any, path: str = "$") -> ConfigurationUpdate:
    """Return what a deployment changes in a component's configuration; RESET and MERGE are Greengrass's spelling.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    if isinstance(part, dict):
        part = {key.lower() if key in ("MERGE", "RESET") else key: value for key, value in part.items()}
    try:
        return msgspec.convert(part, ConfigurationUpdate)
    except msgspec.ValidationError as error:
        message, _, inner = str(error).partition(" - at `")
        raise ConfigError(f"{message}.", path + inner.rstrip("`").removeprefix("$")) from error
