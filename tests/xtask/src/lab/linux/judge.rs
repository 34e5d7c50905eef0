//! What must hold of what was counted.

use std::fmt::Write as _;

use pvmsi_linux_lab::plan::Outcome;
use pvmsi_linux_lab::report::{Event, Function, LinuxEvent, Policy, Vmm};

use crate::architecture::Architecture;
use crate::check::{Check, equal};

/// Exits on the table's page while a driver is bound: Linux reads the vector control of each vector
/// before anybody can ask the host for anything.
const BIND_EXITS: u64 = 6;

/// What is compared, and named.
const TABLE_EXITS: &str = "exits on the table's page";

/// The same.
const VMM_EXITS: &str = "exits for the VMM";

/// Of a message that Linux writes: three words, and a read that has them arrive.
const MESSAGE_EXITS: u64 = 4;

/// Both functions have nothing but their table on a page of this size.
const TABLE_PAGE: u64 = 4096;

/// Which guest an event happened in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind<'a> {
    guest_kernel: &'a str,
    page_size: u64,
    vmm: Vmm,
    policy: Option<Policy>,
    module: bool,
}

impl<'a> Kind<'a> {
    fn of(event: &'a LinuxEvent) -> Self {
        Self {
            guest_kernel: &event.guest_kernel,
            page_size: event.page_size,
            vmm: event.vmm,
            policy: event.policy,
            module: event.module,
        }
    }

    /// For people.
    fn title(self) -> String {
        let policy = self.policy.map_or_else(String::new, |policy| format!(" {}", policy.name()));
        let module = if self.module { ", module" } else { "" };
        format!("{}{policy}{module}", self.vmm.name())
    }

    /// Whether the guest works its table itself.
    fn is_direct(self) -> bool {
        self.module && self.policy == Some(Policy::Direct)
    }
}

/// What must hold whatever the scenario; `isolated`: the host confines functions.
pub(super) fn checks(outcome: &Outcome, isolated: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    let first = outcome.failures.first().map_or(Ok(()), |failure| {
        let more = outcome.failures.len().saturating_sub(1);
        Err(if more == 0 { failure.clone() } else { format!("{failure} (and {more} more)") })
    });
    checks.push(Check::new("every event happened, and the kernels' logs are clean", first));
    checks.push(Check::new("what must cost something was counted", counted(outcome)));
    checks.push(Check::new("nothing was lost", nothing_lost(outcome)));
    if isolated {
        let direct: Vec<_> = outcome.events.iter().filter(|e| Kind::of(e).is_direct()).collect();
        if !direct.is_empty() {
            checks.push(Check::new(
                "the module makes the table direct",
                each(&direct, direct_is_free),
            ));
        }
    }
    checks
}

/// What must hold beside QEMU.
pub(super) fn peer_checks(outcome: &Outcome) -> Vec<Check> {
    vec![
        cheap_without_module(outcome),
        Check::new("the first block is there no later than below QEMU", sooner(outcome)),
    ]
}

fn cheap_without_module(outcome: &Outcome) -> Check {
    let plain: Vec<_> =
        outcome.events.iter().filter(|event| event.vmm == Vmm::Pvmsi && !event.module).collect();
    Check::new(
        "without the module it costs no more than below QEMU",
        some_of(&plain).and_then(|()| each(&plain, |event| no_more_than_qemu(outcome, event))),
    )
}

/// Commands of NVMe on a host whose pages hold both its doorbells and its table.
pub(super) fn large_page_checks(outcome: &Outcome) -> Vec<Check> {
    let reads = |direct: bool| {
        let of_kind = outcome.events.iter().filter(move |event| {
            event.event == Event::Read
                && event.function == Function::Nvme
                && Kind::of(event).is_direct() == direct
        });
        of_kind.collect::<Vec<_>>()
    };
    let trapped = each(&reads(false), |event| {
        if event.table_exits >= event.count {
            return Ok(());
        }
        Err(format!("{} exits for {} commands, must be 1 each", event.table_exits, event.count))
    });
    vec![
        cheap_without_module(outcome),
        Check::new("trapped, each command exits", some_of(&reads(false)).and(trapped)),
        Check::new(
            "direct, no command exits",
            some_of(&reads(true)).and(each(&reads(true), |event| {
                equal("exits on the table's page", event.table_exits, 0)
            })),
        ),
    ]
}

