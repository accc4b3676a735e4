"""The bundled model's sizes: Step3's architecture, small enough to train on two cores."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from step3.model.configuration_step3 import Step3TextConfig, Step3VisionConfig, Step3VLConfig
from step3.model.image_processing_step3 import Step3ImageProcessor
from step3.model.processing_step3 import Step3Processor

# Where the package keeps the bundled model: weights, configuration, tokenizer, chat template.
BUNDLED = Path(__file__).parent / "weights"

# Side of a picture and of a crop as the tower sees them, in pixels; 12 x 12 patches give 3 x 3 features,
# one for each cell in which the scenes place their things.
SIDE = 96
PATCH = 8
GRID_OF_PATCHES = SIDE // PATCH
FEATURES = (GRID_OF_PATCHES // 4) ** 2


def load_processor() -> Step3Processor:
    """The bundled tokenizer with its chat template, and pictures at the tower's size."""
    return Step3Processor(
        Step3ImageProcessor(picture_side=SIDE, crop_side=SIDE),
        PreTrainedTokenizerFast.from_pretrained(BUNDLED),
        image_token_len=FEATURES,
        patch_token_len=FEATURES,
    )


def configuration(tokenizer: PreTrainedTokenizerFast) -> Step3VLConfig:
    """The configuration that the bundled model is trained with."""
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    layers = 6
    text = Step3TextConfig(
        hidden_size=192,
        intermediate_size=512,
        num_attention_heads=4,
        num_hidden_layers=layers,
        max_seq_len=4096,
        max_position_embedding=4096,
        vocab_size=len(tokenizer),
        moe_intermediate_size=192,
        moe_num_experts=8,
        moe_top_k=2,
        moe_layers_enum=",".join(str(layer) for layer in range(1, layers)),
        share_expert_dim=192,
        share_q_dim=96,
        head_dim=64,
        norm_expert_weight=True,
        router_aux_loss_coef=0.03,
        **tokens,
    )
    vision = Step3VisionConfig(
        hidden_size=128,
        intermediate_size=256,
        output_hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    return Step3VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
        image_token_len=FEATURES,
        patch_token_len=FEATURES,
        **tokens,
    )
