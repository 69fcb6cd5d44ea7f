"""The V-GPS network: its size, padding, language modulation, and what its ensemble shares."""

import pytest
import torch
import torch.nn.functional as F
from critics_batches import IMAGE_SPEC, batch_inputs

from valueguide.critics.config import CriticSpec, NetworkConfig
from valueguide.critics.encoders import Inputs, SmallFiLMNet
from valueguide.critics.networks import ActorNetwork, CriticNetwork, EnsembleMLP
from valueguide.critics.resnet import FiLM, FiLMResNet, SameConv2d, add_coordinates
from valueguide.errors import ConfigError

KINDS = ("state", "frozen_clip", "small_film_cnn", "resnet34_film")


def _network(kind="state", steps=1, **options):
    spec = CriticSpec(steps, ("x", "y", "grip"), 4, 0 if kind != "state" else 5, IMAGE_SPEC)
    return CriticNetwork(
        spec, NetworkConfig(kind, hidden=16, language_dim=6, feature_dim=7, **options)
    ).eval()


@pytest.fixture(scope="module")
def vgps():
    spec = CriticSpec(1, tuple("xyzrpwg"), state_dim=0, cameras={"primary": (256, 256)})
    return CriticNetwork(spec, NetworkConfig("resnet34_film", use_state=False, language_dim=512))


def test_the_v_gps_critic_has_its_25_563_201_parameters(vgps):
    assert sum(p.numel() for p in vgps.parameters()) == 25_563_201


def test_only_the_hidden_layers_are_ensembled(vgps):
    shapes = {name: tuple(p.shape) for name, p in vgps.head.named_parameters()}
    assert shapes == {
        "first.weight": (2, 519, 256),
        "first.bias": (2, 1, 256),
        "second.weight": (2, 256, 256),
        "second.bias": (2, 1, 256),
        "out.weight": (1, 256),
        "out.bias": (1,),
    }
    ensembled = {name for name, p in vgps.named_parameters() if p.ndim and p.shape[0] == 2}
    assert ensembled == {"head.first.weight", "head.first.bias", "head.second.weight", "head.second.bias"}


def test_members_with_equal_hidden_layers_agree_because_the_rest_is_shared():
    head = EnsembleMLP(5, 1, NetworkConfig(hidden=8))
    with torch.no_grad():
        for layer in (head.first, head.second):
            layer.weight[1] = layer.weight[0]
    out = head(torch.randn(3, 5))
    torch.testing.assert_close(out[0], out[1])
    separate = EnsembleMLP(5, 1, NetworkConfig(hidden=8, shared_output=False))
    assert separate.out.weight.shape == (2, 8, 1)


def test_each_member_is_the_plain_network_with_its_weights():
    head = EnsembleMLP(5, 1, NetworkConfig(hidden=8, members=3))
    x = torch.randn(4, 5)
    out = head(x)
    for m in range(3):
        h = F.silu(x @ head.first.weight[m] + head.first.bias[m])
        h = F.silu(h @ head.second.weight[m] + head.second.bias[m])
        torch.testing.assert_close(out[m], F.linear(h, head.out.weight, head.out.bias))


def test_same_padding_adds_its_odd_row_at_the_bottom_and_right():
    # Kernel 3, stride 2 on 4 x 4: "SAME" pads (0, 1); torch's padding=1 would give 14 first, not 45.
    conv = SameConv2d(1, 1, 3, 2)
    torch.nn.init.ones_(conv.weight)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert conv(image).flatten().tolist() == [45, 39, 66, 50]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "out"), [(256, 7, 2, 128), (5, 3, 2, 3), (4, 1, 2, 2), (7, 3, 1, 7)]
)
def test_same_padding_gives_the_ceiling_of_size_over_stride(size, kernel, stride, out):
    conv = SameConv2d(1, 1, kernel, stride)
    assert conv(torch.zeros(1, 1, size, size)).shape == (1, 1, out, out)


def test_the_pool_halves_and_pads_at_the_bottom_and_right_without_being_seen():
    net = FiLMResNet(6, stages=(1, 1), width=4)
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.shape)))
    # All stem outputs negative, larger to the right and bottom: the pool must skip its padding.
    net.stem_norm.register_forward_hook(
        lambda *_: -torch.arange(256.0, 0, -1).view(1, 1, 16, 16).expand(1, 4, -1, -1)
    )
    captured = []
    net.blocks[0].register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    net(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 6))
    assert seen == [((1, 4, 8, 8), (1, 4, 8, 8)), ((1, 4, 8, 8), (1, 8, 4, 4))]
    pooled = captured[0][0, 0]
    stem = F.silu(-torch.arange(256.0, 0, -1).view(16, 16))
    assert pooled[0, 0] == stem[:3, :3].max()
    assert pooled[7, 7] == stem[14:, 14:].max()


def test_coordinates_are_row_then_column_after_scaling():
    images = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    images[0, 0, 0] = torch.tensor([0, 255, 51])
    channels = add_coordinates(images)[0]
    assert channels.shape == (5, 2, 3)
    assert channels[:3, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])
    assert channels[3].tolist() == [[-1, -1, -1], [1, 1, 1]]
    assert channels[4].tolist() == [[-1, 0, 1], [-1, 0, 1]]


def test_film_multiplies_by_one_plus_its_output_and_adds():
    film = FiLM(1, 1)
    film.multiplier.weight.data.fill_(2.0)
    film.offset.weight.data.fill_(-1.0)
    out = film(torch.full((1, 1, 1, 1), 3.0), torch.tensor([[0.5]]))
    assert out.item() == 3.0 * (1 + 1.0) - 0.5


