"""How a run trains: optimiser, schedule, exchange between ranks, checkpoints, the machine."""

from typing import Annotated, Literal

from pydantic import Field, Strict, Tag

from hpc.config.types import (
    Count,
    Flag,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Text,
    by_name,
    section,
)

# --- optimiser -----------------------------------------------------------------------------------------


@section
class Optimizer:
    """What every optimiser can be told. The update rules are those of torch.optim."""

    weight_decay: NonNegative = 0.0
    """Added to the gradient as this factor times the weight."""
    clip_norm: Positive | None = None
    """Scale the gradient down to this 2-norm, over all parameters together, when it is longer."""


@section
class Sgd(Optimizer):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    name: Literal["sgd"] = "sgd"
    lr: NonNegative = 0.02
    """Learning rate."""
    momentum: Fraction = 0.9
    """Momentum."""
    nesterov: Flag = False
    """Nesterov's form of momentum."""


@section
class Adam(Optimizer):
    """Adam (torch.optim.Adam; AdamW where the decay is decoupled)."""

    name: Literal["adam"] = "adam"
    lr: NonNegative = 1e-3
    """Learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the two running averages."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    decoupled: Flag = False
    """Decay the weights directly instead of through the gradient (AdamW)."""


@section
class Adagrad(Optimizer):
    """Adagrad (torch.optim.Adagrad)."""

    name: Literal["adagrad"] = "adagrad"
    lr: NonNegative = 0.01
    """Learning rate."""
    eps: Positive = 1e-10
    """Added to the denominator."""


@section
class RmsProp(Optimizer):
    """RMSProp (torch.optim.RMSprop)."""

    name: Literal["rmsprop"] = "rmsprop"
    lr: NonNegative = 1e-3
    """Learning rate."""
    alpha: Fraction = 0.99
    """Decay rate of the running average of squares."""
    momentum: Fraction = 0.0
    """Momentum."""
    eps: Positive = 1e-8
    """Added to the denominator."""


@section
class PerUnit(Optimizer):
    """What both forms of Alrao can be told: a random rate for every unit, and an output layer for each of many rates.

    There is no ``lr``: the record's column ``lr`` is the schedule's factor on all rates. ``clip_norm`` is of the
    network without its output layers.
    """

    lr_min: Positive = 1e-5
    """Lower end of the interval that each unit's rate is drawn from, log-uniform."""
    lr_max: Annotated[float, Strict(), Field(gt=0, le=1e9)] = 10.0
    """Upper end of the interval."""
    heads: Count = 10
    """Copies of the output layer, with rates from lr_min to lr_max, evenly spaced on a log scale; one alone has their
    geometric mean."""
    head: Text | None = None
    """The name of the output layer within the network; null: it is found."""
    theta: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.999
    """The switch between copies: the chance that one more change comes."""
    per: Literal["batch", "example"] = "batch"
    """What the switch takes for one observation: a mini-batch by the mean of its log-likelihoods, or each example,
    which reacts about as many times faster as a mini-batch has examples."""
    frozen: Fraction = 0.0
    """The chance that a unit has the rate 0: it stays as it starts."""
    rates: Literal["shared", "per_rank"] = "shared"
    """Do all ranks draw the same rates, or each its own? (Ranks in step, as with sync, need the same.)"""
    drop_heads_after: Count | None = None
    """After so many epochs, trust only the best copy of the output layer; null: mix them to the end."""
    posterior_every: Count | None = 100
    """Write the posterior over the copies to the record's /alrao every so many steps; null: at the ends of epochs."""


@section
class Alrao(PerUnit):
    """Alrao-SGD: stochastic gradient descent with a random learning rate for every unit."""

    name: Literal["alrao"] = "alrao"
    momentum: Fraction = 0.0
    """Momentum."""
    nesterov: Flag = False
    """Nesterov's form of momentum."""


@section
class AlraoAdam(PerUnit):
    """Alrao-Adam: Adam with a random learning rate for every unit. Its source found it less reliable than Alrao-SGD."""

    name: Literal["alrao-adam"] = "alrao-adam"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the two running averages."""
    eps: Positive = 1e-8
    """Added to the denominator."""


OptimizerConfig = Annotated[
    Annotated[Sgd, Tag("sgd")]
    | Annotated[Adam, Tag("adam")]
    | Annotated[Adagrad, Tag("adagrad")]
    | Annotated[RmsProp, Tag("rmsprop")]
    | Annotated[Alrao, Tag("alrao")]
    | Annotated[AlraoAdam, Tag("alrao-adam")],
    by_name("sgd"),
]


# --- schedule ------------------------------------------------------------------------------------------


@section
class Schedule:
    """What every learning-rate schedule can be told. A schedule is a factor on the learning rate."""

    warmup_epochs: NonNegative = 0.0
    """Raise the learning rate linearly over this many epochs at the start, step by step."""


@section
class Constant(Schedule):
    """The learning rate as given."""

    name: Literal["constant"] = "constant"


@section
class Step(Schedule):
    """Multiplied by ``factor`` at each milestone."""

    name: Literal["step"] = "step"
    milestones: tuple[Natural, ...]
    """Epochs after which the rate falls."""
    factor: Positive = 0.1
    """Multiplies the rate at each milestone."""


@section
class Cosine(Schedule):
    """Half a cosine from 1 to ``floor`` over the run, epoch by epoch."""

    name: Literal["cosine"] = "cosine"
    floor: Fraction = 0.0
    """The factor that is approached at the end."""


@section
class Exponential(Schedule):
    """Multiplied by ``factor`` after every epoch."""

    name: Literal["exponential"] = "exponential"
    factor: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Multiplies the rate after every epoch."""


