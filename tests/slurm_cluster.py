"""A private SLURM of two nodes on this machine, in a directory of its own: `python tests/slurm_cluster.py` tries it.

Neither root nor systemd is needed, and nothing outside the directory is touched. Both nodes are this machine.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launched import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
SBIN = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"

CONF = """\
ClusterName=gan_dist
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={dir}/munge.sock,cred_expire=5
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PlugStackConfig={dir}/plugstack.conf
JobRequeue=1
KillWait=30
MinJobAge=3600
SlurmdTimeout=15
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=8 RealMemory=4000 Gres=gpu:2 Features=pretended
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=8 RealMemory=4000 Gres=gpu:2 Features=pretended
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> list[str]:
    """What a cluster needs and this machine lacks."""
    return [name for name in (*DAEMONS, "sbatch", "scontrol") if not shutil.which(name, path=SBIN)]


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start one; gives the environment in which sbatch and its like speak to it. Jobs and daemons end with it."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # munge refuses parents that others may write to
    directory.chmod(0o711)  # munged asks for it
    ports = [free_port() for _ in range(3)]
    names = ("controller", "first", "second")
    fields = dict(zip(names, ports), host=socket.gethostname(), user=getpass.getuser(), dir=directory)
    (directory / "state").mkdir()
    (directory / "plugstack.conf").touch()
    (directory / "slurm.conf").write_text(CONF.format(**fields))
    (directory / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")  # stand-ins: counted and granted
    (directory / "munge.key").write_bytes(os.urandom(128))
    (directory / "munge.key").chmod(0o600)
    env = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf"), "PATH": SBIN}
    munge = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    try:
        _run(["munged", *(f"--{option}={directory}/munge.{end}" for option, end in munge.items())], env)
        _run(["slurmctld", "-c"], env)
        for node in ("n1", "n2"):
            start_node(node, env)
        wait_until(lambda: _run(["sinfo", "-h", "-o", "%T:%D"], env).strip() == "idle:2", 60)
        yield env
    finally:
        _stop(directory, env)
        shutil.rmtree(directory, ignore_errors=True)


def start_node(name: str, env: dict[str, str]) -> None:
    """Start the daemon of n1 or n2."""
    _run(["slurmd", "-N", name], env)


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    """Ask every now and then."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.2)


def _run(command: list[str], env: dict[str, str]) -> str:
    program = shutil.which(command[0], path=SBIN) or command[0]
    result = subprocess.run([program, *command[1:]], env=env, capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stdout}{result.stderr}")
    return result.stdout


def _stop(directory: Path, env: dict[str, str]) -> None:
    with suppress(RuntimeError, TimeoutError):
        _run(["scancel", "--user", getpass.getuser()], env)
        wait_until(lambda: not _run(["squeue", "-h"], env), 40)  # step daemons outlive slurmd
    pids = [int(path.read_text()) for path in directory.glob("*.pid")]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30)


if __name__ == "__main__":
    if missing():
        sys.exit(f"needs {', '.join(missing())}: apt-get install slurm-wlm munge")
    with cluster() as env:
        print(f"two nodes are up; leave this shell to stop them (SLURM_CONF={env['SLURM_CONF']})")
        subprocess.run([os.environ.get("SHELL", "bash")], env=env, check=False)
