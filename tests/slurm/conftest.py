"""The cluster that all tests of this folder share; they are skipped where there can be none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from slurm_cluster import HERE, Cluster

PROGRAMS = ("slurmctld", "slurmd", "munged")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons want root: run as root")
    absent = [name for name in PROGRAMS if not shutil.which(name, path="/usr/sbin:/usr/bin")]
    if absent and not shutil.which("apt-get"):
        pytest.skip(f"no {', '.join(absent)}: install slurm-wlm and munge")
    os.environ["ARK_HOSTS"] = str(os.getpid() % 250)
    found = Cluster(tmp_path_factory.mktemp("cluster") / "slurm")
    if absent:
        install = subprocess.run([HERE / "cluster.sh", "install"], check=False)
        if install.returncode:
            pytest.skip(f"no {', '.join(absent)}, and apt-get did not install them")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_CONF", str(found.folder / "slurm.conf"))
        environment.setenv("PYTHONPATH", f"{HERE.parents[1]}:{HERE.parent}")
        environment.setenv("OMP_NUM_THREADS", "1")
        try:
            found.script("cluster.sh", "up", found.folder)
            if not found.two_hosts:  # two nodes of one address
                environment.setenv("MASTER_ADDR", "127.0.0.1")
                environment.setenv("GLOO_SOCKET_IFNAME", "lo")
            yield found
        finally:
            found.script("cluster.sh", "down", found.folder)
