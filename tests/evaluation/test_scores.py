import csv
import json

import numpy as np
import pytest

from lesionseg.core import CaseFiles, Geometry, InputCheckResult, OperatingPoint, Reference
from lesionseg.errors import ConfigError, ContentError, DatasetError
from lesionseg.evaluation import PRESETS, Scores, SummarySettings, read_scores
from lesionseg.evaluation import summarise as summary
from lesionseg.evaluation.adjudication import Answer, adjudicate
from lesionseg.evaluation.compare import compare
from lesionseg.evaluation.scores import write_scores
from lesionseg.evaluation.subgroups import divide_by, find_subgroups, read_columns
from tests.evaluation.hand_cases import (
    HAND_CASES,
    box_of,
    evaluate_case,
    evaluate_hand_case,
    make_prediction,
    make_reference,
    prediction_of,
    replace,
    result,
    tables_of,
    templates,
)

# the names that the documentation guarantees
NAMES = """
    n_cases n_groups n_lesion_free_cases n_lesions n_candidates n_true_positive n_false_positive
    n_missed dice dice_median surface_dice surface_dice_median hd95_mm hd95_mm_median
    hd95_mm_undefined lesion_recall lesion_precision lesion_f1 false_positives_per_case
    false_positives_per_lesion_free_case specificity cpm average_precision case_auroc
    panoptic_quality box_ap_40 box_ap_50 box_ap_40_75 box_ap_50_95 rsna_score
    box_candidates_left_out volume_ml_bias volume_ml_lower_limit volume_ml_upper_limit
    n_lesions_bias n_lesions_lower_limit n_lesions_upper_limit size_slope
"""
GRID = Geometry.from_spacing((12, 14, 16), (1.0, 1.0, 1.0))


def summarise(results, replicates=0, evaluated_on="test", **options):
    settings = SummarySettings(replicates=replicates, evaluated_on=evaluated_on, **options)
    return summary(tables_of(results), PRESETS["lesionseg"], settings)


def make_result(seed, group="", n_lesions=3, has_scores=True):
    """Return a result with boxes as lesions. Two thirds of them are found, with false positives."""
    rng = np.random.default_rng(seed)
    scores = []
    reference = np.zeros(GRID.shape, np.int32)
    drawn = np.zeros(GRID.shape, np.int32)
    for i in range(n_lesions):
        at = (slice(1, 4), slice(1 + 4 * i, 3 + 4 * i), slice(1, 3))
        reference[at] = i + 1
        if rng.random() < 0.67:
            scores.append(float(rng.random()))
            drawn[at] = len(scores)
    for i in range(int(rng.integers(0, 4))):
        scores.append(float(rng.random()))
        drawn[8:10, 3 * i : 3 * i + 2, 8:10] = len(scores)
    found = prediction_of(drawn, scores, GRID, accepted_from=0.3, has_scores=has_scores)
    truth = Reference(GRID, instances=reference, instance_labels=(1,) * n_lesions)
    return evaluate_case(truth, found, PRESETS["lesionseg"], case=f"case{seed}", group=group)


def make_results(n=12, **changes):
    return [make_result(s, group=f"g{s // 2}", n_lesions=s % 4, **changes) for s in range(n)]


def test_every_undefined_number_has_a_reason_and_nothing_is_nan():
    free = [make_result(seed, n_lesions=0) for seed in range(9)]
    ill = [make_result(seed, n_lesions=2) for seed in range(9)]
    few = [], free[:1], ill[:1], make_results(4)
    for results in (*few, make_results(has_scores=False), make_results(), free, ill):
        scores = summarise(results, 50)
        json.dumps(scores.to_json(), allow_nan=False)
        assert {r.name for r in scores.rows if not (r.label or r.subset)} >= set(NAMES.split())
        assert [row for row in scores.rows if row.value is None and not row.reason] == []


@pytest.mark.parametrize("scored", [True, False])
def test_round_trip_keeps_the_scores(scored, tmp_path):
    results = make_results(has_scores=scored)
    tables = tables_of(results)
    false = results[3].candidates[-1]
    answer = Answer(("case3", false.candidate, box_of(false)), "lesion")
    scores = summarise(results, 50, columns=TABLE, provenance={"dataset": "MS", "sizes": [1, 2.5]})
    scores = replace(
        scores,
        rows=(*scores.rows, *adjudicate(tables, [answer])),
        failed_cases={"x": "no file"},
        comparison=compare(tables, tables, margin=0.1, replicates=20),
    )
    write_scores(tmp_path, tables, scores)
    read = read_scores(tmp_path / "scores.json")
    assert read == Scores.from_json(scores.to_json())
    write_scores(tmp_path / "again", tables, read)
    second = (tmp_path / "again" / "scores.json").read_bytes()
    assert (tmp_path / "scores.json").read_bytes() == second
    assert read["lesion_recall"] == scores["lesion_recall"]
    assert read.curve("froc") == scores.curve("froc")
    assert read.provenance.dataset == "MS"


