"""What a policy says of itself, from its bundle through the server to the client: chunks, critics, quaternions.

One server has three policies with random parameters: `chunky` gives three actions for a state and has every field of
its specification set, `blind` has no critic, and `turner` has a quaternion in its state.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kilolayer
from clients.sim import fleet
from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from policy import acting, bundle
from policy.networks import PolicyParams
from policy.spec import PolicySpec
from serving.config import ServeConfig
from tests.open_inference import actions, infer_request, method
from tests.parameters import fresh_params
from tests.samples import WITHOUT_CRITIC, policy_spec
from tests.serving.in_process import Running, served
from training.envs.core.env_spec import EnvSpec
from training.envs.core.goal_env import GoalEnv, State

# x, its speed, and a quaternion (w, x, y, z); pushed by the first action, turned by the second
SIZES: dict[str, Any] = {
    "environment": "turntable",
    "state_names": ("x [m]", "vx [m/s]", "qw [1]", "qx [1]", "qy [1]", "qz [1]"),
    "goal_names": ("x [m]",),
    "action_names": ("push [N]", "turn [rad/s]"),
    "action_low": (-2.0, -1.0),
    "action_high": (6.0, 1.0),
}
CHUNKY = policy_spec(
    **SIZES,
    name="chunky",
    control_period_s=0.25,
    success_radius=0.125,
    critic_depth=8,
    critic_width=8,
    representation_dim=4,
    energy="dot",
    activation="relu",
    layer_norm=False,
    residual=False,
    actuator_kind=("torque", "velocity"),
    rest_action=(0.25, -0.5),
    action_meaning=("absolute", "increment"),
    max_action_change=(0.5, 2.0),
    action_chunk=3,
    normalize_observations=True,
    normalization_mean=(0.5, 1.0, 0.0, 0.25, -0.25, 2.0),
    normalization_std=(1.0, 2.0, 0.5, 0.25, 4.0, 8.0),
    seen_mean=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0),
    seen_std=(1.0, 0.5, 0.0, 2.0, 3.0, 4.0),
    seen_low=(-1.0, -2.0, 2.0, -4.0, -5.0, -6.0),
    seen_high=(1.0, 2.0, 2.0, 4.0, 5.0, 6.0),
    state_quaternions=(2,),
)
BLIND = policy_spec(**SIZES, **WITHOUT_CRITIC, name="blind")
TURNER = policy_spec(**SIZES, name="turner", state_quaternions=(2,))
SPECS = (CHUNKY, BLIND, TURNER)
ROWS = 3


def clear_actions(params: PolicyParams) -> PolicyParams:
    """Fresh parameters, with weights of the actor so large that its actions are far from 0."""
    return params._replace(actor=jax.tree.map(lambda leaf: 2 * leaf, params.actor))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bundle.Bundle]:
    root, rng = tmp_path_factory.mktemp("contract"), np.random.default_rng(0)
    return {
        spec.name: bundle.read(
            bundle.write(
                root / spec.name,
                1000,
                spec=spec,
                params=clear_actions(fresh_params(1, spec)),
                probe_state=rng.normal(size=(2, spec.state_dim)),
                probe_goal=rng.normal(size=(2, spec.goal_dim)),
                provenance={},
            )
        )
        for spec in SPECS
    }


@pytest.fixture(scope="module")
def running(bundles: dict[str, bundle.Bundle]) -> Iterator[Running]:
    folders: list[Path] = [each.path.parent for each in bundles.values()]
    config = ServeConfig(
        policies=tuple(folders),
        listen="127.0.0.1:0",
        metrics_port=0,
        metrics=False,
        max_batch_rows=1,
        max_call_rows=8,
        max_queue_age_s=60.0,  # the machine may be busy
    )
    with served(config) as running:
        yield running


def client_of(running: Running, policy: str) -> kilolayer.PolicyClient:
    return kilolayer.PolicyClient(running.address, policy=policy, timeout_s=60, robot_id="robot 7")


def rows_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, 6)).astype(np.float32), rng.normal(size=(ROWS, 1)).astype(np.float32)


def described(found: kilolayer.PolicyDescription) -> dict[str, Any]:
    """The description without what the specification does not have."""
    fields = dataclasses.asdict(found)
    return {name: fields[name] for name in fields if name not in ("version", "manifest_sha256", "max_rows")}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_field_of_a_specification_reaches_the_client(
    running: Running, bundles: dict[str, bundle.Bundle], spec: PolicySpec
) -> None:
    with client_of(running, spec.name) as client:
        found = client.describe()
    assert described(found) == dataclasses.asdict(spec)
    assert found.manifest_sha256 == bundles[spec.name].manifest_sha256


def test_the_first_specification_has_no_default_value() -> None:
    """Otherwise a field that gets lost would not be noticed above. A policy without a critic and goals' quaternions."""
    required = policy_spec(**SIZES, name="chunky")
    unchanged = {
        field.name
        for field in dataclasses.fields(PolicySpec)
        if field.default is not dataclasses.MISSING and getattr(CHUNKY, field.name) == getattr(required, field.name)
    }
    assert unchanged == {"critic", "goal_quaternions"}  # `blind` has the one; `test_replies.py` tests the other
    assert BLIND.critic == "none"


