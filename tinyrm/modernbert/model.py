"""ModernBERT's forward pass, computing only what the logits need that are read. One pass for export and for the GPU.

Exact, not approximate; against the model as `transformers` runs it:

* the rows that are read only (two labels of a masked LM, or a classifier's outputs), at one token of each sequence;
* a last layer that is global computes keys and values for all tokens and everything else for the row that is read;
* attention is a strategy: blocks for a graph (`tinyrm.modernbert.blocked`), packed tokens for a GPU (`packed`);
* the embedding's norm is folded into the table, the attention's scale into the query weights, both once.

Serves every size of the family (ModernBERT, Ettin, mmBERT). Layers, norms and biases follow the configuration.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from tinyrm.manifest import ReadAt


class Attention(Protocol):
    """Positions of tokens and which of them see each other. Tensors are [rows, tokens, heads * head_dim]."""

    def rotate(self, x: Tensor, *, heads: int, local: bool) -> Tensor:
        """Rotate queries or keys by their positions."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, local: bool) -> Tensor:
        """Return the weighted sum of values for each token."""

    def at_read(self, x: Tensor) -> Tensor:
        """Return the rows that are read: [sequences, 1, width], or as many of each sequence as responses of a set."""

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of each sequence's rows: [sequences, 1, width]."""

    def rotate_at_read(self, q: Tensor, *, heads: int) -> Tensor:
        """Rotate the queries of the rows that are read [sequences, 1, width] by their positions in a global layer."""

    def attend_from_read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the weighted sum of its own sequence's values for each row that is read: [sequences, 1, width]."""


NO_OTHERS: Mapping[int, Attention] = MappingProxyType({})


class Projection(nn.Module):
    """Linear maps of one input, weights [in, out]: separate products for a graph, one product for a GPU.

    Separate products give separate results without a copy; one large product keeps a GPU busier.
    """

    def __init__(self, linear: nn.Linear, parts: int = 1, *, fused: bool = False) -> None:
        super().__init__()
        self.parts, self.fused = parts, fused
        pieces = 1 if fused else parts
        weights = linear.weight.detach().T.chunk(pieces, dim=1)
        self.weights = nn.ParameterList([nn.Parameter(w.contiguous(), requires_grad=False) for w in weights])
        biases = () if linear.bias is None else linear.bias.detach().chunk(pieces)
        self.biases = nn.ParameterList([nn.Parameter(b.clone(), requires_grad=False) for b in biases])

    def forward(self, x: Tensor, only: Iterable[int] | None = None) -> list[Tensor]:
        """Return the parts named by `only`, in order; None for all."""
        wanted = list(range(self.parts) if only is None else only)
        if not self.fused:
            return [self._product(x, i) for i in wanted]
        if len(wanted) == self.parts:
            return list(self._product(x, 0).chunk(self.parts, dim=-1))
        first, last = min(wanted), max(wanted) + 1  # the parts of `only` are neighbours
        width = self.weights[0].shape[1] // self.parts
        weight = self.weights[0][:, first * width : last * width]
        y = x @ weight
        if len(self.biases):
            y = y + self.biases[0][first * width : last * width]
        return list(y.chunk(last - first, dim=-1))

    def _product(self, x: Tensor, i: int) -> Tensor:
        y: Tensor = x @ self.weights[i]
        return y + self.biases[i] if len(self.biases) else y


class Layer(nn.Module):
    """One encoder layer. The first layer's attention has no norm of its own; the embedding's norm precedes it."""

    def __init__(self, source: Any, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.local = source.attention_type == "sliding_attention"
        self.attention_norm = source.attn_norm
        self.mlp_norm = source.mlp_norm
        self.qkv = Projection(source.attn.Wqkv, 3, fused=fused)
        self.out = Projection(source.attn.Wo)
        self.gate_up = Projection(source.mlp.Wi, 2, fused=fused)
        self.down = Projection(source.mlp.Wo)
        self.activation = source.mlp.act

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x))
        q = attention.rotate(q, heads=self.heads, local=self.local)
        k = attention.rotate(k, heads=self.heads, local=self.local)
        return self._rest(x, attention.attend(q, k, v, local=self.local))

    def at_read(self, x: Tensor, attention: Attention) -> Tensor:
        """Compute only the row of a global layer that is read: [sequences, 1, hidden]."""
        normed = self.attention_norm(x)
        k, v = self.qkv(normed, only=(1, 2))
        (q,) = self.qkv(attention.at_read(normed), only=(0,))
        q = attention.rotate_at_read(q, heads=self.heads)
        k = attention.rotate(k, heads=self.heads, local=False)
        return self._rest(attention.at_read(x), attention.attend_from_read(q, k, v))

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended)[0]
        gate, up = self.gate_up(self.mlp_norm(x))
        added: Tensor = self.down(self.activation(gate) * up)[0]
        return x + added


