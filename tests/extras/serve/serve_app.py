"""The server's application with a model in the test's process."""

from lesionseg.extras.serve.answer import predict_scan
from lesionseg.extras.serve.app import make_app
from lesionseg.extras.serve.model_process import ModelProcess
from lesionseg.inference.read_ahead import memory_budget


class InThisProcess(ModelProcess):
    """A model without a process of its own, which would take seconds to start."""

    status = "ok"

    def __init__(self, predictor, cfg):
        self.predictor = predictor
        self.cfg = cfg

    def wait(self):
        return self.predictor.plan

    def predict(self, folder, result, sent=()):
        return predict_scan(self.predictor, folder, result, memory_budget(self.cfg.inference), sent)


def app_of(predictor, cfg, home):
    """Return the application with a model in this process."""
    return make_app(InThisProcess(predictor, cfg), cfg, home)
