"""What an encoder is worth: one file a protocol."""

from simdino.evaluate.classifier import Classifier, Predictions, classify, load_classifier, save_classifier
from simdino.evaluate.copies import CopiesResult, copies
from simdino.evaluate.discover import DiscoverResult, discover
from simdino.evaluate.features import Features, embed
from simdino.evaluate.finetune import FinetuneResult, finetune
from simdino.evaluate.health import Verdict, judge
from simdino.evaluate.knn import KnnResult, knn, knn_each
from simdino.evaluate.label_free import Health, health
from simdino.evaluate.landmarks import LandmarksResult, landmarks
from simdino.evaluate.linear import LinearResult, linear
from simdino.evaluate.logistic import FewLabels, LogisticResult, few_labels, logistic
from simdino.evaluate.propagate import Propagation
from simdino.evaluate.retrieve import Neighbour, RetrievalResult, neighbours_of, retrieve
from simdino.evaluate.segment import SegmentResult, segment
from simdino.evaluate.spectra import Spectrum, spectrum
from simdino.evaluate.video import VideoResult, video
from simdino.evaluate.white_box import Compression, LayerRates, layer_rates

__all__ = [
    "Classifier",
    "Compression",
    "CopiesResult",
    "DiscoverResult",
    "Features",
    "FewLabels",
    "FinetuneResult",
    "Health",
    "KnnResult",
    "LandmarksResult",
    "LayerRates",
    "LinearResult",
    "LogisticResult",
    "Neighbour",
    "Predictions",
    "Propagation",
    "RetrievalResult",
    "SegmentResult",
    "Spectrum",
    "Verdict",
    "VideoResult",
    "classify",
    "copies",
    "discover",
    "embed",
    "few_labels",
    "finetune",
    "health",
    "judge",
    "knn",
    "knn_each",
    "landmarks",
    "layer_rates",
    "linear",
    "load_classifier",
    "logistic",
    "neighbours_of",
    "retrieve",
    "save_classifier",
    "segment",
    "spectrum",
    "video",
]
