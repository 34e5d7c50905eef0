//! The switch: one function's vectors, routes and table mode.
//!
//! Two owners. In *legacy* the routes follow the trapped, emulated table, as
//! without PV-MSI. Once the guest has configured, they are *assigned*: routes
//! follow the protocol, and the table is direct if and only if
//! [`FunctionState::reasons`] is empty. Each event changes a part of this state
//! and then calls [`FunctionState::converge`] (routes and events) and
//! [`FunctionState::evaluate`] (table mode), which make the world match. A call
//! that may fail does so in an `attempt`.
//!
//! Where an event of a vector waits:
//!
//! | | masked by | waits in |
//! |---|---|---|
//! | legacy, or assigned and trapped | the emulated mask bit, Function Mask, no message yet | its eventfd, to which KVM is not attached; the function's own mask bit is clear |
//! | assigned and direct | the mask bit in the function's table | the function's pending bit |
//! | | Function Mask, no message yet | its eventfd |
//!
//! Invariants, numbered as in the design: (1) no interrupt is lost, doubled or
//! delivered while masked: KVM is attached to an event only while the vector
//! may fire, and a vector whose function-side mask takes over is masked there,
//! settled and found empty before KVM is attached. (2) Pages of a function that
//! would not answer are not mapped: they are taken out before the cause.
//! (4) Direct only with isolation: `reasons` is the one place that decides.
//! What holds when the kernel refuses a step: `catch_up`.

use std::io;
use std::sync::Arc;

use pvmsi_protocol::{
    FunctionId, Generation, GuestMessage, Reasons, TableMessage, TableMode, VectorIndex,
};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::calls::Preparation;
use crate::capability::{NoMsix, Registers};
use crate::counters::Counters;
use crate::event;
use crate::function::{Isolation, PciFunction, TooFewInterrupts};
use crate::layout::{BarIndex, Layout};
use crate::platform::Platform;
use crate::policy::{FunctionPolicy, Policy};
use crate::rate_limit::RateLimit;
use crate::routes::{Gsi, Route, Routes};
use crate::window::{View, Window};

/// An entry of the emulated table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LegacyEntry {
    pub(crate) message: GuestMessage,
    pub(crate) masked: bool,
}

impl LegacyEntry {
    /// After power-on or reset.
    pub(crate) const RESET: Self =
        Self { message: GuestMessage { address: 0, data: 0 }, masked: true };
}

/// A vector whose route the protocol owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AssignedVector {
    pub(crate) message: Option<GuestMessage>,
    /// The guest's mask bit; in direct mode the table's own counts, and this is out of date.
    pub(crate) masked: bool,
}

/// Whom the routes follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// The emulated table, an entry for each vector of the function.
    Legacy(Vec<LegacyEntry>),
    /// The protocol: the granted vectors.
    Assigned(Vec<AssignedVector>),
}

/// A vector whose interrupt is set up in the function.
#[derive(Debug)]
pub(crate) struct Vector {
    pub(crate) event: EventFd,
    /// Absent for vectors that are set up only because set-up cannot grow later.
    pub(crate) gsi: Option<Gsi>,
    /// Where its GSI leads; absent where it leads nowhere that matters, since nothing is attached.
    pub(crate) installed: Option<Route>,
    pub(crate) attached: bool,
    /// What the table holds; absent until it could be read.
    pub(crate) table_message: Option<TableMessage>,
    /// The function's own mask bit may be set although the table is trapped.
    pub(crate) blocked: bool,
    /// The function holds the vector back, by its own mask bit, until the attempt ends.
    pub(crate) quiet: bool,
    /// Its event held a signal, which comes back when the attempt ends, and the vector is detached or may fire.
    pub(crate) aside: bool,
}

impl Vector {
    pub(crate) fn new(event: EventFd, gsi: Option<Gsi>) -> Self {
        Self {
            event,
            gsi,
            installed: None,
            attached: false,
            table_message: None,
            blocked: false,
            quiet: false,
            aside: false,
        }
    }

    /// Whether its GSI can be given away: what that leads to is nobody's concern then.
    pub(crate) fn is_out(&self) -> bool {
        !self.attached
    }
}

/// What the log says where there are fewer vectors than were asked for.
pub(crate) const SHORT_OF_INTERRUPTS: &str = "vectors of the function stay without interrupts";

