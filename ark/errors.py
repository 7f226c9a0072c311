"""The one exception for what a user can mend."""


class ConfigError(ValueError):
    """A mistake of the user's in a configuration or a dataset: the message names the fix."""
