import pytest

from step3.nano import evaluation
from step3.nano.architecture import load_processor
from step3.nano.evaluation import GOALS, evaluate, evaluation_samples, names, prompt_and_pictures
from step3.nano.scenes.sample import completion_text
from step3.nano.scenes.stream import CATEGORIES


@pytest.fixture(scope="module")
def asked():
    return evaluation_samples(each=6, seed=1)


def final_scores(asked):
    scores = {}
    for done, scores in evaluate(None, None, asked, batch_size=8):  # noqa: B007 (the last are the result)
        assert done <= len(asked)
    return scores


def test_every_category_is_asked_as_often_as_wanted(asked):
    assert {name: sum(s.category == name for s in asked) for name in CATEGORIES} == dict.fromkeys(
        CATEGORIES, 6
    )


def test_all_goals_are_rows_of_the_score(asked):
    rows = {name for sample in evaluation_samples(each=40, seed=1) for name in names(sample)}
    assert set(GOALS) <= rows


def test_right_answers_score_full_marks(asked, monkeypatch):
    monkeypatch.setattr(
        evaluation, "answer", lambda model, processor, group: [completion_text(s) for s in group]
    )
    scores = final_scores(asked)
    assert all(scores[name].share == 1.0 for name in CATEGORIES)
    assert not any(score.wrong for score in scores.values())


def test_answers_to_other_questions_do_not_pass(asked, monkeypatch):
    def shifted(model, processor, group):
        texts = [completion_text(s) for s in asked if s.category != group[0].category]
        return texts[: len(group)]

    monkeypatch.setattr(evaluation, "answer", shifted)
    scores = final_scores(asked)
    for name in ("shape", "number", "sum", "tool"):
        assert scores[name].right == 0, name
        assert scores[name].wrong[0]["expected"]


def test_a_sample_s_picture_keeps_its_own_size(asked):
    processor = load_processor()
    for sample in asked[:12]:
        text, pictures = prompt_and_pictures(processor, sample)
        assert text.count("<im_patch>") == len(pictures)
        if sample.scene is not None:
            assert pictures[0].size == (sample.scene.width, sample.scene.height)