/// The guest's view of MSI-X Message Control. Writes of it never reach the function; its own Enable follows this one ([`FunctionState::follow_enable`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct MsixControl {
    pub(crate) enable: bool,
    pub(crate) function_mask: bool,
}

/// What configuration space says of memory decoding, read after each write that can change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) decoding: bool,
    pub(crate) full_power: bool,
    pub(crate) bars: [Option<GuestAddress>; BarIndex::COUNT],
}

/// Everything about one function. It lives behind one lock.
pub(crate) struct FunctionState {
    pub(crate) id: FunctionId,
    pub(crate) platform: Platform,
    pub(crate) policy: FunctionPolicy,
    pub(crate) isolation: Isolation,
    pub(crate) layout: Layout,
    pub(crate) registers: Registers,
    /// Goes before the function: it holds the function's mappings.
    pub(crate) window: Box<dyn Window>,
    pub(crate) function: Box<dyn PciFunction>,
    pub(crate) routes: Arc<dyn Routes>,

    pub(crate) control: MsixControl,
    pub(crate) placement: Placement,
    pub(crate) owner: Owner,
    pub(crate) vectors: Vec<Vector>,
    /// How many vectors the function was last told to set up.
    pub(crate) set_up: usize,
    /// The function's own MSI-X Enable, as it was last told.
    pub(crate) enabled: bool,
    pub(crate) mode: TableMode,
    pub(crate) preparation: Option<Preparation>,
    /// A call is under way that can still fail.
    pub(crate) attempt: bool,
    /// The host has taken the table back.
    pub(crate) revoked: bool,
    /// The VM is at rest, to be saved, or restored and not running yet: nothing is attached.
    pub(crate) paused: bool,
    /// The vectors were assigned on another host: the guest must ask for the table again.
    pub(crate) migrated: bool,
    /// An event of a masked vector waits in its eventfd, so the table must stay trapped.
    pub(crate) held: bool,
    /// Handing the table over was tried and failed. `catch_up` says what tries again.
    pub(crate) unmappable: bool,
    /// Handing the table over was tried while something was owed. Tried again when it has been paid.
    pub(crate) owing: bool,
    /// The table has lost its messages while it could not be written.
    pub(crate) stale: bool,
    /// Something went wrong and is to be tried again.
    pub(crate) behind: bool,
    /// The memory map was not made as it should be.
    pub(crate) unshown: bool,
    /// Configuration space could not be read when the placement was to be learnt.
    pub(crate) unread: bool,
    /// Interrupts that should be down may still be set up.
    pub(crate) leftover: bool,
    /// Vectors that are no more, but could not be taken out of the routes.
    pub(crate) stuck: Vec<Vector>,
    pub(crate) generation: Generation,
    pub(crate) counters: Counters,
    pub(crate) log: RateLimit,
}

impl FunctionState {
    pub(crate) fn new(
        id: FunctionId,
        platform: Platform,
        policy: FunctionPolicy,
        mut function: Box<dyn PciFunction>,
        window: Box<dyn Window>,
        routes: Arc<dyn Routes>,
    ) -> Result<Self, NoMsix> {
        let registers = Registers::find(function.as_mut())?;
        let layout = function.layout().clone();
        let isolation = function.isolation();
        let mut state = Self {
            id,
            platform,
            policy,
            isolation,
            registers,
            owner: Owner::Legacy(vec![LegacyEntry::RESET; usize::from(layout.vectors())]),
            layout,
            function,
            window,
            routes,
            control: MsixControl::default(),
            placement: Placement {
                decoding: false,
                full_power: true,
                bars: [None; BarIndex::COUNT],
            },
            vectors: Vec::new(),
            set_up: 0,
            enabled: false,
            mode: TableMode::Trapped,
            preparation: None,
            attempt: false,
            revoked: false,
            paused: false,
            migrated: false,
            held: false,
            unmappable: false,
            owing: false,
            stale: false,
            behind: false,
            unshown: false,
            unread: false,
            leftover: false,
            stuck: Vec::new(),
            generation: Generation::default(),
            counters: Counters::default(),
            log: RateLimit::default(),
        };
        // A function may come with decoding on, at addresses that are the host's.
        state.power_on_config();
        state.refresh();
        Ok(state)
    }

