"""Shows the optimisations, switched singly or by preset, and a form with every field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Input, OptionList, Static

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format.figures import bytes_in_words, duration_in_words, printable, signed_bytes, signed_duration
from elite_tui.format.optimizations import detail
from elite_tui.format.tiers import summary
from elite_tui.screens.app_screen import EVERYTHING, WizardScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.optimization_list import OptimizationList
from elite_tui.widgets.option_form import OptionForm
from elite_tui.widgets.text_block import TextBlock
from elite_tui.wizard.draft import PROJECT_FIELDS
from elite_tui.wizard.presets import PRESETS
from engine.errors import EliteError
from engine.quantities import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.events import Key
    from textual.widget import Widget

    from elite_tui.wizard.plans import Plans

DRAWN_FROM = frozenset({StatePart.DRAFT, StatePart.REPOSITORY, StatePart.MACHINE, StatePart.TIERS, StatePart.PREFLIGHT})
VIEW = "options.view"
"Key under which the draft keeps the current view."


class OptionsScreen(WizardScreen):
    """Screen of all settings beside model and context."""

    ROOM = "options"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "options.tcss"

    _before: Plans | None = None
    "The plan before the last switch, as the baseline of the shown changes."
    _form: OptionForm | None = None
    "The form, also while it is being mounted."

    def compose_body(self) -> Iterable[Widget]:
        """Composes the verdict, the presets, the list with its details, and the form that replaces them."""
        self.set_class(self._shows_fields, "-fields", update=False)
        yield TextBlock(id="verdict")
        with Vertical(id="switches"):
            with Horizontal(id="presets"):
                yield Static("Presets", classes="label", markup=False)
                for index, preset in enumerate(PRESETS):
                    button = Button(f"{index + 1} {preset.label}", id=f"preset-{preset.name}", compact=True)
                    button.tooltip = preset.sentence
                    yield button
            with Horizontal(id="split"):
                yield OptimizationList(id="optimizations")
                with VerticalScroll(id="about", can_focus=False):
                    yield TextBlock(id="detail")
        yield Vertical(id="fields")
        yield self.steps()

    def enter(self) -> None:
        """Mounts the form where it is the last view or a field has a problem; focuses the list otherwise."""
        if self._shows_fields:
            self._form = self._new_form()
            self.call_after_refresh(self._mount_form)
        else:
            self.query_one(OptimizationList).focus()

    @property
    def _shows_fields(self) -> bool:
        draft = self.state.draft
        return draft.kept(VIEW) == "fields" or bool(draft.problems().keys() - PROJECT_FIELDS.keys())

    def _new_form(self) -> OptionForm:
        return OptionForm(self.state.draft, self.state.problems(), PROJECT_FIELDS, id="form")

    async def _mount_form(self) -> None:
        fields, form = self.query_one("#fields"), self._form
        await fields.remove_children()
        if form is None or form is not self._form or form.is_attached:
            return  # in the meantime the switches were asked for
        await fields.mount(form)
        if not self.is_left:
            self.show(EVERYTHING)

    def show(self, changed: Parts) -> None:
        """Draws the verdict and the current view."""
        if changed.isdisjoint(DRAWN_FROM):
            return
        for form in self.query(OptionForm):
            form.show(self.state.problems(), self._placeholders())
        plans = self.state.tiers.value
        if plans is not None:
            from engine.plan.optimizations import optimizations

            states = {state.id: state for state in plans.states}
            self.query_one(OptimizationList).show(optimizations(), states)
            self._show_detail()
        self.query_one("#verdict", TextBlock).update(self._verdict())
        self.refresh_bindings()

    def _placeholders(self) -> dict[str, str]:
        """Returns what empty fields show of the plan."""
        plans = self.state.tiers.value
        if plans is None:
            return {}
        from engine.data.fim import DEFAULT_SHARE
        from engine.models.fim_support import can_fill_in
        from engine.plan.learning_rate import automatic_rate

        rate = automatic_rate(plans.spec, plans.config.training, plans.config.lora)
        shown = {"training.learning_rate": f"auto ({rate:.1e})"}
        if (known := can_fill_in(plans.spec)) is not None:
            shown["data.fim"] = f"auto ({DEFAULT_SHARE if known else 0:g})"
        return shown

    # --- the verdict ---------------------------------------------------------------------------------------

    def _verdict(self) -> Content:
        """Counts invalid fields, or formats the plan's cost and the effect of the last switch."""
        state = self.state
        problems = {path: problem for path, problem in state.problems().items() if path not in PROJECT_FIELDS}
        if problems:
            path, problem = next(iter(problems.items()))
            return Content.assemble(
                (f"✗ {counted(len(problems), 'problem')} to fix", "$text-error bold"),
                f"   {path}: {printable(problem.problem)}",
                ("; f8 goes there", "$muted"),
            )
        changed = sum(not state.draft.is_default(path) for path in _paths() if path not in PROJECT_FIELDS)
        valid = Content.assemble(
            ("✓ all fields are valid", "$text-success"),
            (f"   {changed} changed from {'its' if changed == 1 else 'their'} default" if changed else "", "$muted"),
        )
        plans = state.tiers.value
        if self.has_class("-fields") or plans is None or plans.choice is None:
            return valid
        plan = plans.choice.plan
        before = self._before.choice.plan if self._before is not None and self._before.choice is not None else None
        former = before or plan
        figures = [
            ("GPU", plan.gpu_peak_bytes, former.gpu_peak_bytes),
            ("RAM", plan.host_peak_bytes, former.host_peak_bytes),
        ]
        line = Content.styled(summary(plan, steps=False), "bold")
        for label, now, then in figures:
            if now:
                change = signed_bytes(now - then)
                line = Content.assemble(line, (f"   {label} ", "$muted"), bytes_in_words(now), _change(change))
        if before is not None and before.context == plan.context:
            change = signed_duration(plan.step_seconds - before.step_seconds)
            line = line.append(Content.assemble(("   a step", "$muted"), _change(change)) if change else "")
        elif before is not None:
            line = line.append(Content.styled(f"   before: {duration_in_words(before.step_seconds)} a step", "$muted"))
        return line if self.has_class("-narrow") else line.append(Content.styled("   predicted", "$muted"))

    # --- the optimisations ---------------------------------------------------------------------------------

    @on(OptionList.OptionHighlighted)
    def _highlighted(self) -> None:
        self._show_detail()

    def _show_detail(self) -> None:
        from engine.plan.optimizations import optimizations, papers

        plans, name = self.state.tiers.value, self.query_one(OptimizationList).present
        if plans is None or name is None:
            return
        rows = {row.id: (row, state) for row, state in zip(optimizations(), plans.states, strict=True)}
        if name not in rows:
            return
        cited = {
            arxiv: f"{paper.title}, {paper.authors} ({paper.year})"
            for arxiv in rows[name][0].papers
            if (paper := papers().get(arxiv)) is not None
        }
        width = max(30, self.query_one("#about").content_size.width - 1)
        self.query_one("#detail", TextBlock).update(detail(*rows[name], rows, cited, width))

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        """Toggles the row, or shows the reason if it cannot."""
        name = event.option_id
        if name is None:
            return
        before = self.state.tiers.value
        try:
            self.elite.drafting.switch(name)
        except EliteError as error:
            self.notify(error.message, title=error.remedy, severity="warning", markup=False)
        else:
            self._before = before

    def action_switch(self) -> None:
        """Toggles the row under the cursor."""
        self.query_one(OptimizationList).action_select()

    @on(Button.Pressed, "#presets Button")
    def _preset_pressed(self, event: Button.Pressed) -> None:
        self.action_preset((event.button.id or "").removeprefix("preset-"))
        self.query_one(OptimizationList).focus()

    def action_preset(self, name: str) -> None:
        """Applies a preset and reports its unavailable optimisations."""
        preset = next(preset for preset in PRESETS if preset.name == name)
        before = self.state.tiers.value
        try:
            left_out = self.elite.drafting.apply_preset(preset)
        except EliteError as error:
            self.notify(error.message, title=error.remedy, severity="warning", markup=False)
            return
        self._before = before
        if left_out:
            lines = [f"{name}: {reason}" for name, reason in left_out.items()]
            self.notify("\n".join(lines), title=f"{preset.label}, but for", markup=False, timeout=10)
        else:
            self.notify(preset.sentence, title=preset.label, markup=False)

    def action_preset_fastest(self) -> None:
        """Applies the preset for the fastest exact step."""
        self.action_preset("fastest")

    def action_preset_memory(self) -> None:
        """Applies the preset for the least memory."""
        self.action_preset("least-memory")

    def action_preset_exact(self) -> None:
        """Applies the preset without approximations."""
        self.action_preset("exact")

    def action_preset_defaults(self) -> None:
        """Resets every switch to its default."""
        self.action_preset("defaults")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows presets only beside the switches, and the way to a problem only if there is one."""
        if action == "next_problem":
            return bool(self.state.problems().keys() - PROJECT_FIELDS.keys())
        return not ((action == "switch" or action.startswith("preset_")) and self.has_class("-fields"))

    # --- the form ------------------------------------------------------------------------------------------

    def action_all_fields(self) -> None:
        """Toggles between the switches and the form."""
        fields = not self.has_class("-fields")
        self.set_class(fields, "-fields")
        self.elite.drafting.keep(VIEW, "fields" if fields else "")
        self._form = self._new_form() if fields else None
        if fields:
            self.set_focus(None)  # what is typed from now on waits for the form
            self.call_later(self._mount_form)
        else:
            self.query_one(OptimizationList).focus()
            self.show(EVERYTHING)
        self.refresh_bindings()

    def action_reset_field(self) -> None:
        """Resets the field or the switch under the cursor to its default."""
        for form in self.query(OptionForm):
            if self.has_class("-fields"):
                form.reset_field()
                return
        name = self.query_one(OptimizationList).present
        if name is not None:
            self._before = self.state.tiers.value
            self.elite.drafting.unswitch(name)

    def action_next_problem(self) -> None:
        """Focuses the next field with a problem."""
        if not self.has_class("-fields"):
            self.action_all_fields()  # whose form begins with it
        elif self._form is not None:
            self._form.next_problem()

    def focus_next(self, selector: str | type[Any] = "*") -> Widget | None:
        """Focuses the next widget; in the form the next field, however fast the key is pressed."""
        if self._form is not None and self._form.move_focus(1):
            return self.focused
        return super().focus_next(selector)

    def focus_previous(self, selector: str | type[Any] = "*") -> Widget | None:
        """Focuses the widget before; in the form the field before, and from behind the form its last one."""
        form = self._form
        if form is None:
            return super().focus_previous(selector)
        if form.move_focus(-1):
            return self.focused
        inside = form.has_focus_within
        focused = super().focus_previous(selector)
        if not inside and form.has_focus_within:
            form.focus_last()
        return focused

    def keep_key(self, event: Key) -> bool:
        """Keeps what is typed before the form has mounted the field for it."""
        return self._form is not None and self._form.keep(event)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.app.action_focus_next()

    def on_resize(self) -> None:
        """Fits the columns to the new width."""
        self.call_after_refresh(self.show, {StatePart.TIERS})


def _paths() -> list[str]:
    from engine.config import fields

    return [spec.path for spec in fields()]


def _change(text: str) -> Content:
    style = "$text-success" if text.startswith("−") else "$text-warning"
    return Content.styled(f" {text}", style) if text else Content("")
