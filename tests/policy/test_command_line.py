"""Words of a command line, variables and paths, on a configuration of the test's own."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from kilolayer import _access
from policy.command_line import (
    CLIENT_VARIABLES,
    SERVER_VARIABLES,
    foreign_variables,
    local_path,
    parse,
    unknown_variable,
    usage_problem,
)


class UsageError(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Robot:
    """A robot."""

    legs: int = 4
    max_speed: float = 0.5
    name: str = ""
    gait: Literal["walk", "trot"] = "walk"
    lights: bool = True
    maps: tuple[Path, ...] = ()
    # On Python 3.14, every union is a types.UnionType. Before, only those without a Literal are.
    height: int | str = "auto"
    start: Annotated[tuple[float, str] | None, tyro.conf.arg(metavar="X NAME")] = None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", ""),
        ("--legs 6 --max_speed -1e3 --name=a=b --gait trot --no-lights --maps a b --start 1 door", ""),
        ("--legs=6 --lights --maps --start None", ""),
        ("--max-speed inf --maps=a", ""),
        ("--height 3 --legs 4", ""),
        ("--height auto", ""),
        ("--height", "--height needs a value; --help describes it"),
        ("--legs six", "--legs must be an integer, such as 4, got 'six'"),
        ("--legs 6.5", "--legs must be an integer, such as 4, got '6.5'"),
        ("--max-speed fast", "--max-speed must be a number, such as 0.5, got 'fast'"),
        ("--gait run", "--gait must be walk or trot, got 'run'"),
        ("--legs", "--legs needs a value, such as --legs 4; --help describes it"),
        ("--legs 6 8", "'8' belongs to no flag; --help lists all flags"),
        ("--lights yes", "--lights takes no value, got 'yes'; --help describes it"),
        ("--start 1", "--start needs 2 values, got '1'; --help describes it"),
        ("--start door 1", "--start must be a number, got 'door'"),
        ("--leg 6", "--leg is not a flag; did you mean --legs? --help lists all flags"),
        ("--no-light", "--no-light is not a flag; did you mean --no-lights? --help lists all flags"),
        ("six --legs 6", "'six' belongs to no flag; --help lists all flags"),
        ("--plan", ""),
        ("--plan 3", "--plan takes no value, got '3'; --help describes it"),
    ],
)
def test_what_is_wrong_is_one_line_and_tyro_agrees_that_it_is(line: str, problem: str) -> None:
    arguments = line.split()
    assert usage_problem(arguments, Robot, other_flags=("--plan",)) == problem
    if "--plan" in arguments:
        return
    if not problem:
        assert isinstance(parse(Robot, arguments, fail=UsageError), Robot)
    elif line != "--legs 6.5":
        with pytest.raises(UsageError) as raised:
            parse(Robot, arguments, fail=UsageError)
        assert str(raised.value).isascii()
        assert "\n" not in str(raised.value)


def test_variables_of_kubernetes_are_foreign_and_others_must_be_known() -> None:
    of_a_service = {
        "KILOLAYER_SERVICE_HOST": "10.0.0.1",
        "KILOLAYER_PORT": "tcp://10.0.0.1:80",
        "KILOLAYER_WEB_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    environ = of_a_service | {"KILOLAYER_LEGS": "4", "PORT": "80"}
    assert foreign_variables(environ) == sorted(of_a_service)
    assert unknown_variable(environ, {"KILOLAYER_LEGS"}) == ""
    assert unknown_variable(environ, ()) == "KILOLAYER_LEGS"
    assert foreign_variables({"KILOLAYER_PORT": "80"}) == []
    assert unknown_variable({"KILOLAYER_PORT": "80"}, ()) == "KILOLAYER_PORT"


def test_the_variables_of_the_client_are_accepted_everywhere() -> None:
    of_the_client = set(re.findall(r"KILOLAYER_[A-Z_]+", inspect.getsource(_access)))
    assert of_the_client == CLIENT_VARIABLES
    assert not CLIENT_VARIABLES & SERVER_VARIABLES  # a machine that runs both may set both
    assert unknown_variable(dict.fromkeys(of_the_client, "x"), ()) == ""
    assert unknown_variable({"KILOLAYER_TLS_CERTS": "x"}, ()) == "KILOLAYER_TLS_CERTS"


@pytest.mark.parametrize("path", ["runs/first", "/a:/b", "./a:/b", "a:b", "12:30:00/policies", "b~/~", ""])
def test_a_path_of_this_machine_stays_as_it_is(path: str) -> None:
    expected = Path(path)
    assert local_path(Path(path), name="--out") == expected


@pytest.mark.parametrize("url", ["gs://bucket/a", "s3://b", "http://host:80/x", "file:///a"])
def test_a_url_is_refused_by_its_name(url: str) -> None:
    with pytest.raises(ValueError, match="^--out must be a path on this machine, got the URL ") as raised:
        local_path(Path(url), name="--out")
    assert url.replace("///", "//") in str(raised.value)
