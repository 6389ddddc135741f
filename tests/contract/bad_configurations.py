"""Mistakes in configurations and on the command line: what each is, and what its message must say."""

from pathlib import Path
from typing import Final

import bad_files as make
from provoking import DIGITS, OWN, command, config

CONFIGURATION: Final = [
    config("a key with a typing error", "epoch: 5", "epoch: unknown key", "did you mean epochs?"),
    config(
        "the same in a section",
        "optimizer: {name: sgd, momentun: 0.9}",
        "optimizer.momentun: unknown key",
        "did you mean momentum?",
    ),
    config(
        "the key of another choice",
        "optimizer: {name: adam, momentum: 0.9}",
        "optimizer.momentum: unknown key",
        "betas",
    ),
    command(
        "a network that does not exist",
        "train --model.name resnet81",
        "model.name: got 'resnet81'",
        "did you mean resnet18?",
        "package.module:function",
    ),
    command("text for a number", "train --epochs ten", "epochs: got 'ten'", "valid integer"),
    config("a number in quotes", 'epochs: "10"', "epochs: got '10'", "valid integer"),
    config("yes for a number", "epochs: yes", "epochs: got true", "valid integer"),
    config("nothing for a number", "epochs:", "epochs: got null", "valid integer"),
    command("a number that is too small", "train --epochs 0", "epochs: got 0", "or equal to 1"),
    command("a learning rate below 0", "train --optimizer.lr -0.1", "optimizer.lr: got -0.1", "or equal to 0"),
    config("a learning rate that is no number", "optimizer: {lr: .nan}", "optimizer.lr: got nan", "finite"),
    command("a share above 1", "train --data.validation 1.5", "data.validation: got 1.5", "less than 1"),
    config("a word where a section belongs", "model: mlp", "model: got 'mlp'", "write model: {name: mlp}"),
    config("a list where a section belongs", "compute: [cpu]", "compute: got ['cpu']", "device"),
    config("a section without a key that it needs", "exchange: {name: persyn}", "exchange.tau: missing", "persyn"),
    config(
        "a regulariser that the network has no place for",
        "model: {name: mlp, activation: tanh}\nregularizers: [{name: shade}]",
        "regularizers.0.name: shade",
        "model.activation is tanh",
    ),
    config(
        "a layer named twice",
        "regularizers: [{name: dropout, layers: [head, head]}]",
        "regularizers.0.layers: head is named twice",
        "name it once",
    ),
    config(
        "noise on labels of the other kind",
        "regularizers: [{name: label_noise, deviation: 0.1}]",
        "regularizers.0.deviation: got 0.1",
        "this is a classification",
        "leave it out",
    ),
    config("yes for 1", "regularizers: [{name: reve, modes: true}]", "regularizers.0.modes: got true", "1, 2"),
    config("a penalty that does not exist", "penalties: [{name: l3}]", "penalties.0.name: got 'l3'", "group_lasso"),
    config("a penalty that is not in a list", "penalties: {name: l1}", "it is a list", "penalties: [{name: l1, ...}]"),
    config(
        "the key of another penalty",
        "penalties: [{name: l2, proximal: true}]",
        "penalties.0.proximal: unknown key",
        "allowed: strength, factors, name",
    ),
    config(
        "factors by an unknown rule",
        "penalties: [{name: l1, factors: baysian}]",
        "penalties.0.factors: got 'baysian'",
        "did you mean bayesian?",
        "{LAYER: factor, ...}",
    ),
    config(
        "factors of a layer that is not there",
        "penalties: [{name: l1, factors: {haed: 1}}]",
        "penalties.0: l1 does not suit this network",
        "'haed' (did you mean 'head'?)",
        late=True,
    ),
    config(
        "a penalty on BatchNorms, of which there are none",
        "penalties: [{name: bn_lasso}]",
        "penalties.0.name: bn_lasso",
        "model.name: mlp has none",
        "batch_norm: true",
    ),
    config(
        "two proximal steps of the same weights",
        "penalties: [{name: l1, proximal: true}, {name: group_lasso, proximal: true}]",
        "penalties.1.proximal: true is one of two",
        "sparse_group_lasso",
    ),
    config(
        "proximal steps of a penalty after those of Adam",
        "penalties: [{name: l1, proximal: true}]\noptimizer: {name: adam}",
        "penalties.0.proximal: true",
        "use sgd",
    ),
    config(
        "several mistakes at once",
        "epochs: -1\nsede: 3\ndata: {name: digits, batch_size: 0}",
        "epochs: got -1",
        "sede: unknown key; did you mean seed?",
        "data.batch_size: got 0",
    ),
    command(
        "a key below a list",
        "train --regularizers.0.strength 3",
        "--regularizers.0.strength",
        "a list is given whole",
        "regularizers: [{name: ..., strength: 3}]",
    ),
    command("keys below a value", "train bad.yaml --epochs.x 3", "--epochs.x", "no keys below it", yaml="epochs: 3"),
    command("a key without a value", "train --epochs", "--epochs: no value follows", "--KEY.SUBKEY VALUE"),
    command("a word too many", "train bad.yaml 5", "5: not understood", "--KEY.SUBKEY VALUE", yaml="epochs: 5"),
    command("a value that is no YAML", "train --model.widths [8", "--model.widths", "not valid YAML"),
    command("an empty key", "train --.name mlp", "--.name", "--KEY.SUBKEY VALUE"),
]

