"""kilolayer-policy import: publish a policy that scaling-crl or JaxGCRL has trained."""

import argparse
import dataclasses
from pathlib import Path

from policy import published
from policy.exchange import import_facts_template
from training.policy_command import folders
from training.policy_command.result import CommandError, Result, UsageError

HELP = "publish a policy of scaling-crl or JaxGCRL from its parameters"
_NEEDED = ("params", "facts", "out", "version")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files to read, and the version to publish."""
    parser.add_argument(
        "params", metavar="PARAMS.npz", type=Path, nargs="?", help="parameters, named like actor/params/Dense_0/kernel"
    )
    parser.add_argument("--facts", metavar="FACTS.toml", type=Path, help="names, units, limits and network settings")
    parser.add_argument("--out", metavar="POLICIES", type=Path, help="the folder of versions in which to publish")
    parser.add_argument("--version", metavar="N", type=int, help="the version to publish, such as the training steps")
    parser.add_argument(
        "--template", metavar="FILE", type=Path, help="write a commented FACTS.toml to fill in, and do nothing else"
    )


def run(arguments: argparse.Namespace) -> Result:
    """Write the template, or import a policy and publish it.

    Raises:
        UsageError: an argument is missing or not allowed.
        CommandError: the policy cannot be imported, or its version is published already.
        OSError: a file cannot be read or written.
    """
    given = [name for name in _NEEDED if getattr(arguments, name) is not None]
    if arguments.template is not None:
        if given:
            raise UsageError("--template FILE stands alone; write the facts first, then import")
        return _write_template(arguments.template)
    if missing := [_word(name) for name in _NEEDED if name not in given]:
        raise UsageError(f"import needs {', '.join(missing)}, or --template FILE alone")
    if not published.is_version(str(arguments.version)):
        raise UsageError(f"--version must be a training step, 0 or more, of at most 18 digits, got {arguments.version}")
    return _import(arguments)


def _word(name: str) -> str:
    return {"params": "PARAMS.npz", "facts": "--facts FACTS.toml", "out": "--out POLICIES", "version": "--version N"}[
        name
    ]


def _write_template(path: Path) -> Result:
    try:
        import_facts_template.write(path)
    except FileExistsError as error:
        raise CommandError(f"{path} exists already, and may be filled; name a new file") from error
    lines = [f"wrote {path}; fill it, then import with --facts {path}"]
    return Result(lines, {"template": str(path)})


def _import(arguments: argparse.Namespace) -> Result:
    folders.start_jax()
    from policy.exchange import imported

    try:
        path = imported.publish(arguments.params, arguments.facts, arguments.out, version=arguments.version)
    except FileExistsError as error:
        raise CommandError(f"{error}; give another --version") from error
    except (ValueError, FloatingPointError) as error:
        raise CommandError(str(error)) from error
    imported_policy = folders.read_started(path)
    spec = imported_policy.spec
    sizes = f"actor depth {spec.actor_depth}, width {spec.actor_width}"
    critic = f"critic depth {spec.critic_depth}, width {spec.critic_width}" if spec.has_critic else "no critic"
    lines = [f"published {path}", f"{spec.name}: {sizes}; {critic}; {len(imported_policy.probes.state)} probes"]
    facts = {"path": str(path), "version": arguments.version, "spec": dataclasses.asdict(spec)}
    return Result(lines, facts | {"manifest_sha256": imported_policy.manifest_sha256})
