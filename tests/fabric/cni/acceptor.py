"""The daemon's side of handing over queues, without the rest of a daemon: what the plugin's part is looked at by."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fabric.cni.host import Host
from tun.device import Device, adopt


class Acceptor:
    """A control socket that takes ports with their queues: what was asked, and the devices by port name."""

    def __init__(self, path: Path, device: str, refused: str = "") -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.devices: dict[str, Device] = {}
        self._device, self._refused = device, refused
        self._socket = socket.socket(socket.AF_UNIX)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for device in self.devices.values():
            device.close()

    def params(self, method: str) -> dict[str, Any]:
        """Those of the last request of this method."""
        return [params for name, params in self.asked if name == method][-1]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client, contextlib.suppress(ConnectionError):  # plugins may be killed at any moment
                self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        while True:
            line, fds, _, _ = socket.recv_fds(client, 1 << 16, 4)
            if not line:
                return
            request = json.loads(line)
            client.sendall(json.dumps(self._answer(request["method"], request["params"], fds)).encode() + b"\n")

    def _answer(self, method: str, params: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self.asked.append((method, params))
        name = params.get("name", "")
        if method == "status":
            ports = [{"name": port, "addresses": self.params("port.add")["addresses"]} for port in self.devices]
            found = {"ready": True, "device": self._device, "mtu": 1430, "dataplane": {"ports": ports}}
            return {"result": found}
        if method == "port.add" and not self._refused:
            self.devices[name] = adopt(fds)
            return {"result": {"mtu": 1430}}
        for fd in fds:
            os.close(fd)
        if method == "port.delete" and name in self.devices:
            self.devices.pop(name).close()
            return {"result": {}}
        return {"error": f"no port {name}" if method == "port.delete" else self._refused or f"unknown method {method}"}


@contextmanager
def acceptor(host: Host, refused: str = "") -> Iterator[Acceptor]:
    made = Acceptor(host.run_dir / "fabricd.sock", "node0", refused)
    try:
        yield made
    finally:
        made.close()
