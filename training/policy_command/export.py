"""kilolayer-policy export: write a published policy for other programs, checked by their libraries."""

import argparse
from pathlib import Path
from typing import Any

from training.policy_command import folders
from training.policy_command.result import CommandError, Result

HELP = "write a policy as ONNX, safetensors and jax.export, with a model card"
FORMATS = ("onnx", "safetensors", "jax")  # of policy.exchange.formats, which imports JAX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DIR, --version, --out, --format, --critic and --license."""
    folders.add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to write; must not exist")
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        choices=FORMATS,
        default=[],
        help="what to write; may be given several times (default: all)",
    )
    parser.add_argument("--critic", action="store_true", help="export the critic, too")
    parser.add_argument(
        "--license",
        dest="license_id",
        default="",
        metavar="ID",
        help="of the model card, as the Hugging Face hub names it, such as apache-2.0 (default: none)",
    )


def run(arguments: argparse.Namespace) -> Result:
    """Verify the policy, export it, and say what was written.

    Raises:
        MissingVersionError: there is no such version.
        CommandError: the policy is damaged, or cannot be exported as asked.
        OSError: the folder cannot be written.
    """
    from policy.exchange import export

    policy = folders.read(folders.chosen(arguments))
    try:
        out = export.export(
            policy,
            arguments.out,
            formats=arguments.formats,
            critic=arguments.critic,
            license_id=arguments.license_id,
        )
    except export.ExportError as error:
        raise CommandError(str(error)) from error
    facts: dict[str, Any] = {
        "name": policy.spec.name,
        "version": policy.version,
        "out": str(out),
        "formats": [name for name in FORMATS if name in (arguments.formats or FORMATS)],
        "critic": arguments.critic,
        "probe_rows": len(policy.probes.state),
        "files": {file.name: file.stat().st_size for file in sorted(out.iterdir())},
    }
    return Result(_lines(facts), facts)


def _lines(facts: dict[str, Any]) -> list[str]:
    width = max(map(len, facts["files"]))
    return [
        f"exported {facts['name']} version {facts['version']} to {facts['out']}",
        *(f"  {name:{width}}  {size:>13,} bytes" for name, size in facts["files"].items()),
        f"checked: {', '.join(facts['formats'])} with the {facts['probe_rows']} probes of the policy",
    ]
