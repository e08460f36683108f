"""What an encoder is worth: one file a protocol."""

from simdino.evaluate.features import Features, embed
from simdino.evaluate.health import Verdict, judge
from simdino.evaluate.knn import KnnResult, knn

__all__ = ["Features", "KnnResult", "Verdict", "embed", "judge", "knn"]
