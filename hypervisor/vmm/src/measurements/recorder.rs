//! From the events of the report channel to the report: the guest says what it did, the recorder what it cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pvmsi_guest_report::{Event, Outcome, Section, Soak as SoakFigures, World};
use pvmsi_hypervisor::{Counters, FunctionHandle};
use pvmsi_protocol::{FunctionId, Reasons, TableMode};
use pvmsi_software::SoftwareDevice;

use super::exits::{ExitCounters, ExitCounts};
use super::report::{
    Configure, FunctionReport, Interrupts, Io, MaskUnmask, Neighbour, PhaseMode, PhaseReport, Soak,
};

/// A guest can make the report no longer than this.
const SET_UPS_MAX: usize = 100;
const FAILURES_MAX: usize = 100;

/// A function that phases can be about.
pub(crate) struct RecordedFunction {
    pub(crate) handle: FunctionHandle,
    pub(crate) report: FunctionReport,
    /// The device side of a software function: the truth on what was raised.
    pub(crate) device: Option<Arc<SoftwareDevice>>,
}

/// What the recorder reads when an event comes.
pub(crate) struct Recorder {
    exits: Arc<ExitCounters>,
    functions: Vec<RecordedFunction>,
    current: Option<Current>,
    soak: Option<Soaking>,
    failures: Vec<String>,
}

/// A soak that is running.
struct Soaking {
    /// Counters of all functions at its start.
    counters: Vec<Counters>,
    start: Instant,
    report: Soak,
}

/// The phase that is running.
struct Current {
    function: usize,
    /// Its place in the function's report.
    phase: usize,
    world: World,
    section: Option<Started>,
    /// Exits on the table's pages when the mode was told.
    table_exits: Option<u64>,
}

/// The section that is running.
struct Started {
    section: Section,
    exits: ExitCounts,
    counters: Counters,
    raised: u64,
    at: Instant,
}

/// What happened in a section.
struct Cost {
    exits: u64,
    doorbell: u64,
    function_mmio: u64,
    counters: Counters,
    raised: Option<u64>,
    time: Duration,
}

impl Recorder {
    pub(crate) fn new(exits: Arc<ExitCounters>, functions: Vec<RecordedFunction>) -> Self {
        Self { exits, functions, current: None, soak: None, failures: Vec::new() }
    }

    /// Takes an event that arrived at `now`; `true` when it was the last.
    pub(crate) fn take(&mut self, event: Event<'_>, now: Instant) -> bool {
        match event {
            Event::PhaseStart { function, world } => self.phase_start(function, world),
            Event::SectionStart(section) => self.section_start(section),
            Event::SectionEnd(outcome) => self.section_end(outcome, now),
            Event::Mode { mode, reasons } => self.mode(mode, reasons),
            Event::PhaseEnd => self.phase_end(),
            Event::Soak(figures) => self.soak(figures, now),
            Event::Failure(text) => {
                let at = self.place();
                self.fail(format!("the guest says: {at}{text}"));
            }
            Event::Done => {
                if self.current.is_some() {
                    let at = self.place();
                    self.fail(format!("{at}the guest finished before the phase did"));
                    self.phase_end();
                }
                return true;
            }
        }
        false
    }

    /// The soak so far, if the guest does one.
    pub(crate) fn soak_report(&self) -> Option<Soak> {
        self.soak.as_ref().map(|soak| soak.report.clone())
    }

