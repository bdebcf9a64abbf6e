"""Figures of exported policies, of policies on the robot itself, and of encrypted connections."""

from tests.docs.figures import Texts, find, line, record, significant

LOCAL, EXPORTS, TLS = "docs/clients.md", "docs/exporting.md", "docs/security.md"


def local_policy() -> Texts:
    """A policy on the robot itself against a served one, and how much their actions differ."""
    measured = record("local_policy.json")
    for row in measured["rows"]:
        yield LOCAL, line(row["depth"], row["way"], *(significant(row[f"{rank} us"] / 1000) for rank in ("p50", "p99")))
    largest = {
        depth: max(row["action"] for row in measured["largest_differences"] if row["depth"] == depth)
        for depth in (4, 64, 1024)
    }
    yield LOCAL, "at most {:.1g} at depth 4, {:.1g} at depth 64 and {:.1g} at depth 1024".format(*largest.values())


def export_sizes() -> Texts:
    """Sizes of the formats, and times to write and to load them."""
    for row in record("export_sizes.json")["rows"]:
        size, export_s, load_s = (significant(row[name], 2) for name in ("MB", "export s", "load s"))
        difference = f"{row['worst difference']:.1g}"
        yield EXPORTS, line(row["depth"], row["format"], size, export_s, load_s, difference)


def tls() -> Texts:
    """What TLS costs one caller and 32."""
    rows = record("tls.json")["rows"]
    one, many = (find(rows, callers=callers, figure="requests/s") for callers in (1, 32))
    rates = (f"{row[name]:,.0f}" for row in (one, many) for name in ("TLS", "plain text"))
    yield TLS, "{} requests/s instead of {} with one caller, and {} instead of {} with 32".format(*rates)


ALL = (local_policy, export_sizes, tls)
