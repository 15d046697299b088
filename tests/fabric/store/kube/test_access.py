"""Where the API is and who we are there, by flags, kubeconfig files and service accounts."""

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from fabric.errors import StartError, StoreUnavailableError
from fabric.store.kube import access
from fabric.store.kube.http import Endpoint
from tests.fabric.store.certificates import Authority, Pair


def kubeconfig(path: Path, cluster: dict[str, Any], user: dict[str, Any], **more: Any) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "other", "context": {}}, {"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://api.example.org:6443", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(document | more))
    return path


def load(path: Path, api_url: str = "") -> access.Access:
    return access.load(api_url, str(path), {})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("client")


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:8001", Endpoint("127.0.0.1", 8001, False)),
        ("https://api.example.org", Endpoint("api.example.org", 443, True)),
        ("https://[2001:db8::1]:6443/", Endpoint("2001:db8::1", 6443, True)),
        ("https://api.example.org/k8s/clusters/c-1/", Endpoint("api.example.org", 443, True, "/k8s/clusters/c-1")),
        ("192.0.2.1:8080", Endpoint("192.0.2.1", 8080, False)),
    ],
)
def test_a_url_alone_means_no_credentials(url: str, endpoint: Endpoint) -> None:
    found = access.load(url, "", {})
    assert found == access.Access(endpoint)
    assert found.headers() == []
    assert (found.context() is not None) == endpoint.tls


@pytest.mark.parametrize("url", ["ftp://x", "https://", "https://a:b@c", "https://h:99999", "https://h?x=1", "//"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(StartError, match="is not http://HOST"):
        access.load(url, "", {})


def test_in_cluster_and_a_rotated_token(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_bytes(authority.cafile.read_bytes())
    environ = {"KUBERNETES_SERVICE_HOST": "2001:db8::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = access.load("", "", environ, tmp_path)
    assert found.endpoint == Endpoint("2001:db8::1", 443, True)
    assert found.headers() == [("Authorization", "Bearer first")]
    (tmp_path / "token").write_text("second\n")
    assert found.headers() == [("Authorization", "Bearer second")]
    (tmp_path / "token").unlink()
    with pytest.raises(StoreUnavailableError, match=r"token .*/token: No such file"):
        found.headers()
    with pytest.raises(StartError, match=r"token .*/token: No such file"):
        access.load("", "", environ, tmp_path)


def test_outside_of_a_pod() -> None:
    with pytest.raises(StartError, match=r"not in a pod .*: give --kubeconfig-file or --kube-api-url"):
        access.load("", "", {})


def test_tokens_and_token_files(tmp_path: Path) -> None:
    config = kubeconfig(tmp_path / "config", {}, {"token": "inline"})
    assert load(config).headers() == [("Authorization", "Bearer inline")]
    (tmp_path / "token").write_text("from-file")
    config = kubeconfig(tmp_path / "config", {}, {"token": "inline", "tokenFile": "token"})
    assert load(config).headers() == [("Authorization", "Bearer from-file")]
    assert "inline" not in repr(load(config))
    for bad in ("", "two words", "line\nbreak", "gr\xfc\xdfe"):
        (tmp_path / "token").write_text(bad)
        with pytest.raises(StartError, match="is empty or no token"):
            load(config)


def test_certificates_inline_and_in_files(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    inline = {
        "client-certificate-data": base64.b64encode(pair.cert.read_bytes()).decode(),
        "client-key-data": base64.b64encode(pair.key.read_bytes()).decode(),
    }
    ca = {"certificate-authority-data": base64.b64encode(authority.cafile.read_bytes()).decode()}
    for cluster, user in (
        (ca, inline),
        ({"certificate-authority": str(authority.cafile)},
         {"client-certificate": str(pair.cert), "client-key": str(pair.key)}),
    ):  # fmt: skip
        context = load(kubeconfig(tmp_path / "config", cluster, user)).context()
        assert context is not None
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert len(context.get_ca_certs()) == 1
    relative = kubeconfig(authority.cafile.parent / "config", {"certificate-authority": "ca.crt"}, {})
    assert load(relative).ca == authority.cafile


def test_insecure_and_server_name(tmp_path: Path) -> None:
    found = load(kubeconfig(tmp_path / "c", {"insecure-skip-tls-verify": True, "tls-server-name": "api"}, {}))
    context = found.context()
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    assert found.endpoint.server_name == "api"


def test_the_url_replaces_the_files_server(tmp_path: Path) -> None:
    config = kubeconfig(tmp_path / "config", {}, {"token": "t"})
    found = load(config, "http://127.0.0.1:8001")
    assert (str(found.endpoint), found.headers()) == ("http://127.0.0.1:8001", [("Authorization", "Bearer t")])


@pytest.mark.parametrize(
    ("cluster", "user", "more", "message"),
    [
        ({}, {"exec": {"command": "aws"}}, {}, "user u uses an exec plugin, which is not supported here"),
        ({}, {"auth-provider": {"name": "gcp"}}, {}, "an auth provider"),
        ({}, {"username": "a", "password": "b"}, {}, "a user name and password"),
        ({"proxy-url": "http://p"}, {}, {}, "proxy-url is not supported"),
        ({"server": ""}, {}, {}, "the cluster has no server: give --kube-api-url"),
        ({"server": "x:y:z"}, {}, {}, "is not http://HOST"),
        ({"certificate-authority-data": "***"}, {}, {}, "certificate-authority-data is not base64"),
        ({"certificate-authority-data": "YWJj"}, {}, {}, "cannot be used"),
        ({"certificate-authority": "nowhere.crt"}, {}, {}, "nowhere.crt: No such file"),
        ({}, {"client-certificate": "a.crt"}, {}, "both client-certificate and client-key"),
        ({}, {"client-certificate": "a.crt", "client-key": "a.key"}, {}, "cannot be used .*a.crt"),
        ({}, {"token": 5}, {}, "token of user u is not a string"),
        ({}, {}, {"current-context": "gone"}, "there is no context 'gone'"),
        ({}, {}, {"current-context": ""}, "has no current-context"),
        ({}, {}, {"users": []}, "there is no user 'u'"),
        ({}, {}, {"clusters": "x"}, "there is no cluster 'c'"),
    ],
)
def test_what_is_refused(tmp_path: Path, cluster: Any, user: Any, more: Any, message: str) -> None:
    config = kubeconfig(tmp_path / "config", cluster, user, **more)
    with pytest.raises(StartError, match=message) as caught:
        load(config)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[]", "a: [", "\0", "&a [*a, *b]", "!!python/object:os.system {}", "[" * 3000])
def test_what_is_no_kubeconfig(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(StartError, match=r"--kubeconfig-file .*(is not YAML|is not a kubeconfig)"):
        load(tmp_path / "config")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="nowhere: No such file"):
        load(tmp_path / "nowhere")
