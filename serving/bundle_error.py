"""The failure of reading a bundle, for code that needs nothing else of `serving.bundle`."""


class BundleError(Exception):
    """The directory is not a usable bundle; the message says what is wrong and what to do about it."""
