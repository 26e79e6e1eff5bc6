"""The memory of a GPU: what is free, and whether an error means that it ran out."""

import torch

# Libraries that torch calls report a lack of memory by a RuntimeError. With cuDNN's benchmark,
# torch skips every algorithm whose workspace does not fit, and finds none in the end.
_MESSAGES = (
    "unable to find an engine to execute",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU in bytes, including the cache of torch's allocator.

    During validation in a training, nearly all free memory is in that cache.
    """
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that the memory of the GPU ran out."""
    return isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(str(error))


def says_out_of_memory(message: str) -> bool:
    """Return True if the message of an error means that the memory of the GPU ran out.

    >>> says_out_of_memory("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), says_out_of_memory("no file")
    (True, False)
    """
    return any(part in message for part in _MESSAGES)
