"""Everything about a configuration that can be known before a rank starts, beyond single keys."""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from hpc.config.data import Images, Tabular, TextFiles
from hpc.config.devices import cuda_devices
from hpc.config.files import locate
from hpc.config.folder import check_folder
from hpc.config.model import AlexNet, Cnn, Custom, Lstm, Mlp, Pooled, SmallImages, least_side, small_form
from hpc.config.peek import peek
from hpc.config.peers import read_matrix
from hpc.config.penalties import BnLassoPenalty, KinkedPenalty
from hpc.config.pruning import BnLasso, Cutting, Norm, Scaled, Scalp, ShrinkNets, proximal
from hpc.config.regularizers import InputNoise, LabelNoise, Reve, Shade, Variational
from hpc.config.root import Config
from hpc.config.sizes import check_padding, divide, steps_per_epoch
from hpc.config.training import Alrao, AlraoAdam, Downpour, Easgd, Gossip, NoExchange, Plateau, Sgd, Step, Sync, workers
from hpc.errors import ConfigError


def check(config: Config, local_ranks: int | None, world_size: int) -> None:
    """Raise one ConfigError that lists every problem of a configuration on this machine.

    Args:
        config: the configuration.
        local_ranks: how many ranks will share this machine's devices; None: it runs elsewhere, on others.
        world_size: how many ranks will train, on all machines.
    """
    problems = [
        *_combinations(config),
        *_fit(config),
        *_devices(config, local_ranks),
        *_model(config),
        *_data(config, workers(config.exchange, world_size)),
        *_gossip(config, world_size),
        *_losses(config),
        *_master(config, world_size),
        *_pruning(config, world_size),
        *_penalties(config),
        *_regularizers(config),
        *_told(lambda: check_folder(config)),
    ]
    if problems:
        raise ConfigError(problems)


def _told(look: Callable[[], object]) -> Iterator[str]:
    """The problems that a check raises."""
    try:
        look()
    except ConfigError as error:
        yield from error.problems


def _combinations(config: Config) -> Iterator[str]:
    """Keys that are fine alone and impossible together."""
    if config.data.validation == 0:
        needs = "but data.validation is 0; hold some samples out, for example data.validation: 0.1"
        if isinstance(config.schedule, Plateau):
            yield f"schedule.name: plateau watches the validation loss, {needs}"
        if config.early_stopping is not None:
            yield f"early_stopping: it watches the validation loss, {needs}"
    optimizer, schedule = config.optimizer, config.schedule
    if isinstance(optimizer, Sgd | Alrao) and optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer.nesterov: true needs optimizer.momentum above 0"
    if isinstance(optimizer, Alrao | AlraoAdam):
        yield from _alrao(config, optimizer)
    if isinstance(schedule, Step) and list(schedule.milestones) != sorted(set(schedule.milestones)):
        yield f"schedule.milestones: got {list(schedule.milestones)}; give increasing epochs, for example [30, 60]"
    if schedule.warmup_epochs > config.epochs:
        yield (
            f"schedule.warmup_epochs: got {schedule.warmup_epochs}, which is longer than the run "
            f"(epochs: {config.epochs}); make it shorter"
        )


def _alrao(config: Config, optimizer: Alrao | AlraoAdam) -> Iterator[str]:
    """Rates from an interval, for ranks that can have them."""
    if optimizer.lr_min > optimizer.lr_max:
        yield (
            f"optimizer.lr_min: got {optimizer.lr_min:g}, above optimizer.lr_max: {optimizer.lr_max:g}; rates are "
            f"drawn from the interval between them"
        )
    if optimizer.rates == "per_rank" and isinstance(config.exchange, Sync):
        yield (
            "optimizer.rates: per_rank gives each rank rates of its own, but exchange.name: sync keeps one network on "
            "all; use shared, or another exchange"
        )


