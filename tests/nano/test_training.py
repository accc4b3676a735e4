import itertools
import json
from dataclasses import replace

import pytest
import torch

from step3.errors import Step3Error
from step3.nano import training
from step3.nano.architecture import load_processor
from step3.nano.export import export
from step3.nano.training import (
    DEFAULT_STAGES,
    Stage,
    Trainee,
    begin_from,
    rate_share,
    run_stage,
    scaled,
    see_step,
)


@pytest.fixture(scope="module")
def processor():
    return load_processor()


def tiny(name: str, steps: int = 2) -> Stage:
    return Stage(name, steps=steps, samples=4, matrix_rate=5e-3, other_rate=2e-3, warm_up=1)


def test_the_rate_warms_up_stays_and_falls():
    stage = Stage("see", steps=100, samples=1, matrix_rate=1.0, other_rate=1.0, warm_up=10, settled=0.5)
    shares = [rate_share(stage, step) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[10] == shares[49] == 1.0
    assert shares[99] == pytest.approx(0.02)
    assert all(a >= b for a, b in itertools.pairwise(shares[50:]))


def test_the_tower_learns_a_few_pictures(processor):
    stage = Stage("see", steps=10**6, samples=8, matrix_rate=5e-3, other_rate=2e-3)
    trainee = Trainee(stage, processor, seed=0)
    losses = []
    for _ in range(12):
        losses.append(see_step(trainee, 0, seed=0)["loss"])
        trainee.update()
    assert losses[-1] < 0.6 * losses[0]


def test_seeing_trains_the_tower_and_reading_the_decoder(processor):
    names = {
        stage: {name for name, _ in Trainee(tiny(stage), processor, 0).parameters}
        for stage in ("see", "read")
    }
    assert all("vi" in name or "head" in name for name in names["see"])
    assert not names["see"] & names["read"]
    everything = {name for name, _ in Trainee(tiny("join"), processor, 0).parameters}
    assert names["see"] | names["read"] == everything


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path, processor, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    run_stage(tiny("see", steps=3), whole, processor)

    monkeypatch.setattr(training, "_SAVE_EVERY_SECONDS", 0.0)
    real, calls = training.see_step, []

    def stop_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(training, "see_step", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_stage(tiny("see", steps=3), cut, processor)
    monkeypatch.setattr(training, "see_step", real)
    run_stage(tiny("see", steps=3), cut, processor)

    first, second = (torch.load(folder / "see.pt", weights_only=True) for folder in (whole, cut))
    for part in ("model", "head"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), name


def test_joining_needs_both_stages(tmp_path, processor):
    with pytest.raises(Step3Error, match=r"see\.pt is missing: run the stage 'see' before 'join'"):
        run_stage(tiny("join"), tmp_path, processor)


def test_the_stages_follow_each_other_to_a_checkpoint(tmp_path, processor):
    from transformers import AutoModelForCausalLM, AutoProcessor

    for name in ("see", "read", "join"):
        run_stage(replace(tiny(name, steps=1), lessons=4), tmp_path, processor)
        assert json.loads((tmp_path / f"{name}.jsonl").read_text())["step"] == 1
    folder = export(tmp_path / "join.pt", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    trained = torch.load(tmp_path / "join.pt", weights_only=True)["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.bfloat16(), trained[name].bfloat16()), name
    assert AutoProcessor.from_pretrained(folder).image_processor.picture_side == 96


def test_training_goes_on_from_a_checkpoint(tmp_path, processor):
    first = tmp_path / "first"
    first.mkdir()
    run_stage(tiny("see", steps=1), first, processor)
    exported = export(first / "see.pt", tmp_path / "model")
    begin_from(exported, tmp_path / "second")
    trained = torch.load(first / "see.pt", weights_only=True)["model"]
    still = Stage("read", steps=1, samples=4, matrix_rate=0.0, other_rate=0.0, lessons=2)
    run_stage(still, tmp_path / "second", processor)
    begun = torch.load(tmp_path / "second" / "read.pt", weights_only=True)["model"]
    for name, tensor in trained.items():
        assert torch.equal(begun[name], tensor.bfloat16().float()), name


def test_exporting_before_the_end_is_refused(tmp_path):
    with pytest.raises(Step3Error, match="has not finished"):
        export(tmp_path / "join.pt", tmp_path / "model")


def test_a_share_of_a_stage_has_at_least_one_step():
    assert scaled(DEFAULT_STAGES["see"], 1e-4).steps == 1
    assert scaled(DEFAULT_STAGES["see"], 0.5).steps == DEFAULT_STAGES["see"].steps // 2