    /// Notes something wrong.
    pub(crate) fn fail(&mut self, text: String) {
        tracing::debug!(failure = text);
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(text);
        }
    }

    /// The functions and failures so far, a phase that is running included.
    pub(crate) fn results(&self) -> (Vec<FunctionReport>, Vec<String>) {
        let functions: Vec<FunctionReport> =
            self.functions.iter().map(|function| function.report.clone()).collect();
        let checks = functions.iter().flat_map(|function| {
            function.phases.iter().flat_map(move |phase| {
                let at = format!("{}, {}", function.id, phase.mode.name());
                phase.check().into_iter().map(move |wrong| format!("{at}: {wrong}"))
            })
        });
        let soak = self.soak.iter().flat_map(|soak| soak.report.check());
        let failures = self.failures.iter().cloned().chain(checks).chain(soak).collect();
        (functions, failures)
    }

    fn soak(&mut self, figures: SoakFigures, now: Instant) {
        let counters: Vec<_> =
            (0..self.functions.len()).map(|function| self.counters(function)).collect();
        let soak = self.soak.get_or_insert_with(|| Soaking {
            counters: counters.clone(),
            start: now,
            report: Soak::default(),
        });
        let spent: Vec<_> =
            counters.iter().zip(&soak.counters).map(|(now, then)| now.since(then)).collect();
        let seconds = now.saturating_duration_since(soak.start).as_secs();
        soak.report = Soak::new(&figures, &spent, seconds);
    }

    fn phase_start(&mut self, id: FunctionId, world: World) {
        if self.current.is_some() {
            let at = self.place();
            self.fail(format!("{at}another phase began before the end of this one"));
            self.phase_end();
        }
        let found =
            self.functions.iter_mut().enumerate().find(|(_, function)| function.handle.id() == id);
        let Some((function, recorded)) = found else {
            return self.fail(format!("a phase of {id}, which the machine does not have"));
        };
        let phases = &mut recorded.report.phases;
        let is_of_this_world =
            |phase: &PhaseReport| (phase.mode == PhaseMode::Legacy) == (world == World::Legacy);
        let phase = phases.iter().position(is_of_this_world).unwrap_or_else(|| {
            phases.push(PhaseReport {
                mode: if world == World::Legacy { PhaseMode::Legacy } else { PhaseMode::Trapped },
                reasons: Vec::new(),
                configure: None,
                mask_unmask: None,
                neighbour: None,
                interrupts: None,
                table_exits_after_switch: None,
                io: None,
            });
            phases.len().saturating_sub(1)
        });
        self.current = Some(Current { function, phase, world, section: None, table_exits: None });
    }

    fn section_start(&mut self, section: Section) {
        let Some(current) = &self.current else {
            return self.fail(format!("section {section:?} outside of a phase"));
        };
        let counters = self.counters(current.function);
        let raised = self.raised(current.function).unwrap_or(0);
        if let Some(current) = &mut self.current {
            let exits = self.exits.read();
            // Last of all: what came before is not part of the section.
            current.section =
                Some(Started { section, exits, counters, raised, at: Instant::now() });
        }
    }

    fn section_end(&mut self, outcome: Outcome, now: Instant) {
        let exits = self.exits.read();
        let Some((function, started)) = self
            .current
            .as_mut()
            .and_then(|current| Some((current.function, current.section.take()?)))
        else {
            return self.fail("the end of a section that has not begun".to_owned());
        };
        let expected = match outcome {
            Outcome::Configure { .. } => Section::Configure,
            Outcome::MaskUnmask { .. } => Section::MaskUnmask,
            Outcome::Neighbour { .. } => Section::Neighbour,
            Outcome::Interrupts { .. } => Section::Interrupts,
            Outcome::Io { .. } => Section::Io,
        };
        if started.section != expected {
            let began = started.section;
            return self.fail(format!("section {began:?} ended as {expected:?}"));
        }
        let cost = Cost {
            // The event that ends the section is an exit, too.
            exits: exits.total().saturating_sub(started.exits.total()).saturating_sub(1),
            doorbell: exits.doorbell.saturating_sub(started.exits.doorbell),
            function_mmio: exits.function_mmio.saturating_sub(started.exits.function_mmio),
            counters: self.counters(function).since(&started.counters),
            raised: self.raised(function).map(|raised| raised.saturating_sub(started.raised)),
            time: now.saturating_duration_since(started.at),
        };
        let added = self.phase().is_none_or(|phase| phase.add(outcome, &cost));
        if !added {
            let at = self.place();
            self.fail(format!("{at}more than {SET_UPS_MAX} set-ups"));
        }
    }

    fn mode(&mut self, mode: TableMode, reasons: Reasons) {
        let Some(current) = &self.current else {
            return self.fail("a table mode outside of a phase".to_owned());
        };
        let function = current.function;
        let truth = self.functions.get(function).and_then(|f| f.handle.status().ok());
        let table_exits = self.counters(function).table_page_exits();
        let Some(current) = &mut self.current else { return };
        current.table_exits = Some(table_exits);
        if current.world == World::Paravirtual
            && let Some(phase) = self.phase()
        {
            phase.mode = match mode {
                TableMode::Trapped => PhaseMode::Trapped,
                TableMode::Direct => PhaseMode::Direct,
            };
            phase.reasons = reasons.names().collect();
        }
        if truth.is_some_and(|truth| truth.mode != mode) {
            let at = self.place();
            self.fail(format!("{at}the guest takes the table for {mode:?}, which it is not"));
        }
    }

    fn phase_end(&mut self) {
        let Some(current) = &self.current else {
            return self.fail("the end of a phase that has not begun".to_owned());
        };
        let now = self.counters(current.function).table_page_exits();
        if let Some(then) = current.table_exits
            && let Some(phase) = self.phase()
        {
            phase.table_exits_after_switch = Some(now.saturating_sub(then));
        }
        let section = self.current.take().and_then(|current| current.section);
        if let Some(Started { section, .. }) = section {
            self.fail(format!("section {section:?} has not ended"));
        }
    }

    /// What the report holds of the phase that is running.
    fn phase(&mut self) -> Option<&mut PhaseReport> {
        let current = self.current.as_ref()?;
        self.functions.get_mut(current.function)?.report.phases.get_mut(current.phase)
    }

    fn counters(&self, function: usize) -> Counters {
        self.functions
            .get(function)
            .and_then(|function| function.handle.status().ok())
            .map(|status| status.counters)
            .unwrap_or_default()
    }

    fn raised(&self, function: usize) -> Option<u64> {
        Some(self.functions.get(function)?.device.as_ref()?.raised())
    }

    /// Where the guest is, for messages.
    fn place(&self) -> String {
        let name = |current: &Current| {
            let report = &self.functions.get(current.function)?.report;
            Some(format!("{}, {}: ", report.id, report.phases.get(current.phase)?.mode.name()))
        };
        self.current.as_ref().and_then(name).unwrap_or_default()
    }
}

