"""The two implementations behind one face: the reference plugin as a process, ours in this process or as a process.

Run as a module it is an IPAM plugin by CNI's rules (environment, configuration on stdin, result on stdout).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fabric import jsonsafe
from fabric.ipam import allocator, config
from fabric.ipam.errors import IPAMError
from fabric.ipam.names import Attachment
from fabric.ipam.result import render

REFERENCE = "/usr/lib/cni/host-local"
OURS = (sys.executable, "-m", "tests.fabric.ipam.plugin")
ROOT = Path(__file__).resolve().parents[3]
MISSING = f"{REFERENCE} is missing: apt-get install containernetworking-plugins"


class Outcome(NamedTuple):
    """What a call gave: the result, or an empty one and an error."""

    result: dict[str, Any]
    error: str = ""
    code: int = 0
    details: str = ""

    @property
    def addresses(self) -> list[str]:
        return [item["address"].partition("/")[0] for item in self.result.get("ips", [])]


Call = Callable[..., Outcome]


def document(data_dir: Path, *sets: object, **ipam: object) -> dict[str, Any]:
    """A network configuration; each of `sets` is a range set, or the subnet of its only range."""
    ranges = [[{"subnet": item}] if isinstance(item, str) else item for item in sets]
    section = {"type": "host-local", "dataDir": str(data_dir), "ranges": ranges} | ipam
    return {"cniVersion": "1.0.0", "name": "pods", "ipam": section}


def perform(command: str, text: str | bytes, container_id: str, ifname: str, args: str = "") -> dict[str, Any]:
    """One CNI command by our implementation; the result. Raises IPAMError."""
    conf = jsonsafe.loads(text)
    attachment = Attachment(container_id, ifname)
    if command == "ADD":
        loaded = config.load(conf)
        dns = allocator.read_dns(loaded.resolv_conf)
        granted = allocator.allocate(loaded, attachment, config.requested(conf, args))
        return render(granted, loaded.routes, dns, conf["cniVersion"])
    if command == "DEL":
        allocator.release(config.place(conf), attachment)
    elif command == "CHECK":
        allocator.check(config.place(conf), attachment)
    return {}


def ours(command: str, conf: Mapping[str, Any], container_id: str, ifname: str = "eth0", args: str = "") -> Outcome:
    """Our implementation, in this process."""
    try:
        return Outcome(perform(command, json.dumps(conf), container_id, ifname, args))
    except IPAMError as error:
        return Outcome({}, error.msg, error.code, error.details)


def reference(
    command: str, conf: Mapping[str, Any], container_id: str, ifname: str = "eth0", args: str = ""
) -> Outcome:
    """The reference plugin."""
    process = start((REFERENCE,), command, container_id, ifname, args)
    output, _ = process.communicate(json.dumps(conf).encode(), timeout=60)
    return outcome(process.returncode, output)


def start(
    program: Iterable[str], command: str, container_id: str, ifname: str = "eth0", args: str = ""
) -> subprocess.Popen[bytes]:
    """A plugin that waits for its configuration on stdin."""
    assert os.path.exists(REFERENCE), MISSING
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": "/var/run/netns/none",
        "CNI_IFNAME": ifname,
        "CNI_PATH": "/usr/lib/cni",
        "CNI_ARGS": args,
    }
    pipe = subprocess.PIPE
    return subprocess.Popen([*program], stdin=pipe, stdout=pipe, cwd=ROOT, env=os.environ | variables)


def outcome(code: int, output: bytes) -> Outcome:
    """What a plugin's exit code and output say."""
    value = json.loads(output) if output else {}
    if code:
        return Outcome({}, value["msg"], value["code"], value.get("details", ""))
    value.pop("cniVersion", None)
    return Outcome({key: section for key, section in value.items() if section})  # older ones print an empty "dns"


def files(place: Path) -> dict[str, bytes]:
    """Every file below a directory with its content."""
    return {str(item.relative_to(place)): item.read_bytes() for item in sorted(place.rglob("*")) if item.is_file()}


def reserved(place: Path) -> dict[str, bytes]:
    """The reservations of network `pods` in data directory `place`: address and content."""
    known = ("lock", "boot_id", "last_reserved_ip.", ".last_reserved_ip.", ".boot_id.")
    found = files(place / "pods").items()
    return {name: content for name, content in found if not name.startswith(known)}


def main() -> int:
    variables = os.environ
    names = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS")
    command, container_id, ifname, args = (variables.get(name, "") for name in names)
    try:
        result = perform(command, sys.stdin.buffer.read(), container_id, ifname, args)
    except IPAMError as error:
        print(json.dumps({"code": error.code, "msg": error.msg, "details": error.details}))
        return 1
    if command == "ADD":
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
