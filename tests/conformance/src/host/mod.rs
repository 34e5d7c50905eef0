//! Target `host`: what a VMM author implements to run the suite against a host half of their own.
//!
//! [`HostUnderTest`] is one machine: guest RAM from address 0 to [`RAM_BYTES`],
//! and one function with MSI-X whose vector table, pending bits and mask bits
//! are real (in hardware, or in software that behaves like it). The suite plays
//! the guest, the device and the operator, and looks on from outside.
//!
//! No processor and no hypervisor are needed: where a guest would have
//! executed an instruction, the suite calls a method. Methods take `&self` and
//! may be called from several threads, as several virtual processors would.
//!
//! [`ours`] is the first implementation, and an example: it embeds
//! `pvmsi-hypervisor` as a VMM does, with routes and a memory map that record.

mod call;
mod machine;
#[cfg(feature = "std")]
pub mod ours;
mod tests;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use pvmsi_protocol::{FunctionId, GuestMessage};

pub(crate) use tests::tests;

#[cfg(feature = "std")]
use crate::suite::Stop;
use crate::suite::Verdict;

/// Guest RAM starts at address 0 and is so long.
pub const RAM_BYTES: u64 = 0x10_0000;

/// Where the interrupts of the guest go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Local APICs.
    X86,
    /// An interrupt translation service.
    Arm64 {
        /// Guest physical address of GITS_TRANSLATER.
        its_doorbell: u64,
    },
}

impl Platform {
    /// An arm64 machine, where nothing says which.
    pub const ARM64: Self = Self::Arm64 { its_doorbell: 0x0809_0040 };
}

/// What the host knows of the function's isolation (H-901).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// The function is confined to its own interrupts.
    Confined,
    /// It is not.
    Open,
    /// Nobody can tell.
    Unknown,
}

/// How far the operator lets the service go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The machine has no service at all.
    Off,
    /// The machine has the service; this function is not allowed any vector by it.
    Denied,
    /// Calls are answered, the table is never direct.
    Trapped,
    /// The table is direct where that is safe.
    Direct,
}

/// A machine as a test wants it.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// The function's address.
    pub function: FunctionId,
    /// Entries of its vector table, 1 to 2048.
    pub vectors: u16,
    /// Its isolation.
    pub isolation: Isolation,
    /// The operator overrides what is known of the isolation, for this function by name.
    pub allow_unisolated: bool,
    /// What the operator allows.
    pub policy: Policy,
    /// The most vectors that the operator lets the function have by the service; `None` is no limit.
    pub quota: Option<u16>,
    /// The most routes (or whatever an assigned vector uses up) that the machine has left for the function; `None` is no limit below 2048.
    pub routes: Option<u16>,
    /// The most vectors that one `configure` prepares before it answers *busy*; `None`: it never does.
    pub vectors_per_call: Option<u16>,
    /// Whether the table's pages can be mapped into the guest.
    pub mappable: bool,
    /// Whether the host's loads from the table give what the table holds. Where they do not they give zeros, and its stores work.
    pub readable: bool,
    /// Whether pages of the pending bit array that are none of the table's can be mapped, too.
    pub pending_mappable: bool,
    /// Where interrupts go; `None`: the test does not care.
    pub platform: Option<Platform>,
    /// Whether it offers the feature *extended-destination-id*; `None`: the test does not care.
    pub extended_destination_ids: Option<bool>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            function: FunctionId(8),
            vectors: 8,
            isolation: Isolation::Confined,
            allow_unisolated: false,
            policy: Policy::Direct,
            quota: None,
            routes: None,
            vectors_per_call: None,
            mappable: true,
            readable: true,
            pending_mappable: true,
            platform: None,
            extended_destination_ids: None,
        }
    }
}

/// Guest RAM, as a processor of the guest accesses it.
pub trait Ram {
    /// Reads; bytes beyond RAM read as ones.
    fn read(&self, address: u64, data: &mut [u8]);

    /// Writes; bytes beyond RAM are dropped.
    fn write(&self, address: u64, data: &[u8]);
}