FILES: Final = [
    config("no such file", "", "bad.yaml: cannot be read", "No such file", given="there is no bad.yaml"),
    config("a folder", "", "bad.yaml: cannot be read", prepare=make.folder("bad.yaml"), given="bad.yaml is a folder"),
    config(
        "a file that is no text",
        "",
        "bad.yaml: cannot be read",
        "UTF-8",
        prepare=lambda: Path("bad.yaml").write_bytes(b"\xff\xfe\x00\x80"),
        given="bad.yaml holds bytes",
    ),
    config("invalid YAML", "data: {name: digits\nepochs: 3", "bad.yaml, line 2", "not valid YAML"),
    config("a tab", "data:\n\tname: digits", "bad.yaml, line 2", "not valid YAML"),
    config("a key given twice", "seed: 1\nepochs: 3\nseed: 2", "bad.yaml, line 3: seed", "keep one"),
    config("a key that is no word", "seed: 1\n[a, b]: 2", "bad.yaml, line 2: got ['a', 'b'] as a key"),
    config("a list", "- epochs: 3", "bad.yaml: got list", "mapping of keys"),
]

COMBINATIONS: Final = [
    config(
        "Nesterov's momentum without momentum",
        "optimizer: {name: sgd, momentum: 0, nesterov: true}",
        "optimizer.nesterov",
        "momentum above 0",
    ),
    config(
        "ranks that may be lost, but wait for each other",
        "exchange: {name: sync}\ncompute: {fault_tolerance: shrink}",
        "compute.fault_tolerance: shrink needs exchange.name: gossip",
        "it is sync",
    ),
    config(
        "ranks that may be lost, and a matrix for all of them",
        "exchange: {name: gossip, rho: 0.1, peers: matrix, matrix: m.txt}\ncompute: {fault_tolerance: shrink}",
        "exchange.matrix is for one number; use uniform",
    ),
    config(
        "a schedule that watches a validation that is not there",
        "data: {name: digits, validation: 0}\nschedule: {name: plateau}",
        "schedule.name: plateau",
        "data.validation: 0.1",
    ),
    config(
        "early stopping without validation",
        "data: {name: digits, validation: 0}\nearly_stopping: {patience: 3}",
        "early_stopping:",
        "data.validation: 0.1",
    ),
    config(
        "pruning without validation",
        "data: {name: digits, validation: 0}\npruning: {name: scalp}",
        "pruning.name: scalp",
        "data.validation: 0.1",
    ),
    config(
        "a cut that never comes",
        "epochs: 3\npruning: {name: norm, every_epochs: 4}",
        "pruning.every_epochs: got 4",
        "3 epoch(s)",
    ),
    config(
        "proximal steps as long as what has no one length",
        "pruning: {name: norm, proximal: true}\noptimizer: {name: adam}",
        "pruning.proximal: true takes steps as long as the optimiser's",
        "optimizer.name: adam",
        "use sgd",
        "set it false",
    ),
    config(
        "proximal steps of a penalty that makes nothing 0",
        "pruning: {name: scalp, penalty: l2, proximal: true}",
        "pruning.proximal: true",
        "penalty: l2",
        "group_lasso",
    ),
    config(
        "a weight decay of switches",
        "pruning: {name: shrinknets}\noptimizer: {name: sgd, weight_decay: 0.001}",
        "optimizer.weight_decay: got 0.001",
        "pruning.weight_strength",
    ),
    command(
        "one pruning of networks that never meet",
        f"{DIGITS} --pruning.name norm --exchange.name none --ranks 2",
        "pruning.name: norm",
        "exchange.name: none",
        "sync",
    ),
    config(
        "a key of another killing rule",
        "pruning: {name: shrinknets, threshold: 0.01}",
        "pruning.threshold: it is for rule: threshold, not for sign_variance",
    ),
    config(
        "a warm-up longer than the run",
        "epochs: 3\nschedule: {name: cosine, warmup_epochs: 5}",
        "schedule.warmup_epochs: got 5",
        "epochs: 3",
    ),
    config(
        "milestones out of order",
        "schedule: {name: step, milestones: [60, 30]}",
        "schedule.milestones: got [60, 30]",
        "increasing",
    ),
    config("a network for text on images", "model: {name: lstm}", "model.name: lstm does not take", "any network but"),
    config(
        "a network for images on text",
        "data: {name: text, root: data, batch_size: 2}\nmodel: {name: mlp}",
        "model.name: mlp does not take",
        "use lstm",
        prepare=make.texts("train.txt", "valid.txt", "test.txt"),
    ),
    config(
        "a network for images on a table",
        "data: {name: tabular, root: table.csv}\nmodel: {name: cnn}",
        "model.name: cnn needs images",
        "use mlp",
        prepare=make.table("a,b,kind"),
    ),
    config(
        "channels last without channels",
        "data: {name: tabular, root: table.csv}\ncompute: {channels_last: true}",
        "compute.channels_last",
        "only images have channels",
        prepare=make.table("a,b,kind"),
    ),
    command(
        "a network that poolings use up",
        f"{OWN} --model.name vgg11 --model.stem imagenet",
        "model.name: vgg11 takes images of 32 x 32 pixels or more",
        "8 x 8",
        "fewer poolings",
    ),
    config(
        "a network without convolutions", "model: {name: cnn, channels: []}", "model.channels: got []", "at least 1"
    ),
    command(
        "filters of even size", f"{OWN} --model.name alexnet --model.kernel 4", "model.kernel: got 4", "use 3 or 5"
    ),
    command(
        "options of a network's other form",
        f"{OWN} --model.name alexnet --model.stem imagenet --model.kernel 5",
        "kernel: 5 and pool: 3",
        "form for small images",
        "model.stem: cifar",
    ),
    command("more padding than image", f"{DIGITS} --data.augment.pad 8", "data.augment.pad: got 8", "use 7 or less"),
    command("a mini-batch larger than the data", f"{DIGITS} --data.batch_size 97", "data.batch_size", "to 96 or less"),
    command(
        "mini-batches of all ranks larger than the data",
        f"{DIGITS} --data.batch_size 32 --ranks 4",
        "data.batch_size: 32 on each of 4 rank(s) needs 128 training samples",
        "to 24 or less",
    ),
    command(
        "more samples than there are",
        "train --data.train_size 5000",
        "data.train_size: got 5000",
        "null for all",
    ),
    command(
        "more held out than there is",
        "train --data.validation 0.9999",
        "data.validation: 0.9999 of 1438 samples leaves none",
    ),
]

USAGE: Final = [
    command("a command that does not exist", "trian", "'trian'", "Did you mean 'train'?"),
    command("an option that does not exist", "report runs --out page --nope 3", "--nope", "report --help"),
    command("an option that is missing", "report runs", "out", "report --help"),
    command("an option without its value", "train --ranks", "'--ranks' requires an argument"),
    command("a number of ranks that is none", "train --ranks two", "'--ranks'", "valid integer"),
    command("a way to show progress that does not exist", "train --progress loud", "'loud' is not one of 'auto'"),
]
