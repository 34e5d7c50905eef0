//! The generic timer's virtual timer and counter.

use arm_sysregs::el0::accessors::{
    read_cntfrq_el0, read_cntvct_el0, write_cntv_ctl_el0, write_cntv_cval_el0,
};
use arm_sysregs::el0::registers::{CntvCtlEl0, CntvCvalEl0};

use crate::timer::TICK_MS;

/// Makes the tick come to this vCPU every [`TICK_MS`], so that it never sleeps for ever.
pub fn start_tick() {
    next_tick();
    write_cntv_ctl_el0(CntvCtlEl0::ENABLE);
}

/// Ends the ticks.
pub fn stop_tick() {
    write_cntv_ctl_el0(CntvCtlEl0::empty());
}

/// Ends the tick that is due and asks for the next.
pub(crate) fn next_tick() {
    let period = u64::from(TICK_MS).saturating_mul(per_millisecond());
    write_cntv_cval_el0(CntvCvalEl0::from_bits_retain(count().wrapping_add(period)));
}

/// Measures time with interrupts off. The tick goes on.
#[derive(Debug)]
pub struct Stopwatch(u64);

impl Stopwatch {
    /// Starts at 0.
    pub fn start() -> Self {
        Self(count())
    }

    /// Milliseconds since the start.
    pub fn milliseconds(&self) -> u32 {
        let ticks = count().wrapping_sub(self.0);
        u32::try_from(ticks.checked_div(per_millisecond()).unwrap_or(0)).unwrap_or(u32::MAX)
    }
}

fn count() -> u64 {
    read_cntvct_el0().virtualcount()
}

fn per_millisecond() -> u64 {
    u64::from(read_cntfrq_el0().clockfreq() / 1000).max(1)
}
