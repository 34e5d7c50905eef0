//! The switch: one function's vectors, routes and table mode. `DESIGN.md` tells how it works.
//!
//! What is fixed, what the guest has asked for, what the host has asked for, what
//! the world shows, and what is owed are apart. [`decide`] says what the world
//! shall be, the other files make it so. Each calls only those above it:
//!
//! | file | what it is about |
//! |---|---|
//! | `set`, `shared`, `fixed`, `guest`, `host` | plain data |
//! | `tally` | generation, counters, log |
//! | `wires` | routes and irqfds: the one place that touches them |
//! | `decide` | reasons, view, what each vector shall be: pure functions |
//! | `reader` | what guest and VMM can read |
//! | `pages` | the guest's memory map: the one place that maps and unmaps |
//! | `converge` | makes changed vectors as they shall be; the function's own mask bits as a stand-in |
//! | `contents` | the function's own table: its messages, and mask bits that stay |
//! | `interrupts` | the function's interrupts: set-up, Enable, taking down |
//! | `mode` | hands the table over and takes it back |
//! | `placement` | where the function is decoded |
//! | `operation` | the guard that each change goes through: pays when it begins, evaluates and publishes at its end |
//! | `attempt` | the guard of what can fail: rolls back unless it is kept |
//! | `configure`, `calls`, `table`, `config`, `saved` | the operations |

mod attempt;
mod calls;
mod config;
mod configure;
mod contents;
mod converge;
mod decide;
mod fixed;
mod guest;
mod host;
mod interrupts;
mod mode;
mod operation;
mod pages;
mod placement;
mod reader;
mod saved;
mod set;
mod shared;
#[cfg(feature = "model")]
mod snapshot;
mod table;
mod tally;
mod wires;

use std::sync::Arc;

use pvmsi_protocol::{FunctionId, TableMode, VectorIndex};
use vmm_sys_util::eventfd::EventFd;

use crate::capability::Registers;
use crate::function::PciFunction;
use crate::platform::Platform;
use crate::policy::FunctionPolicy;
use crate::routes::Routes;
use crate::window::{View, Window};
use fixed::Fixed;
use guest::{Guest, MsixControl};
use host::{Debts, Host};
use pages::Pages;
use set::VectorSet;
use tally::Tally;
use wires::Wires;

pub(crate) use operation::{Decoded, Operation};
pub(crate) use saved::Amount;
#[cfg(feature = "model")]
pub use snapshot::Snapshot;

/// Everything about one function. It lives behind one lock, and is changed by an [`Operation`] only.
pub(crate) struct Switch {
    fixed: Fixed,
    guest: Guest,
    host: Host,
    world: World,
    debts: Debts,
    tally: Tally,
    /// Goes before the function: it holds the function's mappings.
    pages: Pages,
    function: Box<dyn PciFunction>,
}

/// What the world shows, as far as it was made so from here.
struct World {
    mode: TableMode,
    wires: Wires,
    /// How many vectors the function was last told to set up.
    set_up: usize,
    /// The function's own MSI-X Enable, as it was last told.
    enabled: bool,
    /// An event of a masked vector waits in its eventfd, so the table must stay trapped. The vector is where to look first.
    held: Option<VectorIndex>,
    /// Vectors whose own mask bit may be set although the table is trapped.
    blocked: VectorSet,
    /// Vectors that the function holds back, by its own mask bit, until the attempt ends, or the unfinished `configure` that they were attached for.
    quiet: VectorSet,
    /// Vectors whose event held a signal that comes back when the attempt ends, and the vector is detached or may fire.
    aside: VectorSet,
    /// A call is under way that can still fail; how many vectors there were before it.
    attempt: Option<usize>,
    /// Events that an unfinished `configure` has made.
    spare: Vec<EventFd>,
}

impl Switch {
    pub(crate) fn new(
        id: FunctionId,
        platform: Platform,
        policy: FunctionPolicy,
        registers: Registers,
        function: Box<dyn PciFunction>,
        window: Box<dyn Window>,
        routes: Arc<dyn Routes>,
    ) -> Self {
        let layout = function.layout().clone();
        let isolation = function.isolation();
        let pages = Pages::new(window);
        let mut switch = Self {
            guest: Guest::new(layout.vectors()),
            fixed: Fixed {
                id,
                platform,
                policy,
                isolation,
                not_mappable: layout.not_mappable(pages.can_show_table()),
                layout,
                registers,
            },
            host: Host::empty(),
            world: World {
                mode: TableMode::Trapped,
                wires: Wires::new(routes, platform.binds_at_attach()),
                set_up: 0,
                enabled: false,
                held: None,
                blocked: VectorSet::default(),
                quiet: VectorSet::default(),
                aside: VectorSet::default(),
                attempt: None,
                spare: Vec::new(),
            },
            debts: Debts::empty(),
            tally: Tally::default(),
            pages,
            function,
        };
        // A function may come with decoding on, at addresses that are the host's.
        switch.power_on_config();
        switch.refresh();
        switch
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.take_out(&View::NOTHING);
        self.world.mode = TableMode::Trapped;
        self.guest.control = MsixControl::default();
        self.tear_down();
        // What is stuck even now keeps its GSI for good.
        let _ = self.world.wires.release_retired();
    }
}
