"""Pictures, captions and tables as people hand them over: each odd one is named, none is fatal."""

import pytest
import test_images as pictures

from faults.catalog import fault
from sdslib.images import ImageError, open_image


def refused(call, *args, error):
    with pytest.raises(error) as caught:
        call(*args)
    return caught.value


@fault(
    17,
    "32-bit pixels",
    "depth.tiff: I pixels from 0 to 255 have no known white; convert it to 8-bit RGB",
)
def test_32_bit_pixels():
    data = pictures.deep_tiff([0, 255], 32, kind=2)
    return refused(open_image, data, "depth.tiff", error=ImageError)