def test_the_resnet_ignores_language_until_film_has_learned():
    net = FiLMResNet(6, stages=(1, 1), width=4)
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    first, second = torch.randn(2, 6), torch.randn(2, 6)
    assert torch.equal(net(images, first), net(images, second))
    torch.nn.init.normal_(net.films[-1].multiplier.weight)
    assert not torch.allclose(net(images, first), net(images, second))


@pytest.mark.parametrize("net", [FiLMResNet(6, stages=(1, 1), width=4), SmallFiLMNet(6)])
def test_image_encoders_do_not_mix_rows_of_a_batch(net):
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    language = torch.randn(3, 6)
    together = net(images, language)
    assert together.shape == (3, net.dim)
    for row in range(3):
        alone = net(images[row : row + 1], language[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_once_is_encoding_k_times(kind):
    network, inputs = _network(kind), batch_inputs(1)
    actions, valid = torch.rand(5, 1, 3) * 2 - 1, torch.ones(5, 1, dtype=torch.bool)
    repeated = Inputs(
        inputs.language.repeat(5, 1),
        inputs.state.repeat(5, 1),
        inputs.environment_state.repeat(5, 1),
        inputs.features.repeat(5, 1),
        {name: image.repeat(5, 1, 1, 1) for name, image in inputs.images.items()},
    )
    with torch.no_grad():
        once = network(network.encode(inputs).expand(5, -1), actions, valid)
        torch.testing.assert_close(
            network(network.encode(repeated), actions, valid), once, atol=1e-5, rtol=1e-4
        )
    assert once.shape == (2, 5) and once.std() > 0


def test_scores_follow_the_order_of_the_candidates():
    network = _network(steps=2)
    features = network.encode(batch_inputs(1)).expand(6, -1)
    actions, valid = torch.rand(6, 2, 3), torch.ones(6, 2, dtype=torch.bool)
    order = torch.randperm(6)
    torch.testing.assert_close(
        network(features, actions[order], valid), network(features, actions, valid)[:, order]
    )


def test_masked_steps_are_not_seen_but_their_number_is():
    network = _network(steps=3)
    features = network.encode(batch_inputs(1))
    first, second = torch.rand(1, 3, 3), torch.rand(1, 3, 3)
    second[:, 0] = first[:, 0]
    only_first = torch.tensor([[True, False, False]])
    assert torch.equal(network(features, first, only_first), network(features, second, only_first))
    first[:, 1:] = 0
    assert not torch.equal(network(features, first, only_first), network(features, first, only_first | True))


def test_state_is_left_out_when_asked():
    spec = CriticSpec(1, ("x",), 4, cameras=IMAGE_SPEC)
    with_state = CriticNetwork(spec, NetworkConfig("small_film_cnn", language_dim=6))
    without = CriticNetwork(spec, NetworkConfig("small_film_cnn", language_dim=6, use_state=False))
    assert with_state.encoders[0].dim == without.encoders[0].dim + 4
    assert without.encode(batch_inputs(2)).shape == (2, without.encoders[0].dim)


@pytest.mark.parametrize("kind", ["state", "frozen_clip"])
def test_members_with_their_own_encoders_share_nothing(kind):
    network = _network(kind, steps=2, own_encoders=True, shared_output=False, members=3)
    inputs, actions = batch_inputs(4), torch.rand(4, 5, 2, 3)
    q = network.score_many(network.encode(inputs), actions)
    one_by_one = network(network.encode(inputs), actions[:, 0], torch.ones(4, 2, dtype=torch.bool))
    torch.testing.assert_close(q[..., 0], one_by_one, atol=1e-5, rtol=1e-4)
    q.sum(dim=(1, 2))[0].backward()
    reached = [[bool(p.grad.any()) for p in encoder.parameters()] for encoder in network.encoders]
    assert any(reached[0]) and not any(reached[1] + reached[2])


@pytest.mark.parametrize("wrong", [{"encoder": "vit"}, {"members": 0}, {"dropout": 1.0}])
def test_impossible_networks_are_refused(wrong):
    with pytest.raises(ConfigError, match="critic: (encoder|members|dropout): expected"):
        NetworkConfig(**wrong)


def test_the_actors_log_density_is_that_of_a_tanh_gaussian():
    spec = CriticSpec(2, ("x", "y"), 4, 5)
    actor = ActorNetwork(spec, NetworkConfig(hidden=16, language_dim=6)).double()
    inputs = batch_inputs(3)
    inputs = Inputs(inputs.language.double(), inputs.state.double(), inputs.environment_state.double())
    actions, density = actor(inputs, 7, torch.Generator().manual_seed(0))
    assert actions.shape == (3, 7, 2, 2) and density.shape == (3, 7, 2)
    hidden = actor.trunk(actor.encoder(inputs))
    mean, std = actor.mean(hidden), actor.log_std(hidden).clamp(-5, 2).exp()
    reference = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean[:, None], std[:, None]), [torch.distributions.TanhTransform()]
    )
    expected = reference.log_prob(actions.flatten(2)).unflatten(-1, (2, 2)).sum(-1)
    torch.testing.assert_close(density, expected, atol=1e-5, rtol=1e-5)


def test_the_log_density_stays_finite_at_the_edge():
    actor = ActorNetwork(CriticSpec(1, ("x",), 4, 5), NetworkConfig(hidden=16, language_dim=6))
    actor.mean.bias.data.fill_(40.0)
    _, density = actor(batch_inputs(2), 3, torch.Generator().manual_seed(0))
    # far out, -log(1 - tanh(x)^2) is 2x - 2 ln 2
    assert torch.isfinite(density).all() and (density > 60).all()
