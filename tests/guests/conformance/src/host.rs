//! The host under test: the machine that this guest runs on, and its software functions.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use pvmsi_conformance::Verdict;
use pvmsi_conformance::host::{
    HostFactory, HostOptions, HostUnderTest, Isolation, Platform, Policy, Work,
};
use pvmsi_guest_runtime::software::is_software;
use pvmsi_guest_runtime::{Start, memory, msi, pci};
use pvmsi_protocol::{Features, Leaf, ServiceBlock};

use crate::doorbell::Doorbell;
use crate::machine::Machine;
use crate::ram::TestRam;
use crate::{arch, arrivals, processors};

/// Messages of the tests that arrive have numbers below this.
const MESSAGES: u16 = 410;
/// From one function's BAR to the next one's.
const BAR_STEP: usize = 0x10_0000;
/// Milliseconds that an interrupt may take.
const PATIENCE: u32 = 200;

/// What all machines of the tests share: the machine.
pub(crate) struct Host {
    pub(crate) platform: arch::Platform,
    pub(crate) ram: TestRam,
    pub(crate) doorbell: Doorbell,
    pub(crate) exact: bool,
    pub(crate) patience: u32,
    service: bool,
    extended: bool,
    functions: Vec<Described>,
}

/// A software function, and what the operator has said of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described {
    pub(crate) function: pci::Function,
    pub(crate) vectors: u16,
    pub(crate) bar: u64,
    /// The MSI-X capability, power management control, and device control.
    pub(crate) msix: u16,
    pub(crate) power: u16,
    pub(crate) device_control: u16,
    policy: Policy,
    open: bool,
    allowed: bool,
}

impl Host {
    /// Looks at the machine; once.
    pub(crate) fn find(start: &Start) -> Result<&'static Self, &'static str> {
        let ram = TestRam::take().ok_or("no RAM left for call buffers; give the guest more")?;
        let platform = start.platform();
        let leaf = |number| {
            let [eax, ebx, ecx, edx] = arch::block(platform, number).unwrap_or_default();
            Leaf { eax, ebx, ecx, edx }
        };
        let block = ServiceBlock::read(0, leaf);
        let doorbell = Doorbell::find(platform, block.as_ref());
        let mut said = start.text("functions").unwrap_or_default().split(',');
        let software = pci::functions().filter(is_software);
        let mut functions = Vec::new();
        for (bar, function) in (arch::BARS..).step_by(BAR_STEP).zip(software) {
            functions.push(Described::new(function, bar, said.next().unwrap_or_default())?);
            msi::prepare(function, MESSAGES, arrivals::route)?;
        }
        if functions.is_empty() {
            return Err("no software function on bus 0");
        }
        memory::place(Self {
            platform,
            ram,
            doorbell,
            exact: start.number("exact") != Some(0),
            patience: start
                .number("patience")
                .and_then(|it| u32::try_from(it).ok())
                .unwrap_or(PATIENCE),
            service: start.number("service") != Some(0),
            extended: block
                .is_some_and(|block| block.features.contains(Features::EXTENDED_DESTINATION_ID)),
            functions,
        })
        .ok_or("no RAM left; give the guest more")
    }

    /// The function that is as a test wants it.
    fn choose(&self, options: &HostOptions) -> Result<Described, String> {
        let HostOptions {
            function,
            vectors,
            isolation,
            allow_unisolated,
            policy,
            quota,
            routes,
            vectors_per_call,
            mappable,
            readable,
            pending_mappable,
            platform,
            extended_destination_ids,
        } = *options;
        let ids = |extended| extended_destination_ids == Some(extended);
        let lacks = [
            (
                platform.is_some_and(|platform| platform != arch::platform()),
                "this machine has another platform",
            ),
            (ids(false) && self.extended, "this machine takes extended destination ids"),
            (ids(true) && !self.extended, "this machine takes no extended destination ids"),
            (function != HostOptions::default().function, "there is one machine here"),
            (self.service && policy == Policy::Off, "this machine offers the service"),
            (!self.service && policy != Policy::Off, "this machine does not offer the service"),
            (isolation == Isolation::Unknown, "what is known of the isolation is known here"),
            (quota.is_some(), "the operator of this machine bounds no function"),
            (routes.is_some(), "this machine does not run out of routes"),
            (vectors_per_call.is_some(), "this machine is never busy"),
            (!mappable, "every table of this machine can be mapped"),
            (!readable, "every table of this machine can be read"),
            (!pending_mappable, "all pending bits of this machine can be mapped"),
        ];
        if let Some((_, why)) = lacks.into_iter().find(|(lacks, _)| *lacks) {
            return Err(why.into());
        }
        let open = isolation != Isolation::Confined;
        let fits = |it: &&Described| {
            let alike = (it.policy, it.open, it.allowed) == (policy, open, allow_unisolated);
            it.vectors == vectors && (alike || !self.service)
        };
        self.functions.iter().find(fits).copied().ok_or_else(|| {
            format!("no function here has {vectors} vectors, policy {policy:?}, open {open}, allowed {allow_unisolated}")
        })
    }
}

impl HostFactory for &'static Host {
    fn create(&self, options: &HostOptions) -> Result<Box<dyn HostUnderTest>, String> {
        let described = self.choose(options)?;
        Ok(Box::new(Machine::new(self, described)))
    }

    fn platforms(&self) -> Vec<Platform> {
        vec![arch::platform()]
    }

    fn at_once(&self, work: &[Work<'_>]) -> Verdict {
        processors::at_once(work)
    }
}

impl Described {
    fn new(function: pci::Function, bar: u64, said: &str) -> Result<Self, &'static str> {
        let at = |id| function.capability(id).ok_or("a software function lacks a capability");
        let (msix, power, express) = (at(pci::CAPABILITY_MSIX)?, at(0x01)?, at(0x10)?);
        let mut described = Self {
            function,
            vectors: (function.read_u16(msix.wrapping_add(2)) & 0x7ff).wrapping_add(1),
            bar,
            msix,
            power: power.wrapping_add(4),
            device_control: express.wrapping_add(8),
            policy: Policy::Direct,
            open: false,
            allowed: false,
        };
        for word in said.split('+').filter(|word| !word.is_empty()) {
            match word {
                "direct" => described.policy = Policy::Direct,
                "trapped" => described.policy = Policy::Trapped,
                "denied" => described.policy = Policy::Denied,
                "open" => described.open = true,
                "allowed" => described.allowed = true,
                _ => return Err("`functions` names something unknown"),
            }
        }
        Ok(described)
    }
}
