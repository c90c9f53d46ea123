"""Cross-encoders made of modules: an encoder of `transformers`, and layers of their own between it and the score."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import BertForSequenceClassification, ModernBertForSequenceClassification, PreTrainedModel


class Layers(nn.Module):
    """Layers one after the other, for any shape [..., width]."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class LayersOfFirst(Layers):
    """The same for the first token: [batch, tokens, width] -> [batch, outputs]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, 0])


def replace_head(classifier: PreTrainedModel, layers: Sequence[nn.Module]) -> PreTrainedModel:
    """Return the classifier with other layers between its encoder and its logits. Changes `classifier`.

    layers: the last is the linear layer that makes the logits.
    """
    *before, last = layers
    if isinstance(classifier, ModernBertForSequenceClassification):
        classifier.head, classifier.classifier = Layers(before), last
    elif isinstance(classifier, BertForSequenceClassification):
        classifier.bert.pooler, classifier.classifier = LayersOfFirst(before), last
    elif hasattr(classifier, "pooler"):
        classifier.pooler, classifier.classifier = LayersOfFirst(before), last
    else:
        classifier.classifier = LayersOfFirst(layers)
    return classifier
