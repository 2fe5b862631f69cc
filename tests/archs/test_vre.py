"""The VRE: the codes that an image selects, and its preparation, against hand-computed values."""

from __future__ import annotations

import pytest
import torch

from quantface_arch.archs.vre import VRE, EmbeddingChange, select_codes

LINE = torch.tensor([[0.0], [10.0], [20.0], [30.0]])
TINY = {
    "resolution": 16,
    "channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "z_channels": 8,
    "num_codes": 32,
    "num_tokens": 6,
    "prompt_dim": 12,
    "norm_num_groups": 4,
}


def select(values, tokens, codebook=LINE):
    """Select codes for one image whose features are single numbers."""
    codes, positions, valid = select_codes(torch.tensor(values)[None, :, None], codebook, tokens)
    return codes[0].tolist(), positions[0].tolist(), valid[0].tolist()


def test_codes_come_in_the_order_of_their_smallest_distance():
    # The nearest codes are 2, 1, 0, 3, at distances 3, 1, 2, 0.
    codes, positions, valid = select([23.0, 11.0, 2.0, 30.0], 4)
    assert codes == [3, 1, 0, 2]
    assert positions == [3, 1, 2, 0]
    assert all(valid)


def test_a_code_is_taken_once_where_it_is_nearest():
    # Code 1 is nearest at distances 3, 1 and 2, code 0 at 2.5, and code 3 at 4.
    codes, positions, valid = select([13.0, 11.0, 8.0, 2.5, 26.0], 3)
    assert codes == [1, 0, 3]
    assert positions == [1, 3, 4]
    assert all(valid)


def test_only_as_many_codes_as_asked_for():
    assert select([23.0, 11.0, 2.0, 30.0], 2)[0] == [3, 1]


def test_fewer_distinct_codes_than_tokens():
    codes, positions, valid = select([19.0, 20.5, 1.0], 4)
    assert valid == [True, True, False, False]
    assert (codes[:2], positions[:2]) == ([2, 0], [1, 2])


def test_equal_distances_keep_the_order_of_positions():
    # All four distances are 1. Code 2 comes first, since its first position is the earliest.
    codes, positions, _ = select([21.0, 9.0, 19.0, 1.0], 3)
    assert codes == [2, 1, 0]
    assert positions == [0, 1, 3]


def test_selection_in_a_batch_is_that_of_each_picture():
    z, codebook = torch.randn(3, 40, 4), torch.randn(16, 4)
    together = select_codes(z, codebook, 7)
    for index in range(3):
        alone = select_codes(z[index : index + 1], codebook, 7)
        assert all(torch.equal(a[0], b[index]) for a, b in zip(alone, together, strict=True))


def test_selection_equals_the_definition_spelled_out():
    z, codebook = torch.randn(1, 64, 4), torch.randn(24, 4)
    distances = torch.cdist(z[0].double(), codebook.double())
    nearest = sorted((float(row.min()), i, int(row.argmin())) for i, row in enumerate(distances))
    wanted = list(dict.fromkeys(code for _, _, code in nearest))
    codes, _, valid = select_codes(z, codebook, 24)
    assert codes[0][valid[0]].tolist() == wanted
    assert 3 < len(wanted) < 24


def test_rows_of_the_prompt():
    vre = VRE(**{**TINY, "num_codes": 4, "num_tokens": 6}).eval()
    lq = torch.rand(2, 3, 16, 16) * 2 - 1
    prompt, _ = vre(lq)
    assert prompt.shape == (2, 6, 8)
    z = vre.features(lq).flatten(2).transpose(1, 2)
    codes, _, valid = select_codes(z, vre.quantize.embedding.weight, 6)
    for rows, chosen, found in zip(prompt, codes, valid, strict=True):
        count = int(found.sum())
        expected = vre.quantize.embedding.weight[chosen[:count]]
        torch.testing.assert_close(rows[:count], expected, rtol=0, atol=1e-6)
        assert not rows[count:].any() and count <= 4


@pytest.mark.parametrize("value, seen", [(-1.0, -3.0), (0.0, -1.0), (0.5, 0.0), (1.0, 1.0)])
def test_picture_is_resized_and_normalized_a_second_time(value, seen):
    vre, inputs = VRE(**TINY), []
    vre.encoder.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    vre.features(torch.full((1, 3, 24, 40), value))
    assert torch.equal(inputs[0], torch.full((1, 3, 16, 16), seen))


def test_picture_is_resized_bilinearly():
    vre, inputs = VRE(**TINY), []
    vre.encoder.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    lq = torch.rand(1, 3, 32, 32)
    vre.features(lq)
    # At half the size every pixel is the mean of four.
    mean = lq.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(inputs[0], 2 * mean - 1)


def test_stride_two_convolutions_are_padded_right_and_below():
    vre = VRE(**TINY)
    down = vre.encoder.down[0].downsample
    with torch.no_grad():
        down.conv.weight.fill_(1.0)
        down.conv.bias.zero_()
        x = torch.zeros(1, 8, 4, 4)
        # Windows begin at rows and columns 0 and 2, so the first value is in one window and the
        # other in all.
        x[0, 0, 1, 1] = 1.0
        x[0, 0, 2, 2] = 5.0
        assert down(x)[0, 0].tolist() == [[6.0, 5.0], [5.0, 5.0]]


def test_gradients_reach_the_encoder_and_the_codebook():
    vre = VRE(**TINY)
    prompt, loss = vre(torch.rand(1, 3, 16, 16))
    target = torch.randn_like(prompt)
    (prompt * target).sum().backward(retain_graph=True)
    through = vre.encoder.conv_in.weight.grad.clone()
    assert through.isfinite().all() and through.any()
    vre.zero_grad()
    loss.backward()
    chosen = vre.quantize.embedding.weight.grad.abs().sum(1)
    assert vre.encoder.conv_in.weight.grad.any() and 0 < int((chosen > 0).sum()) <= 6


def test_straight_through_gradient_is_that_of_the_prompt():
    vre = VRE(**TINY)
    kept = []

    def keep(module, args, output):
        output.retain_grad()
        kept.append(output)

    vre.quant_conv.register_forward_hook(keep)
    prompt, _ = vre(torch.rand(1, 3, 16, 16))
    weight = torch.randn_like(prompt)
    (prompt * weight).sum().backward()
    z = kept[0].detach().flatten(2).transpose(1, 2)
    _, positions, valid = select_codes(z, vre.quantize.embedding.weight.detach(), 6)
    expected = torch.zeros_like(z)
    expected[0, positions[0][valid[0]]] = weight[0][valid[0]]
    torch.testing.assert_close(kept[0].grad.flatten(2).transpose(1, 2), expected)


def test_embedding_change_is_two_affine_maps_with_silu():
    change = EmbeddingChange(8, 12)
    x = torch.randn(2, 5, 8)
    h = x @ change.conv1.weight[:, :, 0].T + change.conv1.bias
    h = h * torch.sigmoid(h)
    h = h @ change.conv2.weight[:, :, 0].T + change.conv2.bias
    torch.testing.assert_close(change(x), h * torch.sigmoid(h))
    assert change.conv1.out_channels == 4
