"""The whole configuration of one run."""

from typing import Literal

from hpc.config.data import DataConfig, Digits
from hpc.config.model import Mlp, ModelConfig
from hpc.config.penalties import PenaltyConfig
from hpc.config.pruning import NoPruning, PruningConfig
from hpc.config.regularizers import RegularizerConfig
from hpc.config.training import (
    Checkpoint,
    Compute,
    Constant,
    EarlyStopping,
    ExchangeConfig,
    OptimizerConfig,
    RecordConfig,
    ScheduleConfig,
    Sgd,
    Sync,
)
from hpc.config.types import Count, Natural, Text, section


@section
class Config:
    """One training run. Every key has a default; ``data`` and ``model`` by name alone train well."""

    seed: Natural = 0
    """The master seed: initial weights, splits, sample order and augmentation all follow from it."""
    run_dir: Text = "runs/example"
    """The run's folder. Running again on the same folder resumes."""
    epochs: Count = 10
    """Passes over the training samples."""
    data: DataConfig = Digits()
    """The data set."""
    model: ModelConfig = Mlp()
    """The network."""
    optimizer: OptimizerConfig = Sgd()
    """The update rule."""
    schedule: ScheduleConfig = Constant()
    """How the learning rate changes over the run."""
    early_stopping: EarlyStopping | None = None
    """When to end before the last epoch; null: never. With ``pruning`` that cuts, only in fine-tuning."""
    penalties: tuple[PenaltyConfig, ...] = ()
    """Penalties on weights, added to the loss, all of them. They are on the weights of linear layers, convolutions,
    recurrent layers and embeddings, or on the scales of BatchNorms, and go on while a network is pruned and fine-tuned.
    The losses of the record are the task's alone."""
    regularizers: tuple[RegularizerConfig, ...] = ()
    """What acts within the network while it is trained, or between it and the data, all of them. In evaluation none
    does but ``variational``. They go with every exchange, optimiser and pruning. Weights are drawn
    by ``variational`` before the others change them, wherever it is in the list. The losses of the record are the
    task's alone (``train_loss`` with ``label_noise`` on the noisy labels)."""
    pruning: PruningConfig = NoPruning()
    """How the network changes its structure. Units go at the ends of epochs, on all ranks alike. Once neither their
    number nor the best validation accuracy (of a regression, the loss) has improved for ``patience`` epochs, the run
    goes on with fine-tuning, without a penalty: after ``patience`` epochs without a better accuracy the learning rate
    is divided by 10, twice; the third time the run ends, as ``pruned``, if ``epochs`` has not ended it before. Its
    answer is the network of fine-tuning with the best validation accuracy."""
    exchange: ExchangeConfig = Sync()
    """What ranks tell each other, and when."""
    checkpoint: Checkpoint = Checkpoint()
    """When the state is written down."""
    record: RecordConfig = RecordConfig()
    """What the record holds."""
    compute: Compute = Compute()
    """What the ranks compute with."""


Progress = Literal["auto", "bar", "plain", "none"]
"""How a run shows itself: a bar on a terminal and lines elsewhere (auto), or one of them, or nothing."""
