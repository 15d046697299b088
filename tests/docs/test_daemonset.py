"""The DaemonSet is what Kubernetes takes, and what fabricd needs. The fields are checked against the API's own models,
which kubernetes-asyncio generates from its description.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kubernetes_asyncio.client import models

from fabric import config, flags
from fabric.cli.install import install
from routes import sysctls

PLACE = Path(__file__).parents[2] / "docs" / "kubernetes"
DOCUMENTS = {item["kind"]: item for item in yaml.safe_load_all((PLACE / "daemonset.yaml").read_text())}
ACCOUNT = {item["kind"]: item for item in yaml.safe_load_all((PLACE / "rbac.yaml").read_text())}["ServiceAccount"]
SPEC = DOCUMENTS["DaemonSet"]["spec"]["template"]["spec"]


def check(value: Any, kind: str, where: str) -> None:
    """Every field is known to the model and of its type, and none that is required is missing."""
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            check(item, match[1], f"{where}[{number}]")
    elif match := re.fullmatch(r"dict\((\w+), (.+)\)", kind):
        assert isinstance(value, dict), where
        for key, item in value.items():
            check(item, match[2], f"{where}.{key}")
    elif model := getattr(models, kind, None):
        assert isinstance(value, dict), where
        names = {given: own for own, given in model.attribute_map.items()}
        assert value.keys() <= names.keys(), f"{where}: {sorted(value.keys() - names.keys())} do not exist"
        for key, item in value.items():
            check(item, model.openapi_types[names[key]], f"{where}.{key}")
        model(**{names[key]: item for key, item in value.items()})  # raises where something required is missing
    else:
        types = {"str": str, "int": int, "bool": bool, "object": (str, int)}
        assert isinstance(value, types[kind]), f"{where} is no {kind}"


@pytest.mark.parametrize("kind", ["ConfigMap", "DaemonSet"])
def test_every_field_exists(kind: str) -> None:
    check(DOCUMENTS[kind], f"V1{kind}", kind)
    assert DOCUMENTS[kind]["apiVersion"] == {"ConfigMap": "v1", "DaemonSet": "apps/v1"}[kind]


def test_the_check_finds_mistakes() -> None:
    with pytest.raises(AssertionError, match="do not exist"):
        check({"spec": {"template": {"spec": {"hostNet": True}}}}, "V1DaemonSet", "x")
    with pytest.raises(ValueError, match="must not be `None`"):
        check({"spec": {"template": {}}}, "V1DaemonSet", "x")


def test_the_parts_fit_together() -> None:
    daemon_set = DOCUMENTS["DaemonSet"]
    labels = daemon_set["spec"]["template"]["metadata"]["labels"]
    assert daemon_set["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert (SPEC["serviceAccountName"], daemon_set["metadata"]["namespace"]) == (
        ACCOUNT["metadata"]["name"], ACCOUNT["metadata"]["namespace"],
    )  # fmt: skip
    volumes = {item["name"] for item in SPEC["volumes"]}
    containers = [*SPEC["initContainers"], *SPEC["containers"]]
    assert {mount["name"] for item in containers for mount in item["volumeMounts"]} == volumes
    assert len({item["image"] for item in containers}) == 1


def test_fabricd_takes_its_options_and_finds_its_files() -> None:
    container = SPEC["containers"][0]
    options = flags.parse(container["args"], {"NODE_NAME": "node1", "KUBERNETES_SERVICE_HOST": "192.0.2.1",
                                              "KUBERNETES_SERVICE_PORT": "6443"})  # fmt: skip
    assert (options.store_kind, options.warnings) == ("kubernetes", ())
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    files = (options.run_dir, options.subnet_file, options.state_dir, options.cni_data_dir, options.net_config_path)
    for path in files:
        assert any(Path(path).is_relative_to(place) for place in mounted), path
    assert str(sysctls.OF_HOST / "net") in mounted
    assert container["readinessProbe"]["httpGet"]["port"] == options.healthz_port
    parsed = config.parse(DOCUMENTS["ConfigMap"]["data"]["net-conf.json"])
    assert json.loads(DOCUMENTS["ConfigMap"]["data"]["net-conf.json"])["Backend"]["Type"] == parsed.backend.type


def test_the_installer_takes_its_options() -> None:
    container = SPEC["initContainers"][0]
    assert container["command"] == ["/opt/podfabric/bin/fabricctl"]
    name, *words = container["args"]
    assert name == "install"
    known = CliRunner().invoke(install, [*words, "--help"])
    assert known.exit_code == 0, known.output
    places = {"opt": "/opt", "cni-conf": "/etc/cni/net.d"}
    assert {mount["name"]: mount["mountPath"].removeprefix("/host") for mount in container["volumeMounts"]} == places