    /// Why the table is not direct. Empty is the one condition for direct mode.
    pub(crate) fn reasons(&self) -> Reasons {
        let mut reasons = Reasons::empty();
        let isolated = self.isolation == Isolation::Isolated || self.policy.allow_unisolated;
        let mappable = self.window.table_can_be_direct() && !self.unmappable && !self.owing;
        reasons.set(Reasons::NOT_ASSIGNED, matches!(self.owner, Owner::Legacy(_)));
        reasons.set(Reasons::POLICY, self.policy.policy != Policy::Direct);
        reasons.set(Reasons::NO_ISOLATION, !isolated);
        reasons.set(Reasons::NOT_MAPPABLE, !mappable);
        reasons.set(Reasons::MSIX_DISABLED, !self.control.enable);
        reasons.set(Reasons::DECODING_OFF, !self.placement.decoding);
        reasons.set(Reasons::POWER_STATE, !self.placement.full_power);
        reasons.set(Reasons::HOST_REVOKED, self.revoked || self.paused);
        reasons.set(Reasons::HELD_EVENT, self.held);
        reasons.set(Reasons::MIGRATED, self.migrated);
        reasons
    }

    /// Vectors that are assigned.
    pub(crate) fn assigned(&self) -> u16 {
        match &self.owner {
            Owner::Legacy(_) => 0,
            // At most 2048, by construction.
            Owner::Assigned(vectors) => u16::try_from(vectors.len()).unwrap_or(u16::MAX),
        }
    }

    /// Whether the host may touch the table.
    pub(crate) fn accessible(&self) -> bool {
        self.placement.decoding && self.placement.full_power
    }

    /// What the guest's memory map shall show now.
    pub(crate) fn view(&self) -> View {
        if self.accessible() {
            View { bars: self.placement.bars, table: self.mode }
        } else {
            View::NOTHING
        }
    }

    /// Makes the memory map match the state.
    pub(crate) fn show(&mut self, view: &View) -> io::Result<()> {
        let shown = self.window.show(view);
        self.unshown = shown.is_err();
        if let Err(error) = &shown {
            self.complain("the guest's memory map could not be changed", error);
        }
        shown
    }

    /// Says what went wrong on a path that goes on all the same, at a bounded rate: a guest can cause it. The next operation tries to make up for it.
    pub(crate) fn complain(
        &mut self,
        what: &'static str,
        error: &(dyn std::error::Error + 'static),
    ) {
        self.behind = true;
        if self.log.allow() {
            tracing::error!(function = %self.id, error, "{what}");
        }
    }

    /// The mask bit that the guest would read.
    pub(crate) fn masked(&mut self, vector: VectorIndex) -> bool {
        match (&self.owner, self.mode) {
            (Owner::Assigned(_), TableMode::Direct) => self.function.masked(vector).unwrap_or(true),
            (Owner::Assigned(vectors), TableMode::Trapped) => {
                vectors.get(vector.as_usize()).is_none_or(|vector| vector.masked)
            }
            (Owner::Legacy(entries), _) => {
                entries.get(vector.as_usize()).is_none_or(|entry| entry.masked)
            }
        }
    }

    /// The pending bit that the guest would read.
    pub(crate) fn pending(&mut self, vector: VectorIndex) -> bool {
        let held = self
            .vectors
            .get(vector.as_usize())
            .is_some_and(|v| v.aside || !v.attached && event::is_signalled(&v.event));
        held || self.accessible() && self.function.pending(vector).unwrap_or(false)
    }

    /// Makes the function's own MSI-X Enable follow the guest's, whatever is masked: some functions look at it when they are started, before the first vector is unmasked, and guests may unmask last. Vectors that are set up have set it, and need it.
    pub(crate) fn follow_enable(&mut self) {
        let wanted = self.control.enable || !self.vectors.is_empty();
        if let Err(error) = self.set_enabled(wanted) {
            self.complain("MSI-X Enable of the function does not follow the guest's", &error);
        }
    }

    /// One request where the function's own MSI-X Enable is another; none otherwise. Clearing it takes all interrupts down.
    pub(crate) fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        if self.enabled == enabled && (enabled || !self.leftover) {
            return Ok(());
        }
        self.counters.enable_changes = self.counters.enable_changes.saturating_add(1);
        self.function.set_enabled(enabled)?;
        self.enabled = enabled;
        self.leftover &= enabled;
        Ok(())
    }

