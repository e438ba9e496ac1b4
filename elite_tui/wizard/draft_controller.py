"""Handles all of the user's changes to the draft and saves it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from elite_tui.format.figures import printable
from elite_tui.state_part import StatePart
from elite_tui.wizard.presets import Preset, apply
from elite_tui.wizard.what_if import FIELDS, key_of
from engine.config import field_spec, to_mapping
from engine.errors.planning import OPTIMIZATION_UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.timer import Timer

    from elite_tui.host import Host
    from elite_tui.state import AppState
    from elite_tui.wizard.controller import WizardController
    from engine.config import RunConfig
    from engine.plan.optimizations import OptimizationState

SAVE_DELAY = 0.5
"Seconds until typed text is saved: the most that a killed app can lose."


class DraftController:
    """Changes the draft, saves it, and notifies the wizard's controller, which repeats dependent requests."""

    def __init__(self, host: Host, state: AppState, controller: WizardController) -> None:
        self._host = host
        self._state = state
        self._controller = controller
        self._save_timer: Timer | None = None

    def edit(self, path: str, text: str) -> None:
        """Handles typing into a field."""
        # Controls also report their initial value.
        if self._state.draft.set_text(path, text):
            self.changed(path)

    def changed(self, path: str) -> None:
        """Notifies the controller and the screens of a changed field, and saves soon."""
        self._controller.draft_changed(path)
        self.save_soon()
        self._host.tell(StatePart.DRAFT)

    def keep(self, name: str, text: str) -> None:
        """Saves a setting of the wizard itself beside the configuration; empty deletes it."""
        self._state.draft.keep(name, text)
        self.save_soon()

    # --- saving ---------------------------------------------------------------------------------------------

    def save_soon(self) -> None:
        """Saves the draft within SAVE_DELAY, also during continuous typing."""
        if self._save_timer is None:
            self._save_timer = self._host.set_timer(SAVE_DELAY, self.save)

    def save(self) -> None:
        """Saves the draft; notifies the user if the state directory cannot be written."""
        self._save_timer = None
        try:
            self._state.draft.save()
        except OSError as error:
            self._host.notify(
                f"the wizard's entries cannot be kept: {printable(str(error))}",
                severity="warning",
                markup=False,
            )

    def close(self) -> None:
        """Saves the draft a last time; ignores errors."""
        with contextlib.suppress(OSError):
            self._state.draft.save()

    # --- the tier and the what-if machine -------------------------------------------------------------------

    def choose_tier(self, tier: int | None) -> None:
        """Chooses a tier; None leaves the choice to the engine."""
        draft = self._state.draft
        draft.reset("training.context")
        draft.set("training.tier", tier)
        self.changed("training.tier")

    def type_what_if(self, name: str, text: str) -> None:
        """Handles typing into a field of the what-if machine."""
        if text.strip() != self._state.draft.kept(key_of(name)):
            self.keep(key_of(name), text.strip())
            self._controller.what_if_typed()

    def clear_what_if(self) -> None:
        """Clears the what-if machine, so that this machine is planned for again."""
        for name in FIELDS:
            self.keep(key_of(name), "")
        self._controller.ask_what_if()

    # --- switches and presets -------------------------------------------------------------------------------

    def switch(self, name: str) -> None:
        """Toggles one optimisation.

        Raises:
            EliteError: CONFIG_INVALID for the draft; OPTIMIZATION_CONFLICT or _UNAVAILABLE with the reason.
        """
        from engine.plan.optimizations import find_optimization, is_switched_on, toggle

        config = self._state.draft.run_config()
        state = next((state for state in self._states() if state.id == name), None)
        on = state.state == "on" if state is not None else False
        if state is not None and state.state == "unavailable":
            on = is_switched_on(config, find_optimization(name))
            if not on:
                raise OPTIMIZATION_UNAVAILABLE(id=name, reason=state.reason, remedy="the plan goes on without it")
        self._take(config, toggle(config, name, on=not on))

    def unswitch(self, name: str) -> None:
        """Resets one optimisation to its default."""
        from engine.plan.optimizations import find_optimization

        self._set({path: field_spec(path).default for path in find_optimization(name).switch_off})

    def apply_preset(self, preset: Preset) -> Mapping[str, str]:
        """Applies a preset and returns the optimisations that are not available here, with reasons.

        Raises:
            EliteError: CONFIG_INVALID for the draft.
        """
        plans = self._state.tiers.value
        config = self._state.draft.run_config()
        machine = plans.machine if plans is not None else None
        if machine is None:
            return {}
        applied = apply(preset, config, machine, {state.id: state for state in self._states()})
        self._take(config, applied.config)
        return applied.left_out

    def _states(self) -> Sequence[OptimizationState]:
        plans = self._state.tiers.value
        return plans.states if plans is not None else ()

    def _take(self, before: RunConfig, after: RunConfig) -> None:
        """Writes the fields that differ between two configurations into the draft."""
        old, new = to_mapping(before), to_mapping(after)
        changed = {
            f"{section}.{name}": value
            for section, fields in new.items()
            for name, value in fields.items()
            if value != old[section][name]
        }
        self._set(changed)

    def _set(self, values: Mapping[str, Any]) -> None:
        for path, value in values.items():
            self._state.draft.set(path, value)
        for path in values:
            self.changed(path)
        if values:
            self._controller.ask_tiers()