/// A probe that counts nothing would let every other check pass.
fn counted(outcome: &Outcome) -> Result<(), String> {
    let all: Vec<_> = outcome.events.iter().collect();
    some_of(&all)?;
    each(&all, |event| {
        let at_least = |what: &str, seen: u64, least: u64| {
            if seen >= least { Ok(()) } else { Err(format!("{what}: {seen}, at least {least}")) }
        };
        at_least("exits", event.exits, 1)?;
        if event.event == Event::Bind && event.configures.is_some() {
            at_least("exits of calls", event.doorbells, 1)?;
        }
        let trapped = !Kind::of(event).is_direct();
        match event.event {
            Event::Bind => {
                at_least("exits on the table's page", event.table_exits, 1)?;
                at_least("SET_IRQS", event.set_irqs, 1)?;
                at_least("routing updates", event.routing_updates, 1)?;
                at_least("irqfds", event.irqfds, 1)
            }
            Event::MaskUnmask if trapped => {
                let least = event.count.saturating_mul(2);
                at_least("exits on the table's page", event.table_exits, least)
            }
            // On arm64 the table is left alone, and with the module there are calls instead.
            Event::Affinity if event.architecture == "x86_64" => match event.updates {
                Some(updates) => at_least("updates", updates, 1),
                None => at_least("exits on the table's page", event.table_exits, event.count),
            },
            // The next kernel has no module: it finds a trapped table.
            Event::Kexec => at_least("exits on the table's page", event.table_exits, 1),
            _ => Ok(()),
        }
    })
}

fn some_of(events: &[&LinuxEvent]) -> Result<(), String> {
    if events.is_empty() { Err("no such event".to_owned()) } else { Ok(()) }
}

fn nothing_lost(outcome: &Outcome) -> Result<(), String> {
    each(&outcome.events.iter().collect::<Vec<_>>(), |event| {
        equal("interrupts lost", event.lost.unwrap_or(0), 0)
    })
}

/// The first event for which something does not hold, named.
fn each(
    events: &[&LinuxEvent],
    holds: impl Fn(&LinuxEvent) -> Result<(), String>,
) -> Result<(), String> {
    events.iter().try_for_each(|event| {
        holds(event).map_err(|why| {
            format!(
                "{}, {}: {} {}: {why}",
                Kind::of(event).title(),
                event.guest_kernel,
                event.function.name(),
                event.event.name()
            )
        })
    })
}

/// With the module, on a host that confines functions.
fn direct_is_free(event: &LinuxEvent) -> Result<(), String> {
    match event.event {
        Event::Bind if event.function == Function::Nvme => {
            if event.table_exits > BIND_EXITS {
                return Err(format!(
                    "{} exits on the table's page, at most {BIND_EXITS} are needed",
                    event.table_exits
                ));
            }
            calls_are_cheap(event)
        }
        Event::Unbind | Event::Affinity | Event::Read | Event::MaskUnmask => {
            equal("exits on the table's page", event.table_exits, 0)?;
            calls_are_cheap(event)?;
            match event.event {
                Event::Affinity => {
                    // The host's kernel moves nothing: the guest's messages change, and nothing else.
                    let updates = event.updates.unwrap_or(0);
                    equal("routing updates", event.routing_updates, updates)?;
                    equal("exits of calls", event.doorbells, updates)?;
                    equal("SET_IRQS", event.set_irqs, 0)?;
                    // On arm64 a guest's translation service knows where an event goes: its message stays.
                    if event.architecture == "x86_64" && event.updates == Some(0) {
                        return Err("nothing was moved: no update was called".to_owned());
                    }
                    Ok(())
                }
                Event::Unbind => {
                    equal("routing updates", event.routing_updates, 0)?;
                    equal("SET_IRQS", event.set_irqs, 1)
                }
                _ => Ok(()),
            }
        }
        _ => calls_are_cheap(event),
    }
}

