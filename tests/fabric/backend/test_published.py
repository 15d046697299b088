"""What our lease says for each backend type, byte for byte as flannel's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.backend.published import published
from fabric.leases import emit_value
from tests.fabric.calc.worlds import conf, lease, value

MACS = {4: bytes.fromhex("c6d2326f8f44"), 6: bytes.fromhex("da5e459f1273")}
VXLAN = b'"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"c6:d2:32:6f:8f:44"}'


@pytest.mark.parametrize(
    ("backend", "macs", "expected"),
    [
        ({"Type": "vxlan", "VNI": 7}, {4: MACS[4]}, b"," + VXLAN),
        ({"Type": "vxlan", "VNI": 7, "Datapath": "kernel"}, {4: MACS[4]}, b"," + VXLAN),
        ({"Type": "vxlan", "VNI": 7}, MACS,
         b"," + VXLAN + b',"BackendV6Data":{"VNI":7,"VtepMAC":"da:5e:45:9f:12:73"}'),
        ({"Type": "udp"}, MACS, b""),
        ({"Type": "alloc"}, MACS, b""),
        ({"Type": "host-gw"}, MACS, b',"BackendType":"host-gw"'),
        ({"Type": "extension"}, MACS, b',"BackendType":"extension"'),
        ({"Type": "extension", "PreStartupCommand": "x"}, MACS,
         b',"BackendType":"extension","BackendData":"it \\"said\\"\\n$(x)"'),
    ],
)  # fmt: skip
def test_values(backend: dict[str, object], macs: dict[int, bytes], expected: bytes) -> None:
    ours = published(conf(backend).backend, macs, 'it "said"\n$(x)')
    own = replace(
        lease("10.244.1.0-24", value("192.0.2.1")), backend_type=ours.backend_type, backend_data=ours.backend_data,
        backend_v6_data=ours.backend_v6_data,
    )  # fmt: skip
    assert emit_value(own) == b'{"PublicIP":"192.0.2.1","PublicIPv6":null' + expected + b"}"
