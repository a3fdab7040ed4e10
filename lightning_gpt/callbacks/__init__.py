"""What the Trainer calls beside the task: metrics, checkpoints, samples, pictures."""

from lightning_gpt.callbacks.attention_maps import AttentionMaps
from lightning_gpt.callbacks.board import Board
from lightning_gpt.callbacks.calibration_plot import CalibrationPlot
from lightning_gpt.callbacks.checkpoint_io import AtomicCheckpointIO
from lightning_gpt.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, RandomState
from lightning_gpt.callbacks.collective_volume import CollectiveVolume
from lightning_gpt.callbacks.communication_share import CommunicationShare
from lightning_gpt.callbacks.diagnosis import Diagnosis
from lightning_gpt.callbacks.expert_metrics import ExpertMetrics
from lightning_gpt.callbacks.final_validation import FinalValidation
from lightning_gpt.callbacks.graceful_stop import GracefulStop, Interrupted
from lightning_gpt.callbacks.jsonl_logger import JsonlLogger
from lightning_gpt.callbacks.loss_curve import LossCurve
from lightning_gpt.callbacks.progress import Progress
from lightning_gpt.callbacks.retrieval_pictures import RetrievalPictures
from lightning_gpt.callbacks.run_record import RunRecord
from lightning_gpt.callbacks.samples import Samples
from lightning_gpt.callbacks.training_metrics import TrainingMetrics
from lightning_gpt.callbacks.watch import Watch

__all__ = [
    "AtomicCheckpointIO",
    "AttentionMaps",
    "BestCheckpoint",
    "Board",
    "CalibrationPlot",
    "CollectiveVolume",
    "CommunicationShare",
    "Diagnosis",
    "ExpertMetrics",
    "FinalValidation",
    "GracefulStop",
    "Interrupted",
    "JsonlLogger",
    "LastCheckpoint",
    "LossCurve",
    "Progress",
    "RandomState",
    "RetrievalPictures",
    "RunRecord",
    "Samples",
    "TrainingMetrics",
    "Watch",
]
