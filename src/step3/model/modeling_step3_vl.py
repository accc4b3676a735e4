"""Step3 with its eyes: the tower's features stand where the prompt has `<im_patch>`."""

import inspect
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from step3.errors import Step3Error
from step3.model.cache_name import CACHE, either
from step3.model.checkpoint_names import MODEL_CARD_KEY_MAPPING, TO_MODULE_TREE, official_name
from step3.model.configuration_step3 import Step3VLConfig
from step3.model.modeling_step3 import Step3ForCausalLM, Step3TextModel
from step3.model.placement import PICTURE_INPUTS, crop_counts, pictures_by_sequence, take_pictures
from step3.model.pretrained_step3 import Step3PreTrainedModel
from step3.model.vision_step3 import Step3VisionModel


class Step3VLPreTrainedModel(Step3PreTrainedModel):
    """Loads and saves under the official tensor names, which differ from the module tree's."""

    config_class = Step3VLConfig

    @classmethod
    def from_pretrained(cls, *args: Any, key_mapping: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """As Transformers'; the model card's `key_mapping` is understood, and not needed."""
        if key_mapping is None or dict(key_mapping) == MODEL_CARD_KEY_MAPPING:
            key_mapping = TO_MODULE_TREE
        return super().from_pretrained(*args, key_mapping=dict(key_mapping), **kwargs)

    def save_pretrained(
        self, save_directory: str | PathLike, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """As Transformers'; the tensors get their official names, so that any Step3 engine can load them.

        What is offloaded is brought to main memory, all at once.
        """
        if not getattr(self, "_hf_peft_config_loaded", False):
            tensors = self.state_dict() if state_dict is None else state_dict
            if any(tensor.is_meta for tensor in tensors.values()):
                tensors = tensors | get_state_dict_offloaded_model(self)
            state_dict = {official_name(name): tensor for name, tensor in tensors.items()}
            if "save_original_format" in inspect.signature(PreTrainedModel.save_pretrained).parameters:
                # The names are final already.
                kwargs["save_original_format"] = False
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)


class Step3VLModel(Step3VLPreTrainedModel):
    """Vision tower, the convolutions and projector behind it, and the decoder."""

    def __init__(self, config: Step3VLConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        stride = config.understand_projector_stride
        self.vision_model = Step3VisionModel(vision)
        self.language_model = Step3TextModel(text)
        self.vit_downsampler = nn.Conv2d(vision.hidden_size, vision.output_hidden_size, 2, stride=stride)
        self.vit_downsampler2 = nn.Conv2d(
            vision.output_hidden_size, 2 * vision.output_hidden_size, 3, stride=2, padding=1
        )
        self.vit_large_projector = nn.Linear(
            2 * vision.output_hidden_size, text.hidden_size, bias=config.projector_bias
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    def encode_pictures(self, pixel_values: Tensor) -> Tensor:
        """`[pictures, 3, side, side]` → `[pictures, features, hidden]` (169 for 728 px, 81 for 504 px)."""
        return self.project(self.vision_model(pixel_values))

    def project(self, rows: Tensor) -> Tensor:
        """The tower's rows `[pictures, grid², channels]` through both convolutions and the projector."""
        grid = int(rows.shape[1] ** 0.5)
        picture = rows.transpose(1, 2).unflatten(2, (grid, grid))
        picture = self.vit_downsampler2(self.vit_downsampler(picture))
        return self.vit_large_projector(picture.flatten(2).transpose(1, 2))

    def get_image_features(
        self,
        pixel_values: Tensor,
        patch_pixel_values: Tensor | None = None,
        num_patches: Tensor | list[int] | None = None,
    ) -> list[Tensor]:
        """Features of each picture in the order of its placeholders: its crops' rows, then its own.

        Args:
            pixel_values: `[pictures, 3, side, side]`.
            patch_pixel_values: `[crops, 3, side, side]` of all pictures, in order.
            num_patches: `[pictures]`, the crops of each.

        Returns:
            For each picture `[rows, hidden]`.
        """
        whole = self.encode_pictures(pixel_values)
        counts = [0] * len(whole) if num_patches is None else [int(n) for n in num_patches]
        given = 0 if patch_pixel_values is None else len(patch_pixel_values)
        if len(counts) != len(whole) or sum(counts) != given:
            raise Step3Error(
                f"num_patches {counts} must name the crops of each of {len(whole)} pictures, "
                f"and {given} crops are given"
            )
        return self.arrange(whole, self.encode_pictures(patch_pixel_values), counts) if given else list(whole)

    @staticmethod
    def arrange(whole: Tensor, crops: Tensor, counts: list[int]) -> list[Tensor]:
        """For each picture its crops' rows, then its own: `[rows, hidden]`.

        Args:
            whole: `[pictures, features, hidden]`.
            crops: `[crops, features, hidden]`, `counts[i]` of them for picture `i`.
        """
        by_picture = zip(crops.split(counts), whole, strict=True)
        return [torch.cat((own.flatten(0, 1), rows)) for own, rows in by_picture]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        patch_pixel_values: Tensor | None = None,
        num_patches: Tensor | None = None,
        patch_newline_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast | tuple:
        """As the decoder's, with pictures as the processor gives them.

        Args:
            pixel_values: `[pictures, 3, side, side]`, those of the first sequence first.
            patch_pixel_values, num_patches: see `get_image_features`.
            patch_newline_mask: where `<patch_newline>` stood; already in `input_ids`, so not used.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None and len(pixel_values):
            if input_ids is None:
                raise ValueError("pictures need input_ids: the places of their features are read from them")
            features = self.get_image_features(pixel_values, patch_pixel_values, num_patches)
            places = input_ids == self.config.image_token_id
            pictures_by_sequence(places.sum(dim=1).tolist(), [len(rows) for rows in features])
            inputs_embeds = inputs_embeds.masked_scatter(
                places[..., None].to(inputs_embeds.device),
                torch.cat(features).to(inputs_embeds.device, inputs_embeds.dtype),
            )
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class Step3VLForConditionalGeneration(Step3VLPreTrainedModel, Step3ForCausalLM):
    """Step3 as published: `model_type` "step3_vl"."""

    def __init__(self, config: Step3VLConfig) -> None:
        super().__init__(config)
        self.model = Step3VLModel(config)
        self.vocab_size = config.text_config.vocab_size
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_image_features(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return self.model.get_image_features(*args, **kwargs)

    # `generate` passes on only what is named here.
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: Cache | None = None,
        pixel_values: Tensor | None = None,
        patch_pixel_values: Tensor | None = None,
        num_patches: Tensor | None = None,
        patch_newline_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast | tuple:
        """Scores the next token after each place.

        Args:
            pixel_values, patch_pixel_values, num_patches, patch_newline_mask: as the processor gives them,
                see `Step3VLModel.forward`. All else as in `Step3ForCausalLM.forward`.
        """
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=either(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            cache_position=cache_position,
            logits_to_keep=logits_to_keep,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_router_logits=output_router_logits,
            return_dict=return_dict,
            num_items_in_batch=num_items_in_batch,
            pixel_values=pixel_values,
            patch_pixel_values=patch_pixel_values,
            num_patches=num_patches,
            patch_newline_mask=patch_newline_mask,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        cache = either(cache, past_key_values)
        inputs = super().prepare_inputs_for_generation(input_ids, **{CACHE: cache}, **kwargs)
        given = _pictures_in(kwargs)
        if cache is None or cache.get_seq_length() == 0:
            return inputs
        # The cache holds the features of the pictures before; a later turn may bring more of them.
        for name in PICTURE_INPUTS:
            inputs.pop(name, None)
        uncached = inputs.get("input_ids")
        if given and uncached is not None and uncached.shape[1] > 1:
            inputs.update(self._uncached_pictures(given, input_ids, uncached.shape[1]))
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeats each sequence with all of its pictures; Transformers would repeat picture by picture."""
        pictures = _pictures_in(kwargs)
        others = {name: value for name, value in kwargs.items() if name not in pictures}
        if expand_size > 1 and pictures and input_ids is not None:
            rows = pictures_by_sequence(self._places(input_ids), self._lengths(pictures))
            pictures = take_pictures(pictures, [number for row in rows for number in [*row] * expand_size])
        input_ids, others = super()._expand_inputs_for_generation(
            expand_size=expand_size, input_ids=input_ids, **others
        )
        return input_ids, {**others, **pictures}

    def _uncached_pictures(
        self, pictures: dict[str, Tensor], input_ids: Tensor, tokens: int
    ) -> dict[str, Tensor]:
        """Those of the last `tokens` tokens; `pictures` may be all of the prompt's or only these."""
        lengths = self._lengths(pictures)
        uncached = self._places(input_ids[:, -tokens:])
        if not any(uncached):
            return {}
        if sum(uncached) == sum(lengths):
            return pictures
        rows = pictures_by_sequence(self._places(input_ids), lengths)
        wanted = []
        for row, places in zip(rows, uncached, strict=True):
            own = [lengths[number] for number in row]
            later = [number for i, number in enumerate(row) if sum(own[i:]) <= places]
            pictures_by_sequence([places], [lengths[number] for number in later])
            wanted += later
        return take_pictures(pictures, wanted)

    def _places(self, input_ids: Tensor) -> list[int]:
        return (input_ids == self.config.image_token_id).sum(dim=1).tolist()

    def _lengths(self, pictures: dict[str, Tensor]) -> list[int]:
        whole, crop = self.config.image_token_len, self.config.patch_token_len
        return [whole + crops * crop for crops in crop_counts(pictures)]


def _pictures_in(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The pictures among a model's inputs; empty where there are none."""
    if inputs.get("pixel_values") is None:
        return {}
    return {name: torch.as_tensor(inputs[name]) for name in PICTURE_INPUTS if inputs.get(name) is not None}
