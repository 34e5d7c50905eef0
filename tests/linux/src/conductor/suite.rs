//! Sequences of events.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pvmsi_linux_lab::plan::{Boot, Outcome, Suite};
use pvmsi_linux_lab::report::{Event, Function, LinuxEvent, Policy, Vmm};

use super::counterpart::Counterpart;
use super::counters::{Counters, Range, SetIrqs};
use super::guest::{Answer, Guest, Hello, Report, ReportFunction, command_line};
use super::mover::Mover;
use crate::agent::KernelLog;
use crate::packets::{self, Listener};

/// Bound of an event.
const LIMIT: Duration = Duration::from_secs(300);

/// Bound of hundreds of loads of the module.
const RELOADS: Duration = Duration::from_secs(3000);

/// The VMM has taken a function's table back by then, and has not removed the function yet.
const REVOKED: Duration = Duration::from_secs(1);

/// Loads of a driver in a guest that does nothing else: times vary, and the median counts.
const LOADS: u32 = 3;

/// What a guest's console still does after an answer has come is done by then: the counters are read
/// one after the other, and an exit of the console shall be in all of them or in none.
const QUIET: Duration = Duration::from_millis(50);

/// How often moves are compared: the cheapest time counts. One time is few moves where a function
/// raises its vectors whenever it likes, so that some times meet none of them.
const fn moves(function: Function) -> (u32, u32) {
    match function {
        Function::Nvme => (3, 10),
        Function::Igb => (20, 1),
    }
}

/// What a guest is, for people.
pub(super) fn title(boot: &Boot) -> String {
    let policy = boot.policy.map_or_else(String::new, |policy| format!(", {}", policy.name()));
    let module = if boot.module { ", module loaded" } else { "" };
    format!("{}{policy}{module}, {}", boot.vmm.name(), boot.kernel)
}

/// Runs a guest's events.
pub(super) fn run(boot: &Boot, index: usize, seconds: u64, outcome: &mut Outcome) -> Result<()> {
    eprintln!("### guest {index}: {}", title(boot));
    let mut log = KernelLog::open()?;
    log.bad_lines()?;
    for function in &boot.functions {
        take(function)?;
    }
    let set_irqs = SetIrqs::start()?;
    let (guest, hello) = Guest::start(boot, index)?;
    eprintln!("### guest {index}: up after {:.0} s of its own", hello.uptime);
    let mut stage = Stage { boot, guest, hello, outcome, log };
    // The module stays while a driver uses it: the function that is busy while it comes and goes is
    // bound before.
    if boot.module && boot.suite != Suite::Reload {
        stage.guest.ask("module_load", LIMIT)?;
    }
    match boot.suite {
        Suite::Bind => stage.with(Function::Nvme, |scene| {
            for _ in 0..LOADS {
                scene.event(Event::Bind, "load nvme")?;
                scene.stage.guest.ask("unload nvme", LIMIT)?;
            }
            Ok(())
        })?,
        Suite::Peers => {
            stage.with(Function::Nvme, peers)?;
            stage.with(Function::Igb, network_peers)?;
            // kexec-tools make nothing of the device tree of QEMU's arm64 machine.
            if cfg!(target_arch = "x86_64") {
                stage.with(Function::Nvme, |scene| {
                    scene.event(Event::Bind, "bind nvme")?;
                    scene.kexec()
                })?;
            }
        }
        Suite::Unplug => {
            stage.with(Function::Igb, |scene| {
                scene.event(Event::Bind, "load igb")?;
                scene.unplug()
            })?;
            stage.with(Function::Nvme, |scene| {
                scene.event(Event::Bind, "load nvme")?;
                scene.unplug()
            })?;
        }
        Suite::Events => {
            stage.with(Function::Nvme, drive)?;
            stage.with(Function::Igb, network)?;
            stage.with(Function::Igb, |scene| scene.unplug())?;
            stage.with(Function::Nvme, |scene| {
                scene.event(Event::Bind, "bind nvme")?;
                scene.kexec()?;
                scene.unplug()
            })?;
        }
        Suite::Tight => stage.with(Function::Nvme, |scene| {
            drive(scene)?;
            if scene.calls()?.busy.is_none_or(|busy| busy == 0) {
                scene.fail("bind", "the host was never busy");
            }
            Ok(())
        })?,
        Suite::Moving => stage.with(Function::Nvme, |scene| {
            scene.event(Event::Bind, "load nvme")?;
            scene.check_mode()?;
            scene.moving(seconds)?;
            scene.event(Event::Unbind, "unbind nvme")
        })?,
        Suite::Reload => stage.with(Function::Nvme, |scene| {
            scene.silent = true;
            scene.loaded = false;
            scene.event(Event::Bind, "load nvme")?;
            scene.stage.guest.ask("prepare igb", LIMIT)?;
            scene.stage.guest.ask("load igb", LIMIT)?;
            scene.stage.guest.ask("unbind igb", LIMIT)?;
            scene.loaded = true;
            scene.observed(Event::ModuleReload, 200, |scene| {
                scene.stage.guest.ask("module_reload igb 200", RELOADS)
            })
        })?,
    }
    let Stage { guest, outcome, .. } = stage;
    if let Some(report) = guest.finish(boot.vmm)? {
        for why in disagreements(&report, boot.is_tight(), set_irqs.read()?) {
            let what = format!("{}: {why}", title(boot));
            eprintln!("### {what}");
            outcome.failures.push(what);
        }
    }
    Ok(())
}