@section
class Plateau(Schedule):
    """Multiplied by ``factor`` when the validation loss has not improved for ``patience`` epochs."""

    name: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Multiplies the rate at each plateau."""
    patience: Natural = 10
    """Epochs without improvement that are tolerated."""
    min_delta: NonNegative = 0.0
    """An improvement is a loss lower than the best by more than this."""


ScheduleConfig = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[Step, Tag("step")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[Exponential, Tag("exponential")]
    | Annotated[Plateau, Tag("plateau")],
    by_name("constant"),
]


@section
class EarlyStopping:
    """End the run when the validation loss has stopped improving.

    While a network is pruned its penalty and its cuts push that loss around: nothing is watched or counted then, and
    early stopping begins with fine-tuning.
    """

    patience: Count = 10
    """Epochs without improvement after which the run ends."""
    min_delta: NonNegative = 0.0
    """An improvement is a loss lower than the best by more than this."""


# --- exchange between ranks ----------------------------------------------------------------------------


@section
class NoExchange:
    """Every rank trains by itself; the run's answer is the network of rank 0."""

    name: Literal["none"] = "none"
    consensus_every: Count | None = 100
    """Estimate how far apart the ranks are every so many steps, for the record's /consensus; null: never."""


@section
class Sync:
    """Gradients are averaged over all ranks at every step, while backward still computes others (B Alg. 1)."""

    name: Literal["sync"] = "sync"
    bucket_mb: Positive = 2.0
    """Largest message, in MiB: smaller gradients are packed together up to it, larger ones cut."""
    payload: Literal["float32", "bfloat16", "float16"] = "float32"
    """What gradients travel as. The 16-bit ones send half the bytes: each rank rounds its gradients to 16 bits; they
    are added and divided in float32, and the mean is rounded to 16 bits once. float16 holds sizes from 6e-8 to 65504:
    smaller gradients become zero, larger ones nan, which ends the run as diverged. bfloat16 has float32's range, and
    three bits less than float16."""


@section
class PerSyn:
    """Weights are replaced by their mean over all ranks every ``tau`` steps (B Alg. 2)."""

    name: Literal["persyn"] = "persyn"
    tau: Count
    """Steps between two averagings."""
    momentum: Literal["keep", "mix", "reset"] = "keep"
    """What happens to the optimiser's running averages: each rank keeps its own, they are averaged with the
    weights, or they start again from zero."""
    consensus_every: Count | None = 100
    """Estimate how far apart the ranks are every so many steps, for the record's /consensus, right before
    they are averaged if that is due; null: never."""


@section
class Gossip:
    """Each rank pushes its weights to another one now and then, and waits for nobody (GoSGD, B Alg. 3-4).

    Ranks train at their own speed: an epoch ends when all of them together have made its steps.
    """

    name: Literal["gossip"] = "gossip"
    rho: Annotated[float, Strict(), Field(gt=0, le=1)]
    """The chance of a push after each step."""
    peers: Literal["uniform", "ring", "exponential", "matrix"] = "uniform"
    """Whom a rank pushes to: any other; the next; those 1, 2, 4, ... places on in turn; or as ``matrix`` says."""
    matrix: Text | None = None
    """With peers: matrix, a text file: row r holds the chances that rank r pushes to each of the ranks."""
    momentum: Literal["keep", "mix", "reset"] = "keep"
    """What a rank that receives does with its optimiser's running averages: it keeps its own, they travel and are mixed
    like the weights, or they start again from zero."""
    payload: Literal["float32", "bfloat16", "int8"] = "float32"
    """What weights travel as; int8 has one scale for every 256 of them. (Masses are never compressed.)"""
    slices: Count = 1
    """Send one of so many slices of the weights in turn, instead of all of them. (Of a network that is pruned, slices
    divide no tensor, so that their sizes differ.)"""
    progress: Literal["thread", "inline"] = "thread"
    """Who moves the messages: a thread beside the training, or the training itself between its steps."""
    consensus_every: Count | None = 100
    """Estimate how far apart the ranks are every so many steps, for the record's /consensus; null: never."""


