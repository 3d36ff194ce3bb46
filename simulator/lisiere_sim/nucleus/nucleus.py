"""The nucleus: everything that a component needs around it, wired together, started and stopped in order."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import logging.handlers
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lisiere.errors import ConfigError
from lisiere_sim.broker import choose_broker
from lisiere_sim.nucleus.access import Access
from lisiere_sim.nucleus.administration import Administration
from lisiere_sim.nucleus.call import Operation
from lisiere_sim.nucleus.cloud.iotcore import IotCore
from lisiere_sim.nucleus.cloud.limits import Limits
from lisiere_sim.nucleus.cloud.mqtt import MqttSettings
from lisiere_sim.nucleus.components.deployments import Deployment, Deployments
from lisiere_sim.nucleus.components.lifecycle import Patience
from lisiere_sim.nucleus.components.packages import Packages
from lisiere_sim.nucleus.components.surroundings import Settings, Surroundings
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.control import Command, Control
from lisiere_sim.nucleus.flavour import CLASSIC, Flavour
from lisiere_sim.nucleus.ipc.configuration import ConfigurationOperations
from lisiere_sim.nucleus.ipc.iotcore import IotCoreOperations
from lisiere_sim.nucleus.ipc.journal import Journal
from lisiere_sim.nucleus.ipc.metrics import Metrics
from lisiere_sim.nucleus.ipc.pubsub import PubSub
from lisiere_sim.nucleus.ipc.secrets import Secret, Secrets
from lisiere_sim.nucleus.ipc.server import IpcServer
from lisiere_sim.nucleus.ipc.shadow import ShadowOperations
from lisiere_sim.nucleus.ipc.state import StateOperations
from lisiere_sim.nucleus.ipc.updates import ComponentUpdates
from lisiere_sim.nucleus.layout import Layout
from lisiere_sim.nucleus.logs import FILE_BYTES
from lisiere_sim.nucleus.shadows import Shadows
from lisiere_sim.nucleus.tokens import Tokens

_log = logging.getLogger("lisiere_sim.nucleus")
_ANSWERED_S = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """How a nucleus is to be.

    Attributes:
        broker: `embedded`, `mosquitto` or HOST:PORT.
        disk_spooler: whether what waits for IoT Core outlives the nucleus; for a flavour that spools.
        settle: seconds that new components must stay up for a deployment to have succeeded.
    """

    root: Path
    flavour: Flavour = CLASSIC
    broker: str = "embedded"
    settings: Settings = field(default_factory=Settings)
    patience: Patience = field(default_factory=Patience)
    limits: Limits = field(default_factory=Limits)
    disk_spooler: bool = False
    settle: float = 2.0
    log_ipc: bool = False
    secrets: Sequence[Secret] = ()


class Nucleus:
    """A nucleus in one folder. `start`, then `administration.run`; `stop` ends all that it has started.

    Args:
        options: how it is to be.
        on_stop: called when somebody asks by the control socket for the nucleus to stop.
    """

    def __init__(self, options: Options, on_stop: Callable[[], None] = lambda: None) -> None:
        self.options = options
        self.layout = Layout(options.root, options.flavour)
        self.store = ConfigurationStore(self.layout.config / "configuration.json")
        self.shadows = Shadows(self.layout.config / "shadows.json")
        self.journal = Journal(_log.info)
        self.journal.verbose = options.log_ipc
        self.tokens = Tokens()
        self.packages = Packages(self.layout, options.flavour)
        self.iotcore: IotCore | None = None
        self.server: IpcServer | None = None
        self.around = Surroundings(
            self.layout, options.flavour, options.settings, options.patience, self.store, self.tokens, self._disconnect
        )
        self.deployments = Deployments(self.packages, self.around, self.store, self, options.settle)
        self._broker = choose_broker(options.broker, self.layout.config)
        self._handler: logging.Handler | None = None
        self._control = Control(self.layout.control, {})
        self._on_stop = on_stop
        self._updates = ComponentUpdates()
        self._metrics = Metrics()
        self.administration = Administration(self.deployments, self.store)

    async def start(self) -> None:
        """Start, and bring back what was deployed in this root before.

        Raises:
            LisiereError: the root is taken, or something cannot be started. All that had been started is stopped.
        """
        self.layout.make()
        self.layout.lock()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        layout, options = self.layout, self.options
        self._handler = logging.handlers.RotatingFileHandler(
            layout.log, maxBytes=FILE_BYTES, backupCount=1, encoding="utf-8"
        )
        form = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        form.converter = time.gmtime  # as in the components' logs
        self._handler.setFormatter(form)
        _log.addHandler(self._handler)
        if _log.getEffectiveLevel() > logging.INFO:
            _log.setLevel(logging.INFO)
        await self.around.end_leftovers()
        self.around.guard.start()
        for damaged in (self.store.load(), self.shadows.load()):
            if damaged:
                _log.warning("%s", damaged)
        host, port = await asyncio.to_thread(self._broker.start)
        self.iotcore = IotCore((host, port), options.settings.thing, options.flavour, options.limits, self._mqtt())
        await self.iotcore.start()
        self.server = IpcServer(
            layout.socket, self.tokens.authenticate, self._operations(self.iotcore), options.flavour, self.journal
        )
        await self.server.start()
        _log.info(
            "Nucleus %s %s in %s; thing %s, broker %s at %s:%d.",
            options.flavour.name, options.flavour.version, layout.root, options.settings.thing,
            self._broker.name, host, port,
        )  # fmt: skip
        self._control = Control(layout.control, self._commands())
        await self._control.start()
        await self.deployments.resume()

    async def stop(self) -> None:
        """Stop the components in reverse order, then the rest. Calling it twice does no harm."""
        await self._control.stop()
        await self.administration.close()
        await self.deployments.stop()
        await asyncio.to_thread(self.around.guard.stop)
        if self.server is not None:
            await self.server.stop()
        if self.iotcore is not None:
            iotcore, self.iotcore = self.iotcore, None
            await iotcore.stop()
        await asyncio.to_thread(self._broker.stop)
        if self._handler is not None:
            _log.removeHandler(self._handler)
            self._handler.close()
            self._handler = None
        self.layout.unlock()

    async def ask(self, deployment: str, components: list[str]) -> None:
        """See `deployments.Consent`."""
        patience = self.options.patience
        try:
            late = await asyncio.wait_for(self._updates.ask(deployment, components, patience.consent), patience.defer)
        except asyncio.TimeoutError:
            _log.warning("Deployment %s was put off for %g s; it goes on now.", deployment, patience.defer)
        else:
            for name in late:
                _log.warning("%s did not say within %g s whether an update suits it.", name, patience.consent)

    def tell(self, deployment: str, components: list[str]) -> None:
        """See `deployments.Consent`."""
        self._updates.done(deployment, components)

    def status(self) -> dict[str, Any]:
        """Return what `lisiere nucleus status --json` prints."""
        return {
            "root": str(self.layout.root),
            "pid": os.getpid(),
            "flavour": self.options.flavour.name,
            "version": self.options.flavour.version,
            "thing": self.options.settings.thing,
            "components": [
                {
                    "name": one.name,
                    "version": one.recipe.version,
                    "state": one.state,
                    "why": one.why,
                    "restarts": one.restarts,
                    "root": one.name in self.deployments.roots,
                }
                for one in self.deployments.components.values()
            ],
            "iot_core": self.iotcore.status() if self.iotcore is not None else {},
        }

    def _mqtt(self) -> MqttSettings:
        """The nucleus' `mqtt` settings; on disk its spooler lies where the component that is one would keep it."""
        if not self.options.disk_spooler:
            return MqttSettings()
        return MqttSettings(spool_file=self.layout.work("aws.greengrass.DiskSpooler") / "spooler.db")

    def _commands(self) -> dict[str, Command]:
        return {
            "status": self._say_status,
            "restart": self._restart,
            "stop": self._stop_one_or_all,
            "deploy": self._deploy,
            "online": self._online,
            "journal": self._say_journal,
            "log_ipc": self._log_ipc,
        }

    async def _say_status(self, _: dict[str, Any]) -> Any:
        return self.status()

    async def _restart(self, request: dict[str, Any]) -> None:
        await self.administration.restart(self.deployments.find(str(request.get("component"))).name)

    async def _stop_one_or_all(self, request: dict[str, Any]) -> None:
        if request.get("component") is not None:
            await self.administration.stop(self.deployments.find(str(request["component"])).name)
        else:
            asyncio.get_running_loop().call_later(_ANSWERED_S, self._on_stop)

    async def _deploy(self, request: dict[str, Any]) -> Any:
        try:
            wanted = msgspec.convert(request.get("deployment"), Deployment)
        except msgspec.ValidationError as error:
            raise ConfigError(f"This is no deployment: {error}.") from error
        return msgspec.to_builtins(await self.administration.run(wanted))

    async def _online(self, request: dict[str, Any]) -> None:
        if self.iotcore is not None:
            self.iotcore.online(bool(request.get("wanted")))

    async def _say_journal(self, request: dict[str, Any]) -> Any:
        since = float(request.get("since") or 0.0)
        return [dataclasses.asdict(entry) for entry in self.journal.entries if entry.at > since]

    async def _log_ipc(self, request: dict[str, Any]) -> None:
        self.journal.verbose = bool(request.get("wanted"))

    def _operations(self, iotcore: IotCore) -> Mapping[str, Operation]:
        access = Access(self.store, self.options.settings.thing, self.options.flavour)
        pubsub = PubSub(access, self.options.flavour)
        shadows = ShadowOperations(self.shadows, access, pubsub.publish).operations()
        return {
            **ConfigurationOperations(self.store).operations(),
            **pubsub.operations(),
            **(shadows if self.options.flavour.shadows else {}),
            **IotCoreOperations(iotcore, access, self.options.flavour).operations(),
            **StateOperations(self.administration, access, self.tokens).operations(),
            **self._updates.operations(),
            **self._metrics.operations(),
            **Secrets(list(self.options.secrets), access).operations(),
        }

    def _disconnect(self, component: str) -> None:
        if self.server is not None:
            self.server.disconnect(component)
