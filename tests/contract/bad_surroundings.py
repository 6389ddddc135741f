"""Mistakes in data, machines, folders and files: what each is, and what its message must say."""

import errno
from functools import partial
from pathlib import Path
from typing import Any, Final

import bad_files as make
from provoking import DIGITS, OWN, TRAINED, command

MNIST: Final = "train --data.name mnist --data.root data --progress none"
TABLE: Final = "train --data.name tabular --data.root table.csv --progress none"


def nobody(*_: Any) -> bool:
    """What a user without rights is told; the superuser always has access."""
    return False


def denied(path: Path, **_: Any) -> None:
    """What making a folder ends with for a user without rights."""
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def refused(path: Path, _: bytes) -> None:
    """What writing a file ends with for a user without rights."""
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


DATA: Final = [
    command("a data set that is nowhere", "train --data.name cifar10", "data.root: cifar10 needs the files",
            "home/.cache/structlearn/cifar10", "What to do: unpack"),
    command("a folder that does not exist", MNIST, "data.root: /here/data does not exist", "give the place of"),
    command("a folder without the files", MNIST, "data.root: mnist needs the files", "data (none of them)",
            prepare=make.folder("data")),
    command("a folder without one of them", MNIST, "lacks t10k-labels-idx1-ubyte", "download",
            prepare=make.mnist("missing"), given="no t10k-labels-idx1-ubyte"),
    command("a file of another kind", MNIST, "magic number 0x00000d03", "0x00000803 is expected", "download it again",
            prepare=make.mnist("magic"), given="the first bytes of train-images are not IDX", code=1),
    command("a truncated gzip file", MNIST, "truncated or damaged gzip", "download it again",
            prepare=make.mnist("gzip"), given="half of train-images-idx3-ubyte.gz", code=1),
    command("a truncated file", MNIST, "1216 bytes of values", "20 x 8 x 8", prepare=make.mnist("short"),
            given="t10k-images without its last image", code=1),
    command("files that do not go together", MNIST, "19 labels", "20 images", "same source",
            prepare=make.mnist("labels"), given="19 labels of 20 images", code=1),
    command("a truncated CIFAR-10 file", "train --data.name cifar10 --data.root data", "data_batch_1.bin", "12291",
            prepare=make.cifar10, given="the last byte is missing", code=1),
    command("NaN in a table", TABLE, "table.csv: line 10", "column 'b'", "'nan'", "fill it in",
            prepare=make.table("a,b,kind", "0.5,nan,a"), given="line 10 of table.csv: 0.5,nan,a", code=1),
    command("an empty cell", TABLE, "line 10, column 'a': a missing value", "fill it in",
            prepare=make.table("a,b,kind", ",3,a"), given="line 10 of table.csv: ,3,a", code=1),
    command("a row with too many cells", TABLE, "line 10 has 4 values", "the first line has 3",
            prepare=make.table("a,b,kind", "1,2,a,b"), given="line 10 of table.csv: 1,2,a,b", code=1),
    command("a target that is no column", f"{TABLE} --data.target sort", "data.target", "sort", "a, b, kind",
            late=True, prepare=make.table("a,b,kind")),
    command("one class only", TABLE, "'a' in every row", "two classes or more",
            prepare=make.text("table.csv", "x,y\n1,a\n2,a\n3,a\n4,a\n5,a\n6,a\n"), code=1,
            given="the target is always a"),
    command("two targets for a classification", f"{TABLE} --data.target [a,b]", "data.target: got ['a', 'b']",
            "data.task: regression", prepare=make.table("a,b,kind")),
    command("pickled Python objects", TABLE.replace("csv", "npz"), "table.npz: holds Python objects", "numpy.savez",
            prepare=make.objects, code=1),
    command("no text for the validation", "train --data.name text --data.root data --model.name lstm",
            "data.root: no .txt file in data has 'valid' in its name", "found: test.txt, train.txt",
            prepare=make.texts("train.txt", "test.txt")),
    command("two texts for training", "train --data.name text --data.root data --model.name lstm",
            "2 files in data have 'train' in their names", "leave one",
            prepare=make.texts("train.txt", "train2.txt", "valid.txt", "test.txt")),
]  # fmt: skip

