"""Faults: what a server must survive, with real processes, and the harness that makes the faults.

The harness, each module with a test of its own:

* `tcp_proxy`: delays, slows, cuts and silences connections.
* `supervised`: starts a process again when it ends, as systemd and Kubernetes do.
* `resources`: memory, descriptors, threads and log bytes of a tree of processes.
* `bundle_mutator`: damages a published policy in every way.
* `retrying_caller`: a caller with several servers that tries again, and counts what was lost.
* `greedy_client`, `incomplete_calls`: clients that never read, and that leave requests incomplete.
* `other_clients`: the calls of others during a flood.
* `hostile_messages`: malformed and hostile messages for every method.
* `stream_calls`: very many calls, every answer compared.
* `training_kills`: kills a training run, starts its command again, and compares what it leaves.
* `scenarios`: whole courses of events with real servers, as functions of how often.
* `remote_admin`: what operators ask of a running server.
* `new_versions`: courses of events in which versions are published.
* `steady_load`: calls at a fixed rate, every answer compared.
* `loaded_switches`: what changes of the live version cost the calls of a steady load.
* `interrupted_training`: training runs that are killed, stopped and damaged at random.

`make soak` and `make soak-training` run the long form of the tests (see `soak` and `soak_training`).

Where each fault of one server with its present policies is tested:

| fault | expected | test |
|---|---|---|
| malformed bytes, wrong sizes or shapes | refused by name | `test_hostile_messages`; `serving/test_codec_fuzz` |
| NaN or infinity in one row | refused; rows of others keep their bytes | `test_one_server` |
| 100,000 hostile messages; bytes that are no HTTP/2 | same answers, memory, descriptors and log | `test_scenarios` |
| a million calls | memory does not grow | `test_scenarios` |
| more rows or bytes than allowed | refused before they are read | `serving/test_policy_service` |
| one client that floods the server | others are answered | `test_scenarios`; `serving/test_queue` |
| requests that never become complete | memory bounded, calls ended | `test_scenarios`; `serving/test_grpc_handlers` |
| half-open and silent connections | closed in seconds | `serving/test_grpc_transport` |
| client gone during a call, deadline passed | no computation, free queue | `test_one_server`; `serving/test_batcher` |
| calls that are opened and cancelled immediately | no silent end of others, bounded memory | `test_scenarios` |
| overload | explicit rejections | `serving/test_overload`, `test_overload_check`; `benchmarks/serve.py` |
| SIGTERM under load | every accepted call is answered, exit code 0 | `test_scenarios`; `serving/test_run` |
| SIGKILL | restarted; a caller is answered within seconds | `test_scenarios`; `serving/test_workers` |
| a file that is flipped, truncated, swapped, deleted, linked, foreign | refused by name | `test_bundle_mutants` |
| arrays with other values, NaN, infinity, huge shapes, matching hashes | refused by name | `test_bundle_mutants` |
| every such version, published while another one serves | refused once; the live one answers | `test_new_versions` |
| versions published while servers start | every server ends up on the newest | `test_new_versions` |
| a killed server or worker, after decisions about versions | comes up with them | `test_decisions_survive` |
| a rollback | faster than loading a version, in all workers | `test_new_versions` |
| other sizes, another format, a pickle | refused by name | `policy/test_bundle_reader`, `test_bundle_manifest` |
| a policy that gives NaN while serving | an error for that call, counted | `serving/test_batcher` |
| a computation that fails | that batch fails, not the server | `serving/test_batcher` |
| clock jumps | nothing: monotonic clocks only | `test_clocks` |
| scrapes during load, names that clients choose | same answers; no new series | `test_one_server` |
| newlines, ANSI codes, megabytes in names | short refusals, no log line | `test_one_server`; `serving/test_logs` |
| a training run that is killed and repeated | ends bit for bit as one left alone | `training/test_kills` |
| a stderr that nobody reads | calls are answered; dropped lines are counted | `serving/test_logs`, `test_start` |
| a blocked event loop, a worker after SIGSTOP | 503 with the reason | `serving/test_server`, `test_worker_process` |
| slow and silent peers of the metrics port | bounded threads; scrapes are answered | `serving/test_metrics_server` |
| too few descriptors, too little address space | one line, exit code 1 | `serving/test_start` |
| a signal at any moment of the start | one line, exit code 0 | `serving/test_run` |
| disk full while publishing | clear error, nothing left behind | `policy/test_bundle_writer` |
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from policy import bundle
from policy.networks import init_policy
from serving.config import ServeConfig
from tests.samples import policy_spec
from tests.serving import in_process
from tests.serving.in_process import Running


def publish(root: Path, version: int, **changes: object) -> Path:
    """Publish a policy with random parameters and a critic, named point_u_maze, and return its folder.

    `changes` are fields of the specification.
    """
    spec, rng = policy_spec(**changes), np.random.default_rng(version)
    return bundle.write(
        root,
        version,
        spec=spec,
        params=jax.jit(init_policy, static_argnums=1)(jax.random.key(version), spec),
        probe_state=rng.normal(size=(5, spec.state_dim)),
        probe_goal=rng.normal(size=(5, spec.goal_dim)),
        provenance={},
    )


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one published version, 1000, which no test changes."""
    root = tmp_path_factory.mktemp("published") / "policies"
    publish(root, 1000)
    return root


@pytest.fixture(scope="session")
def running(policies: Path) -> Iterator[Running]:
    """A server in this process, for tests that only call it: batches and calls of at most 8 rows, which may wait."""
    config = ServeConfig(
        policies=(policies,),
        listen="127.0.0.1:0",
        metrics=False,
        max_batch_rows=8,
        max_call_rows=8,
        max_queue_age_s=60.0,
    )
    with in_process.served(config) as running:
        yield running
