"""Tensor names: official ones in a checkpoint, the module tree's in memory.

Transformers applies the first pattern that matches a name, and replaces what it matched.
"""

# As the model card prints it.
MODEL_CARD_KEY_MAPPING = {
    "^vision_model": "model.vision_model",
    r"^model(?!\.(language_model|vision_model))": "model.language_model",
    "vit_downsampler": "model.vit_downsampler",
    "vit_downsampler2": "model.vit_downsampler2",
    "vit_large_projector": "model.vit_large_projector",
}

# The same, so that no pattern matches a name that it is not meant for, nor one already in the tree's form.
TO_MODULE_TREE = {
    r"^vision_model\.": "model.vision_model.",
    r"^model\.(?!language_model\.|vision_model\.|vit_)": "model.language_model.",
    r"^vit_downsampler\.": "model.vit_downsampler.",
    r"^vit_downsampler2\.": "model.vit_downsampler2.",
    r"^vit_large_projector\.": "model.vit_large_projector.",
}

_OFFICIAL_PREFIXES = {
    "model.language_model.": "model.",
    "model.vision_model.": "vision_model.",
    "model.vit_": "vit_",
    # A bare Step3VLModel, without the head's `model.` in front.
    "language_model.": "model.",
}


def official_name(name: str) -> str:
    """The checkpoint's name of a tensor that the module tree calls `name`."""
    for prefix, official in _OFFICIAL_PREFIXES.items():
        if name.startswith(prefix):
            return official + name[len(prefix) :]
    return name
