"""What an encoder is worth: one file a protocol."""

from simdino.evaluate.classification.classifier import (
    Classifier,
    Predictions,
    classify,
    load_classifier,
    save_classifier,
)
from simdino.evaluate.classification.finetune import FinetuneResult, finetune
from simdino.evaluate.classification.knn import KnnResult, knn, knn_each
from simdino.evaluate.classification.linear import LinearResult, linear
from simdino.evaluate.classification.logistic import FewLabels, LogisticResult, few_labels, logistic
from simdino.evaluate.diagnostics.encoder import Health, health
from simdino.evaluate.diagnostics.white_box import Compression, LayerRates, layer_rates
from simdino.evaluate.discovery.discover import DiscoverResult, discover
from simdino.evaluate.retrieval.classes import Neighbour, RetrievalResult, neighbours_of, retrieve
from simdino.evaluate.retrieval.copies import CopiesResult, copies
from simdino.evaluate.retrieval.landmarks import LandmarksResult, landmarks
from simdino.evaluate.segmentation.linear import SegmentResult, segment
from simdino.evaluate.video.davis import VideoResult, video
from simdino.evaluate.video.propagate import Propagation
from simdino.features.extract import Features, embed
from simdino.features.spectra import Spectrum, spectrum
from simdino.runs.verdict import Verdict, judge

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
