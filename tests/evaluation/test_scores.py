import csv
import json

import numpy as np
import pytest

from lesionseg.core import CaseFiles, InputCheckResult, OperatingPoint, Reference
from lesionseg.errors import ConfigError, ContentError, DatasetError
from lesionseg.evaluation import PRESETS, Scores, SummarySettings, read_scores
from lesionseg.evaluation import summarise as summary
from lesionseg.evaluation.adjudication import ReaderAnswer, adjudicate
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
    random_case,
    replace,
    result,
    tables_of,
    templates,
)
from tests.grids import unit_grid

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


def summarise(results, replicates=0, evaluated_on="test", **options):
    settings = SummarySettings(replicates=replicates, evaluated_on=evaluated_on, **options)
    return summary(tables_of(results), PRESETS["lesionseg"], settings)


def make_result(seed, group="", has_lesions=True, has_scores=True):
    """Return the result of a random case in 3-D."""
    reference, _, drawn, _, scores = random_case(2 * seed)  # even seeds have three axes
    grid = unit_grid(*drawn.shape)
    reference *= has_lesions
    truth = Reference(grid, instances=reference, instance_labels=(1,) * int(reference.max()))
    found = prediction_of(drawn, scores, grid, accepted_from=0.3, has_scores=has_scores)
    return evaluate_case(truth, found, PRESETS["lesionseg"], case=f"case{seed}", group=group)


def make_results(n=12, **changes):
    return [make_result(s, group=f"g{s // 2}", **changes) for s in range(n)]


def test_every_undefined_number_has_a_reason_and_nothing_is_nan():
    free = make_results(9, has_lesions=False)
    ill = [found for found in make_results() if found.lesions]
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
    false = results[11].candidates[-1]
    answer = ReaderAnswer(("case11", false.candidate, box_of(false)), "lesion")
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 3}, "schema_version is 3, .* evaluate reference="),
        ({"schema_version": 5}, "schema_version is 5"),
        ({"curves": None}, "scores or curves are missing or damaged"),
        ({"scores": [{"name": "dice", "value": "high"}]}, r"rows\[0\].value: high "),
        ({"scores": [{"name": "dice", "value": ""}]}, r"rows\[0\].value: '' "),
    ],
)
def test_invalid_value_is_named_with_its_key(changes, words):
    content = summarise(make_results(4)).to_json()
    with pytest.raises(ContentError, match=f"s.json: .*{words}"):
        Scores.from_json(content | changes, "s.json")


@pytest.mark.parametrize("content", [[], {"cases": 3}])
def test_another_file_is_not_read_as_scores(content):
    with pytest.raises(ContentError, match=r"s\.json: this is not a scores\.json"):
        Scores.from_json(content, "s.json")


def test_intervals_depend_only_on_the_seed():
    one = summarise(make_results(), 60, seed=1)
    other = summarise(make_results(), 60, seed=2)
    assert one == summarise(make_results(), 60, seed=1)
    assert one["lesion_f1"].ci95 != other["lesion_f1"].ci95


@pytest.mark.parametrize(
    ("role", "chosen_on", "optimistic", "chosen_here"),
    [
        ("validation", None, True, False),
        ("validation", "validation", True, False),
        ("test", "validation", False, False),
        ("test", "test", True, True),
        ("external", None, False, False),
    ],
)
def test_a_point_chosen_on_these_cases_is_called_optimistic(
    role, chosen_on, optimistic, chosen_here
):
    point = OperatingPoint("fp_per_case:1", 0.4, chosen_on)
    scores = summarise(make_results(2), evaluated_on=role, operating_point=point)
    found = scores.operating_point
    assert (found.score, found.chosen_on, found.optimistic) == (0.4, chosen_on, optimistic)
    assert scores.is_point_chosen_here == chosen_here


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
    for preset in ("luna16", "instances"):  # LUNA16's rule lets one candidate find both lesions
        found = evaluate_hand_case("merge", preset)
        assert (found.n_pairs, found.pair_iou) == (1, 0.5)
    loads = [(2.0, 1.0), (3.0, 2.5), (0.0, 0.5), (8.0, 6.0)]
    results = [result(f"{x}", [0.9], reference_ml=x, predicted_ml=y) for x, y in loads]
    load = summarise(results)
    errors = np.diff(loads)
    limit = errors.mean() + 1.96 * errors.std(ddof=1)
    assert load["volume_ml_upper_limit"].value == pytest.approx(limit, rel=1e-4)
    assert load["volume_ml_bias"].n == load["n_lesions_bias"].n == 4


