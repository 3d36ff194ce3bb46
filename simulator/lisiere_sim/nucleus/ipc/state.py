"""Operations about components and deployments: UpdateState, ListComponents, CreateLocalDeployment and the like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from lisiere.errors import LisiereError
from lisiere_sim.nucleus.access import Access, Service
from lisiere_sim.nucleus.call import Call, IpcError, Operation
from lisiere_sim.nucleus.tokens import Tokens

_CLI: Service = "aws.greengrass.Cli"


@dataclass(frozen=True, slots=True)
class ComponentInfo:
    """What there is to say about one component.

    Attributes:
        state: one of Greengrass's, such as `RUNNING` or `BROKEN`.
    """

    name: str
    version: str
    state: str
    configuration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeploymentInfo:
    """What there is to say about one deployment.

    Attributes:
        status: `QUEUED`, `IN_PROGRESS`, `SUCCEEDED`, `FAILED` or `CANCELED`.
        created: Unix time, seconds.
        detail: one of the SDK's `DetailedDeploymentStatus`, once it is over.
        cause: why it failed; else empty.
    """

    id: str
    status: str
    created: float
    detail: str = ""
    cause: str = ""


class DeploymentRequest(msgspec.Struct, frozen=True, rename="camel"):
    """What CreateLocalDeployment asks for.

    Attributes:
        component_to_configuration: by component, `{"MERGE": {…}, "RESET": ["/pointer", …]}`.
        recipe_directory_path: a folder whose recipes are taken first; likewise the artifacts.
    """

    root_component_versions_to_add: dict[str, str] = {}
    root_components_to_remove: list[str] = []
    component_to_configuration: dict[str, dict[str, Any]] = {}
    recipe_directory_path: str | None = None
    artifacts_directory_path: str | None = None
    failure_handling_policy: Literal["ROLLBACK", "DO_NOTHING"] = "ROLLBACK"
    group_name: str | None = None


class Components(Protocol):
    """What these operations ask of the nucleus. A component that is not there is a KeyError."""

    def components(self) -> list[ComponentInfo]:
        """All components, in the order of their names."""

    def details(self, name: str) -> ComponentInfo:
        """One component."""

    def report(self, name: str, state: Literal["RUNNING", "ERRORED"]) -> None:
        """Take what a component says of itself."""

    async def restart(self, name: str) -> None:
        """Stop and start a component; a LisiereError says why that failed."""

    async def stop(self, name: str) -> None:
        """Stop a component; a LisiereError says why that failed."""

    def deploy(self, request: DeploymentRequest) -> str:
        """Queue a deployment and return its id; a LisiereError says what is wrong with it."""

    def deployments(self) -> list[DeploymentInfo]:
        """The deployments that are remembered, the newest first."""


class StateOperations:
    """What components ask about each other, and what they say about themselves."""

    def __init__(self, components: Components, access: Access, tokens: Tokens) -> None:
        self._components = components
        self._access = access
        self._tokens = tokens

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "UpdateState": self._update_state,
            "ListComponents": self._list,
            "GetComponentDetails": self._details,
            "RestartComponent": self._restart,
            "StopComponent": self._stop,
            "CreateLocalDeployment": self._deploy,
            "GetLocalDeploymentStatus": self._deployment,
            "ListLocalDeployments": self._deployments,
            "ValidateAuthorizationToken": self._validate,
        }

    async def _update_state(self, call: Call) -> dict[str, Any]:
        state = call.request.get("state")
        if state not in ("RUNNING", "ERRORED"):
            raise IpcError("InvalidArgumentsError", f"A component reports RUNNING or ERRORED, not {str(state)[:50]}.")
        try:
            self._components.report(call.component, state)
        except KeyError:
            raise _not_found(call.component) from None
        return {}

    async def _list(self, call: Call) -> dict[str, Any]:
        self._access.check(call.component, _CLI, call.operation, "*")
        return {"components": [_component(one) for one in self._components.components()]}

    async def _details(self, call: Call) -> dict[str, Any]:
        name = self._asked(call)
        try:
            return {"componentDetails": _component(self._components.details(name))}
        except KeyError:
            raise _not_found(name) from None

    async def _restart(self, call: Call) -> dict[str, Any]:
        name = self._asked(call)
        try:
            await self._components.restart(name)
        except KeyError:
            raise _not_found(name, "ComponentNotFoundError") from None
        except LisiereError as error:
            return {"restartStatus": "FAILED", "message": str(error)}
        return {"restartStatus": "SUCCEEDED"}

    async def _stop(self, call: Call) -> dict[str, Any]:
        name = self._asked(call)
        try:
            await self._components.stop(name)
        except KeyError:
            raise _not_found(name, "ComponentNotFoundError") from None
        except LisiereError as error:
            return {"stopStatus": "FAILED", "message": str(error)}
        return {"stopStatus": "SUCCEEDED"}

    async def _deploy(self, call: Call) -> dict[str, Any]:
        self._access.check(call.component, _CLI, call.operation, "*")
        try:
            request = msgspec.convert(call.request, DeploymentRequest)
            return {"deploymentId": self._components.deploy(request)}
        except (msgspec.ValidationError, LisiereError) as error:
            raise IpcError("InvalidArgumentsError", f"This deployment cannot be made: {error}") from None

    async def _deployment(self, call: Call) -> dict[str, Any]:
        self._access.check(call.component, _CLI, call.operation, "*")
        wanted = call.request.get("deploymentId")
        for one in self._components.deployments():
            if one.id == wanted:
                return {"deployment": _deployment(one)}
        raise IpcError("ResourceNotFoundError", f"No deployment is {str(wanted)[:100]}.")

    async def _deployments(self, call: Call) -> dict[str, Any]:
        self._access.check(call.component, _CLI, call.operation, "*")
        return {"localDeployments": [_deployment(one) for one in self._components.deployments()]}

    async def _validate(self, call: Call) -> dict[str, Any]:
        token = call.request.get("token")
        if not isinstance(token, str) or self._tokens.authenticate(token) is None:
            raise IpcError("InvalidTokenError", "The token is not one of this nucleus.")
        return {"isValid": True}

    def _asked(self, call: Call) -> str:
        name = call.request.get("componentName")
        if not isinstance(name, str) or not name:
            raise IpcError("InvalidArgumentsError", f"{call.operation} takes the name of a component as componentName.")
        self._access.check(call.component, _CLI, call.operation, name)
        return name


def _not_found(
    name: str, code: Literal["ComponentNotFoundError", "ResourceNotFoundError"] = "ResourceNotFoundError"
) -> IpcError:
    return IpcError(code, f"No component is {name[:128]}.")


def _component(info: ComponentInfo) -> dict[str, Any]:
    return {
        "componentName": info.name,
        "version": info.version,
        "state": info.state,
        "configuration": info.configuration,
    }


def _deployment(info: DeploymentInfo) -> dict[str, Any]:
    said: dict[str, Any] = {"deploymentId": info.id, "status": info.status, "createdOn": str(int(info.created * 1000))}
    if info.detail:
        details = {"detailedDeploymentStatus": info.detail}
        said["deploymentStatusDetails"] = {**details, **({"deploymentFailureCause": info.cause} if info.cause else {})}
    return said
