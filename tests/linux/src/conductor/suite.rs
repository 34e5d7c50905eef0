//! Sequences of events.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use pvmsi_linux_lab::plan::{Boot, Outcome, Suite};
use pvmsi_linux_lab::report::{Event, Function, LinuxEvent};

use super::counters::{Counters, Range};
use super::guest::{Guest, Hello};
use crate::agent::KernelLog;

/// Bound of an event.
const LIMIT: Duration = Duration::from_secs(300);

/// What a guest is, for people.
pub(super) fn title(boot: &Boot) -> String {
    let policy = boot.policy.map_or_else(String::new, |policy| format!(", {}", policy.name()));
    let module = if boot.module { ", module loaded" } else { "" };
    format!("{}{policy}{module}, {}", boot.vmm.name(), boot.kernel)
}

/// Runs a guest's events.
pub(super) fn run(boot: &Boot, index: usize, outcome: &mut Outcome) -> Result<()> {
    eprintln!("### guest {index}: {}", title(boot));
    let mut log = KernelLog::open()?;
    log.bad_lines()?;
    let (guest, hello) = Guest::start(boot, index)?;
    eprintln!("### guest {index}: up after {} s of its own", hello.uptime);
    let mut stage = Stage { boot, guest, hello, outcome, log };
    match boot.suite {
        Suite::Bind => {
            stage.with(Function::Nvme, |s| s.event(Event::Bind, "load nvme"))?;
        }
        Suite::Peers => stage.with(Function::Nvme, peers)?,
        Suite::Events | Suite::Reload => bail!("not there yet"),
    }
    stage.guest.finish()
}

/// What is compared with other VMMs.
fn peers(scene: &mut Scene<'_, '_>) -> Result<()> {
    scene.event(Event::Bind, "load nvme")?;
    scene.event(Event::Unbind, "unbind nvme")?;
    scene.event(Event::Bind, "bind nvme")?;
    scene.event(Event::Affinity, "affinity nvme 10")?;
    scene.event(Event::MaskUnmask, "mask_unmask nvme 10")?;
    scene.counted(Event::Read, "read 2048 4096", 2048)?;
    Ok(())
}

/// A guest that is up.
struct Stage<'a> {
    boot: &'a Boot,
    guest: Guest,
    hello: Hello,
    outcome: &'a mut Outcome,
    log: KernelLog,
}

/// A guest and the function that its events are about.
struct Scene<'s, 'a> {
    stage: &'s mut Stage<'a>,
    function: Function,
    counters: Counters,
}

impl<'a> Stage<'a> {
    fn with(
        &mut self,
        function: Function,
        events: impl FnOnce(&mut Scene<'_, 'a>) -> Result<()>,
    ) -> Result<()> {
        let counters = Counters::start(self.table_pages(function)?)?;
        self.guest.ask(&format!("prepare {}", function.name()), LIMIT)?;
        events(&mut Scene { stage: self, function, counters })
    }

    /// The pages of the host that a function's vector table shares.
    fn table_pages(&self, function: Function) -> Result<Range> {
        let mut functions = self.hello.functions.iter();
        let found = functions
            .find(|found| found.driver == function.name())
            .with_context(|| format!("the guest has no {}", function.name()))?;
        let page = page_size()?;
        let down = |address: u64| address & !page.saturating_sub(1);
        let last = found.table.saturating_add(found.entries.saturating_mul(16)).saturating_sub(1);
        Ok(Range { start: down(found.table), end: down(last).saturating_add(page) })
    }
}

impl Scene<'_, '_> {
    fn event(&mut self, event: Event, request: &str) -> Result<()> {
        self.counted(event, request, 1)
    }

    /// Has an event happen, counts what it costs, and looks into both kernels' logs.
    fn counted(&mut self, event: Event, request: &str, count: u64) -> Result<()> {
        let before = self.counters.read()?;
        let answer = self.stage.guest.ask(request, LIMIT)?;
        let counts = self.counters.read()?.since(&before);
        let log = self.stage.guest.ask("log", LIMIT)?;
        let boot = self.stage.boot;
        let item = LinuxEvent {
            guest_kernel: self.stage.hello.release.clone(),
            host_kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            architecture: self.stage.hello.machine.clone(),
            page_size: page_size()?,
            vmm: boot.vmm,
            policy: boot.policy,
            module: boot.module,
            function: self.function,
            event,
            count: answer.count.unwrap_or(count),
            table_exits: counts.table,
            exits: counts.exits.saturating_sub(counts.console),
            set_irqs: counts.set_irqs,
            routing_updates: counts.routing,
            irqfds: counts.irqfds,
            configures: None,
            updates: None,
            lost: Some(answer.lost.saturating_add(log.lost)),
            seconds: answer.seconds,
        };
        eprintln!("### {} {} {item:?}", self.function.name(), event.name());
        let what = format!("{}: {} {}", title(boot), self.function.name(), event.name());
        for line in log.bad {
            self.stage.outcome.failures.push(format!("{what}: the guest's log: {line}"));
        }
        for line in self.stage.log.bad_lines()? {
            self.stage.outcome.failures.push(format!("{what}: the host's log: {line}"));
        }
        self.stage.outcome.events.push(item);
        Ok(())
    }
}

fn page_size() -> Result<u64> {
    Ok(u64::try_from(rustix::param::page_size())?)
}
