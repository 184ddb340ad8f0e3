"""The handwritten digits that come with scikit-learn: real images without a download."""

import numpy as np

from guidex.data.image_set import ImageSet, array_images


def digits(resize: int | None = None) -> ImageSet:
    """1797 grey images 8x8, or resized, of the digits 0 ... 9, which are also their labels.

    The images are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and
    Kaynak 1998, UCI machine learning repository, CC BY 4.0). Their values 0 ... 16 are spread over
    0 ... 255 and rounded, so that the middle 8 becomes 128.
    """
    # Imported here: it takes a second, and few commands need it.
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    names = [str(digit) for digit in range(10)]
    return array_images(pixels, labels=labels.astype(np.int64), class_names=names, resize=resize)