/// A `configure` is one SET_IRQS and one routing update, an `update` is one routing update. Beside
/// that the function's Enable follows the guest's, and what a `configure` replaces or a driver leaves
/// behind is taken down: at most two SET_IRQS for each `configure`. A call that is answered busy sets
/// up what it prepares: these are exits of calls that are neither a `configure` nor an `update`.
fn calls_are_cheap(event: &LinuxEvent) -> Result<(), String> {
    let (Some(configures), Some(updates)) = (event.configures, event.updates) else {
        return match event.event {
            // The module, or the function, is not there afterwards.
            Event::Unplug | Event::Kexec | Event::ModuleReload => Ok(()),
            _ => Err("the module does not tell its calls".to_owned()),
        };
    };
    if event.event == Event::Bind && configures == 0 {
        return Err("nothing was configured".to_owned());
    }
    // A driver that lets go of a function calls nothing.
    let busy = event.doorbells.saturating_sub(configures).saturating_sub(updates);
    let set_irqs = configures.max(1).saturating_mul(3).saturating_add(busy);
    if event.routing_updates > configures.saturating_add(updates) {
        return Err(format!(
            "{} routing updates for {configures} configures and {updates} updates",
            event.routing_updates
        ));
    }
    if event.set_irqs > set_irqs {
        return Err(format!("{} SET_IRQS for {configures} configures", event.set_irqs));
    }
    Ok(())
}

/// The same event in the same kernel on the same host.
fn same<'a>(outcome: &'a Outcome, event: &LinuxEvent) -> impl Iterator<Item = &'a LinuxEvent> {
    outcome.events.iter().filter(|other| {
        other.event == event.event
            && other.function == event.function
            && other.guest_kernel == event.guest_kernel
            && other.page_size == event.page_size
    })
}

fn no_more_than_qemu(outcome: &Outcome, event: &LinuxEvent) -> Result<(), String> {
    let below_qemu: Vec<_> = same(outcome, event).filter(|peer| peer.vmm == Vmm::Qemu).collect();
    let alike: Vec<_> =
        same(outcome, event).filter(|other| Kind::of(other) == Kind::of(event)).collect();
    // What a move meets makes it dearer: the cheapest of a few is compared.
    let moves = event.event == Event::Affinity;
    for (name, figure) in [
        (TABLE_EXITS, (|e| without_second_messages(e, e.table_exits)) as fn(&LinuxEvent) -> u64),
        (VMM_EXITS, |e| without_second_messages(e, e.vmm_exits)),
        ("SET_IRQS", |e| e.set_irqs),
        // One for each vector that is armed or moved, as there.
        ("routing updates", |e| e.routing_updates),
    ] {
        let least = |events: &[&LinuxEvent]| events.iter().map(|event| figure(event)).min();
        let most = below_qemu.iter().map(|event| figure(event)).max();
        // On a large page there are registers, too, and a driver that waits reads them as often as time
        // lets it.
        let vague = event.page_size > TABLE_PAGE;
        let most = if moves && !vague { least(&below_qemu) } else { most };
        let mut most = most.ok_or("not seen below QEMU")?;
        let here = if moves { least(&alike) } else { None }.unwrap_or(figure(event));
        if [TABLE_EXITS, VMM_EXITS].contains(&name) && vague {
            most = most.saturating_add(most.div_ceil(10));
        }
        if here > most {
            return Err(format!("{name}: {here}, below QEMU {most}"));
        }
    }
    Ok(())
}