/// Where the service's counters do not fit what the host's kernel has counted. `busy`: calls are
/// answered busy, which counts as refused.
fn disagreements(report: &Report, busy: bool, set_irqs: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut told = 0_u64;
    for ReportFunction { guest_address, service } in &report.functions {
        let counters = &service.counters;
        if counters.failed_calls > 0 && !busy {
            wrong.push(format!("{guest_address}: {} calls were refused", counters.failed_calls));
        }
        told =
            told.saturating_add(counters.interrupt_setups).saturating_add(counters.enable_changes);
    }
    // Two for each function tell the VMM when the host wants it back, and when it has failed. A function
    // that leaves the machine with interrupts loses them, and its Enable, after it was asked.
    let functions = u64::try_from(report.functions.len()).unwrap_or(u64::MAX);
    let twice = functions.saturating_mul(2);
    let least = told.saturating_add(twice);
    if !(least..=least.saturating_add(twice)).contains(&set_irqs) {
        wrong.push(format!("{set_irqs} SET_IRQS, and the service has counted {told}"));
    }
    wrong
}

/// What is compared with other VMMs.
fn peers(scene: &mut Scene<'_, '_>) -> Result<()> {
    scene.event(Event::Bind, "load nvme")?;
    scene.check_mode()?;
    scene.moves()?;
    scene.event(Event::MaskUnmask, "mask_unmask nvme 10")?;
    scene.counted(Event::Read, "read 2048 4096", 2048)?;
    everything(scene)?;
    scene.event(Event::Unbind, "unbind nvme")
}

/// The same of a network function.
fn network_peers(scene: &mut Scene<'_, '_>) -> Result<()> {
    scene.event(Event::Bind, "load igb")?;
    scene.check_mode()?;
    scene.frames(100)?;
    scene.moves()?;
    scene.event(Event::MaskUnmask, "mask_unmask igb 10")?;
    everything(scene)?;
    scene.event(Event::Unbind, "unbind igb")
}

/// All that Linux does with a drive.
fn drive(scene: &mut Scene<'_, '_>) -> Result<()> {
    scene.event(Event::Bind, "load nvme")?;
    scene.check_mode()?;
    scene.counted(Event::Read, "read 512 131072", 512)?;
    scene.event(Event::Affinity, "affinity_under_load nvme 100")?;
    scene.event(Event::MaskUnmask, "mask_unmask nvme 100")?;
    everything(scene)?;
    scene.event(Event::Unbind, "unbind nvme")?;
    if scene.stage.boot.module {
        scene.module_reload()?;
    }
    scene.event(Event::Bind, "bind nvme")?;
    scene.check_mode()
}

/// All that Linux does with a network function.
fn network(scene: &mut Scene<'_, '_>) -> Result<()> {
    scene.event(Event::Bind, "load igb")?;
    scene.check_mode()?;
    scene.frames(500)?;
    scene.event(Event::Affinity, "affinity_under_load igb 100")?;
    // What concerns the whole guest shall be counted for this function alone.
    scene.stage.guest.ask("unbind nvme", LIMIT)?;
    everything(scene)?;
    scene.frames(100)?;
    scene.event(Event::Unbind, "unbind igb")?;
    scene.event(Event::Bind, "bind igb")?;
    scene.frames(100)
}

