"""BatchNorms merged into the layers before them: the same function, and only where that is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structlearn.merge import merge_batch_norms
from structlearn.models import build

IMAGES = (3, 32, 32)
MODELS = {
    "mlp": {"widths": [8, 6, 10], "batch_norm": True},
    "lenet": {},
    "vgg19": {"width": 0.0625},
    "googlenet": {"width": 0.0625},
    "mobilenet_v2": {"width": 0.25},
    "resnet18": {"width": 0.0625},
    "resnet50": {"width": 0.0625},
    "wideresnet28_10": {"width": 0.0625},
    "densenet121": {"width": 0.25},
}


def trained(model: nn.Module) -> nn.Module:
    """With statistics, scales and shifts as after training; in evaluation, float64."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for each in (module.running_mean, module.bias):
                    if each is not None:
                        each.normal_()
                for each in (module.running_var, module.weight):
                    if each is not None:
                        each.uniform_(0.5, 2.0)
    return model.double().eval()


def norms(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", MODELS)
def test_every_network_computes_what_it_did(name) -> None:
    model = trained(build(name, IMAGES, 10, **MODELS[name]))
    x = torch.randn(2, *IMAGES, dtype=torch.float64)
    wanted, had = model(x), len(norms(model))
    merged = merge_batch_norms(model, x)
    torch.testing.assert_close(merged(x), wanted, rtol=1e-9, atol=1e-9)
    left = len(norms(merged))
    assert left == 0 or name in {"wideresnet28_10", "densenet121"}  # theirs stand before convolutions
    assert left < had or name == "lenet"


class Odd(nn.Module):
    """Batch normalisations that must stay, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(6)
        self.heard = nn.Linear(6, 6)
        self.beside = nn.BatchNorm1d(6)
        self.twice = nn.Linear(6, 6)
        self.both = nn.BatchNorm1d(6)
        self.plain = nn.Linear(6, 6)
        self.batch = nn.BatchNorm1d(6, track_running_stats=False)
        self.rows = nn.Linear(6, 6)
        self.positions = nn.BatchNorm1d(4)
        self.tied, self.also = nn.Linear(6, 6), nn.Linear(6, 6)
        self.also.weight = self.tied.weight
        self.of_tied = nn.BatchNorm1d(6)
        self.goes = nn.Linear(6, 6, bias=False)
        self.merged = nn.BatchNorm1d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        heard = self.heard(x)
        x = self.beside(heard) + heard
        x = self.both(self.twice(self.both(self.twice(x))))
        x = self.batch(self.plain(x))
        x = x + self.positions(self.rows(x[:, None].expand(-1, 4, -1))).sum(1)
        x = self.of_tied(self.tied(x)) + self.also(x)
        return self.merged(self.goes(x))


def test_what_cannot_be_merged_stays() -> None:
    model = trained(Odd())
    x = torch.randn(5, 6, dtype=torch.float64)
    wanted = model(x)
    merged = merge_batch_norms(model, x)
    torch.testing.assert_close(merged(x), wanted, rtol=1e-9, atol=1e-9)
    assert norms(merged) == ["first", "beside", "both", "batch", "positions", "of_tied"]
    assert merged.goes.bias is not None


def test_a_network_whose_flow_depends_on_values_is_left_alone() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.layer(x)) if x.sum() > 0 else x

    assert norms(merge_batch_norms(trained(Looks()), torch.ones(2, 3, dtype=torch.float64))) == ["norm"]
