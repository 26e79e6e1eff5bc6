"""Free memory of a GPU, and the error messages that mean "out of memory"."""

import torch

# Libraries that torch calls report a lack of memory by a RuntimeError. With cuDNN's benchmark,
# torch skips every algorithm whose workspace does not fit, and finds none in the end.
_MESSAGES = (
    "unable to find an engine to execute",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator:",  # of a CPU: "can't allocate memory", on Windows "not enough memory"
    "out of memory",  # of CUDA and Triton, if the allocation is not one of torch's allocator
)


def free_bytes(device: torch.device) -> int:
    """Return the memory of a GPU in bytes that this process can still allocate.

    The result is the memory that CUDA reports as free, plus the unused part of the memory that
    torch's allocator has reserved. During validation in a training, nearly all free memory is in
    that part.
    """
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that the memory of a GPU or of the computer ran out.

    The type of the error decides or, because some libraries raise a `RuntimeError`, its message.
    """
    is_by_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_by_type or says_out_of_memory(str(error))


def says_out_of_memory(message: str) -> bool:
    """Return True if the message of an error means that memory ran out.

    >>> says_out_of_memory("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), says_out_of_memory("no file")
    (True, False)
    """
    return any(part in message for part in _MESSAGES)


def first_line(message: str) -> str:
    r"""Return the first line of an error's message without its full stop, to quote it.

    torch adds further lines of advice for programmers. An empty message, as of Python's
    `MemoryError`, gives "MemoryError".

    >>> first_line("CUDA error: out of memory.\nSearch for `cudaErrorMemoryAllocation`.")
    'CUDA error: out of memory'
    """
    return (message.splitlines() or ["MemoryError"])[0].rstrip(".")
