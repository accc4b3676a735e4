"""What Transformers calls the KV cache: `past_key_values` up to 5.23, `cache` from 5.24 on.

The networks take it by either name, and give it back by the name that the installed version looks for.
"""

from dataclasses import fields

from transformers.cache_utils import Cache
from transformers.modeling_outputs import MoeModelOutputWithPast

OLD_CACHE = "past_key_values"
CACHE = "cache" if "cache" in {field.name for field in fields(MoeModelOutputWithPast)} else OLD_CACHE


def either(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache, by whichever name it came.

    Raises:
        ValueError: two caches came.
    """
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("cache and past_key_values are two names of one thing: give one of them")
    return past_key_values if cache is None else cache