/// For a move x86 writes an entry twice where the interrupt gets another vector number of its processor,
/// as it happens: what both cost alike, whoever runs the guest, is not counted.
fn without_second_messages(event: &LinuxEvent, exits: u64) -> u64 {
    let second = match event.event {
        Event::Affinity => event.message_writes.saturating_sub(event.count),
        // How many vectors are moved is not told.
        Event::CpuOffOn => event.message_writes,
        _ => 0,
    };
    exits.saturating_sub(second.saturating_mul(MESSAGE_EXITS))
}

/// Medians of the seconds to the first verified block.
fn sooner(outcome: &Outcome) -> Result<(), String> {
    let seconds = |wanted: fn(&LinuxEvent) -> bool| {
        let binds = outcome
            .events
            .iter()
            .filter(|event| (event.event, event.function) == (Event::Bind, Function::Nvme));
        median(binds.filter(|event| wanted(event)).map(|event| event.seconds).collect())
    };
    let qemu = seconds(|event| event.vmm == Vmm::Qemu).ok_or("not seen below QEMU")?;
    let direct = seconds(|event| Kind::of(event).is_direct()).ok_or("not seen direct")?;
    if direct > qemu {
        return Err(format!("{direct:.3} s, below QEMU {qemu:.3} s"));
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_div(2)?).copied()
}

