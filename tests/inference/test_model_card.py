"""Model cards: scores and warnings."""

from dataclasses import replace

from huggingface_hub import ModelCard

from lesionseg.core import OperatingPoint, Selection
from lesionseg.evaluation.intervals import Estimate
from lesionseg.evaluation.scores import Scores
from lesionseg.inference.model_card import model_card
from lesionseg.plan.plan import AnchorPlan
from tests.models.plans import plan_of


def scores_of(role):
    recall = Estimate(0.8125, (0.7, 0.9), name="lesion_recall")
    rows = recall, Estimate(None, reason="no lesion", name="dice")
    return Scores(rows=rows, evaluated_on=role)


def test_card_lists_scores_and_calls_those_of_validation_optimistic(plan):
    assert "Not evaluated." in model_card(plan, Selection())
    for role in ("validation", "test", "unknown"):
        card = model_card(plan, Selection(), [scores_of(role)])
        assert "| lesion recall | 0.812 |" in card
        assert "| Dice, mean of cases with a lesion | undefined |" in card
        assert ("optimistic" in card) == (role == "validation")


def test_hub_reads_the_metadata_and_the_scores_of_each_role(tmp_path, plan):
    both = [scores_of(role) for role in ("validation", "test")]
    path = tmp_path / "README.md"
    path.write_text(model_card(plan, Selection(), both, {"dataset": "heads"}), encoding="utf-8")
    data = ModelCard.load(path).data
    assert (data.library_name, data.pipeline_tag) == ("lesionseg", "image-segmentation")
    assert (data.license, data.model_name) == ("unknown", "Lesion model: lesion")
    found = [(r.dataset_name, r.dataset_split, r.metric_value) for r in data.eval_results]
    assert found == [("heads", "validation", 0.8125), ("heads", "test", 0.8125)]


def test_card_states_features_only_of_our_own_networks(plan):
    features = ", ".join(map(str, plan.architecture.features))
    assert f"- network: unet, features {features}\n\n## Output" in model_card(plan, Selection())
    own = replace(plan.architecture, name="custom", network={"_target_": "mine.Net"})
    card = model_card(plan.with_(architecture=own), Selection(n_members=2))
    assert "- network: mine.Net; the mean of 2\n\n## Output" in card


def test_card_states_what_to_expect_of_each_operating_point(plan):
    point = OperatingPoint("fp_per_case:0.5", 0.9, expected_false_positives_per_case=1.0)
    kept = OperatingPoint(
        "sensitivity:0.9", 0.4, "validation", promised=0.9, expected_recall_per_patient=0.92
    )
    broken = replace(kept, promised=None, why_not_promised="8 patients are too few")
    card = model_card(plan, Selection((point, replace(point, name="fp_per_case:1"), kept, broken)))
    lines = [line for line in card.splitlines() if line.startswith("- operating point")]
    assert ["more than the aim" in line for line in lines[:2]] == [True, False]
    assert "At least 0.9 of a new patient's lesions are promised" in lines[2]
    assert "Expect 0.92 of a new patient's lesions. No sensitivity is promised: 8 pat" in lines[3]


def test_card_states_the_lowest_score_of_boxes():
    anchors = AnchorPlan(stages=(1,), sizes=(((3.0, 3.0),),), floor=0.01)
    plan = plan_of("retina_unet", anchors=anchors)
    for source, text in (
        ("segmentation", "- candidates from score 0.05, each with its extent"),
        ("detection", "- candidates are boxes from score 0.01"),
        ("both", "- candidates from voxels of score 0.05 and from boxes of score 0.01;"),
    ):
        rule = replace(plan.candidate_rule, source=source)
        assert text in model_card(plan.with_(candidate_rule=rule), Selection())
