"""The functional nets and losses against their twins in `torch.nn`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lhopt.core.errors import ConfigurationError
from lhopt.inner_tasks.losses import (
    binary_cross_entropy,
    cross_entropy,
    huber,
    squared_error,
    squared_error_on_classes,
)
from lhopt.inner_tasks.nets import ACTIVATIONS, MLP, StridedCNN, embedding, layer_norm
from lhopt.inner_tasks.sequence_nets import Recurrent, TokenMLP, Transformer


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator(1))


def _classes(n: int, *shape: int) -> Tensor:
    return torch.randint(n, shape, generator=_generator(2))


@pytest.mark.parametrize("n_classes", [2, 10, 600])
def test_cross_entropy_is_torchs(n_classes: int) -> None:
    logits, targets = 5 * _normal(4, 7, n_classes), _classes(n_classes, 4, 7)
    expected = F.cross_entropy(logits.reshape(28, -1), targets.reshape(28))
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert float(cross_entropy(logits, torch.tensor([1]))) == pytest.approx(2e4)


def test_binary_cross_entropy_is_torchs() -> None:
    logits, targets = 50 * _normal(32, 1), _classes(2, 32)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
    torch.testing.assert_close(binary_cross_entropy(logits, targets), expected)


def test_squared_error_on_classes_is_the_distance_to_one_hot() -> None:
    outputs, targets = _normal(8, 5), _classes(5, 8)
    expected = 5 * F.mse_loss(outputs, F.one_hot(targets, 5).float())
    torch.testing.assert_close(squared_error_on_classes(outputs, targets), expected)


def test_squared_error_and_huber_are_torchs() -> None:
    outputs, targets = 3 * _normal(16, 2), torch.zeros(16, 2)
    torch.testing.assert_close(squared_error(outputs, targets), F.mse_loss(outputs, targets))
    torch.testing.assert_close(huber(outputs, targets), F.huber_loss(outputs, targets))


def test_layer_norm_is_torchs() -> None:
    x = 3 * _normal(6, 9) + 1
    params = {"norm.weight": _normal(9), "norm.bias": _normal(9)}
    expected = F.layer_norm(x, (9,), params["norm.weight"], params["norm.bias"])
    torch.testing.assert_close(layer_norm(x, params, "norm"), expected, atol=1e-5, rtol=1e-5)


def test_embedding_is_torchs() -> None:
    table, index = _normal(11, 3), _classes(11, 4, 5)
    assert torch.equal(embedding(table, index), F.embedding(index, table))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_a_sequence_of_linear_layers(activation: str) -> None:
    net = MLP((5, 8, 6, 3), activation)
    params, x = net.init(_generator()), _normal(4, 5)
    hidden = x
    for i in range(3):
        hidden = F.linear(hidden, params[f"layer{i}.weight"], params[f"layer{i}.bias"])
        hidden = ACTIVATIONS[activation](hidden) if i < 2 else hidden
    torch.testing.assert_close(net(params, x), hidden)


def test_gain_scales_the_initial_weights_and_norm_adds_layers() -> None:
    one, two = MLP((5, 8, 3)).init(_generator()), MLP((5, 8, 3), gain=2.0).init(_generator())
    torch.testing.assert_close(two["layer0.weight"], 2 * one["layer0.weight"])
    assert "norm0.weight" in MLP((5, 8, 3), norm="layer").init(_generator())


def test_cnn_is_a_sequence_of_strided_convolutions() -> None:
    net = StridedCNN(2, 7, (4, 6), 3)
    params, x = net.init(_generator()), _normal(5, 2 * 7 * 7)
    image = x.reshape(5, 2, 7, 7)
    for i in range(2):
        conv = nn.Conv2d(*((2, 4), (4, 6))[i], 3, stride=2, padding=1)
        conv.load_state_dict({k: params[f"conv{i}.{k}"] for k in ("weight", "bias")})
        image = F.relu(conv(image))
    expected = F.linear(image.flatten(1), params["head.weight"], params["head.bias"])
    torch.testing.assert_close(net(params, x), expected)


def test_cnn_norm_is_group_norm_with_one_group() -> None:
    net = StridedCNN(1, 4, (6,), 2, norm="layer", activation="tanh")
    params, x = net.init(_generator()), _normal(3, 16)
    params["norm0.weight"], params["norm0.bias"] = _normal(6), _normal(6)
    image = F.conv2d(
        x.reshape(3, 1, 4, 4), params["conv0.weight"], params["conv0.bias"], stride=2, padding=1
    )
    image = F.group_norm(image, 1, params["norm0.weight"], params["norm0.bias"]).tanh()
    expected = F.linear(image.flatten(1), params["head.weight"], params["head.bias"])
    torch.testing.assert_close(net(params, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_recurrent_net_is_torchs(cell: str) -> None:
    net = Recurrent(n_inputs=3, width=5, n_outputs=2, cell=cell)
    params, x = net.init(_generator()), _normal(4, 6, 3)
    params["recurrent.bias"], params["input.bias"] = (
        _normal(*params["input.bias"].shape),
        _normal(*params["input.bias"].shape),
    )
    twin = (nn.GRU if cell == "gru" else nn.RNN)(3, 5, batch_first=True)
    twin.load_state_dict(
        {
            "weight_ih_l0": params["input.weight"],
            "bias_ih_l0": params["input.bias"],
            "weight_hh_l0": params["recurrent.weight"],
            "bias_hh_l0": params["recurrent.bias"],
        }
    )
    expected = F.linear(twin(x)[0], params["head.weight"], params["head.bias"])
    torch.testing.assert_close(net(params, x), expected, atol=1e-5, rtol=1e-5)
    last = Recurrent(n_inputs=3, width=5, n_outputs=2, cell=cell, last_only=True)
    torch.testing.assert_close(last(params, x), expected[:, -1], atol=1e-5, rtol=1e-5)


def test_transformer_block_is_torchs() -> None:
    net = Transformer(width=8, blocks=1, heads=2, n_tokens=5, n_outputs=7, vocabulary=7)
    params, tokens = net.init(_generator()), _classes(7, 3, 5)
    twin = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "out.",
        "linear1.": "up.",
        "linear2.": "down.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    state = {
        theirs + kind: params[f"block0.{ours}{kind}"]
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }
    twin.load_state_dict(state)
    x = F.embedding(tokens, params["embed.weight"]) + params["position.weight"]
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    x = F.layer_norm(twin(x, src_mask=later), (8,))
    expected = F.linear(x, params["head.weight"], params["head.bias"])
    torch.testing.assert_close(net(params, tokens), expected, atol=1e-5, rtol=1e-5)


def test_a_language_model_does_not_see_later_tokens() -> None:
    for net in (
        Transformer(width=8, blocks=2, heads=2, n_tokens=6, n_outputs=7, vocabulary=7),
        Recurrent(n_inputs=4, width=8, n_outputs=7, vocabulary=7),
    ):
        params, tokens = net.init(_generator()), _classes(7, 2, 6)
        changed = tokens.clone()
        changed[:, 4] = (changed[:, 4] + 1) % 7
        before, after = net(params, tokens), net(params, changed)
        assert torch.equal(before[:, :4], after[:, :4])
        assert not torch.allclose(before[:, 4], after[:, 4])


def test_vision_transformer_cuts_square_patches() -> None:
    net = Transformer(width=4, blocks=1, heads=2, n_tokens=4, n_outputs=3, side=4, patch=2)
    patches = net._patches(torch.arange(16.0)[None])
    assert patches[0, 1].tolist() == [2.0, 3.0, 6.0, 7.0]
    assert net(net.init(_generator()), _normal(5, 16)).shape == (5, 3)


def test_tied_read_out_has_no_matrix_of_its_own() -> None:
    net = Recurrent(n_inputs=4, width=4, n_outputs=9, vocabulary=9, tied=True, norm="layer")
    params = net.init(_generator())
    assert "head.weight" not in params
    assert net(params, _classes(9, 2, 3)).shape == (2, 3, 9)


def test_token_mlp_reads_the_whole_context() -> None:
    net = TokenMLP(vocabulary=9, context=3, embed=2, hidden=(5,), norm="layer")
    params = net.init(_generator())
    assert params["layer0.weight"].shape == (5, 6)
    assert net(params, _classes(9, 4, 3)).shape == (4, 9)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="multiple of 2"):
        Transformer(width=7, blocks=1, heads=2, n_tokens=4, n_outputs=3)
