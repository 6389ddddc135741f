"""The ways that messages of ranks on one machine can go, and which of them they go.

mpiexec -n 2 python transports.py     prints the library, and bytes over the loopback device for each byte sent
"""

from pathlib import Path

TRANSPORTS: dict[str, dict[str, str]] = {
    "shm": {},  # what the library takes among ranks of one machine
    # MPICH leaves its shared memory only if it is told that no rank is near. Its UCX, then the default, loses messages
    # that are received from whoever sends (MPICH 5.0.2, see experiments/gossip_chaos); its OFI does not.
    "tcp": {
        "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "tcp,self",
        "MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp",
    },
}  # fmt: skip
"""Their environment variables, for either library."""


def loopback() -> int:
    """Bytes that have gone over the loopback device."""
    devices = Path("/proc/net/dev").read_text(encoding="ascii")
    (line,) = [line for line in devices.splitlines() if line.strip().startswith("lo:")]
    return int(line.split()[1])


def main() -> None:
    import numpy as np
    from mpi4py import MPI

    comm, message = MPI.COMM_WORLD, np.zeros(40_000_000, np.uint8)
    comm.Barrier()
    before = loopback()
    if comm.rank == 0:
        comm.Send(message, 1)
    elif comm.rank == 1:
        comm.Recv(message, 0)
    comm.Barrier()
    if comm.rank == 0:
        library = "openmpi" if "Open MPI" in MPI.Get_library_version() else "mpich"
        print(library, (loopback() - before) / message.size, flush=True)


if __name__ == "__main__":
    main()
