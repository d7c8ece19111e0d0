#!/usr/bin/env bash
# A Slurm of one node on the loopback address, all of its state in one folder:
#     tests/slurm.sh start FOLDER    and then, in the shell: export SLURM_CONF=FOLDER/slurm.conf
#     tests/slurm.sh stop FOLDER     which cancels all jobs
# It needs Debian's packages slurm-wlm and munge, and root. A job that is queued again waits for two
# minutes, as in any Slurm, or until: scontrol update JobId=ID StartTime=now
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

start() {
    trap stop ERR
    mkdir -p "$folder"/{munge,state,spool}
    chmod 755 "$folder" "$folder/munge"
    head -c 128 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    read -r controller_port node_port <<<"$(free_ports)"
    configure >"$folder/slurm.conf"
    export SLURM_CONF="$folder/slurm.conf"

    # --force: the folders above are the temporary ones of a test, which others may not enter.
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munge/munged.pid" --log-file="$folder/munge/munged.log" \
        --seed-file="$folder/munge/seed" 2>"$folder/munge/warnings"
    slurmctld -c
    slurmd
    for _ in $(seq 60); do
        if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
            return
        fi
        sleep 0.5
    done
    tail -n 20 "$folder"/*.log >&2
    stop
    echo "slurm.sh: the node is not idle after 30 s" >&2
    exit 1
}

stop() {
    export SLURM_CONF="$folder/slurm.conf"
    timeout 10 scancel --signal=KILL --user="$(id -un)" 2>/dev/null || true
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    for daemon in slurmd slurmctld munge/munged; do
        end "$folder/$daemon.pid"
    done
}

# End the daemon of a pid file, and wait until it has ended.
end() {
    [ -f "$1" ] || return 0
    local pid
    pid=$(cat "$1")
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

free_ports() {
    python3 - <<'PYTHON'
import socket

sockets = [socket.socket() for _ in range(2)]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
PYTHON
}

configure() {
    local host user
    host=$(hostname -s)
    user=$(id -un)
    cat <<CONF
ClusterName=rlx
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=$controller_port
SlurmdPort=$node_port
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=20
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

command=${1:-}
folder=$(realpath -m "${2:?FOLDER is missing}")
case "$command" in
    start | stop) "$command" ;;
    *) echo "slurm.sh start|stop FOLDER" >&2; exit 2 ;;
esac