/// What is the same for each function.
fn everything(scene: &mut Scene<'_, '_>) -> Result<()> {
    let name = scene.function.name();
    scene.event(Event::DisableEnable, &format!("disable_enable {name}"))?;
    // The processor that goes has all of them: the same for every VMM.
    scene.stage.guest.ask(&format!("gather {name}"), LIMIT)?;
    scene.event(Event::CpuOffOn, &format!("cpu_off_on {name}"))?;
    scene.event(Event::Reset, &format!("reset {name}"))?;
    scene.observed(Event::Suspend, 1, |scene| {
        scene.stage.guest.ask_and_wake(&format!("suspend {name}"), LIMIT)
    })
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
    /// The module says nothing about it: it is not loaded, or does not know the function any more.
    silent: bool,
    /// Whether the module is loaded, or comes and goes.
    loaded: bool,
}

impl<'a> Stage<'a> {
    fn with(
        &mut self,
        function: Function,
        events: impl FnOnce(&mut Scene<'_, 'a>) -> Result<()>,
    ) -> Result<()> {
        let counters = self.count(function)?;
        self.guest.ask(&format!("prepare {}", function.name()), LIMIT)?;
        let loaded = self.boot.module;
        events(&mut Scene { stage: self, function, counters, silent: false, loaded })
    }

    /// Starts to count what a function's events cost.
    fn count(&self, function: Function) -> Result<Counters> {
        let mut functions = self.hello.functions.iter();
        let found = functions
            .find(|found| found.driver == function.name())
            .with_context(|| format!("the guest has no {}", function.name()))?;
        let end = found.table.saturating_add(found.entries.saturating_mul(16));
        // The pages of the host that it shares.
        let page = page_size()?;
        let down = |address: u64| address & !page.saturating_sub(1);
        let last = down(end.saturating_sub(1));
        let pages = Range { start: down(found.table), end: last.saturating_add(page) };
        Counters::start(Range { start: found.table, end }, pages, self.boot.is_tight())
    }
}

impl Scene<'_, '_> {
    fn event(&mut self, event: Event, request: &str) -> Result<()> {
        self.counted(event, request, 1)
    }

    fn counted(&mut self, event: Event, request: &str, count: u64) -> Result<()> {
        self.observed(event, count, |scene| scene.stage.guest.ask(request, LIMIT))
    }

    /// Has an event happen, counts what it costs, and looks into both kernels' logs.
    fn observed(
        &mut self,
        event: Event,
        count: u64,
        happen: impl FnOnce(&mut Self) -> Result<Answer>,
    ) -> Result<()> {
        let calls_before = self.calls()?;
        sleep(QUIET);
        let before = self.counters.read()?;
        let answer = happen(self)?;
        sleep(QUIET);
        let counts = self.counters.read()?.since(&before);
        let log = self.stage.guest.ask("log", LIMIT)?;
        let calls = self.calls()?;
        // A function that was added anew counts from 0.
        let since = |now: Option<u64>, before: Option<u64>| match (now, before) {
            (Some(now), Some(before)) if now >= before => Some(now.saturating_sub(before)),
            (now, _) => now,
        };
        let boot = self.stage.boot;
        let item = LinuxEvent {
            guest_kernel: self.stage.hello.release.clone(),
            host_kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            architecture: self.stage.hello.machine.clone(),
            page_size: page_size()?,
            vmm: boot.vmm,
            policy: boot.policy,
            module: self.loaded,
            function: self.function,
            event,
            count: answer.count.unwrap_or(count),
            table_exits: counts.table,
            message_writes: counts.messages,
            exits: counts.exits.saturating_sub(counts.console),
            vmm_exits: counts.vmm.saturating_sub(counts.console),
            set_irqs: counts.set_irqs,
            routing_updates: counts.routing,
            irqfds: counts.irqfds,
            doorbells: counts.doorbells,
            configures: since(calls.configures, calls_before.configures),
            updates: since(calls.updates, calls_before.updates),
            // The last lines of the kernel that another one replaces are gone.
            lost: (event != Event::Kexec).then(|| answer.lost.saturating_add(log.lost)),
            seconds: answer.seconds,
        };
        eprintln!(
            "### {} {} x {}: {} exits on the table's pages ({} messages), {} for the VMM, {} in all, {} SET_IRQS, {} routings, {} irqfds, \
             {} calls, {:.3} s",
            self.function.name(),
            event.name(),
            item.count,
            item.table_exits,
            item.message_writes,
            item.vmm_exits,
            item.exits,
            item.set_irqs,
            item.routing_updates,
            item.irqfds,
            item.doorbells,
            item.seconds
        );
        if let (Some(calls), Some(queries)) = (
            [item.configures, item.updates, since(calls.others, calls_before.others)]
                .into_iter()
                .sum::<Option<u64>>(),
            since(calls.queries, calls_before.queries),
        ) && event != Event::ModuleReload
            && !(calls..=calls.saturating_add(queries)).contains(&item.doorbells)
        {
            let exits = item.doorbells;
            let why =
                format!("{exits} exits for {calls} calls and {queries} queries of the module");
            self.fail(event.name(), &why);
        }
        for line in log.bad {
            self.fail(event.name(), &format!("the guest's log: {line}"));
        }
        for line in self.stage.log.bad_lines()? {
            self.fail(event.name(), &format!("the host's log: {line}"));
        }
        if event == Event::Affinity && answer.vectors == 0 {
            self.fail(event.name(), "no interrupt could be moved");
        }
        if answer.doubled > 0 {
            self.fail(event.name(), &format!("{} frames came twice", answer.doubled));
        }
        self.stage.outcome.events.push(item);
        Ok(())
    }