def test_lesion_load_leaves_out_missing_cases_and_bare_boxes():
    def load(*results):
        scores = summarise(results)
        return [scores[name] for name in ("volume_ml_bias", "n_lesions_bias")]

    ml = {"axes": 3, "reference_ml": 1.0, "predicted_ml": 2.0}
    whole = [result(case, [0.9], **ml) for case in "abc"]
    failed = result("d", [None], status="missing", **ml | {"predicted_ml": 0.0})
    assert [(one.n, one.value) for one in load(*whole, failed)] == [(3, 1.0), (3, 0.0)]
    # the volume of a found box is unknown, so that only cases without a detection would remain
    boxed = result("e", [0.9], **ml | {"predicted_ml": None})
    volume, number = load(*whole, boxed)
    assert (volume.n, volume.value, number.n) == (0, None, 4)
    assert "single case" in load(whole[0])[1].reason
    assert "no case with a prediction" in load(failed)[0].reason


def test_missing_prediction_of_a_box_detector_has_no_dice_of_a_label_or_subgroup():
    boxed = [result(case, [0.9], dice=None, dice_by_label={}) for case in "ab"]
    nothing = {"status": "missing", "dice": 0.0, "dice_by_label": {1: 0.0}}
    failed = [result(case, [None], **nothing) for case in "cd"]
    columns = {case: {"site": "north" if case in "ab" else "south"} for case in "abcd"}
    scores = summarise([*boxed, *failed], columns=columns)
    dice = [scores["dice"], scores["panoptic_quality"]]
    dice += [scores.find("dice", label=name) for name in scores.labels]
    dice += [scores.find("dice", subset=name) for name in scores.subgroups]
    assert [row.value for row in dice] == [None] * 5


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


def test_intervals_of_the_size_curve_contain_the_truth():
    """Draw 40 patients with 12 lesions of 1 to 20 mm. The recall grows with size, 50 % at 4 mm."""
    rng = np.random.default_rng(0)
    (_, like, *_) = templates()
    sizes = np.exp(rng.uniform(0, np.log(20), (40, 12)))
    found = rng.random(sizes.shape) < 1 / (1 + np.exp(-3 * np.log(sizes / 4)))
    results = []
    for case, rows in enumerate(np.stack([sizes, found], axis=-1).tolist()):
        lesions = [replace(like, diameter_mm=mm, detected=bool(hit)) for mm, hit in rows]
        results.append(result(f"{case}", lesions=lesions, size_unit="mm"))
    scores = summarise(results, 300)
    for name, truth in (("size_d50", 4), ("size_d90", 4 * 9 ** (1 / 3))):
        low, high = scores[name].ci95
        assert low < truth < high
        assert low < scores[name].value < high < 1.7 * low
    curve = scores.curve("size_curve")
    assert curve[0].at == pytest.approx(sizes.min())
    assert all(point.ci95[0] <= point.value <= point.ci95[1] for point in curve)


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
    assert len(candidates) == sum(len(r.candidates) for r in results)
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
    first, second = csv.DictReader((tmp_path / "labels.csv").read_text().splitlines())
    assert (first["label"], second["label"]) == ("metastasis", "cyst")
    assert int(first["n_lesions"]) == sum(len(r.lesions) for r in results)
    curve = scores.curve("box_average_precision", "metastasis")
    assert float(first["box_ap_10"]) == curve[0].value
    for name in ("box_ap_40", "box_ap_50_95"):
        assert float(first[name]) == scores.find(name, label="metastasis").value
    assert second["box_ap_95"] == ""  # no lesion of this label


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
    for site in "AB":
        expected = summarise([r for r in results if TABLE[r.case]["site"] == site])
        assert expected["n_cases"].value == 6
        for name in ("n_cases", "n_lesions", "lesion_recall", "false_positives_per_case", "dice"):
            own = scores.find(name, subset=f"site: {site}")
            assert own.value == pytest.approx(expected[name].value)
            assert name == "dice" or own.ci95 == expected[name].ci95


