"""GetSecretValue, from a file of secrets that the user gives. Their values go to who may ask and nowhere else."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from lisiere.documents import read_yaml
from lisiere.errors import ConfigError, Rejected
from lisiere_sim.nucleus.access import Access, Service
from lisiere_sim.nucleus.call import Call, IpcError, Operation

_SERVICE: Service = "aws.greengrass.SecretManager"
_CURRENT = "AWSCURRENT"


class Secret(Struct, forbid_unknown_fields=True, frozen=True, rename="camel"):
    """One version of one secret: a string, or bytes in base64.

    Attributes:
        arn: what accessControl names it by; made of the name where it is not given.
    """

    name: str
    arn: str = ""
    version_id: str = "00000000-0000-0000-0000-000000000001"
    version_stage: str = _CURRENT
    string: str | None = None
    binary: str | None = None

    def __repr__(self) -> str:
        """Say which it is, not what it says."""
        return f"Secret({self.name!r}, {self.version_stage})"


class _File(Struct, forbid_unknown_fields=True):
    secrets: list[Secret] = field(default_factory=list)


def read_secrets(file: Path) -> list[Secret]:
    """Read a YAML file: `secrets`, a list of `name`, `arn`, `versionId`, `versionStage`, `string` or `binary`.

    Raises:
        ConfigError: it cannot be read, or a secret is not as it should be. The message has none of the values.
    """
    try:
        found = msgspec.convert(read_yaml(file), _File).secrets
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file.name}: {error}", "--secrets") from None
    except Rejected:
        # What YAML complains of it also quotes.
        raise ConfigError(f"{file} cannot be read as a YAML file.", "--secrets") from None
    secrets = []
    for secret in found:
        if (secret.string is None) == (secret.binary is None):
            raise ConfigError(f"{file.name}: {secret.name} must have either a string or a binary.", "--secrets")
        try:
            base64.b64decode(secret.binary or "", validate=True)
        except binascii.Error:
            raise ConfigError(f"{file.name}: {secret.name}'s binary is not base64.", "--secrets") from None
        arn = secret.arn or f"arn:aws:secretsmanager:eu-west-1:000000000000:secret:{secret.name}-000000"
        secrets.append(msgspec.structs.replace(secret, arn=arn))
    return secrets


class Secrets:
    """Gives secrets to the components whose accessControl names their ARN."""

    def __init__(self, secrets: list[Secret], access: Access) -> None:
        self._secrets = secrets
        self._access = access

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"GetSecretValue": self._get}

    async def _get(self, call: Call) -> dict[str, Any]:
        asked, version = call.request.get("secretId"), call.request.get("versionId")
        stage = call.request.get("versionStage")
        if not isinstance(asked, str) or not asked:
            raise IpcError("InvalidArgumentsError", "GetSecretValue takes the name or ARN of a secret as secretId.")
        if version and stage:
            raise IpcError("InvalidArgumentsError", "GetSecretValue takes a versionId or a versionStage, not both.")
        known = [secret for secret in self._secrets if asked in (secret.name, secret.arn)]
        # Who may not have it does not learn whether there is such a secret.
        self._access.check(call.component, _SERVICE, call.operation, known[0].arn if known else asked)
        for secret in known:
            if secret.version_id == version if version else secret.version_stage == (stage or _CURRENT):
                value = (
                    {"secretString": secret.string} if secret.string is not None else {"secretBinary": secret.binary}
                )
                return {
                    "secretId": secret.arn,
                    "versionId": secret.version_id,
                    "versionStage": [secret.version_stage],
                    "secretValue": value,
                }
        raise IpcError(
            "ResourceNotFoundError",
            f"There is no secret {asked}" + (f" of version {version or stage}." if version or stage else "."),
        )