def _fit(config: Config) -> Iterator[str]:
    """Does the network take this kind of data?"""
    data, model = config.data, config.model
    if config.compute.channels_last and not isinstance(data, Images):
        yield f"compute.channels_last: only images have channels, but data.name is {data.name}; leave it false"
    if isinstance(model, Custom):
        return
    if isinstance(data, TextFiles) != isinstance(model, Lstm):
        fitting = "lstm" if isinstance(data, TextFiles) else "any network but lstm"
        yield f"model.name: {model.name} does not take the data set {data.name}; use {fitting}"
    elif isinstance(data, Tabular) and not isinstance(model, Mlp):
        yield f"model.name: {model.name} needs images, but data.name is tabular; use mlp"


def _devices(config: Config, local_ranks: int | None) -> Iterator[str]:
    """Is there a device for every rank?"""
    if config.compute.device == "cpu" or local_ranks is None:
        return
    found = cuda_devices()
    if config.compute.device == "cuda" and found == 0:
        yield "compute.device: got cuda, but no CUDA device was found here; use cpu or auto"
    elif 0 < found < local_ranks and not config.compute.share_devices:
        yield (
            f"compute.device: {local_ranks} ranks on this machine, but {found} CUDA device(s); start {found} rank(s), "
            f"or set compute.share_devices: true, or compute.device: cpu"
        )


def _data(config: Config, ranks: int) -> Iterator[str]:
    """Are the files there, with enough samples for all ranks that train, and with images that the network can take?"""
    data = config.data
    try:
        heads = peek(data, locate(data))
    except ConfigError as error:
        yield from error.problems
        return
    if (samples := heads.samples) is not None:
        yield from _told(lambda: steps_per_epoch(divide(data, *samples)[0], data.batch_size, ranks))
    if (image := heads.image) is not None and isinstance(data, Images):
        yield from _told(lambda: check_padding(data, *image))
        yield from _images(config, *image)


def _gossip(config: Config, world_size: int) -> Iterator[str]:
    """Do the ranks know whom to gossip with?"""
    exchange = config.exchange
    if not isinstance(exchange, Gossip):
        return
    if (exchange.peers == "matrix") != (exchange.matrix is not None):
        yield f"exchange.matrix: got {exchange.matrix}, with exchange.peers: {exchange.peers}; one needs the other"
    elif (matrix := exchange.matrix) is not None and world_size > 1:
        yield from _told(lambda: read_matrix(matrix, world_size))


def _losses(config: Config) -> Iterator[str]:
    """Can ranks go on without one that dies?"""
    exchange = config.exchange
    if config.compute.fault_tolerance == "none":
        return
    needs = "compute.fault_tolerance: shrink needs exchange.name: gossip"
    if not isinstance(exchange, Gossip):
        yield (
            f"{needs}, which waits for nobody, but it is {exchange.name}; use gossip, or compute.fault_tolerance: none"
        )
    elif exchange.peers == "matrix":
        yield f"{needs} with peers that any number of ranks has, but exchange.matrix is for one number; use uniform"


def _master(config: Config, world_size: int) -> Iterator[str]:
    """Is there a rank for the master, and does the centre come to rest?"""
    exchange = config.exchange
    if not isinstance(exchange, Easgd | Downpour):
        return
    if isinstance(exchange, Downpour) or exchange.mode == "async":
        if exchange.master == "own" and world_size == 1:
            yield "exchange.master: own takes a rank that does not train, but there is one only; take two, or beside"
        return
    for key, value, default in (("master", exchange.master, "beside"), ("progress", exchange.progress, "thread")):
        if value != default:
            yield f"exchange.{key}: {value} is for a master, but exchange.mode: sync has none; leave it out"
    if exchange.alpha is not None and world_size > 1 and exchange.alpha * world_size > 1:
        yield (
            f"exchange.alpha: got {exchange.alpha}, but {world_size} ranks draw the centre at once, and would draw it "
            f"past them all; use 1 / {world_size} or less, or null for 0.9 / {world_size}"
        )


def _pruning(config: Config, world_size: int) -> Iterator[str]:
    """Can the network be cut, and the cuts be judged?"""
    pruning = config.pruning
    if not isinstance(pruning, Cutting):
        return
    if config.data.validation == 0:
        yield (
            f"pruning.name: {pruning.name} watches the validation accuracy, but data.validation is 0; hold some "
            f"samples out, for example data.validation: 0.1"
        )
    if pruning.every_epochs > config.epochs:
        yield (
            f"pruning.every_epochs: got {pruning.every_epochs}, but the run has {config.epochs} epoch(s), and nothing "
            f"would be cut; make it smaller"
        )
    if world_size > 1 and isinstance(config.exchange, NoExchange):
        yield (
            f"pruning.name: {pruning.name} would cut {world_size} networks alike that never meet (exchange.name: "
            f"none), by norms of a mean that no rank holds; use another exchange, such as sync, or a run for each rank"
        )
    yield from _method(config, pruning)


