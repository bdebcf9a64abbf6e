"""Descriptors and connections: a fake clock, and tables as the kernel writes them."""

import logging
import resource
from pathlib import Path

import pytest

from serving.sockets import Address, TcpAddress, UnixAddress
from serving.telemetry.descriptors import ConnectionsCollector, DescriptorWatch

# Port 50051 is C383. A listening socket (0A), two established ones (01), one that is being closed (06), and one of
# another port whose peer has port 50051.
TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:C383 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0 0 10 0
   1: 0100007F:C383 0100007F:9C42 01 00000000:00000000 00:00000000 00000000     0        0 102 1 0 20 4 30 10 -1
  12: 0100007F:C383 0100007F:9C44 01 00000000:00000000 00:00000000 00000000     0        0 103 1 0 20 4 30 10 -1
  13: 0100007F:C383 0100007F:9C46 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
  14: 0100007F:9C42 0100007F:C383 01 00000000:00000000 00:00000000 00000000     0        0 104 1 0 20 4 30 10 -1
"""
TCP6 = """  sl  local_address                         remote_address                        st
   0: 0000000000000000FFFF00000100007F:C383 0000000000000000FFFF00000100007F:9C48 01 00000000:00000000 00:00000000
"""


def test_established_connections_of_the_port_are_counted(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(TCP)
    (tmp_path / "tcp6").write_text(TCP6)
    assert connections(TcpAddress("0.0.0.0", 50051), tmp_path) == 3
    (tmp_path / "tcp6").unlink()  # as without IPv6
    assert connections(TcpAddress("0.0.0.0", 50051), tmp_path) == 2


# Two connections that the server has accepted, its listening socket, a peer, and sockets of other paths.
UNIX = """Num       RefCount Protocol Flags    Type St Inode Path
00000000427258f4: 00000003 00000000 00000000 0001 03 10835 /run/k/a.sock
0000000051edf6d4: 00000003 00000000 00000000 0001 03 10838 /run/k/a.sock
0000000084399e0b: 00000002 00000000 00010000 0001 01 10831 /run/k/a.sock
00000000c05f7078: 00000003 00000000 00000000 0001 03 10845
00000000c05f7079: 00000003 00000000 00000000 0001 03 10846 /run/k/a_sock
00000000c05f7080: 00000003 00000000 00000000 0001 03 10847 /run/k/a.sock.1
00000000c05f7081: 00000003 00000000 00000000 0001 03 10848 @\xff
"""


def test_connections_of_a_unix_socket_are_counted(tmp_path: Path) -> None:
    (tmp_path / "unix").write_bytes(UNIX.encode("latin-1"))  # a name of another program need not be text
    assert connections(UnixAddress(Path("/run/k/a.sock")), tmp_path) == 2


def connections(address: Address, folder: Path) -> float:
    (metric,) = ConnectionsCollector(address, folder=folder).collect()
    ((name, value),) = [(sample.name, sample.value) for sample in metric.samples]
    assert name == "kilolayer_connections"
    return value


def test_connections_over_http_have_a_metric_of_their_own(tmp_path: Path) -> None:
    (metric,) = ConnectionsCollector(TcpAddress("127.0.0.1", 1), protocol="http", folder=tmp_path).collect()
    assert metric.name == "kilolayer_http_connections"
    assert metric.documentation == "Open connections to the HTTP address."


def test_used_up_descriptors_are_one_warning_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [100.0]
    watch = DescriptorWatch(clock=lambda: now_s[0])
    with caplog.at_level(logging.WARNING):
        watch.check(used=207, limit=256)
        assert caplog.messages == []
        watch.check(used=208, limit=256)  # 48 are kept back
        now_s[0] += 59
        watch.check(used=250, limit=256)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(
            "208 of 256 file descriptors are in use, so further connections are refused"
        )
        now_s[0] += 1
        watch.check(used=250, limit=256)
    assert len(caplog.messages) == 2


def test_with_no_descriptor_left_the_limit_is_in_use(caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        DescriptorWatch(clock=lambda: 100.0).check()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caplog.messages[0].startswith("1 of 1 file descriptors are in use")
