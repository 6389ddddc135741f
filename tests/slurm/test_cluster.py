"""What we rely on of SLURM, seen on a real one."""

import sys

import psutil
import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

WORLD = """
import os
from mpi4py import MPI
print(MPI.COMM_WORLD.allreduce(1), MPI.COMM_WORLD.rank, os.environ["SLURMD_NODENAME"], flush=True)
"""
# A step whose ranks say which signals they get, and go on.
LISTENER = """
import os, signal, time
def say(number, frame):
    os.write(1, f"rank got {signal.Signals(number).name}\\n".encode())
for each in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(each, say)
print("rank up", flush=True)
while True:
    time.sleep(0.1)
"""


def test_pmi2_and_the_mpich_wheel_make_one_world_over_both_nodes(slurm):
    job = slurm.sbatch(f"srun --mpi=pmi2 {sys.executable} -c '{WORLD}'", "-N2", "--ntasks-per-node=2")
    slurm.wait_for(job, "COMPLETED")
    assert sorted(slurm.output(job).splitlines()) == ["4 0 n1", "4 1 n1", "4 2 n2", "4 3 n2"]


def test_tasks_of_an_array_have_ids_and_an_end_of_their_own(slurm):
    job = slurm.sbatch('echo "$SLURM_ARRAY_JOB_ID $SLURM_ARRAY_TASK_ID"; exit $SLURM_ARRAY_TASK_ID', "--array=0-2%2")
    tasks = slurm.wait_for(job, "COMPLETED", "FAILED")
    assert sorted((each["ArrayTaskId"], each["JobState"], each["ExitCode"]) for each in tasks) == [
        ("0", "COMPLETED", "0:0"),
        ("1", "FAILED", "1:0"),
        ("2", "FAILED", "2:0"),
    ]
    assert slurm.output(job).split() == [job, "0", job, "1", job, "2"]


def test_a_requeued_task_comes_back_as_itself_and_its_output_goes_on(slurm):
    script = """
    echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID restarted ${SLURM_RESTART_COUNT:-never}"
    [ "$SLURM_RESTART_COUNT" = 1 ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }
    """
    job = slurm.sbatch(script, "--array=3")
    (task,) = slurm.wait_for(job, "COMPLETED")
    assert task["Restarts"] == "1"
    said = [line for line in slurm.output(job).splitlines() if line.startswith(job)]
    assert said == [f"{job}_3 restarted never", f"{job}_3 restarted 1"]


def test_preemption_signals_the_ranks_of_the_step_and_requeues_the_job(slurm):
    low = slurm.sbatch(f"srun -l {sys.executable} -c '{LISTENER}'", "-p", "low", "-N2", "-n2", "--signal=USR2@60")
    slurm.wait(lambda: slurm.output(low).count("rank up") == 2, "the ranks are not up")
    high = slurm.sbatch("exit", "-p", "high", "-N2", "--exclusive")
    slurm.wait_for(high, "COMPLETED")
    (job,) = slurm.wait_for(low, "PENDING", "RUNNING")
    assert job["Restarts"] == "1"
    assert {line for line in slurm.output(low).splitlines() if "SIGUSR2" in line} == {
        f"{rank}: rank got SIGUSR2" for rank in range(2)
    }
    slurm.run("scancel", low)


def test_ranks_that_were_killed_come_back_in_a_step_of_another_number(slurm):
    """MPICH names its shared memory after job and step, and does not start where killed ranks have left it behind."""
    script = f"""
    for step in $(seq ${{SLURM_RESTART_COUNT:-0}}); do srun -N1 -n1 true; done
    srun --mpi=pmi2 {sys.executable} -c '{WORLD}
import signal
if "SLURM_RESTART_COUNT" not in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)'
    [ $? = 0 ] || scontrol requeue $SLURM_JOB_ID
    """
    job = slurm.sbatch(script, "-N1", "-n2")
    slurm.wait_for(job, "COMPLETED")
    worlds = [line for line in slurm.output(job).splitlines() if line.startswith("2 ")]
    assert sorted(worlds) == ["2 0 n1", "2 0 n1", "2 1 n1", "2 1 n1"]


def test_a_restart_of_the_controller_loses_no_job(slurm):
    job = slurm.sbatch("srun sh -c 'echo up; sleep 5'")
    slurm.wait(lambda: slurm.output(job), "the step is not up")  # an srun that asks for it meanwhile hangs
    slurm.restart_slurmctld()
    (after,) = slurm.wait_for(job, "COMPLETED")
    assert after["Restarts"] == "0"


def test_sacct_answers_with_accounting_only(slurm, slurm_accounting):
    job = slurm_accounting.sbatch("true")
    slurm_accounting.wait_for(job, "COMPLETED")
    ask = ("sacct", "-j", job, "-X", "-n", "-P", "-o", "State")
    slurm_accounting.wait(lambda: slurm_accounting.run(*ask).strip() == "COMPLETED", "sacct does not know it")
    with pytest.raises(RuntimeError, match="accounting storage is disabled"):
        slurm.run(*ask)


def test_nothing_is_left_of_a_cluster_that_ended_amid_its_work(cluster):
    def stop_in_the_middle():
        with cluster() as doomed:
            folders.append(str(doomed.folder))
            job = doomed.sbatch("srun -N2 -n4 sleep 600", "-N2", "-n4")
            doomed.wait_for(job, "RUNNING")
            doomed.kill_slurmd("n2")
            raise InterruptedError

    folders = []
    with pytest.raises(InterruptedError):
        stop_in_the_middle()
    seen = list(psutil.process_iter(["cmdline", "environ", "status"]))
    assert folders[0] not in str([e.info for e in seen if e.info["status"] != psutil.STATUS_ZOMBIE])