class PreferenceModel(nn.Module):
    """From ids to the logits that are read, in one row of each sequence.

    source: a masked LM or a classifier; its weights are reused and changed, so it must not be used afterwards.
    label_ids: the rows of a masked LM's decoder that are read; None reads all outputs of a classifier.
    read_at: where they are read: not at segments.
    max_tokens: longest sequence; None for the length that the model was made for.
    fused: one product for q, k and v, and one for the gate and its input, as suits a GPU.
    """

    def __init__(
        self,
        source: PreTrainedModel,
        label_ids: Sequence[int] | None,
        *,
        read_at: ReadAt = "mask",
        max_tokens: int | None = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        config, body = source.config, source.base_model
        self.hidden, self.heads = config.hidden_size, config.num_attention_heads
        self.half_window = config.sliding_window
        self.max_tokens = max_tokens or config.max_position_embeddings
        self.read_at = read_at
        outputs = source.classifier if label_ids is None else source.decoder
        with torch.no_grad():
            for layer in body.layers:
                for parameter in layer.attn.Wqkv.parameters():  # weight, and bias if there is one
                    parameter[: self.hidden] *= (self.hidden // self.heads) ** -0.5
            table = body.embeddings.norm(body.embeddings.tok_embeddings.weight)
            rows = list(range(len(outputs.weight)) if label_ids is None else label_ids)
            self.label_weight = nn.Parameter(outputs.weight[rows].clone(), requires_grad=False)
            bias = outputs.bias
            self.label_bias = None if bias is None else nn.Parameter(bias[rows].clone(), requires_grad=False)
        self.table = nn.Parameter(table, requires_grad=False)
        self.layers = nn.ModuleList([Layer(layer, self.heads, fused=fused) for layer in body.layers])
        self.final_norm, self.head = body.final_norm, source.head
        self.head.act = activation(config.classifier_activation)
        for layer in self.layers:
            layer.activation = activation(config.hidden_activation)
        # The model's own module makes the tables, so that every kind of scaling is kept. Both halves rotate alike.
        positions, half = torch.arange(self.max_tokens)[None], self.hidden // self.heads // 2
        for kind in ("full_attention", "sliding_attention"):
            cos, sin = body.rotary_emb(torch.zeros(1, dtype=torch.float32), positions, kind)
            self.register_buffer(f"{kind}_cos", cos[0, :, :half].contiguous(), persistent=False)
            self.register_buffer(f"{kind}_sin", sin[0, :, :half].contiguous(), persistent=False)

    def rotary(self, *, local: bool) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [max_tokens, head_dim / 2]."""
        kind = "sliding_attention" if local else "full_attention"
        return getattr(self, f"{kind}_cos"), getattr(self, f"{kind}_sin")

    @property
    def outputs(self) -> int:
        """The number of logits of a sequence."""
        return len(self.label_weight)

    def forward(self, input_ids: Tensor, attention: Attention, by_layer: Mapping[int, Attention] = NO_OTHERS) -> Tensor:
        """Return logits [rows that are read, outputs] in fp32, whatever the precision of the layers.

        by_layer: another strategy for some layers, by their numbers.
        """
        x = nn.functional.embedding(input_ids, self.table)
        layers: list[Any] = list(self.layers)
        *first, last = layers
        for number, layer in enumerate(first):
            x = layer(x, by_layer.get(number, attention))
        attention = by_layer.get(len(first), attention)
        if self.read_at == "mean":
            x = attention.mean(self.final_norm(last(x, attention)))
        else:
            x = attention.at_read(last(x, attention)) if last.local else last.at_read(x, attention)
            x = self.final_norm(x)
        features = self.head(x.flatten(0, 1)).float()
        # In fp32: near 10, neighbours in bf16 are 1/16 apart, and the difference of the two logits is what is read. Not
        # as a matrix product, which engines round to the precision of the other products.
        logits = (features[:, None] * self.label_weight.float()).sum(dim=-1)
        return logits if self.label_bias is None else logits + self.label_bias.float()

    def round_to(self, dtype: torch.dtype, *, tables: bool = False) -> None:
        """Round all weights but the label rows.

        tables: whether to round the rotary tables, too; a graph rotates in the precision of its layers.
        """
        for name, parameter in self.named_parameters():
            if name not in ("label_weight", "label_bias"):
                parameter.data = parameter.data.to(dtype)
        for buffer in self.buffers() if tables else ():
            buffer.data = buffer.data.to(dtype)


def activation(name: str) -> nn.Module:
    """Return the activation of this name; a plain `GELU` module is exported as one operator."""
    module: nn.Module = nn.GELU() if name == "gelu" else ACT2FN[name]
    return module
