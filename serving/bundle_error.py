"""The error of reading a bundle, for code that needs nothing else from `serving.bundle`."""


class BundleError(Exception):
    """The directory is not a usable bundle. The message gives the cause and the remedy."""