/// The events as a table, those of a kind and an event in one line.
pub(super) fn table(architecture: Architecture, events: &[LinuxEvent]) -> String {
    let mut text = String::new();
    let mut titles: Vec<(String, u64)> = Vec::new();
    for event in events {
        let title = (event.guest_kernel.clone(), event.page_size);
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    for (kernel, page_size) in titles {
        let here: Vec<&LinuxEvent> = events
            .iter()
            .filter(|event| event.guest_kernel == kernel && event.page_size == page_size)
            .collect();
        let host = here.first().map_or("", |event| event.host_kernel.as_str());
        let _ = writeln!(
            text,
            "{}, host {host}, page size {page_size}, guest {kernel}\n\n  {:<24}{:<6}{:<16}{:>7}{:>8}{:>9}\
             {:>9}{:>9}{:>9}{:>9}{:>8}{:>7}{:>8}{:>8}{:>6}{:>10}",
            architecture.name(),
            "below",
            "",
            "event",
            "count",
            "table",
            "messages",
            "VMM",
            "exits",
            "SET_IRQS",
            "routing",
            "irqfds",
            "calls",
            "config.",
            "update",
            "lost",
            "seconds"
        );
        for event in here {
            let optional = |value: Option<u64>| value.map_or("-".to_owned(), |v| v.to_string());
            let _ = writeln!(
                text,
                "  {:<24}{:<6}{:<16}{:>7}{:>8}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>7}{:>8}{:>8}{:>6}{:>10.3}",
                Kind::of(event).title(),
                event.function.name(),
                event.event.name(),
                event.count,
                event.table_exits,
                event.message_writes,
                event.vmm_exits,
                event.exits,
                event.set_irqs,
                event.routing_updates,
                event.irqfds,
                event.doorbells,
                optional(event.configures),
                optional(event.updates),
                optional(event.lost),
                event.seconds
            );
        }
        text.push('\n');
    }
    text
}

/// Medians of the seconds from loading the driver to the first verified block, by kind.
pub(super) fn first_blocks(events: &[LinuxEvent]) -> String {
    let mut text = String::new();
    let mut kinds: Vec<Kind<'_>> = Vec::new();
    for kind in events.iter().map(Kind::of) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    for kind in kinds {
        let seconds: Vec<f64> = events
            .iter()
            .filter(|event| {
                event.event == Event::Bind
                    && event.function == Function::Nvme
                    && Kind::of(event) == kind
            })
            .map(|event| event.seconds)
            .collect();
        let count = seconds.len();
        if let Some(median) = median(seconds) {
            let _ = writeln!(
                text,
                "first verified block, {}, pages of {}, {}: {median:.3} s, median of {count}",
                kind.guest_kernel,
                kind.page_size,
                kind.title()
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(vmm: Vmm, module: bool, event: Event) -> LinuxEvent {
        let policy = (vmm == Vmm::Pvmsi).then_some(Policy::Direct);
        LinuxEvent {
            guest_kernel: "6.12.1".to_owned(),
            host_kernel: "6.12.2".to_owned(),
            architecture: "x86_64".to_owned(),
            page_size: 4096,
            vmm,
            policy,
            module,
            function: Function::Nvme,
            event,
            count: 10,
            table_exits: match (module, event) {
                (true, Event::Bind) => 4,
                (true, _) => 0,
                (false, _) => 110,
            },
            message_writes: if module { 0 } else { 20 },
            exits: 500,
            vmm_exits: 120,
            set_irqs: match event {
                Event::Bind => 5,
                Event::Unbind => 1,
                _ => 0,
            },
            routing_updates: if event == Event::Unbind { 0 } else { 10 },
            irqfds: 5,
            doorbells: match (module, event) {
                (true, Event::Bind) => 12,
                (true, Event::Affinity) => 10,
                _ => 0,
            },
            configures: module.then_some(if event == Event::Bind { 2 } else { 0 }),
            updates: module.then_some(10),
            lost: Some(0),
            seconds: 0.5,
        }
    }

    fn good() -> Outcome {
        let mut events = Vec::new();
        for kind in [Event::Bind, Event::Unbind, Event::Affinity, Event::MaskUnmask, Event::Read] {
            for (vmm, module) in [(Vmm::Qemu, false), (Vmm::Pvmsi, false), (Vmm::Pvmsi, true)] {
                events.push(event(vmm, module, kind));
            }
        }
        Outcome { events, ..Outcome::default() }
    }

    fn failures(outcome: &Outcome) -> Vec<String> {
        let all = checks(outcome, true).into_iter().chain(peer_checks(outcome));
        all.chain(large_page_checks(outcome)).filter_map(|check| check.result.err()).collect()
    }

    /// A change of one event that must be found.
    fn must_fail(which: impl Fn(&LinuxEvent) -> bool, change: impl Fn(&mut LinuxEvent)) {
        let mut outcome = good();
        let found = outcome.events.iter_mut().find(|event| which(event));
        change(found.unwrap());
        assert_ne!(failures(&outcome), Vec::<String>::new());
    }

    #[test]
    fn good_figures_pass() {
        assert_eq!(failures(&good()), Vec::<String>::new());
    }

    #[test]
    fn nothing_is_no_success() {
        assert_ne!(failures(&Outcome::default()), Vec::<String>::new());
    }

    #[test]
    fn what_went_wrong_fails() {
        let mut outcome = good();
        outcome.failures.push("a WARNING".to_owned());
        assert_eq!(failures(&outcome), ["a WARNING"]);
        must_fail(|event| event.vmm == Vmm::Qemu, |event| event.lost = Some(1));
    }

    #[test]
    fn a_direct_table_is_free() {
        let direct = |wanted| move |event: &LinuxEvent| event.module && event.event == wanted;
        must_fail(direct(Event::Bind), |event| event.table_exits = BIND_EXITS + 1);
        for kind in [Event::Unbind, Event::Affinity, Event::MaskUnmask, Event::Read] {
            must_fail(direct(kind), |event| event.table_exits = 1);
        }
        must_fail(direct(Event::Affinity), |event| event.routing_updates = 11);
        must_fail(direct(Event::Affinity), |event| event.set_irqs = 1);
        must_fail(direct(Event::Bind), |event| event.set_irqs = 9);
        must_fail(direct(Event::Bind), |event| event.routing_updates = 13);
    }

    #[test]
    fn what_was_not_counted_fails() {
        for kind in [Event::Bind, Event::MaskUnmask, Event::Affinity] {
            must_fail(|event| !event.module && event.event == kind, |event| event.table_exits = 0);
        }
        let bind = |event: &LinuxEvent| event.event == Event::Bind;
        must_fail(bind, |event| event.set_irqs = 0);
        must_fail(bind, |event| event.routing_updates = 0);
        must_fail(bind, |event| event.irqfds = 0);
        must_fail(|_| true, |event| event.exits = 0);
        let direct = |wanted| move |event: &LinuxEvent| event.module && event.event == wanted;
        must_fail(direct(Event::Bind), |event| event.configures = Some(0));
        must_fail(direct(Event::Read), |event| event.configures = None);
        must_fail(direct(Event::Affinity), |event| {
            event.updates = Some(0);
            event.routing_updates = 0;
        });
        must_fail(direct(Event::Unbind), |event| event.routing_updates = 1);
        must_fail(direct(Event::Bind), |event| event.doorbells = 0);
        must_fail(direct(Event::Affinity), |event| event.doorbells = 0);
    }

    #[test]
    fn with_the_module_interrupts_move_by_calls() {
        let mut outcome = good();
        let trapped = Some(Policy::Trapped);
        outcome
            .events
            .push(LinuxEvent { policy: trapped, ..event(Vmm::Pvmsi, true, Event::Affinity) });
        assert_eq!(failures(&outcome), Vec::<String>::new());
        let moved = outcome.events.last_mut().unwrap();
        moved.updates = Some(0);
        assert_ne!(failures(&outcome), Vec::<String>::new());
    }

    #[test]
    fn dearer_than_qemu_fails() {
        let plain = |event: &LinuxEvent| event.vmm == Vmm::Pvmsi && !event.module;
        must_fail(plain, |event| event.table_exits = 111);
        must_fail(plain, |event| event.vmm_exits = 121);
        must_fail(plain, |event| event.set_irqs = 6);
        must_fail(plain, |event| event.routing_updates = 11);
        must_fail(|event| event.module, |event| event.seconds = 0.6);
        must_fail(
            |event| event.vmm == Vmm::Qemu && event.event == Event::Read,
            |event| event.event = Event::Reset,
        );
    }

    #[test]
    fn a_move_that_met_an_interrupt_does_not_count() {
        let plain = |event: &LinuxEvent| event.vmm == Vmm::Pvmsi && !event.module;
        let moved = |event: &&mut LinuxEvent| event.event == Event::Affinity;
        let mut outcome = good();
        let twice = event(Vmm::Pvmsi, false, Event::Affinity);
        outcome.events.push(LinuxEvent { table_exits: 122, ..twice });
        assert_eq!(failures(&outcome), Vec::<String>::new());
        // Nor does the cheapest one below QEMU help the dearest here.
        for event in outcome.events.iter_mut().filter(moved).filter(|event| plain(event)) {
            event.table_exits = 111;
        }
        let twice = event(Vmm::Qemu, false, Event::Affinity);
        outcome.events.push(LinuxEvent { table_exits: 122, ..twice });
        assert_ne!(failures(&outcome), Vec::<String>::new());
    }

    #[test]
    fn a_move_that_writes_an_entry_once_is_compared_with_one_that_writes_it_twice() {
        let plain = |event: &LinuxEvent| event.vmm == Vmm::Pvmsi && !event.module;
        let qemu = |event: &LinuxEvent| event.vmm == Vmm::Qemu && event.event == Event::Affinity;
        let mut outcome = good();
        for event in outcome.events.iter_mut().filter(|event| qemu(event)) {
            event.message_writes = 17;
            event.table_exits = 98;
            event.vmm_exits = 108;
        }
        assert_eq!(failures(&outcome), Vec::<String>::new());
        for event in outcome.events.iter_mut().filter(|event| plain(event)) {
            event.table_exits = 111;
        }
        assert_ne!(failures(&outcome), Vec::<String>::new());
    }

    #[test]
    fn the_table_names_each_event() {
        let text = table(Architecture::X86_64, &good().events);
        for word in ["qemu", "pvmsi direct, module", "mask_unmask", "110", "guest 6.12.1"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(
            first_blocks(&good().events).contains("pvmsi direct, module: 0.500 s, median of 1")
        );
    }
}
