#!/usr/bin/env bash
# torchrun, torch 2.15.0: a node that joins a running elastic job ends the job.
#
# With --nnodes 1:2 and the c10d rendezvous, one node starts and a second node joins. The documentation says that torchrun
# then restarts all workers as a group of two. It does not: the first launcher wrote its address into the store when the job
# began, under the key of that round, and caches it. It does not write the address again for the next round, but the new
# node looks for it under the key of the next round. Both launchers wait 60 seconds and end with exit code 1 and
# DistStoreError: the new node waits for MASTER_ADDR, and the first launcher for the answer of the new node. The behaviour
# does not depend on the script.
#
# With TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 the same two commands work: both workers start as ranks 0 and 1 of 2, and
# TORCHELASTIC_RESTART_COUNT is still 0 on both.
#
# Output, shortened:
#     shared store:    exit codes 1 1, the newcomer waited for MASTER_ADDR, no group of two
#     separate store:  exit codes 0 0, a group of two, restart counts 0 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy
cat > "$folder/worker.py" <<'PYTHON'
import os
import time

print("worker", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "restart", os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
time.sleep(20)
PYTHON
cat > "$folder/observe.py" <<'PYTHON'
import os
import re
import socket
import subprocess
import sys
import time


def observe(folder, separate_store):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
               "--rdzv-id", "job", "--rdzv-conf", "last_call_timeout=1", "--rdzv-endpoint", f"127.0.0.1:{port}", f"{folder}/worker.py"]
    env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1" if separate_store else "0"}
    logs = [open(f"{folder}/{name}{separate_store}.log", "w+") for name in ("first", "second")]
    first = subprocess.Popen(command, env=env, stdout=logs[0], stderr=subprocess.STDOUT)
    while "worker 0 of 1" not in open(logs[0].name).read():
        assert first.poll() is None, open(logs[0].name).read()
        time.sleep(0.1)
    second = subprocess.Popen(command, env=env, stdout=logs[1], stderr=subprocess.STDOUT)
    codes = [process.wait(timeout=300) for process in (first, second)]
    texts = [open(log.name).read() for log in logs]
    return codes, texts, re.findall(r"worker (\d) of 2 restart (\d)", "".join(texts))


codes, texts, group = observe(sys.argv[1], separate_store=False)
print("shared store:   exit codes", *codes, "- the newcomer waited for MASTER_ADDR:", "MASTER_ADDR" in texts[1], "- group of two:", group)
same = codes == [1, 1] and "DistStoreError" in texts[1] and "MASTER_ADDR" in texts[1] and not group
codes, texts, group = observe(sys.argv[1], separate_store=True)
print("separate store: exit codes", *codes, "- group of two (rank, restarts):", sorted(group))
same = same and codes == [0, 0] and sorted(group) == [("0", "0"), ("1", "0")]
sys.exit(0 if same else "the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/observe.py" "$folder"