def test_scores_of_another_format_are_refused_with_the_command():
    content = summarise(make_results(4)).to_json()
    assert Scores.from_json(content)["n_lesions"].value == 6
    for other in ({"schema_version": 3}, {"schema_version": 5}):
        with pytest.raises(ContentError, match=r"schema_version is \d, .* evaluate reference="):
            Scores.from_json(content | other)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "this is not a scores.json"),
        ({"cases": 3}, "this is not a scores.json"),
        ({"curves": None}, "scores or curves are missing or damaged"),
        ({"scores": [{"name": "dice", "value": "high"}]}, r"rows\[0\].value: high "),
        ({"scores": [{"name": "dice", "value": ""}]}, r"rows\[0\].value: '' "),
    ],
)
def test_invalid_value_is_named_with_its_key(content, words):
    if isinstance(content, dict) and "cases" not in content:
        content = summarise(make_results(4)).to_json() | content
    with pytest.raises(ContentError, match=f"s.json: {words}"):
        Scores.from_json(content, "s.json")


def test_intervals_depend_only_on_the_seed():
    one = summarise(make_results(), 60, seed=1)
    other = summarise(make_results(), 60, seed=2)
    assert one == summarise(make_results(), 60, seed=1)
    assert one["lesion_f1"].ci95 != other["lesion_f1"].ci95


def test_a_point_chosen_on_these_cases_is_called_optimistic():
    kinds = {("validation", None), ("test", "validation"), ("test", "test"), ("external", None)}
    for role, chosen_on in kinds:
        point = OperatingPoint("fp_per_case:1", 0.4, chosen_on)
        found = summarise(make_results(2), evaluated_on=role, operating_point=point).operating_point
        assert found.optimistic == (role in ("validation", chosen_on))
        assert (found.score, found.chosen_on) == (0.4, chosen_on)


def test_only_a_point_chosen_on_unseen_cases_is_called_chosen_here():
    cases = {("validation", "validation"), ("test", "validation"), ("test", "test")}
    for role, chosen_on in cases:
        point = OperatingPoint("fp_per_case:1", 0.4, chosen_on)
        scores = summarise(make_results(2), evaluated_on=role, operating_point=point)
        assert scores.is_point_chosen_here == (role == chosen_on == "test")


def test_point_chosen_on_one_of_several_roles_is_called_optimistic():
    results = [result("a", [0.9], role="test"), result("b", [0.9], role="external")]
    for chosen_on, is_optimistic in (("external+test", True), ("validation", False)):
        point = OperatingPoint("fp_per_case:1", 0.4, chosen_on)
        found = summarise(results, evaluated_on="unknown", operating_point=point).operating_point
        assert found.optimistic == is_optimistic
    trained = [results[0], result("c", [0.9], role="train")]
    assert summarise(trained, evaluated_on="unknown").operating_point.optimistic


def test_point_that_somebody_overruled_is_not_in_use():
    point = OperatingPoint("score:0.5", 0.5)
    edited = result("a", [0.9], [0.3], operating_point=point)
    hit, wrong = edited.candidates  # both are accepted
    stated = replace(edited, candidates=(hit, replace(wrong, accepted=False)))
    assert summarise([stated]).operating_point.score == 0.5
    found = summarise([edited]).operating_point
    assert (found.score, bool(found.reason)) == (None, True)


def test_an_auroc_has_an_interval_from_five_cases_of_each_kind():
    # some cases with lesions score lower than the others, so that replicates differ
    kinds = ["perfect"] * 10 + ["missed"] * 2 + ["false_alarm"] + ["nothing"] * 4
    results = [evaluate_hand_case(kind, case=f"{i}") for i, kind in enumerate(kinds)]
    few = summarise(results[:-1], 200)["case_auroc"]
    enough = summarise(results, 200)["case_auroc"]
    assert 0.5 < few.value < enough.value < 1
    assert few.ci95 is None is not enough.ci95


