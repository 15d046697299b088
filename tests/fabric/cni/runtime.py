"""A container runtime's part of CNI: lists of plugins, in order, with results handed on and kept.

Source: CNI SPEC 1.1.0 section 3. What libcni does, in as few lines as the tests need; podman's tests have the real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.fabric.cni.host import GC_KEY, Answer, Host, PodNamespace


class Runtime:
    """One network configuration list on one host. Results are kept by container."""

    def __init__(self, host: Host, plugins: Sequence[Mapping[str, Any]], version: str = "1.0.0") -> None:
        self._host = host
        self._plugins = plugins
        self._version = version
        self._name = "chained"
        self._kept: dict[str, Any] = {}

    def add(self, pod: PodNamespace, **capabilities: Any) -> Any:
        """The chain's result. Fails the test with the first plugin's error."""
        result: Any = None
        for plugin in self._plugins:
            conf = self._request(plugin, result, capabilities)
            result = self._execute("ADD", plugin, conf, pod).must()
        self._kept[pod.container_id] = result
        return result

    def check(self, pod: PodNamespace, **capabilities: Any) -> None:
        """But portmap's, which in Debian's version 1.1.1 looks for IPv4 rules in the IPv6 table and the reverse."""
        for plugin in (plugin for plugin in self._plugins if plugin["type"] != "portmap"):
            conf = self._request(plugin, self._kept[pod.container_id], capabilities)
            self._execute("CHECK", plugin, conf, pod).must()

    def delete(self, pod: PodNamespace, **capabilities: Any) -> None:
        for plugin in reversed(self._plugins):
            conf = self._request(plugin, self._kept.get(pod.container_id), capabilities)
            self._execute("DEL", plugin, conf, pod).must()
        self._kept.pop(pod.container_id, None)

    def collect(self, *valid: PodNamespace) -> None:
        """GC of the first plugin: Debian's others know no GC."""
        listed = [{"containerID": pod.container_id, "ifname": "eth0"} for pod in valid]
        conf = self._request(self._plugins[0], None, {}) | {GC_KEY: listed, "cniVersion": "1.1.0"}
        self._execute("GC", self._plugins[0], conf, None).must()

    def _request(self, plugin: Mapping[str, Any], previous: Any, capabilities: Mapping[str, Any]) -> dict[str, Any]:
        conf = {key: value for key, value in plugin.items() if key != "capabilities"}
        conf |= {"cniVersion": self._version, "name": self._name}
        wanted = {key: value for key, value in capabilities.items() if plugin.get("capabilities", {}).get(key)}
        conf |= {"runtimeConfig": wanted} if wanted else {}
        return conf | ({"prevResult": previous} if previous else {})

    def _execute(self, command: str, plugin: Mapping[str, Any], conf: Any, pod: PodNamespace | None) -> Answer:
        return self._host.execute(plugin["type"], self._host.environment(command, pod), conf)
