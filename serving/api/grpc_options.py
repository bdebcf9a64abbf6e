"""The options of a gRPC server: what it refuses by itself, and when it drops silent peers."""

_PENDING_CALLS = 65536  # gRPC's default of 1000 silently cancels calls in a burst, before the queue can reject them
_SILENCE_MS = 5_000  # a peer that does not answer for this long is treated as dead


def server_options(
    *, max_request_bytes: int, max_streams: int, max_connections: int | None, share_port: bool
) -> list[tuple[str, int]]:
    """Return gRPC's options, by its own names; the arguments are those of `GrpcTransport`."""
    options = [
        # Without workers, two servers must not share a port by accident: each would get some of the calls.
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_concurrent_streams", max_streams),
        # Otherwise gRPC receives up to several megabytes of each stream in advance, instead of 64 KiB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
        # A silent peer is dropped: within 5 s if it never speaks HTTP/2, else within 20 s.
        ("grpc.server_handshake_timeout_ms", _SILENCE_MS),
        ("grpc.keepalive_time_ms", 2 * _SILENCE_MS),
        ("grpc.keepalive_timeout_ms", _SILENCE_MS),
        ("grpc.http2.ping_timeout_ms", _SILENCE_MS),  # gRPC's default of a minute overrides the keepalive timeout
        # Clients may ping every second, also between calls. gRPC's default is every 5 minutes.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ]
    if max_connections is not None:
        options.append(("grpc.max_allowed_incoming_connections", max_connections))
    return options