MACHINE: Final = [
    command("more ranks than GPUs", f"{DIGITS} --ranks 4", "4 ranks on this machine, but 2 CUDA device(s)",
            "compute.share_devices", patched={"hpc.config.check.cuda_devices": lambda: 2},
            given="a machine with 2 GPUs"),
    command("a GPU where there is none", f"{DIGITS} --compute.device cuda", "got cuda, but no CUDA device", "use cpu"),
    command("no mpiexec", f"{DIGITS} --ranks 2", "--ranks: no mpiexec", "pip install 'structlearn[mpich]'",
            patched={"jobs.launch.sys.prefix": "/nowhere"}, env={"PATH": "/nowhere"}),
    command("no rank", f"{DIGITS} --ranks 0", "--ranks: got 0", "1 or more"),
    command("ranks that do not find each other", DIGITS, "PMI_SIZE=2: the launcher promised 2 rank(s), but MPI found 1",
            "mpiexec of the MPI library", "structlearn doctor", env={"PMI_SIZE": "2"}, apart=True),
    command("srun without its MPI plugin", DIGITS, "SLURM_NTASKS=4: the launcher promised 4 rank(s)", "srun --mpi=pmi2",
            "--ranks N", env={"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, apart=True),
    command("ranks in ranks", f"{DIGITS} --ranks 4", "--ranks: got 4", "already started 2", "leave --ranks out",
            env={"PMI_SIZE": "2", "PMI_RANK": "0"}),
    command("a launcher's variable that is no number", DIGITS, "PMI_SIZE: got 'two'", "unset it",
            env={"PMI_SIZE": "two"}),
    command("training without torch", DIGITS, "training needs torch", "pip install", code=1,
            patched={"jobs.train.find_spec": lambda name: None if name == "torch" else name},
            given="torch is not installed"),
]  # fmt: skip

FOLDER: Final = [
    command("the folder of another configuration", f"{TRAINED} --seed 7", "run holds a run of another",
            "seed: 0 in the folder, 7 given", trained=True),
    command("a file in its place", f"{DIGITS} --run_dir run", "run is a file, but a folder is needed",
            prepare=make.text("run", "mine"), given="run is a file"),
    command("a folder that cannot be written", f"{DIGITS} --run_dir out/run", "out cannot be written to",
            "choose another run_dir", prepare=make.folder("out", 0o555), given="out is read-only",
            patched={"hpc.config.folder.os.access": nobody}),
    command("a name that no file system takes", f"{DIGITS} --run_dir {'x' * 300}", "run_dir: got 'xxx",
            "name too long"),
    command("a folder with a damaged configuration", TRAINED, "run/config.yaml: the folder's configuration cannot",
            "restore the file", prepare=make.text("run/config.yaml", "epochs: [2"), trained=True,
            given="run/config.yaml says epochs: [2"),
    command("a folder in which another process trains", f"{DIGITS} --run_dir run", "another process is training",
            "wait for it", prepare=make.lock, patched={"hpc.lock._lock.__defaults__": (0.1,)}, code=1,
            given="another process holds run"),
]  # fmt: skip

NETWORK: Final = [
    command("no such module", "train --model.name nowhere:build", "no module 'nowhere'", "the folder that holds"),
    command("no colon", "train --model.name nowhere.build", "model.name: got 'nowhere.build'",
            "package.module:function"),
    command("no such function", f"{OWN} --model.name bad_a:built",
            "bad_a:built cannot be loaded", "has no attribute 'built'", late=True,
            prepare=make.text("bad_a.py", "def build(input_shape, outputs):\n    return None\n")),
    command("a function that returns no network", f"{OWN} --model.name bad_b:build",
            "bad_b:build returned NoneType", "torch.nn.Module is needed", late=True,
            prepare=make.text("bad_b.py", "def build(input_shape, outputs):\n    return None\n"),
            given="bad_b.build returns None"),
    command("a function that does not take the arguments",
            f"{OWN} --model.name bad_c:build --model.depth 3",
            "bad_c:build refused its arguments", "depth", late=True,
            prepare=make.text("bad_c.py", "def build(input_shape, outputs):\n    return None\n"),
            given="bad_c.build(input_shape, outputs)"),
    command("a module with an error of its own", f"{OWN} --model.name bad_d:build",
            "ZeroDivisionError", "(traceback in runs/example/logs/rank-0000.err)", code=1,
            prepare=make.text("bad_d.py", "1 / 0\n"), given="bad_d.py divides by 0"),
]  # fmt: skip

CHECKPOINTS: Final = [
    command(title, TRAINED, "run/checkpoints: none of 2 checkpoint(s) can be used", *says, "Restore one, or remove",
            prepare=make.checkpoints(damage, name), trained=True, code=1, given=f"{name} of every checkpoint")
    for title, damage, name, says in (
        ("truncated checkpoints", make.truncate, "rank-0000.h5", ("rank-0000.h5:", "were written")),
        ("a bit that flipped", make.flip, "shared.h5", ("shared.h5: tensor", "checksum differs")),
        ("files that are no checkpoints", make.foreign, "shared.h5", ("shared.h5: altered since it was written",)),
        ("a missing file", Path.unlink, "rank-0000.h5", ("rank-0000.h5: missing",)),
        ("a damaged manifest", make.shorten, "manifest.json", ("manifest.json: not a manifest",)),
        ("a checkpoint of a later version", make.manifest(version=99), "manifest.json", ("version 99",)),
    )
] + [
    command("a checkpoint of another run", TRAINED, "belongs to run 0123456789ab, but this is run", code=1,
            trained=True, prepare=make.checkpoints(make.manifest(run_id="0123456789ab"), "manifest.json"),
            given="a checkpoint copied from elsewhere"),
]  # fmt: skip

REPORT: Final = [
    command("a folder that does not exist", "report nowhere --out page", "nowhere", code=1),
    command("a folder without records", "report empty --out page", "empty", code=1, prepare=make.folder("empty")),
    command("a record that is not HDF5", "report run --out page", "run/record.h5", "not readable as HDF5", code=1,
            prepare=partial(make.damaged_record, make.foreign), trained=True, given="record.h5 is full of zeros"),
    command("a truncated record", "report run --out page", "run/record.h5", "not readable as HDF5", code=1,
            prepare=partial(make.damaged_record, make.truncate), trained=True, given="half of record.h5"),
    command("HDF5 of something else", "report run --out page", "run/record.h5", code=1, prepare=make.other_record,
            given="record.h5 of another program"),
    command("a record of a later version", "report run --out page", "run/record.h5", "99", code=1,
            prepare=make.version(99), trained=True, given="schema_version 99"),
    command("a file where the report belongs", "report run --out page", "--out: page cannot be written to",
            "page is no folder", "choose another folder", code=1, prepare=make.text("page", "mine"), trained=True,
            given="page is a file"),
    command("a place where nobody may write", "report run --out page", "--out: page cannot be written to",
            "Permission denied", code=1, trained=True, patched={"analysis.report.Path.mkdir": denied},
            given="the folder is read-only"),
    command("a disk that is full", "report run --out page", "--out: page cannot be written to", "No space left",
            "make room", code=1, prepare=make.full_disk, trained=True, given="page/index.html is /dev/full"),
]  # fmt: skip

EXPORT: Final = [
    command("a run that is nowhere", "export nowhere --format pt2 --out net.pt2", "nowhere: no such folder",
            "a run was trained in"),
    command("a folder without a run", "export empty --format pt2 --out net.pt2", "empty: holds no run",
            "a run was trained in", prepare=make.folder("empty")),
    command("a run that has not begun", "export run --format pt2 --out net.pt2", "run: the run has not begun",
            "train it", code=1, trained=True, prepare=make.not_begun, given="run with its configuration alone"),
    command("a run without its last checkpoint", "export run --format pt2 --out net.pt2", "its last checkpoint was",
            "train it anew", code=1, trained=True, prepare=make.no_checkpoint(2), given="run without checkpoints"),
    command("a run that has not ended", "export run --format pt2 --out net.pt2", "the run has not ended",
            "epoch 1 of 2", "run the same structlearn train again", code=1, trained=True, prepare=make.no_checkpoint(1),
            given="run with the checkpoint of its first epoch"),
    command("a checkpoint that is damaged", "export run --format pt2 --out net.pt2", "the run has not ended",
            "is passed over: shared.h5: tensor", "checksum differs", code=1, trained=True, prepare=make.last_checkpoint,
            given="a bit of the last checkpoint flipped"),
    command("a format that does not exist", "export run --format onxx --out net.onnx", "'onxx' is not one of 'pt2'",
            trained=True),
    command("no file to write to", "export run --format pt2", "'--out'", "export --help", trained=True),
    command("a folder in its place", "export run --format pt2 --out run", "--out: run is a folder", "run/network.pt2",
            trained=True),
    command("a place that nobody may write to", "export run --format safetensors --out net", "net cannot be written",
            "Permission denied", "choose another --out", code=1, trained=True,
            patched={"hpc.export.write_atomically": refused}, given="the folder is read-only"),
    command("a format without its packages", "export run --format onnx --out net.onnx", "needs onnx and onnxscript",
            "pip install 'structlearn[export]'", code=1, trained=True, given="neither onnx nor onnxscript is installed",
            patched={"jobs.export.find_spec": lambda name: None if name.startswith("onnx") else name}),
]  # fmt: skip
