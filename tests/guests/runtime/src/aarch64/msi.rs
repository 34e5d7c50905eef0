//! Messages to the interrupt translation service: the event id is the vector, the device id the function's requester id.

use super::{its, lpi};
use crate::msi::Route;
use crate::pci::Function;
use crate::report;

/// Maps an LPI of its own to each vector.
///
/// # Errors
/// Memory or LPIs are used up, or the service does not do what it is told.
pub(crate) fn prepare(
    function: Function,
    vectors: u16,
    route: impl Fn(u16) -> Route,
) -> Result<(), &'static str> {
    let first = lpi::take(vectors)?;
    let lpis = || (0..vectors).zip(first..).map(|(vector, lpi)| (vector, lpi, route(vector)));
    for (_, lpi, route) in lpis() {
        lpi::set_interrupt(lpi, route.interrupt);
    }
    its::map(
        function.requester_id(),
        vectors,
        lpis().map(|(vector, lpi, route)| (vector, lpi, route.vcpu)),
    )
}

/// Address and data: the route has been told to the translation service.
pub(crate) fn message(vector: u16, _route: Route) -> (u64, u32) {
    (its::TRANSLATER, vector.into())
}

/// Makes the translation service raise the vector's event.
pub(crate) fn deliver(function: Function, vector: u16, _route: Route) {
    if let Err(error) = its::raise(function.requester_id(), vector) {
        report::failure(format_args!("{} vector {vector}: {error}", function.id()));
    }
}