    /// What the module has called so far.
    fn calls(&mut self) -> Result<Answer> {
        // Where there is no service the module does nothing, and shows nothing.
        let serves = self.stage.boot.module && self.stage.boot.policy != Some(Policy::Off);
        if !serves || self.silent {
            return Ok(Answer::default());
        }
        self.stage.guest.ask(&format!("module_state {}", self.function.name()), LIMIT)
    }

    /// The table must be in the mode that policy and host allow, and say why it is not direct.
    fn check_mode(&mut self) -> Result<()> {
        if !self.stage.boot.module {
            return Ok(());
        }
        let (mode, reason) = match (self.stage.boot.policy, self.stage.boot.isolation) {
            (Some(Policy::Direct), true) => ("direct", ""),
            (Some(Policy::Direct), false) => ("trapped", "no-isolation"),
            (Some(Policy::Trapped), _) => ("trapped", "policy"),
            (Some(Policy::Off) | None, _) => return Ok(()),
        };
        let state = self.calls()?;
        if state.mode != mode || !state.reasons.contains(reason) {
            let why = format!(
                "the table is {}, must be {mode}; reasons: \"{}\", must name \"{reason}\"",
                state.mode, state.reasons
            );
            self.fail("bind", &why);
        }
        Ok(())
    }

    /// The module goes and comes while no driver uses the function.
    fn module_reload(&mut self) -> Result<()> {
        self.observed(Event::ModuleReload, 1, |scene| {
            let gone = scene.stage.guest.ask("module_unload", LIMIT)?;
            let back = scene.stage.guest.ask("module_load", LIMIT)?;
            Ok(Answer { seconds: gone.seconds + back.seconds, ..Answer::default() })
        })
    }

    /// Frames from the counterpart, and to it.
    fn frames(&mut self, count: u64) -> Result<()> {
        let counterpart = Counterpart::switch_on()?;
        self.observed(Event::Read, count, |scene| {
            let begin = Instant::now();
            scene.stage.guest.ask("listen", LIMIT)?;
            for numbers in packets::batches(count) {
                packets::send(counterpart.name(), numbers.clone())?;
                scene.stage.guest.ask(&format!("hear {}", numbers.end), LIMIT)?;
            }
            let guest = scene.stage.guest.ask("heard", LIMIT)?;
            let listener = Listener::start(counterpart.name())?;
            for numbers in packets::batches(count) {
                let request = format!("send {} {}", numbers.start, numbers.end);
                scene.stage.guest.ask(&request, LIMIT)?;
                listener.wait(numbers.end);
            }
            let host = listener.stop()?;
            let lost = |heard: u64| count.saturating_sub(heard);
            Ok(Answer {
                lost: lost(guest.count.unwrap_or(0)).saturating_add(lost(host.frames)),
                doubled: guest.doubled.saturating_add(host.doubled),
                seconds: begin.elapsed().as_secs_f64(),
                ..Answer::default()
            })
        })
    }

    /// Interrupts are moved, a few times over. A move that meets an interrupt, or what an earlier one
    /// has left, costs more writes: the cheapest time is the one that met nothing.
    fn moves(&mut self) -> Result<()> {
        let (times, each) = moves(self.function);
        let request = format!("affinity {} {each}", self.function.name());
        (0..times).try_for_each(|_| self.event(Event::Affinity, &request))
    }