impl PhaseReport {
    /// Takes a section in; `false` where the phase has room for no more of its kind.
    fn add(&mut self, outcome: Outcome, cost: &Cost) -> bool {
        match outcome {
            Outcome::Configure { requested, granted } => {
                let counters = &cost.counters;
                let ns = cost.nanoseconds();
                let set_up = Configure {
                    doorbell_exits: cost.doorbell,
                    routing_updates: counters.routing_updates,
                    interrupt_setups: counters.interrupt_setups,
                    granted,
                    requested,
                    exits: cost.exits,
                    table_exits: counters.table_page_exits(),
                    set_irqs: counters.interrupt_setups.saturating_add(counters.enable_changes),
                    irqfds: counters.attaches,
                    ns,
                    ns_each: vec![ns],
                };
                match &mut self.configure {
                    Some(before) if before.ns_each.len() >= SET_UPS_MAX => return false,
                    Some(before) => before.merge(set_up),
                    None => self.configure = Some(set_up),
                }
            }
            Outcome::MaskUnmask { pairs } => {
                self.mask_unmask = Some(MaskUnmask {
                    pairs: u64::from(pairs),
                    exits: cost.exits,
                    ns_per_pair: cost.nanoseconds_per(pairs),
                });
            }
            Outcome::Neighbour { writes } => {
                self.neighbour = Some(Neighbour {
                    writes: u64::from(writes),
                    exits: cost.exits,
                    ns_per_write: cost.nanoseconds_per(writes),
                });
            }
            Outcome::Interrupts { requested, observed, spurious, while_masked, mask_cycles } => {
                let raised = cost.raised.unwrap_or(requested);
                self.interrupts = Some(Interrupts {
                    raised,
                    observed,
                    lost: raised.saturating_sub(observed),
                    spurious,
                    while_masked,
                    mask_cycles,
                });
            }
            Outcome::Io { commands, blocks, bytes_verified, bytes_wrong, interrupts, queues } => {
                self.io = Some(Io {
                    commands,
                    mmio_exits: cost.function_mmio,
                    blocks,
                    bytes_verified,
                    bytes_wrong,
                    interrupts,
                    queues,
                    exits: cost.exits,
                    ns: cost.nanoseconds(),
                });
            }
        }
        true
    }
}

