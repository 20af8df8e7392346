"""What kernels of this environment do not say.

A notebook's kernel talks to its server on this machine's loopback alone, so ipykernel's warning
of a connection without encryption, the first line of every papermill run, would tell nobody
anything. All else that a kernel logs is kept.
"""


def told(record):
    """Whether a line is logged."""
    return "TCP without encryption" not in record.getMessage()


c = get_config()  # noqa: F821
c.IPKernelApp.logging_config = {
    "filters": {"told": {"()": lambda: told}},
    "handlers": {"console": {"filters": ["told"]}},
}