def test_a_reply_has_the_chunk_of_the_policy(running: Running, bundles: dict[str, bundle.Bundle]) -> None:
    state, goal = rows_of(1)
    expected = np.asarray(acting.act(bundles["chunky"].params, jnp.asarray(state), jnp.asarray(goal)))
    assert expected.shape == (ROWS, 6)
    with client_of(running, "chunky") as client, client.stream() as stream:
        answers = [client.act(state, goal), stream.act(state, goal)]
        one = client.act(state[1], goal[1])
    for answer in answers:
        np.testing.assert_allclose(answer.chunk, expected.reshape(ROWS, 3, 2), atol=1e-6)
        np.testing.assert_array_equal(answer.action, answer.chunk[:, 0])
    np.testing.assert_allclose(one.chunk, expected[1].reshape(3, 2), atol=1e-6)
    np.testing.assert_array_equal(one.action, one.chunk[0])


async def test_every_client_shows_whether_a_state_is_out_of_range(running: Running) -> None:
    """The bounds are -6 and 6 for x, 4.5 for its speed, and 0.001 around 2 for the first value of the quaternion."""
    async with kilolayer.AsyncPolicyClient(running.address, policy="chunky", timeout_s=60) as of_asyncio:
        with client_of(running, "chunky") as client, client.stream() as stream:
            for state, expected in (
                ([6, -4.5, 2, 14, 20, -26], False),
                ([6, -4.5, -2, -14, -20, 26], False),  # the same rotation
                ([6.001, 0, 2, 0, 0, 0], True),
                ([0, 0, 2.002, 0, 0, 0], True),
            ):
                replies = [client.act(state, [1]), stream.act(state, [1]), await of_asyncio.act(state, [1])]
                assert [reply.out_of_range for reply in replies] == [expected] * 3
            assert client.act([[0, 0, 2, 0, 0, 0], [99, 0, 2, 0, 0, 0]], [1]).out_of_range is True
    with client_of(running, "blind") as client:
        assert client.act([99] * 6, [1]).out_of_range is False  # it has no statistics


def test_open_inference_gives_the_same_chunk_in_one_row(running: Running) -> None:
    state, goal = rows_of(2)
    with grpc.insecure_channel(running.address) as channel, client_of(running, "chunky") as client:
        reply = method(channel, "ModelInfer")(infer_request(state, goal, model_name="chunky"), timeout=60)
        chunk = client.act(state, goal).chunk
    np.testing.assert_allclose(actions(reply), chunk.reshape(ROWS, 6), atol=1e-6)


def test_each_action_of_a_sampled_chunk_has_noise_of_its_own(
    running: Running, bundles: dict[str, bundle.Bundle]
) -> None:
    state, goal = rows_of(3)
    with client_of(running, "chunky") as client:
        sampled, again = (client.act(state, goal, seed=7).chunk for _ in range(2))
    np.testing.assert_array_equal(sampled, again)
    distribution = acting.action_distribution(bundles["chunky"].params, jnp.asarray(state), jnp.asarray(goal))
    keys = [jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), row) for row in range(ROWS)]
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(key, 0), (6,)) for key in keys])
    expected = acting.sample_action(distribution, noise)[0].reshape(ROWS, 3, 2)
    np.testing.assert_allclose(sampled, expected, atol=1e-5)


def test_a_chunk_is_scored_and_the_best_is_chosen(running: Running, bundles: dict[str, bundle.Bundle]) -> None:
    state, goal = rows_of(4)
    with client_of(running, "chunky") as client:
        best = client.act(state[:2], goal[:2], seed=5, best_of=4).chunk
        sampled = client.act(state[:2], goal[:2], seed=5).chunk  # the first of the four candidates
        energy = client.score(state[:2], best, goal=goal[:2]).energy
        of_sampled = client.score(state[:2], sampled, goal=goal[:2]).energy
        alone = client.score(state[1], best[1], goal=goal[1]).energy
        with pytest.raises(kilolayer.InvalidRequest, match="3 actions of 2 values for each row, got 4"):
            client.score(state[:2], best[:, 0], goal=goal[:2])
    blocks = [jnp.asarray(block) for block in (state[:2], best.reshape(2, 6), goal[:2])]
    expected = acting.score(bundles["chunky"].params, *blocks[:2], goal=blocks[2], energy="dot")
    np.testing.assert_allclose(energy, expected, atol=1e-4)
    np.testing.assert_allclose(alone, energy[1], atol=1e-4)
    assert (energy >= of_sampled).all()
    assert (energy > of_sampled).any(), "the first draw of both would show nothing; choose another seed"


