"""Addresses of the Python client: what is accepted, what gRPC gets, and what each mistake is told."""

from __future__ import annotations  # for Python 3.9

import re

import pytest

import kilolayer
from kilolayer._address import parse_address


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("localhost:50051", "dns:///localhost:50051"),
        ("dns:///policy.example.com:50051", "dns:///policy.example.com:50051"),
        ("policy.example.com.:1", "dns:///policy.example.com.:1"),
        ("robot_7-a:65535", "dns:///robot_7-a:65535"),
        ("10.0.0.5:050", "dns:///10.0.0.5:50"),
        ("[::1]:50051", "dns:///[::1]:50051"),
        ("[fe80::1%eth0]:50051", "dns:///[fe80::1%25eth0]:50051"),
        ("dns:50051", "dns:///dns:50051"),  # a host may have any name
        ("10.0.0.5:1,10.0.0.6:2", "ipv4:10.0.0.5:1,10.0.0.6:2"),
        ("localhost:1,localhost:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[fd00::5]:1,[fd00::6]:2", "ipv6:[fd00::5]:1,[fd00::6]:2"),
        ("10.0.0.5:1,[fd00::6]:2", "ipv6:[::ffff:10.0.0.5]:1,[fd00::6]:2"),
        ("unix:/run/kilolayer/a b.sock", "unix:/run/kilolayer/a%20b.sock"),
    ],
)
def test_an_address_is_given_to_grpc_in_full(address: str, target: str) -> None:
    assert parse_address(address).target == target
    kilolayer.PolicyClient(address).close()


PORT = "must end with a port from 1 to 65535"
NO_SCHEME = "must be host:port without a scheme, such as"


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("localhost", "must name a port, such as localhost:50051, or a Unix socket"),
        ("policy.example.com", "must name a port, such as policy.example.com:50051"),
        ("[::1]", "must name a port, such as [::1]:50051"),
        ("", "must name a port, such as localhost:50051"),
        ("localhost:", f"{PORT}, such as localhost:50051, got 'localhost:'"),
        ("[::1]:", f"{PORT}, such as [::1]:50051"),
        ("dns:///localhost:", PORT),
        ("host:0", PORT),
        ("host:65536", PORT),
        ("host:99999", PORT),
        ("host:port", f"{PORT}, such as host:50051, got 'host:port'"),
        ("host:-1", PORT),
        ("host:+1", PORT),
        ("host:5_0", PORT),
        ("host:٥٠", PORT),  # digits, but not those of ASCII
        ("host:50051/path", PORT),
        (":50051", "must name a host before the colon, such as localhost:50051"),
        (":", "must name a host"),
        ("::1", "an IPv6 address needs brackets and a port, such as [::1]:50051"),
        ("fd00::5:50051", "an IPv6 address needs brackets, such as [::1]:50051"),
        ("a:1:2", "must be host:port with one colon"),
        ("localhost::50051", "must be host:port with one colon"),
        ("unix-abstract:name", "by its path, such as unix:/run/kilolayer.sock; unix-abstract: is not supported"),
        ("unix://run/x.sock", "must have one slash after unix:, such as unix:/run/x.sock, got 'unix://run/x.sock'"),
        ("[localhost]:1", "must name a host by an IP address"),
        ("[10.0.0.5]:1", "must name a host by an IP address"),
        ("[::1:1", "must name a host by an IP address"),
        ("10.0.0.256:1", "must name a host by an IP address"),
        ("10.0.5:1", "must name a host by an IP address"),
        ("me@host:1", "must name a host by an IP address"),
        ("-host:1", "must name a host by an IP address"),
        ("a..b:1", "must name a host by an IP address"),
        ("räuber:1", "must name a host by an IP address"),
        ("host\ud800:1", r"got 'host\ud800:1'"),
        ("\0:1", "must name a host by an IP address"),
        (" localhost:50051", "must not contain spaces"),
        ("localhost:50051\n", "must not contain spaces"),
        ("local host:50051", "must not contain spaces"),
        ("10.0.0.5:1, 10.0.0.6:1", "must not contain spaces"),
        ("dns://localhost:50051", "must have three slashes after dns:, such as dns:///localhost:50051"),
        ("dns:localhost:50051", "must have three slashes after dns:, such as dns:///localhost:50051"),
        ("dns:///", "must name a port"),
        ("http://localhost:50051", f"{NO_SCHEME} localhost:50051; http: is not supported"),
        ("https://a.example:443/x", f"{NO_SCHEME} a.example:443, with tls=True; https: is not supported"),
        ("grpc://localhost:50051", f"{NO_SCHEME} localhost:50051; grpc: is not supported"),
        ("grpcs://localhost:50051", f"{NO_SCHEME} localhost:50051, with tls=True; grpcs: is not supported"),
        ("tcp://localhost:50051", f"{NO_SCHEME} localhost:50051; tcp: is not supported"),
        ("tcp:localhost:50051", f"{NO_SCHEME} localhost:50051; tcp: is not supported"),
        ("ipv4:10.0.0.5:50051", f"{NO_SCHEME} 10.0.0.5:50051; ipv4: is not supported"),
        ("ipv4:10.0.0.5:1,10.0.0.6:1", f"{NO_SCHEME} 10.0.0.5:1,10.0.0.6:1; ipv4: is not supported"),
        ("ipv6:[::1]:50051", f"{NO_SCHEME} [::1]:50051; ipv6: is not supported"),
        ("xds:///policy", f"{NO_SCHEME} policy; xds: is not supported"),
        ("ftp://", f"{NO_SCHEME} localhost:50051; ftp: is not supported"),
        ("a:1,b:1", "several addresses must be IP addresses, such as 10.0.0.5:50051,10.0.0.6:50051, got the name 'a'"),
        ("10.0.0.5:1,", "must name a port"),
        ("10.0.0.5:1,10.0.0.6", "must name a port, such as 10.0.0.6:50051"),
        ("unix:", "must name a Unix socket with a path of at most 107 bytes, such as unix:/run/kilolayer.sock, got"),
        ("unix:/" + 107 * "x", "must name a Unix socket with a path of at most 107 bytes"),
        ("unix:/" + 54 * "é", "must name a Unix socket with a path of at most 107 bytes"),
        ("unix:/\ud800", "must name a Unix socket"),
        ("unix:/a\0b", "must name a Unix socket"),
        ("x" * 10**6, "must name a port"),
        ("http://" + "x" * 10**6, "without a scheme"),
        (None, "must be a string such as localhost:50051"),
        (b"localhost:50051", "must be a string such as localhost:50051"),
        (["10.0.0.5:1", "10.0.0.6:1"], "or several IP addresses with ports separated by commas"),
    ],
)
def test_a_mistake_in_an_address_is_named_with_a_form_that_works(address: str, complaint: str) -> None:
    for make in (kilolayer.PolicyClient, kilolayer.AsyncPolicyClient):
        with pytest.raises(ValueError, match=re.escape(complaint)) as mistake:
            make(address)
        assert len(str(mistake.value)) < 600


