"""From a network's logits to the probabilities of the labels, and a network that gives them."""

from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.errors import ConfigError
from lesionseg.losses.posterior import posterior_logits
from lesionseg.plan.plan import Plan


def label_probabilities(
    logits: Float[Tensor, "b k *spatial"], plan: Plan
) -> Float[Tensor, "b labels *spatial"]:
    """Probabilities float32 of the plan's labels.

    Softmax's background channel is dropped; what the focal loss did to sigmoid logits is undone
    where the plan has a `link` (`losses.posterior`).
    """
    logits = logits.float()
    if plan.activation == "softmax":
        return logits.softmax(1)[:, 1:]
    if plan.link is not None:
        logits = posterior_logits(logits, alpha=plan.link.alpha, gamma=plan.link.gamma)
    return logits.sigmoid()


class ProbabilityNetwork(nn.Module):
    """A segmentation network in eval mode whose output is what `label_probabilities` gives.

    One tensor in, one tensor out, for programs that know neither the plan nor the focal loss.
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.network = network.eval()
        self._plan = plan

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *spatial"]:
        """Probabilities; raises `ConfigError` for a network that returns no list of logits."""
        outputs = self.network(image)
        if not isinstance(outputs, list):
            raise ConfigError(
                "Only a network that segments can be exported.",
                where="plan.architecture.name",
                seen=self._plan.architecture.name,
                expected="a network whose output is a list of logits",
            )
        return label_probabilities(outputs[0], self._plan)
