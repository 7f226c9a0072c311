#!/bin/bash
# A real SLURM on this machine: munged, slurmctld and two slurmd, all that they keep in DIR.
#   cluster.sh up DIR       on two hosts of their own where hosts.sh can make them, else on this one
#   cluster.sh node N DIR   starts slurmd N (again)
#   cluster.sh down DIR
# Wants root, and Debian's slurm-wlm and munge; where they are absent they are installed if apt can.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
export ARK_HOSTS=${ARK_HOSTS:-0}
sbin=/usr/sbin port=$((20000 + 4 * ARK_HOSTS)) name=$(hostname -s)

install() {
  [ -x $sbin/slurmctld ] && [ -x $sbin/slurmd ] && [ -x $sbin/munged ] && return
  export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive # starts no service
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends slurm-wlm munge
}

up() {
  install >&2
  mkdir -p "$1"/{munge,ctld,n1,n2,log}
  chmod 755 "$1" "$1/munge"
  local controller=127.0.0.1
  if [ -z "${ARK_ONE_HOST:-}" ] && "$here/hosts.sh" up "$1" 2>/dev/null; then
    controller=10.77.$ARK_HOSTS.254
    touch "$1/two_hosts"
  fi
  configuration "$1" $controller >"$1/slurm.conf"
  export SLURM_CONF=$1/slurm.conf
  dd if=/dev/urandom of="$1/munge/key" bs=128 count=1 status=none
  chmod 600 "$1/munge/key"
  $sbin/munged --force --key-file="$1/munge/key" --socket="$1/munge/socket" \
    --pid-file="$1/munge/pid" --log-file="$1/log/munged.log" --seed-file="$1/munge/seed"
  $sbin/slurmctld -f "$SLURM_CONF"
  node 1 "$1"
  node 2 "$1"
  for _ in $(seq 300); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && return
    sleep 0.1
  done
  echo "nodes are not idle after 30 s:" && sinfo && tail -n 5 "$1"/log/*.log
  exit 1
}

node() {
  local command=($sbin/slurmd -N "n$1" -f "$2/slurm.conf")
  if [ -e "$2/two_hosts" ]; then "$here/hosts.sh" run "$1" "$2" "${command[@]}"; else "${command[@]}"; fi
}

down() {
  for pid in "$1"/slurmd-n1.pid "$1"/slurmd-n2.pid "$1"/slurmctld.pid "$1"/munge/pid; do
    [ -s "$pid" ] && kill "$(cat "$pid")" || true
  done
  sleep 0.5
  "$here/hosts.sh" down
}

# A time limit is looked at once in OverTimeLimit and sched_interval; credentials that live 5 s
# instead of 120 let a requeued job start at once; KillWait is 30 s in real clusters.
configuration() {
  cat <<EOF
ClusterName=ark
SlurmctldHost=$name($2)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$1/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=$port
StateSaveLocation=$1/ctld
SlurmdSpoolDir=$1/%n
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd-%n.pid
SlurmctldLogFile=$1/log/slurmctld.log
SlurmdLogFile=$1/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MinJobAge=300
JobRequeue=1
SlurmdTimeout=10
EOF
  for i in 1 2; do
    local address=10.77.$ARK_HOSTS.$i host=n$i
    [ -e "$1/two_hosts" ] || address=127.0.0.1 host=$name
    echo "NodeName=n$i NodeHostname=$host NodeAddr=$address Port=$((port + i)) CPUs=2 RealMemory=2000"
  done
  echo "PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP"
}

"$@"