impl Cost {
    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX)
    }

    /// To a tenth of a nanosecond.
    fn nanoseconds_per(&self, operations: u32) -> f64 {
        let each = self.time.as_secs_f64() * 1e9 / f64::from(operations.max(1));
        (each * 10.0).round() / 10.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurements::ExitKind;
    use crate::pci;
    use crate::test_machine::PLATFORM;
    use pvmsi_hypervisor::{FunctionPolicy, Router, Service, ServiceConfig};
    use pvmsi_protocol::VectorIndex;
    use pvmsi_software::config::MSIX;
    use pvmsi_software::registers;
    use pvmsi_software::{SoftwareFunction, SoftwareOptions};
    use pvmsi_test_doubles::{IdleRoutes, IdleWindow};

    struct Setting {
        recorder: Recorder,
        exits: Arc<ExitCounters>,
        device: Arc<SoftwareDevice>,
        id: FunctionId,
        router: Router,
        /// Held, not used: its functions go with it.
        _service: Service,
    }

    fn setting() -> Setting {
        let service = Service::new(ServiceConfig::new(PLATFORM), Arc::new(IdleRoutes::default()));
        let id = pci::address(0).unwrap();
        let function = SoftwareFunction::new(SoftwareOptions::default(), 4096).unwrap();
        let device = function.device();
        let handle = service
            .add_function(
                id,
                Box::new(function),
                Box::new(IdleWindow::new(true)),
                FunctionPolicy::default(),
            )
            .unwrap();
        let exits = Arc::new(ExitCounters::default());
        let report = FunctionReport {
            id: id.to_string(),
            guest_address: id.to_string(),
            backend: "software",
            vectors: 64,
            phases: Vec::new(),
            service: None,
            pinning: None,
        };
        let device_side = Some(Arc::clone(&device));
        let functions = vec![RecordedFunction { handle, report, device: device_side }];
        let recorder = Recorder::new(Arc::clone(&exits), functions);
        Setting { recorder, exits, device, id, router: service.router(), _service: service }
    }

    impl Setting {
        /// The event, with the exit that brings it.
        fn send(&mut self, event: Event<'_>) -> bool {
            self.exits.count(ExitKind::Report);
            self.recorder.take(event, Instant::now())
        }

        fn write_config(&self, offset: u64, value: u32) {
            let bytes = value.to_le_bytes();
            assert!(self.router.config_write(self.id, offset, &bytes));
        }

        /// Switches MSI-X on or off.
        fn set_enabled(&self, enabled: bool) {
            self.write_config(MSIX, u32::from(enabled) << 31);
        }

        /// Gives the first vectors of the emulated table messages, and unmasks them.
        fn arm(&self, vectors: usize) {
            for entry in (TABLE..).step_by(16).take(vectors) {
                for (offset, value) in [(0, 0xfee0_0000_u32), (8, 0x40), (12, 0)] {
                    let address = entry | offset;
                    assert!(self.router.mmio_write(address, &value.to_le_bytes()));
                }
            }
        }
    }

    /// Where the software function has its table, and the capability of it in configuration space.
    const BAR: u64 = 0xe000_0000;
    const TABLE: u64 = BAR | registers::TABLE;

    #[test]
    fn sections_carry_what_happened_between_their_events() {
        let mut s = setting();
        s.send(Event::PhaseStart { function: s.id, world: World::Legacy });
        s.exits.count(ExitKind::Other);
        s.send(Event::SectionStart(Section::MaskUnmask));
        for _ in 0..4 {
            s.exits.count(ExitKind::FunctionMmio);
        }
        std::thread::sleep(Duration::from_millis(2));
        s.send(Event::SectionEnd(Outcome::MaskUnmask { pairs: 2 }));
        s.send(Event::SectionStart(Section::Neighbour));
        s.send(Event::SectionEnd(Outcome::Neighbour { writes: 10 }));
        s.send(Event::SectionStart(Section::Interrupts));
        for _ in 0..5 {
            s.device.raise(VectorIndex(0));
        }
        s.send(Event::SectionEnd(Outcome::Interrupts {
            requested: 5,
            observed: 3,
            spurious: 0,
            while_masked: 1,
            mask_cycles: 9,
        }));
        s.send(Event::SectionStart(Section::Io));
        for kind in [ExitKind::FunctionMmio, ExitKind::FunctionMmio, ExitKind::Serial] {
            s.exits.count(kind);
        }
        s.send(Event::SectionEnd(Outcome::Io {
            commands: 1,
            blocks: 8,
            bytes_verified: 4096,
            bytes_wrong: 0,
            interrupts: 1,
            queues: 1,
        }));
        s.send(Event::PhaseEnd);
        assert!(s.send(Event::Done));
        let (functions, failures) = s.recorder.results();
        let phase = &functions[0].phases[0];
        assert_eq!(phase.mode, PhaseMode::Legacy);
        let mask = phase.mask_unmask.as_ref().unwrap();
        assert_eq!((mask.pairs, mask.exits), (2, 4));
        assert!(mask.ns_per_pair >= 1e6, "{}", mask.ns_per_pair);
        assert_eq!(phase.neighbour.as_ref().unwrap().exits, 0);
        let interrupts = phase.interrupts.as_ref().unwrap();
        assert_eq!((interrupts.raised, interrupts.observed, interrupts.lost), (5, 3, 2));
        let io = phase.io.as_ref().unwrap();
        assert_eq!((io.commands, io.mmio_exits, io.exits), (1, 2, 3));
        assert!(phase.configure.is_none());
        assert_eq!(
            failures,
            [
                "0000:00:01.0, legacy: 2 interrupts lost",
                "0000:00:01.0, legacy: 1 interrupts of masked vectors"
            ]
        );
    }

    #[test]
    fn the_mode_is_checked_against_the_service() {
        let mut s = setting();
        s.send(Event::PhaseStart { function: s.id, world: World::Paravirtual });
        s.send(Event::Mode { mode: TableMode::Trapped, reasons: Reasons::POLICY });
        s.send(Event::PhaseEnd);
        let (functions, failures) = s.recorder.results();
        assert_eq!(functions[0].phases[0].mode, PhaseMode::Trapped);
        assert_eq!(functions[0].phases[0].reasons, ["policy"]);
        assert_eq!(functions[0].phases[0].table_exits_after_switch, Some(0));
        assert!(failures.is_empty(), "{failures:?}");

        s.send(Event::PhaseStart { function: s.id, world: World::Paravirtual });
        s.send(Event::Mode { mode: TableMode::Direct, reasons: Reasons::empty() });
        s.send(Event::PhaseEnd);
        let (_, failures) = s.recorder.results();
        assert_eq!(failures.len(), 1, "{failures:?}");
    }

    #[test]
    fn set_ups_of_both_worlds_take_turns_and_each_world_has_one_phase() {
        let mut s = setting();
        s.write_config(0x10, u32::try_from(BAR).unwrap());
        s.write_config(0x04, 2);
        for (round, (doorbells, exits)) in [(1, 4), (2, 3), (1, 3)].into_iter().enumerate() {
            for world in [World::Legacy, World::Paravirtual] {
                s.send(Event::PhaseStart { function: s.id, world });
                s.send(Event::SectionStart(Section::Configure));
                if world == World::Legacy {
                    s.set_enabled(true);
                    s.arm(8);
                } else {
                    (0..doorbells).for_each(|_| s.exits.count(ExitKind::Doorbell));
                }
                (0..exits).for_each(|_| s.exits.count(ExitKind::PciConfig));
                if round == 1 {
                    std::thread::sleep(Duration::from_millis(50));
                }
                let granted = if round == 2 { 63 } else { 64 };
                s.send(Event::SectionEnd(Outcome::Configure { requested: 64, granted }));
                s.set_enabled(false);
                s.send(Event::PhaseEnd);
            }
        }
        s.send(Event::PhaseStart { function: s.id, world: World::Legacy });
        s.send(Event::SectionStart(Section::MaskUnmask));
        s.send(Event::SectionEnd(Outcome::MaskUnmask { pairs: 7 }));
        s.send(Event::PhaseEnd);
        let (functions, failures) = s.recorder.results();
        assert!(failures.is_empty(), "{failures:?}");
        let [legacy, paravirtual] = functions[0].phases.as_slice() else {
            panic!("{:?}", functions[0].phases)
        };
        assert_eq!(legacy.mode, PhaseMode::Legacy);
        assert_eq!(legacy.mask_unmask.as_ref().unwrap().pairs, 7);
        let legacy = legacy.configure.as_ref().unwrap();
        // A route, an event and an interrupt for each vector, and MSI-X Enable.
        assert_eq!((legacy.irqfds, legacy.routing_updates), (8, 8));
        assert_eq!((legacy.interrupt_setups, legacy.set_irqs), (8, 9));
        assert_eq!(legacy.table_exits, 8 * 3);
        let paravirtual = paravirtual.configure.as_ref().unwrap();
        assert_eq!((paravirtual.doorbell_exits, paravirtual.exits), (2, 5), "the most of one");
        assert_eq!((paravirtual.requested, paravirtual.granted), (64, 63), "the fewest of one");
        assert_eq!((paravirtual.table_exits, paravirtual.set_irqs, paravirtual.irqfds), (0, 0, 0));
        for configure in [legacy, paravirtual] {
            let [first, slow, last] = configure.ns_each.as_slice() else { panic!("{configure:?}") };
            assert!(*slow >= 50_000_000, "{configure:?}");
            assert_eq!(configure.ns, *first.max(last).min(slow), "the median");
        }
    }

    #[test]
    fn set_ups_are_bounded() {
        let mut s = setting();
        s.send(Event::PhaseStart { function: s.id, world: World::Legacy });
        for _ in 0..=SET_UPS_MAX {
            s.send(Event::SectionStart(Section::Configure));
            s.send(Event::SectionEnd(Outcome::Configure { requested: 64, granted: 64 }));
        }
        let (functions, failures) = s.recorder.results();
        let configure = functions[0].phases[0].configure.as_ref().unwrap();
        assert_eq!(configure.ns_each.len(), SET_UPS_MAX);
        assert_eq!(failures, ["0000:00:01.0, legacy: more than 100 set-ups"]);
    }

    #[test]
    fn a_soak_is_checked() {
        let mut s = setting();
        s.send(Event::Soak(SoakFigures::default()));
        let figures = SoakFigures { rounds: 2, events: 9, lost: 1, ..SoakFigures::default() };
        s.send(Event::Soak(figures));
        let soak = s.recorder.soak_report().unwrap();
        assert_eq!((soak.guest, soak.mode_switches), (figures, 0));
        assert_eq!(s.recorder.results().1, ["soak: 1 events lost"]);
    }

    #[test]
    fn events_out_of_order_are_failures_and_bounded() {
        let mut s = setting();
        for _ in 0..200 {
            s.send(Event::PhaseEnd);
            s.send(Event::SectionStart(Section::Io));
            s.send(Event::SectionEnd(Outcome::MaskUnmask { pairs: 1 }));
            s.send(Event::PhaseStart { function: FunctionId(0x700), world: World::Legacy });
            s.send(Event::PhaseStart { function: s.id, world: World::Legacy });
            s.send(Event::SectionStart(Section::Io));
            s.send(Event::SectionEnd(Outcome::MaskUnmask { pairs: 1 }));
        }
        let (functions, failures) = s.recorder.results();
        assert_eq!(failures.len(), FAILURES_MAX);
        assert_eq!(functions[0].phases.len(), 1);
    }
}
