"""What changes the release: names and licences on its card."""

from deepspec.specs import Spec


class ReleaseOptions(Spec):
    """What a user sets of the release."""

    title: str = ""
    """Heading of the card; empty: made from target and algorithm."""


class ReleaseSpec(ReleaseOptions):
    """Write the model card and lay out what is published with it."""

    target: str
    """Hub id or name of the target."""
    target_license: str = "other"
    """Licence of the target, which the draft inherits: it holds copies of the target's embedding and head."""
    dataset: str = "own"
    """Name of the prompts."""
    dataset_license: str = "other"
    """Licence of the prompts."""
    previous: str | None = None
    """Address of the scores of the release before this one, which its report is compared with."""
