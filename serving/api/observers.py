"""Observers: what else happens with the rows and the actions of a request that is answered.

A sample of them goes into files, and a sample is compared with a shadow. A version that has answered a robot may get
reports from it.
"""

from typing import NamedTuple

import numpy as np

from serving.engine.engine import Kind
from serving.policies.episode_reports import EpisodeReports, ReportSink
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.policies.shadow import Shadow
from serving.telemetry.row_log import RowLog, RowSample


class ShadowSample(NamedTuple):
    """Rows whose actions are compared with those of a shadow."""

    shadow: Shadow
    chosen: np.ndarray  # [chosen], their numbers in the request
    rows: np.ndarray  # [chosen, state_dim + goal_dim]


class Observation(NamedTuple):
    """What happens once one request is answered."""

    served: ServedPolicy
    robot_id: str
    reports: ReportSink
    logged: RowSample | None
    compared: ShadowSample | None

    def answered(self, actions: np.ndarray) -> None:
        """Pass on `actions: [rows, chunk_dim]`, which are the answer."""
        if self.robot_id:
            self.reports.answered(self.robot_id, self.served.policy_version)
        if self.logged:
            self.logged.answered(actions)
        if self.compared:
            self.compared.shadow.compare(self.compared.rows, actions[self.compared.chosen])


class Observers:
    """What observes the answered requests.

    Args:
        policies: the policies that are served, and their shadows.
        reports: takes the reports of robots; None: an object of its own.
        row_log: receives a sample of the answered rows; None: there is none.
    """

    def __init__(
        self, policies: PolicyRegistry, *, reports: ReportSink | None = None, row_log: RowLog | None = None
    ) -> None:
        self._policies = policies
        self._row_log = row_log
        self.reports: ReportSink = reports or EpisodeReports()

    def admitted(self, served: ServedPolicy, inputs: np.ndarray, *, kind: Kind, robot_id: str) -> Observation | None:
        """Return what happens once a request for actions is answered; None: nothing.

        Args:
            served: answers it.
            inputs: [rows, state_dim + goal_dim or more], its states and goals side by side.
            kind: of its computation.
            robot_id: of its robot; empty: none.
        """
        logged = compared = None
        if self._row_log:
            logged = self._row_log.sample(served.bundle.spec, served.version, inputs=inputs, robot_id=robot_id)
        if kind is Kind.ACT and (shadow := self._policies.shadow(served)):
            chosen = shadow.sample(inputs)
            compared = None if chosen is None else ShadowSample(shadow, chosen, inputs[chosen])
        if not (robot_id or logged or compared):
            return None
        return Observation(served, robot_id, self.reports, logged, compared)