    /// One interrupt set-up for the first `count` vectors.
    pub(crate) fn set_up_interrupts(&mut self, count: usize) -> io::Result<()> {
        let events: Vec<_> = self.vectors.iter().take(count).map(|vector| &vector.event).collect();
        self.counters.interrupt_setups = self.counters.interrupt_setups.saturating_add(1);
        self.function.set_up_interrupts(&events)?;
        // Vectors that stay set up keep their messages, even where the table has lost them.
        let kept = self.set_up.min(count);
        self.set_up = count;
        self.enabled |= count > 0;
        self.leftover = false;
        for vector in self.vectors.iter_mut().skip(kept) {
            vector.table_message = None;
        }
        self.read_table_messages();
        Ok(())
    }

    /// One interrupt set-up for all vectors or, where the host is short of interrupts, for as many as it has; the others go, and leave their events in `spare`. At least for `least`.
    pub(crate) fn set_up_what_there_is(
        &mut self,
        least: usize,
        spare: &mut Vec<EventFd>,
    ) -> io::Result<()> {
        loop {
            let count = self.vectors.len();
            let Err(error) = self.set_up_interrupts(count) else { return Ok(()) };
            // Ends: each time it is fewer. It may be a guess, which must not miss what is enough.
            let next =
                TooFewInterrupts::of(&error).map(|few| usize::from(few.available).max(least));
            let Some(next) = next.filter(|&next| next < count) else { return Err(error) };
            self.complain(SHORT_OF_INTERRUPTS, &error);
            spare.extend(self.retire(next));
        }
    }

    /// Learns what the host has put into the table, as soon as it can be read.
    pub(crate) fn read_table_messages(&mut self) {
        if !self.accessible() || self.mode == TableMode::Direct {
            return;
        }
        let mut failure = None;
        for (index, vector) in (0..).zip(self.vectors.iter_mut().take(self.set_up)) {
            if vector.table_message.is_none() {
                match self.function.table_message(VectorIndex(index)) {
                    Ok(message) => vector.table_message = Some(message),
                    // Nor ever will.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
                    Err(error) => failure = Some(error),
                }
            }
        }
        if let Some(error) = failure {
            self.complain("the vector table could not be read", &error);
        }
    }

    /// Whether the host's kernel writes into the table by itself: without interrupt remapping it does when it moves an interrupt to another processor. A table that the operator has mapped all the same is the guest's to write as well, so its content says nothing.
    fn host_moves_messages(&self) -> bool {
        self.isolation != Isolation::Isolated
            && !self.policy.allow_unisolated
            && self.mode == TableMode::Trapped
    }

    /// Learns the messages that the host has changed by itself.
    pub(crate) fn follow_messages(&mut self) {
        if !self.accessible() || !self.host_moves_messages() {
            return;
        }
        let function = self.function.as_mut();
        let mut moved = false;
        for (index, vector) in (0..).zip(self.vectors.iter_mut().take(self.set_up)) {
            let Some(message) = &mut vector.table_message else { continue };
            let held_back = vector.blocked || vector.quiet;
            if let Ok(Some(now)) = hosts_message(function, VectorIndex(index), held_back)
                && now != *message
            {
                *message = now;
                moved = true;
            }
        }
        if moved {
            self.generation = self.generation.next();
        }
    }

    /// Puts everything back into a table that the function may have lost. A message that could not be read yet cannot be written back: the host puts it there anew.
    pub(crate) fn recover_table(&mut self) {
        let count = self.set_up;
        let known = self.vectors.iter().take(count).all(|vector| vector.table_message.is_some());
        if known {
            self.follow_messages();
        } else {
            // Those that were known may be others then.
            self.generation = self.generation.next();
            if let Err(error) =
                self.set_up_interrupts(0).and_then(|()| self.set_up_interrupts(count))
            {
                self.complain("interrupts could not be set up again", &error);
                self.leftover = true;
                return;
            }
        }
        self.rewrite_table();
    }

