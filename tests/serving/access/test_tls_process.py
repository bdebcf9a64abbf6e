"""Locks of a server process, as users start it."""

import re
import time
import urllib.request
from pathlib import Path

import grpc
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from tests.serving.access.authority import Authority, credentials, write
from tests.serving.server_process import fail, ready

GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2)


def test_plain_text_for_other_machines_is_one_line_and_exit_code_1(policies: Path) -> None:
    code, lines = fail("--policies", str(policies), "--listen", "0.0.0.0:0")
    assert (code, len(lines)) == (1, 1)
    assert "ERROR --listen 0.0.0.0:0 accepts plain text from other machines; encrypt connections with" in lines[0]


def test_a_certificate_that_is_missing_is_one_line_and_exit_code_1(policies: Path, tmp_path: Path) -> None:
    files = ["--tls-cert", str(tmp_path / "c"), "--tls-key", str(tmp_path / "k"), "--workers", "2"]
    code, lines = fail("--policies", str(policies), *files)
    assert (code, len(lines)) == (1, 1)
    assert f"ERROR --tls-cert {tmp_path}/c cannot be read: No such file or directory" in lines[0]


@pytest.mark.slow  # starts three processes
def test_workers_share_the_certificates_and_each_takes_up_new_ones(policies: Path, tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    files = write(tmp_path, authority.sign(), client_ca=authority.cert)
    words = ["--tls-cert", files.cert, "--tls-key", files.key, "--tls-client-ca", files.client_ca, "--workers", 2]
    with ready("--policies", str(policies), "--listen", "0.0.0.0:0", *map(str, words)) as (process, address, lines):
        assert process.stderr
        assert not any("not encrypted" in line for line in lines)
        metrics = re.search(r"metrics=(http://127\.0\.0\.1:\d+/metrics)", lines[-1])
        assert metrics, lines[-1]
        port = address.split(":")[1]
        for _ in range(4):  # connections, which the kernel distributes
            assert acts(port, credentials(authority.cert, authority.sign("robot")))
        assert not acts(port, credentials(authority.cert))
        write(tmp_path, other.sign(), client_ca=other.cert)
        for _ in range(4):
            assert acts(port, credentials(other.cert, other.sign("robot")))
        ends_s = time.monotonic() + 60
        sample = 'kilolayer_tls_failures_total{reason="no_client_certificate"} 1.0'
        while sample not in urllib.request.urlopen(metrics[1], timeout=10).read().decode():
            assert time.monotonic() < ends_s
            time.sleep(0.1)  # it is counted within a second
        process.terminate()
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "refused a TLS connection: the client has no certificate" in rest
    assert f"the certificate in {files.cert} is in use from now on" in rest


def acts(port: str, client: grpc.ChannelCredentials) -> bool:
    """Whether a request is answered over a new connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{port}", client, options=options) as channel:
        try:
            return len(PolicyStub(channel).Act(GOOD, timeout=20).action) > 0
        except grpc.RpcError:
            return False
