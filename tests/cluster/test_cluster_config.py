"""Options of a deployment, checked where they enter."""

from typing import Any

import pytest

from step3.cluster.config import ClusterConfig, split_options, wants_cluster
from step3.errors import Step3Error


def test_a_topology_is_given_whole_or_in_parts() -> None:
    whole = ClusterConfig.from_options({"topology": "3A4F:ep2xr2"})
    parts = {"attention_instances": 3, "ffn_instances": 4, "ffn_parallel": "ep2", "ffn_replicas": 2}
    assert ClusterConfig.from_options(parts).topology == whole.topology
    assert whole.launches == (3, 4)


def test_who_listens_starts_only_what_is_asked_for() -> None:
    options = {"topology": "2A2F", "listen": "127.0.0.1:0"}
    assert ClusterConfig.from_options(options).launches == (0, 0)
    assert ClusterConfig.from_options({**options, "local_attention": 1}).launches == (1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topology": "2A2G"}, "not a topology"),
        ({"topology": "1A0F"}, "is one process"),
        ({"topology": "2A2F", "ffn_instances": 2}, "given twice"),
        ({"topology": "2A2F", "micro_batches": 0}, "micro_batches must be a whole number from 1 to 64"),
        ({"topology": "2A2F", "micro_batches": True}, "micro_batches must be"),
        ({"topology": "2A2F", "activations": "int4"}, "activations must be one of auto, float32"),
        ({"topology": "2A2F", "partials": "fp8"}, "partials must be one of"),
        ({"topology": "2A2F", "lease": 0.1}, "a lease of 0.1 s ends by itself"),
        ({"topology": "2A2F", "lease": "soon"}, "lease must be a number of seconds"),
        ({"topology": "2A2F", "threads": 0}, "threads must be a whole number from 1"),
        ({"topology": "2A2F", "listen": "here"}, "write HOST:PORT"),
        ({"topology": "2A2F", "secret": b"short"}, "at least 16"),
        ({"topology": "2A2F", "local_ffn": 3}, "local_ffn must be a whole number from 0 to 2"),
        ({"topology": "2A2F", "colour": 3}, "no option 'colour'"),
        ({"topology": "2A2F", "listen": "[::]:0", "tls_cert": "a.pem"}, "give --cluster-tls-cert, --cluster"),
        (
            {"topology": "2A2F", "listen": "[::]:0", "tls_cert": "a", "tls_key": "b", "tls_ca": "nowhere"},
            "TLS between hosts cannot use a, b and nowhere: No such file",
        ),
        ({"attention_instances": 2, "ffn_instances": 3, "ffn_parallel": "ep2"}, "cannot be ep2"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Step3Error, match=message):
        ClusterConfig.from_options(options)


def test_one_process_needs_no_deployment() -> None:
    assert not wants_cluster({"max_num_seqs": 3})
    assert not wants_cluster({"topology": "1A0F"})
    assert not wants_cluster({"attention_instances": 1, "ffn_instances": None})
    assert wants_cluster({"topology": "1A1F"})
    assert wants_cluster({"attention_instances": 2})
    assert wants_cluster({"ffn_instances": 1})


def test_options_are_the_deployments_or_the_engines() -> None:
    own, rest = split_options({"topology": "2A2F", "threads": None, "model": "x", "max_num_seqs": 3})
    assert own == {"topology": "2A2F"}
    assert rest == {"model": "x", "max_num_seqs": 3}


def test_the_secret_is_not_shown() -> None:
    assert "sssss" not in repr(ClusterConfig.from_options({"topology": "2A2F", "secret": b"s" * 32}))
