"""Other plugins, executed: found in CNI_PATH, given our environment and a configuration, their answer read.

Source: CNI SPEC 1.1.0 section 4, libcni `pkg/invoke`. A plugin's name never holds a path (CVE-2021-20206).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from fabric import jsonsafe
from fabric.cni.errors import DECODING_FAILURE, INTERNAL, INVALID_CONFIG, IO_FAILURE, CniError, shown
from fabric.cni.logs import log
from fabric.cni.protocol import Request, is_name

MAX_ANSWER = 1 << 20


def find(name: object, request: Request) -> str:
    """The path of a plugin. Raises CniError (7): no name of a plugin, or nowhere to be found."""
    if not is_name(name):
        raise CniError(INVALID_CONFIG, "invalid plugin name", shown(name))
    for directory in request.path:
        path = os.path.join(directory, str(name))
        if os.path.isfile(path):
            return path
    raise CniError(INVALID_CONFIG, f"failed to find plugin {name} in path {shown(list(request.path), 200)}")


def run(name: object, request: Request, document: Mapping[str, Any], command: str = "") -> dict[str, Any] | None:
    """Execute the plugin with our environment; its answer, None when it said nothing.

    `command` replaces CNI_COMMAND. Raises CniError: the plugin's own error, or that it could not be run.
    """
    import subprocess  # takes milliseconds to load, and usually nobody is executed

    path = find(name, request)
    environ = {**os.environ, "CNI_COMMAND": command or request.command}
    named = {"CNI_CONTAINERID": request.container_id, "CNI_NETNS": request.netns, "CNI_IFNAME": request.ifname}
    environ.update({name: value for name, value in named.items() if value})
    try:
        text = json.dumps(document).encode()
        done = subprocess.run([path], input=text, stdout=subprocess.PIPE, env=environ, check=False)
    except OSError as error:
        raise CniError(IO_FAILURE, f"plugin {path} cannot be run: {error.strerror}") from None
    answer = _answer(str(name), done.stdout)
    if done.returncode == 0:
        return answer
    code, msg, details = ((answer or {}).get(key) for key in ("code", "msg", "details"))
    known = isinstance(code, int) and isinstance(msg, str)
    why = str(msg) if known else f"it ended with status {done.returncode} and no error object"
    raise CniError(code if isinstance(code, int) else INTERNAL, f"plugin {name}: {why}", str(details or ""))


def speaks(name: object, request: Request, version: str) -> bool:
    """Whether the plugin supports `version` of the specification, as it says itself; False for no proper answer."""
    try:
        answer = run(name, request, {"cniVersion": version}, "VERSION")
    except CniError as error:
        log(f"plugin {shown(name)} does not answer VERSION: {error}")
        return False
    supported = (answer or {}).get("supportedVersions")
    return isinstance(supported, list) and version in supported


def _answer(name: str, data: bytes) -> dict[str, Any] | None:
    if not data.strip():
        return None
    try:
        answer = jsonsafe.loads(data, max_bytes=MAX_ANSWER)
    except jsonsafe.JsonError as error:
        raise CniError(DECODING_FAILURE, f"plugin {name} gave no JSON", str(error)) from None
    if not isinstance(answer, dict):
        raise CniError(DECODING_FAILURE, f"plugin {name} gave no JSON object")
    return answer
