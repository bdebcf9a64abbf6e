"""Calls every method of the client once and prints the responses as JSON. Needs Python 3.9 and the client only.

Usage: python client_program.py ADDRESS, with {"state": rows, "goal": rows} as JSON on standard input.
"""
# ruff: noqa: B905 - zip has `strict` from Python 3.10 on

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import kilolayer


def call_everything(address: str, state: list[list[float]], goal: list[list[float]]) -> dict[str, Any]:
    """Return what the methods of both clients give, as plain numbers and texts."""
    with kilolayer.PolicyClient(address, timeout_s=60) as client:
        description = client.wait_until_ready(30)
        action = client.act(state, goal)
        with client.stream() as stream:
            pending = [stream.send(*row) for row in zip(state, goal)]
            streamed = [each.receive().action.tolist() for each in pending]
        score = client.score(state, action.action, goal=goal)
        policies = [listing.policy for listing in client.list_policies()]
        refusal: dict[str, str] = {}
        try:
            client.act(state, goal[0][:-1])
        except kilolayer.InvalidRequest as error:
            refusal = {"status": error.status, "reason": error.reason}
    return {
        "kilolayer": kilolayer.__file__,
        "dims": [description.state_dim, description.goal_dim, description.action_dim],
        "action": action.action.tolist(),
        "streamed": streamed,
        "awaited": asyncio.run(act_with_asyncio(address, state, goal)),
        "energy": score.energy.tolist(),
        "policies": policies,
        "refusal": refusal,
    }


async def act_with_asyncio(address: str, state: list[list[float]], goal: list[list[float]]) -> list[Any]:
    """Return one action per row, from concurrent calls of one row each."""
    async with kilolayer.AsyncPolicyClient(address, timeout_s=60) as client:
        responses = await asyncio.gather(*(client.act(*row) for row in zip(state, goal)))
    return [response.action.tolist() for response in responses]


if __name__ == "__main__":
    inputs = json.load(sys.stdin)
    print(json.dumps(call_everything(sys.argv[1], inputs["state"], inputs["goal"])))