def divide(cells):
    """Return the names and sizes of the groups by the cells of a column."""
    table = {case: {"cell": cell} for case, cell in zip(CASES, cells, strict=True)}
    groups = divide_by(CASES, table, "cell")
    assert sorted(case for own in groups.values() for case in own) == sorted(CASES)
    return [(name, len(own)) for name, own in groups.items()]


@pytest.mark.parametrize(
    ("cells", "groups"),
    [
        (
            [*map(str, range(20, 31)), ""],
            ["20 to 22.5: 3", "22.5 to 25: 2", "25 to 27.5: 3", "27.5 to 30: 3", "not stated: 1"],
        ),
        ([""] * 12, ["not stated: 12"]),
        (["10", "2.5", "", "9"] * 3, ["2.5: 3", "9: 3", "10: 3", "not stated: 3"]),
    ],
)
def test_numbers_are_divided_into_quantiles_and_empty_cells_form_a_group(cells, groups):
    assert [f"{name}: {n}" for name, n in divide(cells)] == groups


def test_dates_are_divided_and_names_of_cases_are_not():
    assert [n for _, n in divide([f"{20240101 + i}" for i in range(12)])] == [3, 3, 3, 3]
    assert len(divide(["1", "1.0", "01", "+1"] * 3)) == 4  # words, because of a single number
    with pytest.raises(ConfigError, match="sight"):  # a missing column
        divide_by(CASES, TABLE, "sight")
    crowd = {f"case{i}": {"id": f"case{i}"} for i in range(30)}
    with pytest.raises(ConfigError):
        divide_by([*crowd], crowd, "id")


@pytest.mark.parametrize("per_subject", [2, 1])
def test_column_of_patients_gives_no_subgroups(per_subject):
    # of single patients, only empty cells are shared
    subjects = {c: f"S{i // per_subject}" if i < 10 else "" for i, c in enumerate(CASES)}
    results = [replace(r, group=subjects[r.case] or r.case) for r in make_results()]
    columns = {case: {"subject": subject} for case, subject in subjects.items()}
    assert not [*find_subgroups(tables_of(results), columns)]


@pytest.mark.parametrize("text", ["case,site\n", "id,site\na,b\n"])
def test_table_of_columns_without_rows_or_cases_is_an_error(text, tmp_path):
    (tmp_path / "columns.csv").write_text(text)
    with pytest.raises(DatasetError, match=r"columns\.csv"):
        read_columns([CaseFiles("a", ())], tmp_path / "columns.csv")


def test_cells_of_a_table_replace_those_of_the_dataset(tmp_path):
    table = tmp_path / "columns.csv"
    table.write_text("case,site\na,North\nz,South\n")
    cases = [CaseFiles("a", (), columns={"site": "?", "age": "70"}), CaseFiles("b", ())]
    assert read_columns(cases, None) == {"a": {"site": "?", "age": "70"}, "b": {}}
    assert read_columns(cases, table) == {"a": {"site": "North", "age": "70"}, "b": {}}
    assert read_columns([], table) == {}


@pytest.mark.parametrize(
    ("zones", "expected"),
    [
        (["10", "9"], ["zone: 9", "zone: 10"]),
        (["back"], ["zone: back", "zone: front"]),  # `front` is the zone of all candidates
        ([""], []),  # zones of candidates count only if lesions have zones
    ],
)
def test_zones_of_lesions_are_subgroups(zones, expected):
    results = []
    for k, one in enumerate(make_results()):
        lesions = [replace(lesion, zone=zones[k % len(zones)]) for lesion in one.lesions]
        near = "front" if len(zones) == 1 else "9"
        candidates = [replace(candidate, zone=near) for candidate in one.candidates]
        results.append(replace(one, lesions=lesions, candidates=candidates))
    assert [name for name, _ in find_subgroups(tables_of(results), {})] == expected


def test_slice_spacings_are_subgroups_without_a_table():
    results = [replace(r, slice_spacing_mm=1.0 + 4 * (i > 5)) for i, r in enumerate(make_results())]
    scores = summarise(results)
    assert scores.subgroups == ["slice_spacing_mm: 1", "slice_spacing_mm: 5"]
    n_lesions = [scores.find("n_lesions", subset=name).value for name in scores.subgroups]
    assert sum(n_lesions) == sum(len(r.lesions) for r in results)
    stated = {r.case: {"slice_spacing_mm": "thin"} for r in results}
    assert summarise(results, columns=stated).subgroups == []  # the table has precedence
