import subprocess
import sys
from pathlib import Path

import pytest

from step3.plan.errors import ModelError
from step3.plan.models import find_model, model_names

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def test_every_name_of_the_catalogue_is_found() -> None:
    assert [find_model(name).name for name in model_names()] == model_names()


def test_aliases_and_case_do_not_matter() -> None:
    assert find_model("stepfun-ai/STEP3") == find_model("Step-3")
    assert find_model("deepseek-v3").name == "DSv3"


def test_the_weights_of_a_named_model_can_be_changed() -> None:
    model = find_model("Step-3", weights="bf16")
    assert (model.precision.attention_weights, model.precision.ffn_weights) == ("bf16", "bf16")
    assert find_model("Step-3").precision.ffn_weights == "fp8"


def test_a_path_is_read() -> None:
    assert find_model(str(GOLDEN / "text")).hidden == 128


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'gpt-5' is neither in the catalogue .*Step-3.* nor the path"):
        find_model("gpt-5")


def test_planning_loads_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, step3.plan.search, step3.plan.paper.cells, step3.plan.models as models;"
        "models.find_model('Step-3');"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
