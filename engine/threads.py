"""How the threads of torch wait for each other. To be imported before torch, whose OpenMP reads it once.

By default they spin: a thread that waits keeps its core from the one that it waits for. Alone that is quick; beside other
programs, and beside the thread that makes the next batch, a step takes several times as long.
"""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"
