"""Sharded checkpoints (torch.distributed.checkpoint): a directory to which every rank has written its part.

    last.ckpt -> last.ckpt.7/     the name is a link, so that it changes from one checkpoint to the next in one step
      __0_0.distcp, __1_0.distcp  tensors, a file a rank: state_dict.<name>, optimizer_states.<i>.<number>.<key>
      .metadata                   which part of which tensor is where
      meta.pt                     the rest of the checkpoint's dictionary
      manifest.json               sizes and checksums of all of them, written last (hub/integrity.py)

They are read without a process group, by any number of processes, each the parts that it asks for.
"""

import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

META_FILE = "meta.pt"
METADATA_FILE = ".metadata"
_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_HARMLESS = {
    *(("torch.distributed.checkpoint.metadata", name) for name in ("Metadata", "StorageMeta", "MetadataIndex")),
    *(("torch.distributed.checkpoint.metadata", name) for name in ("TensorStorageMetadata", "BytesStorageMetadata")),
    *(("torch.distributed.checkpoint.metadata", name) for name in ("ChunkStorageMetadata", "TensorProperties")),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    ("collections", "OrderedDict"),
}


class _MetadataUnpickler(pickle.Unpickler):
    """torch pickles the table of contents: nothing but what a table of contents is made of is let in."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a table of contents")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """Reads the table of contents once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with open(path / METADATA_FILE, "rb") as stream:
                self.contents: Metadata = _MetadataUnpickler(stream).load()
        except FileNotFoundError:
            raise ValueError(f"{path} is no checkpoint: it lacks {METADATA_FILE}") from None
        except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path / METADATA_FILE} is damaged ({str(error)[:120]})") from None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As read."""
        return self.contents


class ShardedTensors(Mapping[str, Tensor]):
    """Tensors of a sharded checkpoint under names; on disk until they are asked for."""

    def __init__(self, reader: _Reader, keys: dict[str, str]) -> None:
        self._reader, self._keys = reader, keys

    def __getitem__(self, name: str) -> Tensor:
        """One whole tensor."""
        about = self._reader.contents.state_dict_metadata[self._keys[name]]
        tensor = torch.empty(about.size, dtype=about.properties.dtype)
        self.read_into({name: tensor})
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def shape(self, name: str) -> torch.Size:
        """Of a whole tensor."""
        return self._reader.contents.state_dict_metadata[self._keys[name]].size

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor as stored."""
        return self._reader.contents.state_dict_metadata[self._keys[name]].properties.dtype

    def whole(self) -> dict[str, Tensor]:
        """All of them, read in one go."""
        tensors = {name: torch.empty(self.shape(name), dtype=self.dtype(name)) for name in self}
        self.read_into(tensors)
        return tensors

    def read_into(self, targets: dict[str, Tensor]) -> None:
        """Fills tensors in place; of a DTensor only this rank's part is read. No other rank takes part."""
        if not targets:
            return
        wanted = {self._keys[name]: target for name, target in targets.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            try:
                dcp.load(wanted, storage_reader=self._reader, no_dist=True)
            except dcp.api.CheckpointException as error:  # no Exception: nobody up there would catch it
                reason = str(next(iter(error.failures.values()))[0]).strip().splitlines()[0]
                raise ValueError(f"{self._reader.path} cannot be read ({reason[:160]})") from None


def is_sharded(path: str | Path) -> bool:
    """Whether a directory is a sharded checkpoint, complete or not."""
    return (Path(path) / METADATA_FILE).exists() or (Path(path) / META_FILE).exists()


def split(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A Lightning checkpoint's dictionary -> tensors of network and optimizers under flat names, and the rest."""
    tensors: dict[str, Tensor] = {}
    rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}

    def take(prefix: str, named: Mapping[Any, Any]) -> dict[Any, Any]:
        tensors.update({f"{prefix}.{key}": value for key, value in named.items() if isinstance(value, Tensor)})
        return {key: value for key, value in named.items() if not isinstance(value, Tensor)}

    rest["state_dict"] = take("state_dict", checkpoint["state_dict"])
    rest["optimizer_states"] = [
        {**optimizer, "state": {n: take(f"optimizer_states.{i}.{n}", s) for n, s in optimizer["state"].items()}}
        for i, optimizer in enumerate(checkpoint.get("optimizer_states", []))
    ]
    return tensors, rest


def read_sharded(path: str | Path, rest: dict[str, Any]) -> dict[str, Any]:
    """Inverse of split, with tensors still on disk.

    Args:
        path: the directory.
        rest: what its meta.pt holds.

    Returns:
        The checkpoint's dictionary; `state_dict` and the `state` of every parameter in `optimizer_states` are
        ShardedTensors, beside which values that are no tensors stand in "state" as they are.

    Raises:
        ValueError: no sharded checkpoint, or its table of contents is damaged.
    """
    reader = _Reader(Path(path).resolve())
    by_owner: dict[str, dict[str, str]] = {}
    for key, about in reader.contents.state_dict_metadata.items():
        if not isinstance(about, TensorStorageMetadata):
            continue
        if key.startswith("state_dict."):
            owner, name = "state_dict", key.removeprefix("state_dict.")
        else:
            owner, name = key.rsplit(".", 1)
        by_owner.setdefault(owner, {})[name] = key
    content = dict(rest)
    content["state_dict"] = ShardedTensors(reader, by_owner.get("state_dict", {}))
    content["optimizer_states"] = [
        {
            **optimizer,
            "state": {
                number: OptimizerTensors(reader, by_owner.get(f"optimizer_states.{index}.{number}", {}), others)
                for number, others in optimizer["state"].items()
            },
        }
        for index, optimizer in enumerate(rest.get("optimizer_states", []))
    ]
    return content


class OptimizerTensors(ShardedTensors):
    """What an optimizer keeps of one parameter: tensors on disk, and values that are none."""

    def __init__(self, reader: _Reader, keys: dict[str, str], others: dict[str, Any]) -> None:
        super().__init__(reader, keys)
        self.others = others


def materialised(content: dict[str, Any]) -> dict[str, Any]:
    """The same with all tensors in memory, as a whole file gives it."""
    return {
        **content,
        "state_dict": content["state_dict"].whole(),
        "optimizer_states": [
            {**one, "state": {number: {**s.others, **s.whole()} for number, s in one["state"].items()}}
            for one in content["optimizer_states"]
        ],
    }
