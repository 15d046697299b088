"""What an executed IPAM plugin or delegate gets: every verb, our environment, the whole configuration, its stderr.

Debian's plugins know no GC and no STATUS, so the plugin here is a script that records its calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.cni.host import GC_KEY, Host, with_result

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

SCRIPT = """#!/bin/sh
conf=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS" >> {log}
echo "$conf" > {log}.conf
echo "a word from the delegate" >&2
case $CNI_COMMAND in
VERSION) echo '{{"cniVersion":"1.1.0","supportedVersions":["0.3.1","1.0.0",{newest}"1.0.0"]}}'; exit 0 ;;
{failing}) echo '{{"code":{code},"msg":"it failed","details":"so it says"}}'; exit 1 ;;
ADD) echo '{{"cniVersion":"1.1.0","ips":[{{"address":"198.51.100.7/24"}}],"dns":{{"domain":"example.org"}}}}' ;;
esac
"""


class Recorder:
    """A plugin in the host's CNI_PATH that records its calls."""

    def __init__(self, host: Host, name: str) -> None:
        self.path, self.log = host.bin / name, host.directory / f"{name}.log"
        self.write()

    def write(self, failing: str = "NONE", code: int = 150, newest: str = '"1.1.0",') -> None:
        self.log.unlink(missing_ok=True)
        self.path.write_text(SCRIPT.format(log=self.log, failing=failing, code=code, newest=newest))
        self.path.chmod(0o755)

    def calls(self) -> list[str]:
        """Commands so far, VERSION left out."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[0] for line in lines if not line.startswith("VERSION")]

    def last(self) -> tuple[str, Any]:
        """The last call's environment, in the order of the script, and configuration."""
        return self.log.read_text().splitlines()[-1], json.loads(Path(f"{self.log}.conf").read_text())


@pytest.fixture
def ipam(host: Host) -> Iterator[Recorder]:
    recorder = Recorder(host, "recording-ipam")
    yield recorder
    recorder.path.unlink()


def conf_with(host: Host, **changes: Any) -> dict[str, Any]:
    return host.conf(ipam={"type": "recording-ipam", "more": [1]}, **changes)


def test_an_ipam_plugin_gets_every_verb_with_our_environment_and_configuration(host: Host, ipam: Recorder) -> None:
    pod, conf = host.pod(), conf_with(host)
    args = "IgnoreUnknown=1;K8S_POD_NAME=web-0"
    answer = host.call("ADD", conf, pod, CNI_ARGS=args)
    result = answer.must()
    assert "a word from the delegate" in answer.log
    assert [item["address"] for item in result["ips"]] == ["198.51.100.7/32"]
    assert result["dns"] == {"domain": "example.org"}
    environ, seen = ipam.last()
    assert environ == f"ADD {pod.container_id} eth0 {pod.path} {args}"
    assert seen == conf, "the complete configuration, not only its ipam section"
    assert host.call("CHECK", with_result(conf, result), pod).status == 0
    assert ipam.last()[1]["prevResult"] == result
    assert host.call("STATUS", conf).status == 0
    keep = [{"containerID": pod.container_id, "ifname": "eth0"}]
    assert host.call("GC", conf | {GC_KEY: keep}).status == 0
    assert ipam.last()[1][GC_KEY] == keep
    assert host.call("DEL", with_result(conf, result), pod).status == 0
    assert ipam.last()[0].startswith(f"DEL {pod.container_id} eth0 {pod.path}")
    assert ipam.calls() == ["ADD", "CHECK", "STATUS", "GC", "DEL"]


def test_gc_deletes_what_is_not_valid_by_the_plugins_own_del(host: Host, ipam: Recorder) -> None:
    pod = host.pod()
    host.call("ADD", conf_with(host), pod).must()
    host.delete_pod(pod)
    assert host.call("GC", conf_with(host, **{GC_KEY: []})).status == 0
    assert ipam.calls() == ["ADD", "DEL", "GC"]
    deletion = next(line for line in ipam.log.read_text().splitlines() if line.startswith("DEL"))
    assert deletion.startswith(f"DEL {pod.container_id} eth0")


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS", "GC", "DEL"])
def test_an_error_of_the_ipam_plugin_is_ours(host: Host, ipam: Recorder, verb: str) -> None:
    pod, conf = host.pod(), conf_with(host, **{GC_KEY: []})
    result = None
    if verb != "ADD":
        result = host.call("ADD", conf, pod).must()
    ipam.write(failing=verb)
    answer = host.call(verb, with_result(conf, result) if result else conf, pod)
    assert answer.code == 150
    assert "plugin recording-ipam: it failed: so it says" in answer.text.replace("\n", " ")
    expected = {"ADD": ["ADD", "DEL"], "GC": ["DEL", "GC"]}
    assert ipam.calls() == expected.get(verb, [verb]), "a failed ADD of a delegate is followed by its DEL"
    ipam.write()
    host.call("DEL", conf, pod).must()
    assert set(pod.links()) == {"lo"}


def test_gc_and_status_are_not_forced_upon_a_plugin_that_does_not_know_them(host: Host, ipam: Recorder) -> None:
    ipam.write(newest="")
    assert host.call("STATUS", conf_with(host)).status == 0
    assert host.call("GC", conf_with(host, **{GC_KEY: []})).status == 0
    assert ipam.calls() == []


def test_an_ipam_answer_that_is_none_is_undone(host: Host, ipam: Recorder) -> None:
    for text in ("echo '['", "echo '[]'", "true", "echo '{\"ips\":[{}]}'", "kill -9 $$", "exit 3"):
        ipam.log.unlink(missing_ok=True)
        ipam.path.write_text(f'#!/bin/sh\ncat > /dev/null\necho "$CNI_COMMAND" >> {ipam.log}\n'
                             f'[ "$CNI_COMMAND" = DEL ] || {text}\n')  # fmt: skip
        answer = host.call("ADD", conf_with(host), host.pod())
        assert answer.status == 1
        assert "Traceback" not in answer.log
        assert ipam.calls() == ["ADD", "DEL"], text


def test_a_delegate_of_flannels_type_gets_gc_and_status(host: Host) -> None:
    recorder = Recorder(host, "recording-delegate")
    conf = host.flannel_conf(cniVersion="1.1.0", delegate={"type": "recording-delegate"})
    pod = host.pod()
    host.call("ADD", conf, pod).must()
    assert host.call("STATUS", conf).status == 0
    keep = [{"containerID": pod.container_id, "ifname": "eth0"}]
    assert host.call("GC", conf | {GC_KEY: keep}).status == 0
    seen = recorder.last()[1]
    assert (seen[GC_KEY], seen["type"], seen["mtu"]) == (keep, "recording-delegate", 1450)
    assert host.call("DEL", conf, pod).status == 0
    assert recorder.calls() == ["ADD", "STATUS", "GC", "DEL"]
    recorder.path.unlink()
