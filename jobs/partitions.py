"""The partitions of a SLURM cluster, as sinfo has them."""

import re
from dataclasses import dataclass, replace
from typing import Final

QUESTION: Final = ("sinfo", "--noheader", "--format=%P|%a|%l|%s|%F|%c|%m|%M|%G")
"""The node's devices come last: their names are the site's."""
GRACES: Final = ("scontrol", "show", "partition", "--oneliner")
"""What sinfo does not tell."""
_NONE: Final = frozenset({"", "OFF", "(NULL)", "N/A"})


@dataclass(frozen=True)
class Partition:
    """A partition, as sinfo has it.

    Attributes:
        name: of it.
        default: where jobs go that name none.
        state: "up" where jobs start.
        limit: the longest time of a job, as SLURM writes it.
        most: nodes of one job, at most; None: no limit.
        nodes: how many there are.
        idle: of them.
        out: down, drained or reserved.
        cores: of a node, as SLURM writes it: 48, or 48+ where some have more.
        memory_mb: of a node, likewise.
        preemption: what becomes of jobs that are preempted: OFF, REQUEUE, CANCEL, SUSPEND, ...
        gpus: of a node: "4 a100"; of unequal nodes each kind once.
        grace_s: from the notice of a preemption to the end.
    """

    name: str
    default: bool
    state: str
    limit: str
    most: int | None
    nodes: int
    idle: int
    out: int
    cores: str
    memory_mb: str
    preemption: str
    gpus: tuple[str, ...]
    grace_s: int = 0

    @property
    def usable(self) -> int:
        """Nodes that one job can get."""
        return min(self.nodes - self.out, self.most if self.most is not None else self.nodes)

    @property
    def preempted(self) -> bool:
        """May its jobs be preempted?"""
        return self.preemption.upper() not in _NONE


def read(sinfo: str, scontrol: str = "") -> list[Partition]:
    """The partitions, the default one first; a line for each kind of node is made one."""
    graces = {}
    for line in scontrol.splitlines():
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in words and words.get("GraceTime", "").isdigit():
            graces[words["PartitionName"]] = int(words["GraceTime"])
    found: dict[str, Partition] = {}
    for line in sinfo.splitlines():
        if one := _partition(line):
            one = replace(one, grace_s=graces.get(one.name, 0))
            found[one.name] = _together(found[one.name], one) if one.name in found else one
    return sorted(found.values(), key=lambda each: not each.default)


def _partition(line: str) -> Partition | None:
    fields = [field.strip() for field in line.split("|")]
    counts = re.fullmatch(r"(\d+)/(\d+)/(\d+)/(\d+)", fields[4]) if len(fields) == 9 else None
    if counts is None or not fields[0]:
        return None
    name, state, limit, sizes, _, cores, memory, preemption, gres = fields
    _, idle, out, total = map(int, counts.groups())
    most = sizes.rpartition("-")[2]
    gpus = [f"{count} {kind or 'GPU'}" for kind, count in re.findall(r"\bgpu:(?:([A-Za-z][\w.-]*):)?(\d+)", gres)]
    return Partition(
        name.removesuffix("*"),
        name.endswith("*"),
        state,
        limit,
        int(most) if most.isdigit() else None,
        total,
        idle,
        out,
        cores,
        memory,
        preemption,
        tuple(gpus),
    )


def _together(one: Partition, other: Partition) -> Partition:
    """Two lines of one partition, whose nodes differ."""
    return replace(
        one,
        nodes=one.nodes + other.nodes,
        idle=one.idle + other.idle,
        out=one.out + other.out,
        cores=_least(one.cores, other.cores),
        memory_mb=_least(one.memory_mb, other.memory_mb),
        gpus=tuple(dict.fromkeys([*one.gpus, *other.gpus])),
    )


def _least(one: str, other: str) -> str:
    """Two numbers as SLURM tells them of unequal nodes: the smaller one, and a plus."""
    return one if one == other else f"{min(number(one), number(other))}+"


def number(text: str) -> int:
    """The number that a text begins with; 0 where there is none."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def described(one: Partition) -> str:
    """A partition in words."""
    parts = [f"{one.nodes} node(s), {one.idle} idle" + (f", {one.out} out of service" if one.out else "")]
    gpus = " or ".join(one.gpus) or "no GPU"
    parts.append(f"{one.cores} core(s), {_gigabytes(one.memory_mb)}, {gpus} each")
    parts.append("any time" if one.limit == "infinite" else f"at most {one.limit}")
    if one.most is not None:
        parts.append(f"at most {one.most} node(s) a job")
    if one.preempted:
        parts.append(f"jobs may be preempted ({one.preemption.lower()}, {one.grace_s} s after the notice)")
    return (
        ("default; " if one.default else "") + "; ".join(parts) + ("" if one.state == "up" else f"; it is {one.state}")
    )


def _gigabytes(memory_mb: str) -> str:
    return f"{number(memory_mb) / 1000:.3g}{'+' if memory_mb.endswith('+') else ''} GB"