def test_panoptic_quality_and_lesion_load_equal_the_values_by_hand():
    # pairs with IoU 1/10, 1 and 4/6; a missed lesion; a candidate without lesion or without pair
    names = ("exactly_a_tenth", "perfect", "split", "missed", "false_alarm")
    scores = summarise([evaluate_hand_case(name) for name in names])
    assert scores["panoptic_quality"].value == pytest.approx((1.1 + 4 / 6) / (3 + 0.5 + 1))
    loads = [(2.0, 1.0), (3.0, 2.5), (0.0, 0.5), (8.0, 6.0)]
    results = [result(f"{x}", [0.9], reference_ml=x, predicted_ml=y) for x, y in loads]
    load = summarise(results)
    errors = np.array([y - x for x, y in loads])
    limit = errors.mean() + 1.96 * errors.std(ddof=1)
    assert load["volume_ml_upper_limit"].value == pytest.approx(limit, rel=1e-4)
    assert load["volume_ml_bias"].n == load["n_lesions_bias"].n == 4


def test_lesion_load_leaves_out_missing_cases_and_bare_boxes():
    ml = {"axes": 3, "reference_ml": 1.0, "predicted_ml": 2.0}
    whole = [result(case, [0.9], **ml) for case in "abc"]
    failed = result("d", [None], status="missing", **ml | {"predicted_ml": 0.0})
    load = summarise([*whole, failed])
    assert (load["volume_ml_bias"].n, load["volume_ml_bias"].value) == (3, 1.0)
    assert (load["n_lesions_bias"].n, load["n_lesions_bias"].value) == (3, 0.0)
    # the volume of a found box is unknown, so that only cases without a detection would remain
    boxed = result("e", [0.9], **ml | {"predicted_ml": None})
    load = summarise([*whole, boxed])
    assert (load["volume_ml_bias"].n, load["volume_ml_bias"].value) == (0, None)
    assert load["n_lesions_bias"].n == 4
    assert "single case" in summarise(whole[:1])["n_lesions_bias"].reason
    assert "no case with a prediction" in summarise([failed])["volume_ml_bias"].reason


def test_missing_prediction_of_a_box_detector_has_no_dice_of_a_label_or_subgroup():
    boxed = [result(case, [0.9], dice=None, dice_by_label={}) for case in "ab"]
    nothing = {"status": "missing", "dice": 0.0, "dice_by_label": {1: 0.0}}
    failed = [result(case, [None], **nothing) for case in "cd"]
    columns = {case: {"site": "north" if case in "ab" else "south"} for case in "abcd"}
    scores = summarise([*boxed, *failed], columns=columns)
    assert scores["dice"].value is None
    assert [scores.find("dice", label=name).value for name in scores.labels] == [None]
    assert [scores.find("dice", subset=name).value for name in scores.subgroups] == [None, None]
    assert scores["panoptic_quality"].value is None


def test_regions_are_scored_only_if_every_prediction_states_them():
    whole = result("b", [0.9])
    with_regions = replace(whole, regions={"core": whole})
    failed = result("c", [None], status="missing", regions={"core": result("c", [None])})
    assert summarise([with_regions, failed]).labels == ["core"]
    boxes = result("a", [0.9])
    found = summarise([boxes, with_regions, failed])
    assert [(name, found.find("n_cases", label=name).value) for name in found.labels] == [("1", 3)]


def test_distance_of_surfaces_is_undefined_for_masks_without_accepted_voxels():
    missed = summarise([result("a", [None], dice=0.0, hd95_mm=None)])
    assert missed["dice"].value == 0
    assert "no case has accepted voxels" in missed["hd95_mm"].reason


def test_panoptic_quality_is_one_to_one_under_every_preset():
    """LUNA16's rule lets one candidate find both lesions."""
    for preset in ("luna16", "instances"):
        found = evaluate_hand_case("merge", preset)
        assert (found.n_pairs, found.pair_iou) == (1, 0.5)


def test_intervals_of_the_size_curve_contain_the_truth():
    """Draw 40 patients with 12 lesions of 1 to 20 mm. The recall grows with size, 50 % at 4 mm."""
    rng = np.random.default_rng(0)
    (_, like, *_) = templates()
    results = []
    for case in range(40):
        sizes = np.exp(rng.uniform(0, np.log(20), 12))
        found = rng.random(12) < 1 / (1 + np.exp(-3 * np.log(sizes / 4)))
        rows = zip(sizes.tolist(), found.tolist(), strict=True)
        lesions = tuple(replace(like, diameter_mm=mm, detected=hit) for mm, hit in rows)
        results.append(result(f"{case}", lesions=lesions, size_unit="mm"))
    scores = summarise(results, 300)
    low, high = scores["size_d50"].ci95
    assert low < 4 < high
    assert low < scores["size_d50"].value < high < low + 2
    low, high = scores["size_d90"].ci95
    assert low < 4 * 9 ** (1 / 3) < high
    smallest = min(lesion.diameter_mm for one in results for lesion in one.lesions)
    assert scores.curve("size_curve")[0].at == pytest.approx(smallest)
    for point in scores.curve("size_curve"):
        low, high = point.ci95
        assert low <= point.value <= high


