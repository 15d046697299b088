"""The etcd of the tests itself: what other tests take for granted of it."""

from pathlib import Path

import pytest

from tests.fabric.store.certificates import Authority
from tests.fabric.store.etcd_server import Tls, cluster, running

pytestmark = pytest.mark.root


def test_restart_and_kill_keep_data_and_url(tmp_path: Path) -> None:
    with running(tmp_path) as etcd:
        url = etcd.url
        etcd.ctl("put", "/a", "1")
        etcd.kill()
        etcd.start()
        etcd.restart()
        assert etcd.url == url
        assert etcd.ctl("get", "/a", "--print-value-only") == "1\n"


def test_a_restored_backup_runs_the_revision_backwards(tmp_path: Path) -> None:
    with running(tmp_path) as etcd:
        etcd.ctl("put", "/a", "1")
        etcd.save(tmp_path / "backup")
        etcd.ctl("put", "/a", "2")
        revision = etcd.compact()
        etcd.restore(tmp_path / "backup")
        assert etcd.revision() == revision - 1
        assert etcd.ctl("get", "/a", "--print-value-only") == "1\n"


def test_tls_and_users(tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca")
    tls = Tls(ca.cafile, ca.issue("server"), ca.cafile, ca.issue("client"))
    with running(tmp_path, tls=tls) as etcd:
        etcd.enable_auth()
        etcd.ctl("put", "/a", "1")
        etcd.restart()
        etcd.user = ""
        assert etcd.ctl("get", "/a", check=False) == ""


def test_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as members:
        members[0].ctl("put", "/a", "1")
        members[0].kill()
        members[1].put_soon("/b", "1")
        assert members[1].ctl("get", "/a", "--print-value-only") == "1\n"
