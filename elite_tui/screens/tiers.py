"""Shows eleven contexts for a model on this or another machine: whether each fits, its cost, and the memory sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.suggester import SuggestFromList
from textual.widgets import DataTable, Input, Static

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format.figures import printable, whole_gibibytes
from elite_tui.format.tiers import costs, machine_in_words, probed, summary, time_sum, title, verdict, ways_in_words
from elite_tui.screens.app_screen import WizardScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.breakdown import Breakdown, Limit, bars, sums
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.line_input import LineInput
from elite_tui.widgets.text_block import TextBlock
from elite_tui.widgets.tier_table import TierTable
from elite_tui.wizard.what_if import FIELDS, WhatIf, key_of
from engine.config import field_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.wizard.plans import Plans
    from engine.errors import EliteError
    from engine.plan.planner import TierPlan

DRAWN_FROM = frozenset(
    {
        StatePart.MACHINE,
        StatePart.REPOSITORY,
        StatePart.TIERS,
        StatePart.WHAT_IF,
        StatePart.WAYS,
        StatePart.PROBE,
        StatePart.MEASURING,
        StatePart.DRAFT,
    }
)
WHAT_IF_LABELS = {"card": "card", "vram": "VRAM", "ram": "RAM"}
NARROW_BELOW = 100
ASIDE_FROM = 160
"Width from which the time stands below the table, outside the memory pane."


class TiersScreen(WizardScreen):
    """Screen of the model and its context."""

    ROOM = "tiers"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "tiers.tcss"
    AUTO_FOCUS = ""
    "Focus is set once the table has rows; until then keys would go to the first field."

    def compose_body(self) -> Iterable[Widget]:
        """Composes the inputs, the choice, the table, and the sums for the row under the cursor."""
        draft = self.state.draft
        with Horizontal(id="asked"):
            with Horizontal(id="subject"):
                yield FieldRow(field_spec("model.name"), draft, label="Model")
                yield FieldRow(field_spec("model.precision"), draft, label="in")
            with Horizontal(id="what-if"):
                yield Static("What if", classes="label", markup=False)
                for name in FIELDS:
                    yield Static(WHAT_IF_LABELS[name], classes="small", markup=False)
                    yield LineInput(draft.kept(key_of(name)), id=f"what-if-{name}", compact=True, select_on_focus=False)
        yield TextBlock(id="choice")
        with Horizontal(id="split"):
            with Vertical(id="left"):
                yield TierTable(id="tiers")
                with VerticalScroll(id="aside", can_focus=False):
                    yield TextBlock(id="ways-aside")
                    yield TextBlock(id="time-aside")
            with VerticalScroll(id="sum", can_focus=True):
                yield TextBlock(id="title")
                yield Breakdown(bars, id="bars")
                yield TextBlock(id="verdict")
                yield TextBlock(id="ways")
                yield Breakdown(sums, id="breakdown")
                yield TextBlock(id="time")
        yield self.steps()

    def enter(self) -> None:
        """Puts the cursor on the chosen tier; loads the catalogues after the first frame."""
        self.query_one(TierTable).focus()
        self.call_after_refresh(self._suggest)

    def _suggest(self) -> None:
        from engine.hardware.cards import cards

        model = self.query_one("#field-model-name", FieldRow).control
        if isinstance(model, Input):
            model.suggester = SuggestFromList(list(self.elite.controller.models()), case_sensitive=False)
        self.query_one("#what-if-card", Input).suggester = SuggestFromList(list(cards()), case_sensitive=False)

    def show(self, changed: Parts) -> None:
        """Draws the table for the current settings."""
        if changed.isdisjoint(DRAWN_FROM):
            return
        state = self.state
        plans = state.shown_plans
        self.query_one("#choice", TextBlock).update(self._choice())
        problems = state.problems()
        for row in self.query(FieldRow):
            row.show(problems.get(row.spec.path))
        self._show_placeholders()
        table = self.query_one(TierTable)
        waiting = plans is None and (state.tiers.loading or state.what_if.loading)
        if table.loading != waiting:
            table.loading = waiting
            if not waiting and self.focused is None:
                table.focus()
        if plans is not None:
            table.fill(plans, state.draft.get("training.tier"))
            if table.row_count:  # filled once it is laid out, which highlights a row
                self._show_row(table.cursor_row)
        self.refresh_bindings()

    def _show_placeholders(self) -> None:
        """Shows this machine's values as placeholders of the empty fields."""
        machine = self.state.machine.value
        if machine is None:
            return
        gpu = machine.gpus[0] if machine.gpus else None
        for name, size in (("vram", gpu.memory_total if gpu else None), ("ram", machine.ram_total)):
            self.query_one(f"#what-if-{name}", Input).placeholder = whole_gibibytes(size) if size else "none"
        self.query_one("#what-if-card", Input).placeholder = (
            machine.simulated or (gpu.card if gpu else None) or "this one"
        )

    # --- the choice ----------------------------------------------------------------------------------------

    def _choice(self) -> Content:
        """Formats the plan that a run would use now in one line, or the reason why there is no table."""
        state = self.state
        if WhatIf.of(state.draft).active:
            return self._supposed()
        for error in (state.machine.error, state.tiers.error):
            if error is not None:
                return _refused(error)
        if state.probe.loading:
            words = printable(state.measuring) or "the worst part of this plan runs here"
            return Content.assemble(("probing …  ", "$text-accent bold"), words, ("   p stops it", "$muted"))
        plans = state.tiers.value
        if plans is None:
            problems = state.draft.problems()
            if problems:
                path = next(iter(problems))
                return Content.assemble(("✗ ", "$text-error"), f"{path} has a problem: correct it first")
            return Content.styled("planning …", "$muted")
        # A narrow terminal shows the machine in the what-if fields only.
        narrow = self.size.width < NARROW_BELOW
        head = Content.styled("" if narrow else f"{machine_in_words(plans)}   ", "$muted")
        if plans.refusal is not None:
            return head.append(_refused(plans.refusal))
        if plans.choice is None:
            return head
        chosen = state.draft.get("training.tier") is not None or state.draft.get("training.context") is not None
        stages = () if plans.choice.schedule is None else plans.choice.schedule.stages
        ending = {0: "recommended", 1: "all windows"}.get(len(stages), "windows grow to")
        how = "chosen" if chosen else ending
        return Content.assemble(head, (f"{how}: ", "$muted"), (summary(plans.choice.plan), "bold"))

    def _supposed(self) -> Content:
        """Describes the what-if machine, with a note that runs do not use it."""
        state = self.state
        if state.what_if.error is not None:
            return _refused(state.what_if.error)
        plans = state.what_if.value
        if plans is None:
            return Content.styled("planning for another machine …", "$muted")
        recommended = plans.table.recommended
        best = plans.table.row(recommended) if recommended else plans.choice.plan if plans.choice else None
        words = f"recommended there: {summary(best)}" if best else "no tier fits there"
        return Content.assemble(
            ("? what if  ", "$text-warning bold"),
            f"{machine_in_words(plans)}   ",
            (words, "bold"),
            ("   training uses this machine; x clears", "$muted"),
        )

    # --- the row under the cursor --------------------------------------------------------------------------

    @on(DataTable.RowHighlighted)
    def _row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        self._show_row(event.cursor_row)

    def _show_row(self, row: int) -> None:
        plans = self.state.shown_plans
        if plans is None or not 0 <= row < len(plans.table.tiers):
            return
        plan = plans.table.tiers[row]
        epochs = self.state.draft.get("training.epochs")
        words = verdict(plan, plans.table)
        words.append(costs(plan, epochs, can_probe=plan.fits and bool(self.check_action("probe", ()))))
        words += probed(plan, self.state.probe, self.state.measuring)
        self.query_one("#title", TextBlock).update(title(plan))
        self.query_one("#verdict", TextBlock).update(Content("\n").join(words))
        machine, usable = plans.machine, plans.usable
        limits = {
            "gpu": Limit(total=machine.gpus[0].memory_total if machine.gpus else None, usable=usable.gpu),
            "host": Limit(total=machine.ram_total, usable=usable.host),
            "disk": Limit(total=machine.disk_free, usable=usable.disk),
        }
        for breakdown in self.query(Breakdown):
            breakdown.show(plan.parts, limits)
        width = self.query_one("#left" if self.size.width >= ASIDE_FROM else "#sum").content_size.width
        for name in ("#time", "#time-aside"):
            self.query_one(name, TextBlock).update(time_sum(plan.time, max(40, width - 2)))
        self._show_ways(plan, plans)

    def _show_ways(self, plan: TierPlan, plans: Plans) -> None:
        """Shows the changes with which a row fits; asks the planner once per row that does not."""
        ways = self.state.ways
        for name in ("#ways", "#ways-aside"):
            self.query_one(name, TextBlock).set_class(plan.fits, "-nothing")
        if plan.fits:
            return
        asked = (plans, plan.context)
        if self._ways_of != asked:
            self._ways_of = asked
            ways.settle_nothing()
            self.elite.controller.ask_ways(plans, plan.context)
        words = ways_in_words(plan, ways)
        for name in ("#ways", "#ways-aside"):
            self.query_one(name, TextBlock).update(words)

    _ways_of: tuple[Plans, int] | None = None
    "Table and context of the latest request for remedies."

    @on(DataTable.RowSelected)
    def _row_selected(self, event: DataTable.RowSelected) -> None:
        """Chooses a tier that fits this machine; if it is chosen already, moves to the next screen."""
        plans = self.state.tiers.value
        if plans is None:
            return
        plan = plans.table.tiers[event.cursor_row]
        draft = self.state.draft
        if not plan.fits:
            title = f"tier {plan.tier} on this machine"
            self.notify(f"{plan.reason}; {plan.remedy}", title=title, severity="warning", markup=False)
        elif draft.get("training.tier") == plan.tier:
            self.action_forward()
        else:
            self.elite.drafting.choose_tier(plan.tier)

    # --- inputs --------------------------------------------------------------------------------------------

    @on(Input.Changed, "#what-if Input")
    def _what_if_typed(self, event: Input.Changed) -> None:
        name = (event.input.id or "").removeprefix("what-if-")
        self.elite.drafting.type_what_if(name, event.value)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        """Focuses the table, which shows the answer."""
        self.query_one(TierTable).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows clearing only with a what-if machine, and probing only on this machine; stopping a probe always."""
        supposed = WhatIf.of(self.state.draft).active
        if action == "probe":
            return self.state.probe.loading or (not supposed and self.state.simulated is None)
        return supposed if action == "clear_what_if" else True

    def action_probe(self) -> None:
        """Runs the worst part of the plan under the cursor, or stops a running probe."""
        plans = self.state.tiers.value
        if self.state.probe.loading:
            self.elite.controller.stop_measuring()
            self.notify("stopped; nothing of it is kept", title="Probe", markup=False)
        elif plans is not None:
            plan = plans.table.tiers[self.query_one(TierTable).cursor_row]
            if plan.fits:
                self.elite.controller.run_probe(plan)
            else:
                self.notify("a plan that does not fit cannot be run", severity="warning", markup=False)

    def action_what_if(self) -> None:
        """Focuses the what-if fields."""
        self.query_one("#what-if-card", Input).focus()

    def action_clear_what_if(self) -> None:
        """Returns to this machine."""
        for name in FIELDS:
            self.query_one(f"#what-if-{name}", Input).value = ""
        self.elite.drafting.clear_what_if()
        self.query_one(TierTable).focus()

    def action_models(self) -> None:
        """Opens the model catalogue with each model's tiers."""
        from elite_tui.screens.models import ModelsScreen

        self.app.push_screen(ModelsScreen(self.state, self.elite.controller), self._model_chosen)

    def _model_chosen(self, name: str | None) -> None:
        if name is not None:
            self.query_one("#field-model-name", FieldRow).set_text(name)
            self.query_one(TierTable).focus()

    def action_recommend(self) -> None:
        """Leaves the choice to the engine."""
        self.elite.drafting.choose_tier(None)
        plans = self.state.shown_plans
        if plans is not None:
            table = self.query_one(TierTable)
            table.move_cursor(row=table.row_of(plans, None))

    def action_rescan(self) -> None:
        """Takes the inventory and plans again."""
        self.elite.controller.ask_machine()

    def on_resize(self) -> None:
        """Fits the columns to the new width."""
        self.call_after_refresh(self.show, {StatePart.TIERS})


def _refused(error: EliteError) -> Content:
    return Content.assemble(("✗ ", "$text-error"), printable(error.message), (f"; {printable(error.remedy)}", "$muted"))
