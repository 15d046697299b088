"""The endpoints and the other etcd flags."""

import pytest

from fabric.errors import ConfigError
from fabric.store.etcd.settings import Endpoint, EtcdSettings, parse_endpoints


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://192.0.2.1:2379", Endpoint("http://192.0.2.1:2379", "192.0.2.1", 2379, False)),
        (" https://etcd.example:4001/ ", Endpoint("https://etcd.example:4001", "etcd.example", 4001, True)),
        ("https://[2001:db8::1]:2379", Endpoint("https://[2001:db8::1]:2379", "2001:db8::1", 2379, True)),
        ("http://etcd.example", Endpoint("http://etcd.example", "etcd.example", 2379, False)),
        ("192.0.2.1:2379", Endpoint("http://192.0.2.1:2379", "192.0.2.1", 2379, False)),
    ],
)
def test_endpoints(text: str, expected: Endpoint) -> None:
    assert parse_endpoints(EtcdSettings((text,))) == (expected,)


def test_flannels_defaults() -> None:
    assert [end.url for end in parse_endpoints(EtcdSettings())] == ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]


@pytest.mark.parametrize("files", [{"cafile": "/ca"}, {"certfile": "/c", "keyfile": "/k"}])
def test_without_a_scheme_the_tls_files_decide(files: dict[str, str]) -> None:
    assert parse_endpoints(EtcdSettings(("192.0.2.1:2379",), **files))[0].tls
    assert not parse_endpoints(EtcdSettings(("192.0.2.1:2379",), certfile="/c"))[0].tls
    assert not parse_endpoints(EtcdSettings(("http://192.0.2.1:2379",), **files))[0].tls


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        ((), "is empty"),
        (("", " "), "is empty"),
        (("ftp://192.0.2.1",), "'ftp://192.0.2.1' is not of the form"),
        (("http://",), "is not of the form"),
        (("http://192.0.2.1:port",), "is not of the form"),
        (("http://192.0.2.1:99999",), "is not of the form"),
        (("http://192.0.2.1/v3",), "is not of the form"),
        (("unix:///run/etcd.sock",), "is not of the form"),
        (("http://[::1",), "is not of the form"),
        (("http://user:secret@192.0.2.1",), "no user name in a URL"),
    ],
)
def test_what_is_no_endpoint(endpoints: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_endpoints(EtcdSettings(endpoints))
    assert "secret" not in str(caught.value)


def test_the_password_is_not_printed() -> None:
    assert "secret" not in repr(EtcdSettings(username="node1", password="secret"))
