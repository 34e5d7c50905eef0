//! Messages to a local APIC (Intel SDM volume 3, 12.11; fixed, edge, physical destination). The platform need not be told of them.

use crate::interrupts;
use crate::msi::Route;
use crate::pci::Function;

/// Nothing to do.
///
/// # Errors
/// None.
pub(crate) fn prepare(
    _function: Function,
    _vectors: u16,
    _route: impl Fn(u16) -> Route,
) -> Result<(), &'static str> {
    Ok(())
}

/// Address and data: the route alone says it all.
pub(crate) fn message(_vector: u16, route: Route) -> (u64, u32) {
    let target = u64::try_from(route.vcpu).unwrap_or(0) & 0xff;
    (0xfee0_0000 | target << 12, u32::from(route.interrupt))
}

/// Sends the interrupt as another vCPU would.
pub(crate) fn deliver(_function: Function, _vector: u16, route: Route) {
    interrupts::send(route.vcpu, route.interrupt);
}
