//! What a run costs: exits counted as they are served, sections dated by the guest's events, and the
//! report that comes of both. Nothing here knows the machine.

mod exits;
mod recorder;
mod report;
pub(crate) mod report_text;

pub use exits::ExitCounts;
pub(crate) use exits::{ExitCounters, ExitKind};
pub(crate) use recorder::{RecordedFunction, Recorder};
pub use report::{
    Configure, FunctionReport, FunctionService, Host, Interrupts, Io, LongestCall, MaskUnmask,
    Neighbour, PhaseMode, PhaseReport, Pinning, REPORT_SCHEMA, Report, Soak,
};