def test_without_a_critic_there_is_no_score_and_no_best(running: Running) -> None:
    state, goal = rows_of(5)
    with client_of(running, "blind") as client, client.stream() as stream:
        for call, ability in (
            (lambda: client.score(state, np.zeros((ROWS, 2)), goal=goal), "score actions; choose another policy"),
            (lambda: client.act(state, goal, seed=1, best_of=2), "choose the best of several actions; use another"),
            (lambda: stream.act(state, goal, seed=1, best_of=2), "choose the best of several actions; use another"),
        ):
            with pytest.raises(kilolayer.NotSupported, match=f"blind has no critic, so it cannot {ability}") as refused:
                call()
            assert (refused.value.status, refused.value.reason) == ("FAILED_PRECONDITION", "no_critic")
        np.testing.assert_allclose(stream.act(state, goal).action, client.act(state, goal).action, atol=1e-6)
        assert client.act(state, goal, seed=1).action.shape == (ROWS, 2)


def test_a_quaternion_and_its_negative_give_the_same_bytes(running: Running) -> None:
    turned = [[0.1, 0.2, 0.5, -0.5, 0.5, 0.5], [0.1, 0.2, -0.5, 0.5, -0.5, -0.5], [0.1, 0.2, 0.8, 0.0, 0.6, 0.0]]
    requests = [pb.ActRequest(policy="turner", state=state, goal=[0.3]) for state in turned]
    with grpc.insecure_channel(running.address) as channel:
        stub = PolicyStub(channel)
        same, negative, other = (np.array(stub.Act(request, timeout=60).action) for request in requests)
        scores = [
            stub.Score(pb.ScoreRequest(policy="turner", state=state, action=[0.5, -0.5], goal=[0.3]), timeout=60).energy
            for state in turned
        ]
    assert same.tobytes() == negative.tobytes()
    assert np.abs(same - other).max() > 1e-3
    assert scores[0] == scores[1] != scores[2]


def test_a_request_may_hold_the_chunks_of_every_row(running: Running) -> None:
    """A row of the widest policy has 6 + 1 + 3 * 2 values, of 8 bytes at most: 8 * 13 * 8 + 65536 bytes in all."""
    with grpc.insecure_channel(running.address) as channel, pytest.raises(grpc.RpcError, match="66368"):
        PolicyStub(channel).Score(pb.ScoreRequest(state=[0.0] * 20_000), timeout=60)


def test_reports_of_a_robot_that_was_answered_count_once_by_version(running: Running) -> None:
    accepted, duplicate, unknown = kilolayer.ReportStatus
    with (
        client_of(running, "blind") as client,
        kilolayer.PolicyClient(running.address, robot_id="robot 8", timeout_s=60) as other,
    ):
        version = client.act(np.zeros(6), [0.3]).version
        other.score(np.zeros(6), np.zeros((3, 2)), goal=[0.3])  # of the policy chunky; a score is not an action
        reports = [
            client.report(5, version=version, reached=True, time_at_goal=30),
            client.report(5, version=version, reached=True, time_at_goal=30),
            client.report(6, version=version, reached=False, time_at_goal=1),
            client.report(7, version="2000", reached=True),
            other.report(1, version=version, reached=True),
        ]
    assert reports == [accepted, duplicate, accepted, unknown, unknown]
    about = {"policy": "blind", "version": "1000"}
    names = ("episodes_total", "episodes_reached_total", "episodes_time_at_goal_total")
    assert [running.sample(name, **about) for name in names] == [2, 1, 31]
    counted = [
        running.sample("reports_total", policy="blind", status=status.value)
        for status in (accepted, duplicate, unknown)
    ]
    assert counted == [2, 1, 1]
    assert running.sample("reports_total", policy="chunky", status="unknown") == 1
    assert running.sample("requests_total", method="Report", policy="blind", code="OK") == 4


def test_an_answer_of_a_stream_or_of_the_other_protocol_makes_reports_possible(running: Running) -> None:
    with kilolayer.PolicyClient(running.address, policy="turner", robot_id="streamed", timeout_s=60) as client:
        with client.stream() as stream:
            stream.act(np.zeros(6), [0.3])
        assert client.report(1, version="1000", reached=True) == "accepted"
    with grpc.insecure_channel(running.address) as channel:
        request = infer_request(np.zeros((1, 6), np.float32), np.zeros((1, 1), np.float32), model_name="turner")
        request.parameters["robot_id"].string_param = "inferred"
        method(channel, "ModelInfer")(request, timeout=60)
        report = pb.ReportRequest(policy="turner", version="1000", robot_id="inferred", episode=1)
        assert PolicyStub(channel).Report(report, timeout=60).status == pb.REPORT_STATUS_ACCEPTED