/// What a host under test may be unable to do or to show, other than the host halves themselves: that of a machine which a guest tests from inside, say. A test that cannot do without is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// [`reset_function`](HostUnderTest::reset_function).
    BusReset,
    /// [`reset_machine`](HostUnderTest::reset_machine).
    MachineReset,
    /// [`revoke`](HostUnderTest::revoke) and [`allow`](HostUnderTest::allow).
    Revoke,
    /// [`remove`](HostUnderTest::remove).
    Remove,
    /// [`fail`](HostUnderTest::fail) and [`recover`](HostUnderTest::recover).
    Failure,
    /// [`reset_unseen`](HostUnderTest::reset_unseen) also while the function's memory does not answer.
    TableLoss,
    /// [`interrupts`](HostUnderTest::interrupts) of whatever message the platform takes, not only of those that an interrupt handler can count.
    AnyMessage,
    /// [`table_entry`](HostUnderTest::table_entry).
    Table,
    /// [`foreign_messages`](HostUnderTest::foreign_messages).
    ForeignMessages,
    /// [`is_mapped`](HostUnderTest::is_mapped).
    Mappings,
    /// [`counts`](HostUnderTest::counts).
    Counts,
    /// [`start`](HostUnderTest::start).
    Start,
}

impl Ability {
    /// Why a test is skipped.
    pub const fn lack(self) -> &'static str {
        match self {
            Self::BusReset => "nothing here resets the function's bus",
            Self::MachineReset => "nothing here resets the machine",
            Self::Revoke => "nothing here takes the table back",
            Self::Remove => "nothing here removes the function",
            Self::Failure => "the function cannot be made to fail",
            Self::TableLoss => "the function cannot lose its table while its memory is off",
            Self::AnyMessage => "not every message can be taken",
            Self::Table => "a trapped table cannot be looked at",
            Self::ForeignMessages => "what the function's messages are cannot be seen",
            Self::Mappings => "mappings cannot be seen",
            Self::Counts => "nothing is counted",
            Self::Start => "what the function finds when it is started cannot be seen",
        }
    }
}

/// What has been counted since the machine was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accesses of the guest to the function's BARs that the host has answered.
    pub exits: u64,
    /// Updates of the hypervisor's interrupt routing, each for however many vectors.
    pub routing_updates: u64,
    /// Requests to set interrupts of the function up, each for however many vectors.
    pub interrupt_setups: u64,
    /// Routes that are taken now.
    pub routes: u64,
}

/// One machine with one function, after power-on: memory decoding off, BARs unprogrammed, MSI-X off.
///
/// The function needs capabilities for MSI-X, power management and PCI Express (with function
/// level reset), and one memory BAR for table and pending bits.
pub trait HostUnderTest: Send + Sync {
    /// Whether it can do or show something. Where it cannot, the method's effect or result does not count.
    fn can(&self, ability: Ability) -> bool {
        let _ = ability;
        true
    }

    /// The function's address, where it is not the one of the options.
    fn function(&self) -> Option<FunctionId> {
        None
    }

    /// Where the function's BAR, and 0x1000_0000 above it again, may be put: 256 KiB that nothing else occupies.
    fn bar(&self) -> u64 {
        0xc000_0000
    }

    // What a guest can do.

    /// The guest's RAM.
    fn ram(&self) -> &dyn Ram;

    /// Rings the doorbell with the page number of a call buffer; returns when the guest would go on.
    fn ring(&self, page: u32);

    /// As [`ring`](Self::ring), but calls `watcher` before each access of the host to guest RAM: what another processor of the guest does and sees at that moment. `false` when the host cannot be watched; the doorbell was not rung then.
    fn ring_watched(&self, page: u32, watcher: &mut dyn FnMut(&dyn Ram)) -> bool {
        let _ = (page, watcher);
        false
    }

    /// A write of the doorbell with a width of its own. Four bytes ring.
    fn doorbell_write(&self, data: &[u8]);

    /// A read of the doorbell.
    fn doorbell_read(&self, data: &mut [u8]);

    /// A leaf of the service block, 0 to 3, as the guest finds it; `None` where it finds none.
    fn service_block(&self, leaf: u32) -> Option<[u32; 4]>;

    /// An SMCCC call with X1: X0 to X3 of the answer. `None` where the machine has no such calls.
    fn smccc(&self, function: u32, x1: u64) -> Option<[u64; 4]> {
        let _ = (function, x1);
        None
    }

    /// Reads the function's configuration space.
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// Writes the function's configuration space.
    fn config_write(&self, offset: u64, data: &[u8]);