def _method(config: Config, pruning: Cutting) -> Iterator[str]:
    """Does the method do what its keys ask for, under this optimiser?"""
    asked = isinstance(pruning, Scalp | Norm | BnLasso) and pruning.proximal
    if asked and isinstance(pruning, Scalp | Norm) and pruning.penalty == "l2":
        yield (
            "pruning.proximal: true makes weights exactly 0, but the proximal step of penalty: l2 only scales them; "
            "set it false, or use group_lasso or l1"
        )
    if asked and not isinstance(config.optimizer, Sgd):
        yield (
            f"pruning.proximal: true takes steps as long as the optimiser's, but those of optimizer.name: "
            f"{config.optimizer.name} have another length for each unit or parameter; use sgd, or set it false"
        )
    if isinstance(pruning, Norm) and pruning.mix is not None and pruning.penalty != "sparse_group_lasso":
        yield f"pruning.mix: it is for penalty: sparse_group_lasso, not for {pruning.penalty}; leave it out"
    if isinstance(pruning, ShrinkNets):
        yield from _switches(config, pruning)


def _penalties(config: Config) -> Iterator[str]:
    """Can penalties take proximal steps, and is there one such step for each weight?"""
    taken: dict[bool, str] = {}  # is it on the scales of BatchNorms? then by what
    pruning = config.pruning
    if isinstance(pruning, Cutting) and proximal(pruning, config.optimizer):
        taken[isinstance(pruning, BnLasso)] = f"pruning.name: {pruning.name}, with proximal steps of its own"
    for number, penalty in enumerate(config.penalties):
        if isinstance(penalty, BnLassoPenalty) and not _batch_norms(config):
            yield (
                f"penalties.{number}.name: bn_lasso is on the scales of BatchNorms, and model.name: "
                f"{config.model.name} has none; take another penalty, or a network with BatchNorm, such as "
                f"model: {{name: mlp, batch_norm: true}}"
            )
        if not isinstance(penalty, KinkedPenalty) or not penalty.proximal:
            continue
        key = f"penalties.{number}.proximal: true"
        if not isinstance(config.optimizer, Sgd):
            yield (
                f"{key} takes steps as long as the optimiser's, but those of optimizer.name: {config.optimizer.name} "
                f"have another length for each unit or parameter; use sgd, or set it false"
            )
        scales = isinstance(penalty, BnLassoPenalty)
        if scales in taken:
            yield (
                f"{key} is one of two proximal steps of the same weights (the other: {taken[scales]}), and one after "
                f"the other they are the step of neither; set one false, or take sparse_group_lasso for two in one"
            )
        taken[scales] = f"penalties.{number}"


def _batch_norms(config: Config) -> bool:
    """Can the network have a BatchNorm, of its own or from pruning?"""
    model, pruning = config.model, config.pruning
    if isinstance(pruning, Scaled):
        added = pruning.batch_norm
    else:
        added = isinstance(pruning, BnLasso) and pruning.scaling is not None
    if isinstance(model, Mlp):
        return added or model.batch_norm
    return added or not isinstance(model, Cnn | SmallImages | AlexNet | Lstm)


