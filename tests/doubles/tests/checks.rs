//! What the doubles promise to those who rely on them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pvmsi_hypervisor::{BarIndex, Gsi, Route, RouteChange, Routes, View, Window};
use pvmsi_protocol::{GuestMessage, TableMode};
use pvmsi_test_doubles::{RecordedRoutes, RecordedWindow, Step};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn message(data: u32) -> GuestMessage {
    GuestMessage { address: 0xfee0_0000, data }
}

fn lead(routes: &RecordedRoutes, gsi: Gsi, data: u32) {
    let route = Route { message: message(data), device_id: None };
    routes.install(&[RouteChange { gsi, route }]).unwrap();
}

fn attached() -> (RecordedRoutes, EventFd, Gsi) {
    let (routes, event) = (RecordedRoutes::new(2), EventFd::new(EFD_NONBLOCK).unwrap());
    let gsi = routes.allocate(1).unwrap()[0];
    lead(&routes, gsi, 1);
    routes.attach(&event, gsi).unwrap();
    (routes, event, gsi)
}

fn panics(act: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(act)).is_err()
}

#[test]
fn an_event_goes_by_the_route_of_its_moment() {
    let (routes, event, gsi) = attached();
    event.write(1).unwrap();
    lead(&routes, gsi, 2);
    event.write(1).unwrap();
    routes.detach(&event, gsi).unwrap();
    event.write(1).unwrap();
    assert_eq!(routes.delivered(), [message(1), message(2)]);
    event.write(1).unwrap();
    routes.attach(&event, gsi).unwrap();
    assert_eq!(routes.delivered(), [message(2)], "what waited comes once");
    assert_eq!((routes.updates(), routes.taken(), routes.routed()), (2, 1, 1));
}

#[test]
fn who_breaks_a_promise_is_stopped() {
    assert!(!panics(|| drop(attached())));
    let unrouted = |(routes, event, gsi): (RecordedRoutes, EventFd, Gsi)| {
        routes.attach(&event, Gsi(gsi.0 + 1)).unwrap();
    };
    assert!(panics(|| unrouted(attached())));
    let breaches: [fn(&RecordedRoutes, &EventFd, Gsi); 4] = [
        |routes, event, gsi| routes.attach(event, gsi).unwrap(),
        |routes, _, gsi| routes.free(&[gsi]),
        |routes, event, gsi| (0..2).for_each(|_| routes.detach(event, gsi).unwrap()),
        |routes, event, gsi| {
            routes.detach(event, gsi).unwrap();
            routes.free(&[gsi]);
            routes.free(&[gsi]);
        },
    ];
    for breach in breaches {
        let (routes, event, gsi) = attached();
        assert!(panics(|| breach(&routes, &event, gsi)));
    }
}

#[test]
fn a_step_that_is_refused_changes_nothing() {
    let refuses = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&refuses);
    let hook = move |step| match step {
        Step::PutIn | Step::Install if asked.load(Ordering::SeqCst) => {
            Err(io::Error::other("told to refuse"))
        }
        _ => Ok(()),
    };
    let (routes, window) =
        (RecordedRoutes::with_hook(2, hook.clone()), RecordedWindow::with_hook(true, hook));
    refuses.store(true, Ordering::SeqCst);
    routes.install(&[]).unwrap_err();
    assert_eq!(routes.updates(), 0);
    let mut bars = [None; BarIndex::COUNT];
    bars[0] = Some(vm_memory::GuestAddress(0xc000_0000));
    let view = View { bars, table: TableMode::Direct };
    let mut shared = window.share();
    shared.show(&view).unwrap_err();
    assert_eq!(
        (window.now(), window.shown(), shared.shows_table()),
        (View::NOTHING, vec![], false)
    );
    refuses.store(false, Ordering::SeqCst);
    shared.show(&view).unwrap();
    assert_eq!((window.now(), window.shown(), shared.shows_table()), (view, vec![view], true));
}