    /// A load from a guest physical address outside RAM, of any width and alignment: by the guest's mapping where it has one, by an exit where not. What nobody answers reads as ones.
    fn mmio_read(&self, address: u64, data: &mut [u8]);

    /// A store, likewise.
    fn mmio_write(&self, address: u64, data: &[u8]);

    // What the device can do.

    /// An event of a vector of the function.
    fn raise(&self, vector: u16);

    /// The guest starts the function by a register of its own, and the function looks at its own MSI-X Enable, as an NVMe controller does when a queue is created: whether it found it set. Where it did not, its events have no interrupts until it is started again or reset.
    fn start(&self) -> bool;

    /// The function resets itself by a register of its own: its table is lost, and the host does not see it.
    fn reset_unseen(&self);

    /// The same, and the function's own MSI-X Enable is lost as well, as where a physical function is reset or a function runs its BIST. `false` where nothing does that.
    fn reset_unseen_with_enable(&self) -> bool {
        false
    }

    // What the operator, or the rest of the VMM, can do.

    /// Resets the function, as by a reset of its bus.
    fn reset_function(&self);

    /// Resets the machine.
    fn reset_machine(&self);

    /// Takes the function's table back (reason *host-revoked*), until [`allow`](Self::allow).
    fn revoke(&self);

    /// Gives the table back.
    fn allow(&self);

    /// The host learns that the function has failed.
    fn fail(&self);

    /// The host learns that the function, failed before or not, has recovered; something may have changed its table meanwhile.
    fn recover(&self);

    /// Removes the function from the machine, for good.
    fn remove(&self);

    /// Stops the guest, saves it, and continues it on a second host with the same options: from here on this is the machine there, and the first is no more. `false` when the host half has no such thing; the guest was not stopped then.
    fn move_elsewhere(&mut self) -> bool {
        false
    }

    /// Lets the `step`-th step from now that the kernel could refuse (a routing update, an event to attach, …) be refused, once; 0: none. `false` when the host cannot be made to fail.
    fn refuse_step(&self, step: u32) -> bool {
        let _ = step;
        false
    }

    /// Whether a step that was to be refused is still to come.
    fn refusal_is_due(&self) -> bool {
        false
    }

    // What can be seen from outside.

    /// The interrupts that arrived in the guest since the last look, as guest messages, when all that is under way has arrived.
    fn interrupts(&self) -> Vec<GuestMessage>;

    /// An entry of the function's own table: address low, address high, data, vector control.
    fn table_entry(&self, vector: u16) -> [u32; 4];

    /// Messages that the function has emitted and that were not its own: they went nowhere.
    fn foreign_messages(&self) -> u64;

    /// Whether the guest has a mapping of the page at a guest physical address outside RAM.
    fn is_mapped(&self, address: u64) -> bool;

    /// What was counted.
    fn counts(&self) -> Counts;
}

/// What one of several processors does.
pub type Work<'w> = &'w (dyn Fn() -> Verdict + Sync);

/// Makes machines.
pub trait HostFactory: Sync {
    /// A machine of this kind.
    ///
    /// # Errors
    /// Why this host cannot be had like that; the test is skipped.
    fn create(&self, options: &HostOptions) -> Result<Box<dyn HostUnderTest>, String>;

    /// The platforms of its machines; a test that does not care gets the first.
    fn platforms(&self) -> Vec<Platform> {
        vec![Platform::X86, Platform::ARM64]
    }

    /// Does several things at the same time, on a processor each, until all are done; the first stop is theirs.
    ///
    /// # Errors
    /// A stop of one of them, or that the host has too few processors.
    #[cfg(feature = "std")]
    fn at_once(&self, work: &[Work<'_>]) -> Verdict {
        std::thread::scope(|scope| {
            let threads: Vec<_> = work.iter().map(|work| scope.spawn(work)).collect();
            let mut first = Ok(());
            for thread in threads {
                let panic = Err(Stop::Failed("a panic on one of several processors".into()));
                first = first.and(thread.join().unwrap_or(panic));
            }
            first
        })
    }

    /// Does several things at the same time, on a processor each, until all are done; the first stop is theirs.
    ///
    /// # Errors
    /// A stop of one of them, or that the host has too few processors.
    #[cfg(not(feature = "std"))]
    fn at_once(&self, work: &[Work<'_>]) -> Verdict;
}
