import json

import pytest

from step3.server.body import parse_json
from step3.server.errors import RequestFault


def test_good_json_comes_out_as_it_is() -> None:
    value = {"a": [1, -2.5, True, None, "ö\n😀"], "b": {"c": 2**64 - 1, "d": -(2**63)}}
    assert parse_json(json.dumps(value).encode(), 4) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"a": ', "not valid JSON"),
        (b"\xff\xfe\xfa", "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 18446744073709551616}', "64 bits"),
        (b"9" * 5000, "not valid JSON"),
        (b'{"a": "\\ud83d"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b"[" * 6 + b"]" * 6, "over 5 levels"),
        (b"[" * 1_000_000, "over 5 levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "over 5 levels"),
    ],
)
def test_json_that_is_not_to_be_trusted_is_refused_with_the_reason(data: bytes, said: str) -> None:
    with pytest.raises(RequestFault, match=said) as caught:
        parse_json(data, 5)
    assert caught.value.status_code == 400


def test_depth_is_allowed_up_to_the_limit() -> None:
    assert parse_json(b"[" * 5 + b"]" * 5, 5) == [[[[[]]]]]