@section
class Easgd:
    """A centre and the ranks draw each other every ``tau`` steps (EASGD, B 2.3.3.2). The centre is the run's answer."""

    name: Literal["easgd"] = "easgd"
    tau: Count
    """A rank's steps between two exchanges."""
    alpha: Annotated[float, Strict(), Field(gt=0, le=1)] | None = None
    """The moving rate: the part of their distance by which a rank and the centre draw near each other; null: 0.9
    divided by the number of ranks that train, as the method's authors chose."""
    mode: Literal["async", "sync"] = "async"
    """async: each rank by itself with a master, at its own speed, waiting for nobody; sync: all ranks at once, no
    master."""
    master: Literal["beside", "own"] = "beside"
    """With mode: async, where the master lives: beside the training of rank 0, or on rank 0 by itself."""
    progress: Literal["thread", "inline"] = "thread"
    """With mode: async, who moves the messages: a thread beside the training, or the training itself between its
    steps."""
    consensus_every: Count | None = 100
    """Estimate how far apart the ranks that train are every so many steps, for the record's
    /consensus; null: never."""


@section
class Downpour:
    """Ranks send their updates to a master, and go on from its weights, each at its own speed (B 2.3.3.3).

    Updates of all ranks are added up, not averaged: more ranks need a lower learning rate, and a momentum near zero.
    The master's weights are the run's answer.
    """

    name: Literal["downpour"] = "downpour"
    tau: Count
    """A rank's steps between two exchanges with the master."""
    master: Literal["beside", "own"] = "beside"
    """Where the master lives: beside the training of rank 0, or on rank 0 by itself."""
    progress: Literal["thread", "inline"] = "thread"
    """Who moves the messages: a thread beside the training, or the training itself between its steps."""
    consensus_every: Count | None = 100
    """Estimate how far apart the ranks that train are every so many steps, for the record's
    /consensus; null: never."""


ExchangeConfig = Annotated[
    Annotated[NoExchange, Tag("none")]
    | Annotated[Sync, Tag("sync")]
    | Annotated[PerSyn, Tag("persyn")]
    | Annotated[Gossip, Tag("gossip")]
    | Annotated[Easgd, Tag("easgd")]
    | Annotated[Downpour, Tag("downpour")],
    by_name("sync"),
]


def workers(exchange: ExchangeConfig, ranks: int) -> int:
    """How many of so many ranks train: all of them, unless a master has a rank of its own (which is then rank 0)."""
    if isinstance(exchange, Easgd) and exchange.mode == "sync":
        return ranks
    own = isinstance(exchange, Easgd | Downpour) and exchange.master == "own" and ranks > 1
    return ranks - own


# --- what comes between the run and the machine --------------------------------------------------------


@section
class Checkpoint:
    """When the state of the run is written down, and how much of it is kept."""

    every_epochs: Count = 1
    """Write a checkpoint after every so many epochs (and always after the last)."""
    every_steps: Count | None = None
    """Write one after every so many steps within an epoch, too."""
    keep: Annotated[int, Field(ge=2, strict=True)] = 2
    """How many of the newest good checkpoints stay (at least two)."""


@section
class Compute:
    """What the ranks compute with."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: one CUDA device a rank where there are any, else the CPU."""
    share_devices: Flag = False
    """Let several ranks use one CUDA device."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: forward and backward under autocast; weights and optimiser stay in float32."""
    channels_last: Flag = False
    """Keep images and convolutions in memory with the channels last."""
    compile: Flag = False
    """Compile the model with torch.compile."""
    deterministic: Flag = False
    """Use deterministic algorithms only (CPU runs are deterministic without it)."""
    threads: Count | None = None
    """CPU threads of a rank; null: OMP_NUM_THREADS where it is set, else the cores divided by the ranks."""
    deadline_s: Positive = 600.0
    """Longest wait for another rank, in seconds. Past it the run ends and says who waited for whom."""
    device_pointers: Literal["auto", "never"] = "auto"
    """Hand MPI values in the memory of CUDA devices (sync, persyn, synchronous easgd). auto: where its library says
    that it takes them, and a trial before the first step comes out right; never: they go through the host, also where a
    library says so and crashes."""
    fault_tolerance: Literal["none", "shrink"] = "none"
    """What happens when a rank dies. none: the run ends, and goes on from its last checkpoint when it is started again;
    shrink: the others go on without it, for gossip under Open MPI (its mpiexec with --with-ft ulfm; --ranks does
    that by itself)."""


@section
class RecordConfig:
    """What the record holds beyond its fixed columns."""

    every_steps: Count | None = None
    """Write the mean training loss of every so many steps to /steps; null: none."""