    /// Puts the table messages back after a reset; the mask bits too while the table is trapped, where they are the host's.
    pub(crate) fn rewrite_table(&mut self) -> bool {
        if !self.accessible() {
            self.stale = true;
            return true;
        }
        let trapped = self.mode == TableMode::Trapped;
        let moving = self.host_moves_messages();
        let function = self.function.as_mut();
        let written =
            (0..).zip(self.vectors.iter().take(self.set_up)).try_for_each(|(index, vector)| {
                let index = VectorIndex(index);
                let Some(message) = vector.table_message else { return Ok(()) };
                let held_back = vector.blocked || vector.quiet;
                if !moving || hosts_message(function, index, held_back)?.is_none() {
                    function.set_table_message(index, message)?;
                }
                if trapped { function.set_masked(index, held_back) } else { Ok(()) }
            });
        self.stale = written.is_err();
        if let Err(error) = &written {
            self.complain("the vector table could not be written", error);
        }
        written.is_ok()
    }

    /// Takes all interrupts down: no route, no event, no GSI, no set-up; and the function's own MSI-X Enable, where the guest's is clear. One request does both. Goes on where a step fails.
    pub(crate) fn tear_down(&mut self) {
        self.unroute(0);
        let down = if !self.control.enable {
            self.set_enabled(false)
        } else if self.set_up > 0 || self.leftover {
            self.set_up_interrupts(0)
        } else {
            Ok(())
        };
        if let Err(error) = down {
            self.complain("interrupts could not be taken down", &error);
            self.leftover = true;
            // Events wait in the function, as if nothing were set up.
            (0..self.set_up).for_each(|index| self.block_vector(index));
        }
        // Whatever became of the request: the next set-up starts from nothing.
        self.set_up = 0;
        self.retire(0);
    }

    /// Gives back the GSIs of vectors that are set up only because set-up cannot grow.
    pub(crate) fn free_spare_gsis(&mut self) {
        if let Owner::Assigned(assigned) = &self.owner {
            let spare = self.vectors.iter_mut().skip(assigned.len()).filter(|v| v.is_out());
            let gsis: Vec<_> = spare
                .filter_map(|vector| {
                    vector.installed = None;
                    vector.gsi.take()
                })
                .collect();
            self.routes.free(&gsis);
        }
    }

    /// Parts with all vectors but the first `keep`, and gives their GSIs back; their events. A vector that could not be taken out of the routes is kept and tried again: nobody else may have its GSI until then.
    pub(crate) fn retire(&mut self, keep: usize) -> Vec<EventFd> {
        if keep >= self.vectors.len() {
            return Vec::new();
        }
        self.unroute(keep);
        let retired = self.vectors.split_off(keep);
        let (out, stuck): (Vec<_>, Vec<_>) = retired.into_iter().partition(Vector::is_out);
        let gsis: Vec<_> = out.iter().filter_map(|vector| vector.gsi).collect();
        self.routes.free(&gsis);
        self.keep_stuck(stuck.into_iter());
        out.into_iter().map(|vector| vector.event).collect()
    }

    /// Back to the default: no vector assigned, table trapped, every entry as after power-on.
    pub(crate) fn become_default(&mut self) {
        self.preparation = None;
        // Not by `leave_direct`: it unmasks the function, and what it would emit goes with its event.
        if !self.take_back() {
            // Ownership ends all the same; the pages are taken out as soon as that is possible.
            self.mode = TableMode::Trapped;
        }
        self.tear_down();
        let vectors = usize::from(self.layout.vectors());
        self.owner = Owner::Legacy(vec![LegacyEntry::RESET; vectors]);
        self.held = false;
        self.stale = false;
        self.migrated = false;
        self.try_again();
        self.generation = self.generation.next();
    }
}

impl Drop for FunctionState {
    fn drop(&mut self) {
        self.take_out(&View::NOTHING);
        self.mode = TableMode::Trapped;
        self.control = MsixControl::default();
        self.tear_down();
        // What is stuck even now keeps its GSI for good.
        self.release_stuck();
    }
}

/// The message that the host's kernel has in an entry; `None` where a reset has left its traces: all clear, all ones where nobody answers, a change meanwhile, or a mask bit that the service has not set.
fn hosts_message(
    function: &mut dyn PciFunction,
    vector: VectorIndex,
    held_back: bool,
) -> io::Result<Option<TableMessage>> {
    let message = function.table_message(vector)?;
    let masked = function.masked(vector)? && !held_back;
    let stands = function.table_message(vector)? == message;
    let lost = masked || !stands || matches!(message.address, 0 | u64::MAX);
    Ok((!lost).then_some(message))
}
