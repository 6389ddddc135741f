"""Which data a run trains on: the section ``data``."""

from typing import Annotated, Literal

from pydantic import Tag

from hpc.config.types import Count, Flag, Fraction, Natural, Text, by_name, section


@section
class Augment:
    """Random changes to training images, drawn for a whole batch at once on its device."""

    pad: Natural = 0
    """Pad by this many pixels of zeros on each side, then crop back at a random place (4 is usual on CIFAR)."""
    flip: Flag = False
    """Mirror left and right with probability 1/2."""


@section
class Common:
    """What every data set can be told."""

    batch_size: Count = 32
    """Samples in a mini-batch of one rank; the global batch is this times the number of ranks."""
    train_size: Count | None = None
    """Train on a subset of this many samples, stratified by class, drawn from the seed; null: on all."""
    validation: Fraction = 0.1
    """Share of the training samples held out for validation, drawn from the seed; where the data bring a
    validation file of their own (text, tabular), any share but 0 means that file. 0: no validation."""
    placement: Literal["auto", "device", "host"] = "auto"
    """Where the samples live: on the device as tensors, or on the host with prefetch. auto: on the device
    when they take less than a quarter of its memory."""
    prefetch: Count = 2
    """Batches made ready ahead of the step when the samples live on the host."""


@section
class Images(Common):
    """What every image set can be told."""

    augment: Augment = Augment()
    """Augmentation of training images."""
    normalize: Literal["channel", "none"] = "channel"
    """Subtract the mean of each channel and divide by its standard deviation, both from training samples;
    none: the values of the file as they are (0 to 255, digits 0 to 16)."""


@section
class Digits(Images):
    """1,797 handwritten digits of 8 x 8 pixels, embedded in scikit-learn; a fifth is the test set."""

    name: Literal["digits"] = "digits"


@section
class ImageFiles(Images):
    """Image sets that are read from files in their published form."""

    name: Literal["fashion-mnist", "mnist", "cifar10", "cifar100", "svhn"]
    root: Text | None = None
    """The folder that holds the files; null: look in the usual places."""


@section
class TextFiles(Common):
    """A character model's text: one file each for training, validation and test (Penn Treebank's form).

    Windows of ``length`` characters are the samples; the target of each character is the next one.
    """

    name: Literal["text"] = "text"
    root: Text
    """The folder that holds one file each with `train`, `valid` and `test` in its name, ending in .txt."""
    length: Count = 50
    """Characters in a sample."""


@section
class Tabular(Common):
    """Rows of numbers from csv or npz files, for classification or regression on one or more targets."""

    name: Literal["tabular"] = "tabular"
    root: Text
    """A file (.csv, .npz), split from the seed, or a folder with train, (valid,) test files."""
    task: Literal["classification", "regression"] = "classification"
    """Classify into the distinct values of the target, or fit the targets' values."""
    target: Text | tuple[Text, ...] | None = None
    """Name of the target column, or several for regression; null: the last column (npz: its array y)."""
    test: Fraction = 0.2
    """Share of the rows held out for the test when `root` is a single file."""


IMAGE_FILES = ("fashion-mnist", "mnist", "cifar10", "cifar100", "svhn")

DataConfig = Annotated[
    Annotated[Digits, Tag("digits")]
    | Annotated[ImageFiles, Tag("image files")]
    | Annotated[TextFiles, Tag("text")]
    | Annotated[Tabular, Tag("tabular")],
    by_name("digits", dict.fromkeys(IMAGE_FILES, "image files")),
]
