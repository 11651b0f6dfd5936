"""What a run may use up while it works; the estimate before it starts is the plan's affair (`deepspec.plan.budget`).

A stage that reaches a cap is asked to stop like one that is cancelled: it saves, and a run with a wider cap goes on.
"""

from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict

from deepspec.errors import BudgetError, StoreError
from deepspec.plan import presets
from deepspec.plan.plan import Limits
from deepspec.store import Store


class Caps(BaseModel):
    """The caps of one run, in the form in which they can be looked at again and again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    until: AwareDatetime | None = None
    """When to stop: the hours given, or those that the money given pays for."""
    store_bytes: int | None = None
    """How much the run's artifacts may hold together."""
    prefixes: tuple[str, ...] = ()
    """Where the run's artifacts lie, so far."""

    def check(self, store: Store) -> None:
        """Return while nothing is used up.

        Raises:
            BudgetError: a cap is reached; names the setting that widens it.
        """
        error = self.reached(store)
        if error is not None:
            raise error

    def reached(self, store: Store) -> BudgetError | None:
        """Return what is to be raised where a cap is reached."""
        goes_on = "what is done is saved; a run with a wider limit goes on from there"
        if self.until is not None and datetime.now(UTC) >= self.until:
            return BudgetError(f"the run has used up limits.hours or limits.money; {goes_on}")
        if self.store_bytes is None:
            return None
        held = sum(sum(store.sizes(prefix).values()) for prefix in self.prefixes)
        if held <= self.store_bytes:
            return None
        return BudgetError(f"the run holds {held / 1e9:.3g} GB in {store.root}, above limits.disk_gb; {goes_on}")

    def reached_now(self, store: Store) -> BudgetError | None:
        """Return the same while something runs: a store that cannot be asked now is asked again later."""
        try:
            return self.reached(store)
        except StoreError:
            return None

    def at(self, *prefixes: str) -> "Caps":
        """Return the caps of a run that also works at some prefixes."""
        return self.model_copy(update={"prefixes": tuple(dict.fromkeys((*self.prefixes, *prefixes)))})


def caps_of(limits: Limits, spent: timedelta) -> Caps:
    """Return the caps of a run that starts now.

    Args:
        limits: of its plan.
        spent: time that earlier attempts of the same run took.
    """
    hours = [limits.hours] if limits.hours is not None else []
    machine = presets.hardware(limits.hardware)
    if limits.money is not None and machine.device_hour:
        hours.append(limits.money / (machine.device_hour * machine.devices))
    return Caps(
        until=datetime.now(UTC) + timedelta(hours=min(hours)) - spent if hours else None,
        store_bytes=round(limits.disk_gb * 1e9) if limits.disk_gb is not None else None,
    )
