"""Acts with a local policy by every backend and prints the actions as JSON. Needs Python 3.9 and the client only.

Usage: python local_program.py FOLDER, with {"state": rows, "goal": rows} as JSON on standard input.
"""

from __future__ import annotations

import json
import sys

from kilolayer import LocalPolicy

if __name__ == "__main__":
    inputs = json.load(sys.stdin)
    found = {}
    for backend in ("onnx", "numpy"):
        with LocalPolicy(sys.argv[1], backend=backend, timeout_s=60) as policy:
            action = policy.act(**inputs).action
            sampled = policy.act(**inputs, seed=7, best_of=3).action
            energy = policy.score(inputs["state"], action, goal=inputs["goal"]).energy
            found[backend] = [action.tolist(), sampled.tolist(), energy.tolist()]
    print(json.dumps(found))