def write_tables(folder, results, labels=None):
    write_scores(folder, tables_of(results), summarise(results), labels)
    return [
        list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))
        for name in ("cases", "lesions", "candidates")
    ]


def test_tables_have_a_line_for_each_case_lesion_and_candidate(tmp_path):
    results = [evaluate_hand_case(c) for c in HAND_CASES]
    cases, lesions, candidates = write_tables(tmp_path, results, {1: "metastasis"})
    assert [row["case"] for row in cases] == [r.case for r in results]
    assert len(lesions) == sum(len(r.lesions) for r in results)
    assert len(candidates) == sum(len(r.candidates) for r in results)
    assert sum(int(row["n_detected"]) for row in cases) == sum(r.n_detected for r in results)
    first = lesions[0]
    assert (first["label"], first["detected"], first["volume_ml"]) == ("metastasis", "true", "")
    assert [first[f"start_{axis}_vox"] for axis in "zyx"] == ["", "1.0", "1.0"]
    assert [first[f"centre_{axis}_mm"] for axis in "xyz"] == ["1.5", "1.5", ""]
    assert write_tables(tmp_path, []) == [[], [], []]
    assert (tmp_path / "lesions.csv").read_text().startswith("case,group,lesion,label,diameter_mm")


def test_table_of_labels_has_a_line_for_each_label(tmp_path):
    results = [evaluate_hand_case(c) for c in HAND_CASES]
    scores = summarise(results, labels={1: "metastasis", 2: "cyst"})
    write_scores(tmp_path, tables_of(results), scores)
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["metastasis", "cyst"]
    assert int(rows[0]["n_lesions"]) == sum(len(r.lesions) for r in results)
    curve = scores.curve("box_average_precision", "metastasis")
    assert float(rows[0]["box_ap_10"]) == curve[0].value
    for name in ("box_ap_40", "box_ap_50_95"):
        assert float(rows[0][name]) == scores.find(name, label="metastasis").value
    assert rows[1]["box_ap_95"] == ""  # no lesion of this label


def test_a_warning_of_the_scan_is_in_its_row(tmp_path):
    hand = HAND_CASES[0]
    check = InputCheckResult(2.5, "Another grid.")
    prediction = replace(make_prediction(hand), input=check)
    result = evaluate_case(make_reference(hand), prediction, PRESETS["lesionseg"], case="=a")
    (row,), *_ = write_tables(tmp_path, [result])
    assert (row["warning"], row["input_score"]) == ("Another grid.", "2.5")
    assert row["case"] == "'=a"  # a spreadsheet must not run it as a formula


CASES = [f"case{i}" for i in range(12)]
TABLE = {
    case: {"site": "AB"[i % 2], "age": str(20 + i), "id": case, "sex": "", "scanner": "one"}
    for i, case in enumerate(CASES)
}


def test_subgroups_have_the_numbers_of_only_their_cases():
    results = make_results()
    found = summarise(results, columns=TABLE).subgroups
    assert {name.split(": ")[0] for name in found} == {"site", "age"}
    scores = summarise(results, columns=TABLE, subgroups=["site"])
    for name in ("site: A", "site: B"):
        own = [r for r in results if TABLE[r.case]["site"] == name[-1]]
        expected = summarise(own)
        assert scores.find("n_cases", subset=name).value == len(own) == 6
        for number in ("n_true_positive", "n_lesions", "lesion_recall", "false_positives_per_case"):
            assert scores.find(number, subset=name).value == expected[number].value
        assert scores.find("lesion_recall", subset=name).ci95 == expected["lesion_recall"].ci95
        assert scores.find("dice", subset=name).value == pytest.approx(expected["dice"].value)


