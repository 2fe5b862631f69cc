"""Read, resize and write images as upright RGB, with alpha, 16 bits, colours and metadata.

The rest of the package sees only ``RGBImage`` and arrays.
"""

from quantface_arch.utils.images.animation import Animation, open_animation, write_animation
from quantface_arch.utils.images.formats import FORMAT_NAMES, SUFFIXES, missing_decoder
from quantface_arch.utils.images.opening import MIN_SIDE
from quantface_arch.utils.images.read import (
    decode_rgb,
    find_images,
    from_pil,
    load_rgb,
    read_image,
    read_size,
)
from quantface_arch.utils.images.rgb_image import RGBImage, resize, to_uint8
from quantface_arch.utils.images.write import MAX_OUTPUT_PIXELS, write_image
from quantface_arch.utils.limits import MAX_PIXELS

__all__ = [
    "FORMAT_NAMES",
    "MAX_OUTPUT_PIXELS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "SUFFIXES",
    "Animation",
    "RGBImage",
    "decode_rgb",
    "find_images",
    "from_pil",
    "load_rgb",
    "missing_decoder",
    "open_animation",
    "read_image",
    "read_size",
    "resize",
    "to_uint8",
    "write_animation",
    "write_image",
]
