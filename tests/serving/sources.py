"""PolicySources for tests that load from disk."""

from pathlib import Path
from typing import Any

from serving.policies.source import PolicySource


def policy_source(folder: Path, **changes: Any) -> PolicySource:
    """The latest version in `folder`, not followed, with the server's defaults unless changed."""
    fields: dict[str, Any] = {
        "name": "point_u_maze",
        "folder": folder,
        "given": folder,
        "wanted": "latest",
        "follow": False,
        "max_batch_rows": 256,
        "max_batch_delay_s": 0.002,
        "max_queue_rows": 8192,
    }
    return PolicySource(**(fields | changes))