def _regularizers(config: Config) -> Iterator[str]:
    """Is there a place for each in the network?"""
    activation = getattr(config.model, "activation", None)
    for number, each in enumerate(config.regularizers):
        if isinstance(each, Shade) and (
            isinstance(config.model, Lstm) or activation in {"tanh", "sigmoid", "identity"}
        ):
            has = "lstm has none" if isinstance(config.model, Lstm) else f"model.activation is {activation}"
            yield (
                f"regularizers.{number}.name: shade is for units before a rectifier, and {has}; take an activation "
                f"such as relu, or leave shade out"
            )
        if isinstance(each, InputNoise) and isinstance(config.data, TextFiles):
            yield f"regularizers.{number}.name: input_noise is for numbers, and a text has characters; leave it out"
        if isinstance(each, Variational) and config.optimizer.weight_decay > 0:
            yield (
                f"regularizers.{number}.name: variational has a prior in place of weight decay, and "
                f"optimizer.weight_decay: {config.optimizer.weight_decay:g} would be on deviations, too; set it to 0"
            )
        if isinstance(each, LabelNoise) or (isinstance(each, Reve) and _regression(config)):
            yield from _for_task(config, number, each)
        for name, times in Counter(getattr(each, "layers", None) or ()).items():
            if times > 1:
                yield f"regularizers.{number}.layers: {name} is named twice, and would count twice; name it once"
        if [other.name for other in config.regularizers[:number]].count(each.name):
            yield f"regularizers.{number}.name: {each.name} is there twice; give it once"


def _for_task(config: Config, number: int, each: LabelNoise | Reve) -> Iterator[str]:
    """Do classes get what is for classes, and numbers what is for numbers?"""
    if isinstance(each, Reve):
        yield f"regularizers.{number}.name: reve is for classes, but data.task is regression; leave it out"
        return
    task, wanted, other, value = (
        ("regression", "deviation", "rate", each.rate)
        if _regression(config)
        else ("classification", "rate", "deviation", each.deviation)
    )
    if value is not None:
        yield (
            f"regularizers.{number}.{other}: got {value:g}, but this is a {task}, where label_noise takes {wanted} and "
            f"no {other}; leave it out"
        )


def _regression(config: Config) -> bool:
    return isinstance(config.data, Tabular) and config.data.task == "regression"


def _switches(config: Config, pruning: ShrinkNets) -> Iterator[str]:
    """Do the keys of a rule belong to it, and are switches pushed by their own penalty only?"""
    if config.optimizer.weight_decay > 0:
        yield (
            f"optimizer.weight_decay: got {config.optimizer.weight_decay:g}, which would shrink the switches of "
            f"pruning.name: shrinknets as well; leave it 0, and set pruning.weight_strength, which spares them"
        )
    for key, value, rule in (
        ("threshold", pruning.threshold, "threshold"),
        ("gamma", pruning.gamma, "sign_variance"),
    ):
        if value is not None and pruning.rule != rule:
            yield f"pruning.{key}: it is for rule: {rule}, not for {pruning.rule}; leave it out"


def _images(config: Config, height: int, width: int) -> Iterator[str]:
    """Does the network take images of this size?"""
    model = config.model
    side = min(height, width)
    if isinstance(model, AlexNet) and not small_form(model, side) and (model.kernel, model.pool) != (3, 3):
        yield (
            f"model: kernel: {model.kernel} and pool: {model.pool} belong to alexnet's form for small images, but "
            f"it is the one for ImageNet here; leave them out, or set model.stem: cifar"
        )
    elif side < (least := least_side(model, side)):
        yield (
            f"model.name: {model.name} takes images of {least} x {least} pixels or more, but those of "
            f"{config.data.name} have {height} x {width}; take a network with fewer poolings, such as cnn or resnet18"
        )


def _model(config: Config) -> Iterator[str]:
    """Can a model of the user's own be found, and one of ours be built?"""
    if isinstance(config.model, AlexNet) and config.model.kernel % 2 == 0:
        yield f"model.kernel: got {config.model.kernel}, but only odd filters keep the size of an image; use 3 or 5"
    if isinstance(config.model, Pooled) and config.model.pooling == "mean" and config.model.regions != 1:
        yield (
            f"model.regions: got {config.model.regions}, but the mean is over all positions; "
            f"give model.pooling: weldon, or leave regions out"
        )
    if not isinstance(config.model, Custom):
        return
    module = config.model.name.partition(":")[0]
    top = module.partition(".")[0]
    if top in sys.modules or importlib.util.find_spec(top) or Path(f"{top}.py").exists() or Path(top).is_dir():
        return
    yield (
        f"model.name: no module {top!r} is installed or lies in this folder; "
        f"install it, or start from the folder that holds {top}.py"
    )