@pytest.mark.parametrize(
    "address",
    [
        "https://user:s3cret@h:1",
        "https://user:s3cret/s3cret@h:1",
        "dns://user:s3cret@h:1",
        "user:s3cret@h:1",
        "s3cret@h",
        "s3cret@10.0.0.5:1,h:1",
        "10.0.0.5:1,s3cret@h:1",
    ],
)
def test_a_password_in_an_address_is_not_shown(address: str) -> None:
    with pytest.raises(ValueError, match="address must ") as mistake:
        kilolayer.PolicyClient(address)
    assert "s3cret" not in str(mistake.value)
    assert "got '...@h" in str(mistake.value) or "h:1'" in str(mistake.value)


def test_a_unix_socket_may_have_three_slashes() -> None:
    assert parse_address("unix:///run/kilolayer.sock").target == "unix:///run/kilolayer.sock"


@pytest.mark.parametrize(
    ("address", "local", "direct", "balanced"),
    [
        ("unix:/run/kilolayer.sock", True, True, False),
        ("localhost:1", True, True, False),
        ("127.1.2.3:1", True, True, False),
        ("[::1]:1", True, True, False),
        ("[::ffff:127.0.0.1]:1", True, True, False),
        ("127.0.0.1:1,localhost:2", True, True, True),
        ("127.0.0.1:1,10.0.0.5:1", False, True, True),
        ("10.255.0.1:1", False, True, False),
        ("172.16.0.1:1", False, True, False),
        ("172.32.0.1:1", False, False, False),
        ("192.168.0.1:1", False, True, False),
        ("169.254.0.1:1", False, True, False),
        ("[fd12::1]:1", False, True, False),
        ("[fe80::1%eth0]:1", False, True, False),
        ("[2001:db8::1]:1", False, False, False),
        ("203.0.113.7:1", False, False, False),
        ("robot7:1", False, True, True),
        ("policy.LOCAL:1", False, True, True),
        ("localhost.example.com:1", False, False, True),
        ("dns:///policy.example.com:1", False, False, True),
    ],
)
def test_an_address_tells_how_to_connect(address: str, local: bool, direct: bool, balanced: bool) -> None:
    parsed = parse_address(address)
    assert (parsed.is_local, parsed.connects_directly, parsed.is_balanced) == (local, direct, balanced)


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, ""),
        ({"http_proxy": "http://proxy:1"}, "http_proxy"),
        ({"http_proxy": "http://proxy:1", "https_proxy": "http://proxy:1"}, "https_proxy"),
        ({"https_proxy": "http://proxy:1", "grpc_proxy": "http://proxy:1"}, "grpc_proxy"),
        ({"grpc_proxy": "", "http_proxy": "http://proxy:1"}, ""),
        ({"https_proxy": "https://proxy:1", "http_proxy": "http://proxy:1"}, ""),
        ({"https_proxy": "proxy:1"}, ""),
        ({"https_proxy": "http://"}, ""),
        ({"http_proxy": "http://proxy:1", "no_grpc_proxy": "", "no_proxy": "example.com"}, "http_proxy"),
        ({"HTTP_PROXY": "http://proxy:1"}, ""),  # gRPC reads no uppercase ones
        ({"http_proxy": "http://proxy:1", "no_proxy": "other.com, example.com"}, ""),
        ({"http_proxy": "http://proxy:1", "no_proxy": "other.com"}, "http_proxy"),
        ({"http_proxy": "http://proxy:1", "no_proxy": "example.com", "no_grpc_proxy": "other.com"}, "http_proxy"),
    ],
)
def test_the_variable_of_a_proxy_is_found_as_grpc_does(environment: dict[str, str], variable: str) -> None:
    assert parse_address("policy.example.com:1").proxy_variable(environment) == variable
    assert parse_address("robot7:1").proxy_variable(environment) == ""