    /// The guest moves its interrupts under load, while the host moves those that it has for the function.
    fn moving(&mut self, seconds: u64) -> Result<()> {
        let function = self.stage.boot.functions.first().context("no function")?;
        let mover = Mover::start(function, seconds)?;
        let request = format!("affinity_for nvme {seconds}");
        let limit = LIMIT.saturating_add(Duration::from_secs(seconds));
        self.observed(Event::Affinity, 1, |scene| scene.stage.guest.ask(&request, limit))?;
        let moved = mover.stop()?;
        eprintln!("### meanwhile the host: {moved:?}");
        if moved.moves == 0 || moved.processors_off == 0 {
            self.fail("affinity", &format!("the host has moved too little: {moved:?}"));
        }
        Ok(())
    }

    /// The host wants its function back.
    fn unplug(&mut self) -> Result<()> {
        let name = self.function.name();
        let address = match self.function {
            Function::Nvme => self.stage.boot.functions.first(),
            Function::Igb => self.stage.boot.functions.get(1),
        };
        let address = address.context("no such function")?.clone();
        self.silent = true;
        self.observed(Event::Unplug, 1, |scene| {
            let begin = Instant::now();
            let unbind = std::thread::spawn(move || {
                fs::write("/sys/bus/pci/drivers/vfio-pci/unbind", address)
            });
            // The function must still be in use when the host takes its table back.
            sleep(REVOKED);
            // QEMU asks the guest by the machine's hot-plug.
            let request = match scene.stage.boot.vmm {
                Vmm::Qemu => "vanishes",
                Vmm::Pvmsi => "gone",
            };
            scene.stage.guest.ask(&format!("{request} {name}"), LIMIT)?;
            match unbind.join() {
                Ok(result) => result.context("the host does not get its function back")?,
                Err(_) => bail!("the unbinding thread has failed"),
            }
            Ok(Answer { seconds: begin.elapsed().as_secs_f64(), ..Answer::default() })
        })
    }

    /// Another kernel, without the module, takes over, and uses the function.
    fn kexec(&mut self) -> Result<()> {
        self.silent = true;
        self.observed(Event::Kexec, 1, |scene| {
            let begin = Instant::now();
            let guest = &mut scene.stage.guest;
            guest.send(&format!("kexec {}", command_line()))?;
            guest.hello()?;
            guest.ask("prepare nvme", LIMIT)?;
            guest.ask("load nvme", LIMIT)?;
            Ok(Answer { seconds: begin.elapsed().as_secs_f64(), ..Answer::default() })
        })?;
        self.loaded = false;
        Ok(())
    }

    fn fail(&mut self, event: &str, why: &str) {
        let what = format!("{}: {} {event}: {why}", title(self.stage.boot), self.function.name());
        eprintln!("### {what}");
        self.stage.outcome.failures.push(what);
    }
}

/// Gives a function to vfio-pci, which an unplugged one has left.
fn take(function: &str) -> Result<()> {
    if Path::new(&format!("/sys/bus/pci/devices/{function}/driver")).exists() {
        return Ok(());
    }
    fs::write("/sys/bus/pci/drivers_probe", function)
        .with_context(|| format!("vfio-pci does not take {function}"))
}

fn page_size() -> Result<u64> {
    Ok(u64::try_from(rustix::param::page_size())?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Of two functions, with these counters.
    fn report(failed_calls: u64, interrupt_setups: u64) -> Report {
        let function = |address: &str, failed: u64| {
            json!({
                "id": "0000:01:00.0", "guest_address": address,
                "service": { "mode": "direct", "counters": {
                    "calls": 9, "failed_calls": failed,
                    "interrupt_setups": interrupt_setups, "enable_changes": 2,
                } },
            })
        };
        let functions = [function("00:01.0", 0), function("00:02.0", failed_calls)];
        serde_json::from_value(json!({ "functions": functions })).unwrap()
    }

    #[test]
    fn the_service_and_the_kernel_must_agree() {
        let none: [&str; 0] = [];
        assert_eq!(disagreements(&report(0, 3), false, 14), none);
        assert_eq!(disagreements(&report(0, 3), false, 18), none, "both left with interrupts");
        assert_eq!(disagreements(&report(1, 3), false, 14), ["00:02.0: 1 calls were refused"]);
        assert_eq!(disagreements(&report(1, 3), true, 14), none, "busy");
        for wrong in [13, 19] {
            assert_eq!(disagreements(&report(0, 3), false, wrong).len(), 1, "{wrong}");
        }
    }
}
