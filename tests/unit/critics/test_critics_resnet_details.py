"""What V-GPS's network takes from its ancestor (bridge_data_v2) beyond the number of parameters."""

import math

import pytest
import torch
import torch.nn.functional as F

from valueguide.critics.resnet import FiLMResNet, SameConv2d, add_coordinates


def test_the_stem_pads_three_on_every_side_unlike_the_blocks():
    net = FiLMResNet(6, stages=(1,), width=4)
    seen = []
    net.stem_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        net(images, torch.zeros(1, 6))
        expected = F.conv2d(F.pad(add_coordinates(images), (3, 3, 3, 3)), net.stem.weight, stride=2)
    assert expected.shape == (1, 4, 8, 8)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("kernel", [3, 7])
def test_convolutions_start_with_he_variance(kernel):
    conv = SameConv2d(32, 256, kernel) if kernel == 3 else FiLMResNet(4, stages=(1,), width=256).stem
    fan_in = conv.in_channels * kernel * kernel
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
    assert abs(conv.weight.mean().item()) < 0.1 * conv.weight.std().item()