@pytest.mark.parametrize(
    ("wrong", "message", "status"),
    [
        ({"robot_id": ""}, "robot_id must not be empty: reports count once for each robot", "INVALID_ARGUMENT"),
        ({"robot_id": "a" * 129}, "robot_id must have at most 128 bytes in UTF-8, got 129", "INVALID_ARGUMENT"),
        ({"version": ""}, "version must be that of the replies, a training step such as 2000", "INVALID_ARGUMENT"),
        ({"version": "1e3"}, "a training step such as 2000, got '1e3'", "INVALID_ARGUMENT"),
        ({"version": "٣"}, "a training step such as 2000, got '\\u0663'", "INVALID_ARGUMENT"),
        ({"version": "9" * 19}, "a training step such as 2000, got '9999999999999999999'", "INVALID_ARGUMENT"),
        ({"policy": "other"}, "there is no policy 'other'; there are: blind, chunky, turner", "NOT_FOUND"),
    ],
)
def test_a_report_about_nothing_is_refused(running: Running, wrong: dict[str, str], message: str, status: str) -> None:
    fields: dict[str, Any] = {"policy": "blind", "version": "1000", "robot_id": "robot 7", **wrong}
    report = pb.ReportRequest(**fields)
    with grpc.insecure_channel(running.address) as channel, pytest.raises(grpc.RpcError) as refused:
        PolicyStub(channel).Report(report, timeout=60)
    error: Any = refused.value
    assert error.code().name == status
    assert message in error.details()


class Turntable(GoalEnv):
    """A push moves x by 0.1 m; a turn turns the quaternion about z by 0.5 rad. `sign` is that of its quaternions."""

    def __init__(self, sign: float) -> None:
        names = {name: SIZES[name] for name in ("state_names", "goal_names", "action_names")}
        self.spec = EnvSpec(name="turntable", **names, success_radius=0.125, episode_length=6)
        self._sign = sign

    def reset(self, rng: jax.Array) -> State:
        start: Any = jnp.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        return self._observe(start, jax.random.uniform(rng, (1,)))

    def step(self, state: State, action: jax.Array) -> State:
        before: Any = state.pipeline_state
        x, _, w, _, _, z = before
        cos, sin = jnp.cos(action[1] / 4), jnp.sin(action[1] / 4)
        turned = jnp.stack([w * cos - z * sin, jnp.zeros(()), jnp.zeros(()), z * cos + w * sin])
        moved: Any = jnp.concatenate([jnp.stack([x + 0.1 * action[0], action[0]]), turned])
        return self._observe(moved, state.info["goal"], before=state)

    def sense(self, data: Any) -> jax.Array:
        return data * jnp.where(jnp.arange(6) < 2, 1.0, self._sign)

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        return state[..., :1]

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise AssertionError("it has no joints")

    def sample_goal(self, key: jax.Array) -> jax.Array:
        raise AssertionError("reset draws the goal")


def driven(running: Running, policy: str, *, sign: float = 1.0) -> list[fleet.Episode]:
    clients = fleet.connect(running.address, robots=2, policy=policy, timeout_s=60)
    try:
        return list(fleet.drive(Turntable(sign), clients, key=jax.random.key(0), episodes=2, episode_length=6))
    finally:
        for client in clients:
            client.close()


def test_simulated_robots_drive_each_policy(running: Running) -> None:
    for policy, requests in (("chunky", 2), ("blind", 6), ("turner", 6)):
        for episode in driven(running, policy):
            assert (len(episode.ticks), episode.missed) == (requests, 0)
            assert np.abs(np.diff(episode.path[:, 0])).max() > 1e-3


def test_simulated_robots_follow_the_whole_chunk(running: Running) -> None:
    (episode, _) = driven(running, "chunky")
    with client_of(running, "chunky") as client:
        chunk = client.act([0, 0, 1, 0, 0, 0], episode.goal).chunk
    np.testing.assert_allclose(episode.path[1:4, 0], np.cumsum(0.1 * chunk[:, 0]), atol=1e-5)


def test_the_sign_of_a_quaternion_does_not_change_where_a_robot_goes(running: Running) -> None:
    plus, minus = driven(running, "turner"), driven(running, "turner", sign=-1.0)
    for one, other in zip(plus, minus, strict=True):
        np.testing.assert_allclose(one.path, other.path, atol=1e-6)
    blind_plus, blind_minus = driven(running, "blind"), driven(running, "blind", sign=-1.0)
    assert np.abs(blind_plus[0].path - blind_minus[0].path).max() > 1e-3, "without indices it does change"
