"""The order in which scans are to be labelled: entropy times disagreement of views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ConfigError
from lesionseg.inference.bundles.bundle import Bundle, write_bundle
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.io.atomic import read_csv, read_json
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.predict.ranking import entropies
from lesionseg.pipeline.predict.recipe import predict
from lesionseg.plan.plan import Plan
from tests.inference.networks import Bright

SHAPE = (12, 18, 20)
GRID = Geometry.from_spacing(SHAPE, (2, 1, 1))


class Sided(nn.Module):
    """Sees bright voxels clearly in the first half of a tile alone: mirrored, it sees others."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor) -> list[Tensor]:
        logits = (image[:, :1] - self.level) * 4
        weak = logits.clamp(max=-0.4)  # p of 0.4 at most
        half = image.shape[-1] // 2
        return [torch.cat([logits[..., :half], weak[..., half:]], dim=-1)]


NETWORKS = {"sided": lambda _: Sided(), "mine": lambda _: Bright()}


def bundle_of(folder: Path, plan: Plan, name: str, network: nn.Module) -> Path:
    """A bundle whose tile is the whole image along x, so that a side is a side."""
    mine = replace(
        plan,
        architecture=replace(plan.architecture, name=name),
        spacing_mm=(2.0, 1.0, 1.0),
        tile_shape=(8, 8, 20),
    )
    write_bundle(folder, network, mine, "")
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """None, one and two bright places, and noise."""
    rng = np.random.default_rng(0)
    for name, n in {"none": 0, "one": 1, "two": 2}.items():
        image = rng.uniform(90, 110, SHAPE)  # nowhere two deviations above the mean
        for start in (3, 13)[:n]:
            image[4:8, 6:10, start : start + 4] += 60
        write_volume(tmp_path / "scans" / f"{name}.nii.gz", Volume(image.astype("f4")[None], GRID))
    return tmp_path / "scans"


WHOLE = InferenceSettings(body_mask=False)


def test_scans_on_which_mirrored_views_disagree_come_first(
    scans: Path, tmp_path: Path, plan: Plan
) -> None:
    bundle = bundle_of(tmp_path / "bundle", plan, "sided", Sided())
    given = {"architectures": NETWORKS, "inference": WHOLE, "rank": True}
    predict(bundle, scans, tmp_path / "out", **given)  # type: ignore[arg-type]
    rows = read_csv(tmp_path / "out" / "ranking.csv")
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["case"] == "two"
    gains = {row["case"]: float(row["gain"]) for row in rows}
    assert gains["two"] > gains["one"] >= gains["none"]
    expected = {row["case"]: float(row["expected_lesions"]) for row in rows}
    candidates = read_json(tmp_path / "out" / "two_candidates.json")["candidates"]
    assert expected["two"] == pytest.approx(sum(c["score"] for c in candidates), abs=1e-5)
    assert expected["two"] > expected["one"] > 0
    first = (tmp_path / "out" / "ranking.csv").read_bytes()
    predict(bundle, scans, tmp_path / "out", **given)  # type: ignore[arg-type]
    assert (tmp_path / "out" / "ranking.csv").read_bytes() == first


def test_members_that_agree_gain_nothing(scans: Path, tmp_path: Path, plan: Plan) -> None:
    same = [bundle_of(tmp_path / name, plan, "mine", Bright()) for name in "ab"]
    predict(same, scans, tmp_path / "out", architectures=NETWORKS, inference=WHOLE, rank=True)
    rows = read_csv(tmp_path / "out" / "ranking.csv")
    assert [row["case"] for row in rows] == ["none", "one", "two"]
    assert {float(row["gain"]) for row in rows} == {0.0}
    other = [same[0], bundle_of(tmp_path / "c", plan, "mine", Bright(level=3.0))]
    predict(other, scans, tmp_path / "more", architectures=NETWORKS, inference=WHOLE, rank=True)
    assert float(read_csv(tmp_path / "more" / "ranking.csv")[0]["gain"]) > 0


def test_what_cannot_be_ranked_is_refused(scans: Path, tmp_path: Path, plan: Plan) -> None:
    bundle = bundle_of(tmp_path / "bundle", plan, "mine", Bright())
    given = {"architectures": NETWORKS, "rank": True}
    with pytest.raises(ConfigError, match=r"(?s)part of the cases.*num_shards=2"):
        predict(bundle, scans, tmp_path / "out", num_shards=2, **given)  # type: ignore[arg-type]
    radiographs = replace(
        plan, dims=2, modality="xray", architecture=replace(plan.architecture, name="mine")
    )
    with pytest.raises(ConfigError, match="One network has one view"):
        Predictor(Bundle(Bright(), radiographs)).views()


def test_entropy_is_largest_where_nothing_is_known() -> None:
    found = entropies([0.0, 0.1, 0.5, 0.9, 1.0])
    assert found.argmax() == 2
    np.testing.assert_allclose(found, [0, 0.468996, 1, 0.468996, 0], atol=1e-6)
    assert len(entropies([])) == 0
