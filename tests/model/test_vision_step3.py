import pytest
import torch
from golden import inputs, model
from torch.nn import functional as F

from step3.errors import Step3Error
from step3.model.configuration_step3 import Step3VisionConfig
from step3.model.vision_step3 import Step3PositionEmbedding, Step3VisionModel


def test_published_grid_of_52_is_resized_to_the_crops_36() -> None:
    torch.manual_seed(0)
    table = Step3PositionEmbedding(52, 4)
    square = table.weight[1:].detach().reshape(52, 52, 4)

    resized = table(36).detach()

    assert resized.shape == (1 + 36 * 36, 4)
    assert torch.equal(resized[0], table.weight[0])
    by_channel = [
        F.interpolate(
            square[None, None, :, :, channel], (36, 36), mode="bicubic", antialias=True, align_corners=False
        )
        for channel in range(4)
    ]
    torch.testing.assert_close(resized[1:].T.reshape(4, 36, 36), torch.cat(by_channel)[:, 0])


def test_own_grid_is_not_resized() -> None:
    table = Step3PositionEmbedding(8, 4)
    assert table(8) is table.weight


def test_resizing_is_done_in_float32_whatever_the_weights_are() -> None:
    torch.manual_seed(0)
    table = Step3PositionEmbedding(9, 4).bfloat16()
    wide = Step3PositionEmbedding(9, 4)
    wide.weight.data = table.weight.data.float()
    assert torch.equal(table(4), wide(4).bfloat16())


def test_published_sizes_give_169_rows_for_a_picture_and_81_for_a_crop() -> None:
    network = model("vl").model
    given = inputs("vl", 1)
    assert given["pixel_values"].shape[-1], given["patch_pixel_values"].shape[-1] == (728, 504)
    with torch.no_grad():
        assert network.encode_pictures(given["pixel_values"]).shape == (1, 169, 128)
        assert network.encode_pictures(given["patch_pixel_values"][:1]).shape == (1, 81, 128)


def test_tower_takes_pixels_of_any_dtype() -> None:
    config = Step3VisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    tower = Step3VisionModel(config).bfloat16()
    assert tower(torch.zeros(2, 3, 8, 8)).dtype == torch.bfloat16
    assert tower(torch.zeros(2, 3, 8, 8)).shape == (2, 4, 8)


def test_activation_that_nobody_knows() -> None:
    with pytest.raises(Step3Error, match="hidden_act 'softplop'"):
        Step3VisionModel(Step3VisionConfig(hidden_act="softplop", num_hidden_layers=1, image_size=28))