def test_numbers_are_divided_into_quantiles_and_empty_cells_form_a_group():
    for name in ("site", "age", "sex", "id"):  # every case once
        members = divide_by(CASES, TABLE, name).values()
        assert sorted(case for own in members for case in own) == sorted(CASES)
    groups = divide_by(CASES, {**TABLE, "case11": {"age": ""}}, "age")
    assert [len(members) for members in groups.values()] == [3, 2, 3, 3, 1]
    assert (next(iter(groups)), list(groups)[-1]) == ("20 to 22.5", "not stated")
    assert list(divide_by(CASES, TABLE, "sex")) == ["not stated"]
    dates = {case: {"visit": f"{20240101 + i}"} for i, case in enumerate(CASES)}
    assert [*map(len, divide_by(CASES, dates, "visit").values())] == [3, 3, 3, 3]
    patients = {case: {"subject": f"S{i // 2}"} for i, case in enumerate(CASES)}
    results = [replace(r, group=patients[r.case]["subject"]) for r in make_results()]
    assert not [*find_subgroups(tables_of(results), patients)]
    own = {case: {"subject": "" if i > 9 else f"S{i}"} for i, case in enumerate(CASES)}
    alone = [replace(r, group=r.case) for r in make_results()]
    assert not [*find_subgroups(tables_of(alone), own)]  # only empty cells are shared
    spellings = {
        case: {"n": ["1", "1.0", "1.00", "01", "+1"][i % 5]} for i, case in enumerate(CASES)
    }
    assert len(divide_by(CASES, spellings, "n")) == 5  # words, because there is only one number
    with pytest.raises(ConfigError, match="sight"):  # a missing column
        divide_by(CASES, TABLE, "sight")
    crowd = [f"case{i}" for i in range(30)]
    with pytest.raises(ConfigError):
        divide_by(crowd, {c: {"id": c} for c in crowd}, "id")


def test_table_of_columns_without_rows_is_an_error(tmp_path):
    table = tmp_path / "columns.csv"
    for text, words in (("case,site\n", "It has no rows"), ("id,site\na,b\n", "are: id, site")):
        table.write_text(text)
        with pytest.raises(DatasetError, match=words):
            read_columns([CaseFiles("a", ())], table)


def test_cells_of_a_table_replace_those_of_the_dataset(tmp_path):
    table = tmp_path / "columns.csv"
    table.write_text("case,site\na,North\nz,South\n")
    cases = [CaseFiles("a", (), columns={"site": "?", "age": "70"}), CaseFiles("b", ())]
    assert read_columns(cases, None) == {"a": {"site": "?", "age": "70"}, "b": {}}
    assert read_columns(cases, table) == {"a": {"site": "North", "age": "70"}, "b": {}}
    assert read_columns([], table) == {}


def test_subgroups_of_numbers_are_in_ascending_order():
    sizes = {case: {"mm": ["10", "2.5", "", "9"][i % 4]} for i, case in enumerate(CASES)}
    assert list(divide_by(CASES, sizes, "mm")) == ["2.5", "9", "10", "not stated"]
    results = []
    for one, zone in zip(make_results(), ["10", "9"] * 6, strict=True):
        lesions = tuple(replace(lesion, zone=zone) for lesion in one.lesions)
        results.append(replace(one, lesions=lesions))
    zones = [name for name, _ in find_subgroups(tables_of(results), {})]
    assert zones == ["zone: 9", "zone: 10"]


@pytest.mark.parametrize(("zone", "expected"), [("back", ["zone: back", "zone: front"]), ("", [])])
def test_zones_of_candidates_count_only_if_lesions_have_zones(zone, expected):
    one = next(r for r in make_results() if r.lesions and r.candidates)
    lesions = [replace(lesion, zone=zone) for lesion in one.lesions]
    candidates = [replace(candidate, zone="front") for candidate in one.candidates]
    tables = tables_of([replace(one, lesions=(*lesions,), candidates=(*candidates,))])
    assert [name for name, _ in find_subgroups(tables, {})] == expected


def test_slice_spacings_are_subgroups_without_a_table():
    spacings = [1.0] * 6 + [5.0] * 6
    results = [
        replace(r, slice_spacing_mm=mm) for r, mm in zip(make_results(), spacings, strict=True)
    ]
    scores = summarise(results)
    assert scores.subgroups == ["slice_spacing_mm: 1", "slice_spacing_mm: 5"]
    n_lesions = [scores.find("n_lesions", subset=name).value for name in scores.subgroups]
    assert sum(n_lesions) == sum(len(r.lesions) for r in results)
    stated = {r.case: {"slice_spacing_mm": "thin"} for r in results}
    assert summarise(results, columns=stated).subgroups == []  # the table has precedence
