import re

import pytest

from step3.model.checkpoint_names import MODEL_CARD_KEY_MAPPING, TO_MODULE_TREE, official_name

NAMES = {
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "model.layers.4.moe.gate.weight": "model.language_model.layers.4.moe.gate.weight",
    "model.norm.weight": "model.language_model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    "vision_model.embeddings.class_embedding": "model.vision_model.embeddings.class_embedding",
    "vision_model.transformer.layers.0.mlp.fc1.bias": "model.vision_model.transformer.layers.0.mlp.fc1.bias",
    "vit_downsampler.weight": "model.vit_downsampler.weight",
    "vit_downsampler2.bias": "model.vit_downsampler2.bias",
    "vit_large_projector.weight": "model.vit_large_projector.weight",
}


def in_the_tree(name: str) -> str:
    """As Transformers maps: by the first pattern that matches."""
    for pattern, replacement in TO_MODULE_TREE.items():
        mapped, count = re.subn(pattern, replacement, name)
        if count:
            return mapped
    return name


@pytest.mark.parametrize(("official", "tree"), NAMES.items())
def test_official_names_and_the_module_tree_map_onto_each_other(official: str, tree: str) -> None:
    assert in_the_tree(official) == tree
    assert official_name(tree) == official


@pytest.mark.parametrize("tree", NAMES.values())
def test_a_name_of_the_tree_stays(tree: str) -> None:
    assert in_the_tree(tree) == tree


def test_headless_network_has_the_same_official_names() -> None:
    assert official_name("language_model.norm.weight") == "model.norm.weight"
    assert (
        official_name("vision_model.embeddings.class_embedding") == "vision_model.embeddings.class_embedding"
    )
    assert official_name("vit_downsampler2.bias") == "vit_downsampler2.bias"


def test_mapping_of_the_model_card_is_as_printed() -> None:
    assert MODEL_CARD_KEY_MAPPING == {
        "^vision_model": "model.vision_model",
        r"^model(?!\.(language_model|vision_model))": "model.language_model",
        "vit_downsampler": "model.vit_downsampler",
        "vit_downsampler2": "model.vit_downsampler2",
        "vit_large_projector": "model.vit_large_projector",
    }
