"""What an encoder is worth: one file a protocol."""

from simdino.evaluate.features import Features, embed
from simdino.evaluate.health import Verdict, judge
from simdino.evaluate.knn import KnnResult, knn, knn_each
from simdino.evaluate.white_box import Compression, LayerRates, layer_rates

__all__ = [
    "Compression",
    "Features",
    "KnnResult",
    "LayerRates",
    "Verdict",
    "embed",
    "judge",
    "knn",
    "knn_each",
    "layer_rates",
]
