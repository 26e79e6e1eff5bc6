"""A search on a pretend card uses the card of `trainer.devices`, also for validation."""

from lesionseg.cli import compose
from lesionseg.extras.tune import tune
from lesionseg.inference.window import SlidingWindow
from lesionseg.phantoms import write_xray_phantoms
from tests.gpu.pretend_cuda import pretend_cards

SMALL = [
    *("data.validation_fraction=0.4", "inference.overlap=0", "augment=none", "loss=focal"),
    *("model.tile_shape=[32,32]", "model.batch_size=2", "model.base_features=4"),
    *("trainer.max_steps=1", "trainer.accelerator=gpu", "trainer.workers=0", "tune.n_trials=1"),
]


def test_search_plans_trains_and_validates_on_its_card(tmp_path, monkeypatch):
    root = tmp_path / "radiographs"
    devices = []
    write_xray_phantoms(root, 4, seed=3, shape=(64, 64), pixel_mm=4.0, lesion_free_share=0.0)
    predict = SlidingWindow.predict

    def record_device(self, *args):
        devices.append(self.device)
        return predict(self, *args)

    monkeypatch.setattr(SlidingWindow, "predict", record_device)
    settings = [f"data.root={root}", f"run_dir={tmp_path / 'run'}", "trainer.devices=[1]", *SMALL]
    cfg = compose("tune", settings)
    with pretend_cards(n_cards=2) as cards:
        search = tune(cfg).search
    assert [trial.state for trial in search.trials] == ["complete"]
    assert set(cards.ops_by_card) == {1}
    assert {str(device) for device in devices} == {"cuda:1"}
