//! Where ownership ends, what survives a reset, and that pages go before the function stops to answer.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

mod fixture;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use fixture::*;
use pvmsi_hypervisor::{FunctionError, FunctionPolicy, Service, ServiceConfig, View};
use pvmsi_protocol::{CallId, Reasons, TableMode};
use pvmsi_software::{SoftwareFunction, SoftwareOptions};

fn configured(vectors: u16) -> Guest {
    let guest = Guest::with_vectors(vectors);
    guest.control(ENABLE);
    assert_eq!(guest.configure(vectors).mode, TableMode::Direct);
    guest
}

fn assert_default(guest: &Guest) {
    let answer = guest.query();
    assert_eq!((answer.assigned, answer.mode), (0, TableMode::Trapped));
    assert!(answer.reasons.contains(Reasons::NOT_ASSIGNED));
    assert_eq!((guest.routes.routed(), guest.routes.attached()), (0, 0));
    assert!(!guest.is_direct());
}

fn assert_serves_the_standard_table(guest: &Guest) {
    guest.control(ENABLE);
    guest.program(1, message(1));
    guest.raise(1);
    assert!(guest.interrupts().contains(&1));
}

#[test]
fn release_returns_to_the_default() {
    let guest = configured(4);
    let generation = guest.query().generation;
    guest.call(CallId::Release, &[]).unwrap();
    assert_default(&guest);
    assert_ne!(guest.query().generation, generation);
    assert!((0..4).all(|vector| guest.masked(vector)));
    assert_serves_the_standard_table(&guest);
    guest.call(CallId::Release, &[]).unwrap();
}

#[test]
fn clearing_msix_enable_ends_ownership() {
    let guest = configured(4);
    guest.control(0);
    assert_default(&guest);
    assert_serves_the_standard_table(&guest);
    guest.control(0);
    guest.control(ENABLE);
    assert_eq!(guest.configure(4).mode, TableMode::Direct, "and it can be had again");
}

#[test]
fn a_function_level_reset_keeps_the_configuration() {
    let guest = configured(4);
    guest.mask(2);
    let before: Vec<_> = (0..16).map(|word| guest.load(TABLE + word * 4)).collect();
    guest.config_write(DEVICE_CONTROL, &0x8000_u16.to_le_bytes());
    assert!(guest.is_direct());
    let after: Vec<_> = (0..16).map(|word| guest.load(TABLE + word * 4)).collect();
    assert_eq!(after, before, "table messages and mask bits are restored by the host");
    guest.raise(0);
    guest.raise(2);
    assert_eq!(guest.interrupts(), [0]);
    guest.unmask(2);
    assert_eq!(guest.interrupts(), [2]);
}

#[test]
fn a_function_level_reset_clears_the_standard_table() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.program(0, message(0));
    guest.config_write(DEVICE_CONTROL, &0x8000_u16.to_le_bytes());
    assert_eq!(guest.config_read(0x90) >> 16 & 0xc000, 0, "MSI-X is off after the reset");
    assert!(guest.masked(0));
    assert_eq!(guest.load(Guest::entry(0, 0)), 0);
    assert_serves_the_standard_table(&guest);
}

#[test]
fn restore_puts_the_messages_back_after_a_reset_that_the_host_could_not_see() {
    let guest = configured(4);
    let before = guest.load(Guest::entry(3, 2));
    guest.store(CONTROL, RESET);
    guest.device.run();
    assert!(guest.masked(3));
    assert_eq!(guest.load(Guest::entry(3, 0)), 0, "the reset has cleared the table");
    guest.call(CallId::Restore, &[]).unwrap();
    assert_eq!(guest.load(Guest::entry(3, 2)), before);
    assert!(guest.masked(3), "mask bits are left as the function has them");
    guest.raise(3);
    assert_eq!(guest.interrupts(), NONE);
    guest.unmask(3);
    assert_eq!(guest.interrupts(), [3]);
}

#[test]
fn a_guest_may_write_the_table_messages_back_itself() {
    let guest = configured(2);
    let words: Vec<_> = (0..3).map(|word| guest.load(Guest::entry(1, word))).collect();
    guest.store(CONTROL, RESET);
    guest.device.run();
    for (word, value) in (0..).zip(words) {
        guest.store(Guest::entry(1, word), value);
    }
    guest.unmask(1);
    guest.raise(1);
    assert_eq!(guest.interrupts(), [1]);
}

#[test]
fn a_foreign_message_harms_only_its_own_function() {
    let guest = configured(2);
    guest.store(Guest::entry(0, 0), 0xfee0_0000);
    guest.store(Guest::entry(0, 2), 0x31);
    guest.raise(0);
    assert_eq!(guest.interrupts(), NONE);
    assert_eq!(guest.device.blocked(), 1);
    guest.call(CallId::Restore, &[]).unwrap();
    guest.raise(0);
    assert_eq!(guest.interrupts(), [0]);
}

#[test]
fn machine_reset_is_power_on() {
    let guest = configured(4);
    guest.service.reset().unwrap();
    assert_default(&guest);
    assert_eq!(guest.config_read(0x90) >> 16 & 0xc000, 0);
    assert_eq!(guest.config_read(0x04) & 0x6, 0);
    assert_eq!(guest.config_read(0x10), 0);
    assert_eq!(guest.view(), View::NOTHING);
}

#[test]
fn pages_go_before_the_function_stops_to_answer() {
    let guest = configured(4);
    guest.mask(1);
    for (name, stop, start) in [
        ("memory decoding", (0x04, vec![0x04, 0]), (0x04, vec![0x06, 0])),
        ("power state", (POWER, vec![3, 0]), (POWER, vec![0, 0])),
    ] {
        guest.config_write(stop.0, &stop.1);
        assert_eq!(guest.view(), View::NOTHING, "{name}");
        assert!(!guest.router.mmio_read(BAR, &mut [0; 4]), "{name}");
        assert_eq!(guest.query().mode, TableMode::Trapped);
        assert_eq!(guest.query().assigned, 4, "{name}: the vectors stay assigned");
        guest.raise(0);
        assert_eq!(guest.interrupts(), [0], "{name}: events still arrive");
        guest.config_write(start.0, &start.1);
        assert!(guest.is_direct(), "{name}");
        assert!(guest.masked(1) && !guest.masked(0), "{name}: mask bits as they were");
    }
}

#[test]
fn one_write_may_reset_a_function_and_stop_it() {
    let guest = configured(4);
    // All from Command to Device Control, as it is but for decoding and the reset.
    let mut data = [0; 0x5a - 0x04];
    assert!(guest.router.config_read(FUNCTION, 0x04, &mut data));
    data[0] = 0x04;
    data[0x59 - 0x04] |= 0x80;
    guest.config_write(0x04, &data);
    assert_eq!(guest.view(), View::NOTHING);
    guest.config_write(0x04, &[0x06, 0x00]);
    assert!(guest.is_direct());
    guest.raise(0);
    guest.raise(3);
    assert_eq!(guest.interrupts(), [0, 3]);
}

#[test]
fn a_bar_that_moves_is_unmapped_before_it_is_mapped() {
    let guest = configured(4);
    guest.window.shown();
    guest.config_write(0x10, &0xd000_0000_u32.to_le_bytes());
    let shown = guest.window.shown();
    assert!(shown.contains(&View::NOTHING));
    let last = shown.last().unwrap();
    assert_eq!(last.bars[0].unwrap().0, 0xd000_0000);
    assert_eq!(last.table, TableMode::Direct);
    assert!(guest.router.mmio_read(0xd000_0000, &mut [0; 4]));
    assert!(!guest.router.mmio_read(BAR, &mut [0; 4]));
}

#[test]
fn a_removed_function_is_gone() {
    let guest = configured(4);
    guest.function.remove().unwrap();
    assert_eq!(guest.view(), View::NOTHING);
    assert_eq!((guest.routes.routed(), guest.routes.attached()), (0, 0));
    assert_eq!(guest.function.remove(), Err(FunctionError::Removed(FUNCTION)));
    assert_eq!(
        guest.call(CallId::QueryFunction, &[]).unwrap_err(),
        pvmsi_protocol::CallError::NoSuchFunction
    );
}

#[test]
fn a_write_that_leaves_enable_clear_ends_an_ownership_that_was_never_enabled() {
    let guest = Guest::with_vectors(4);
    guest.configure(4);
    guest.control(0);
    assert_default(&guest);
    assert_serves_the_standard_table(&guest);
}

#[test]
fn machine_reset_wakes_a_function_that_sleeps() {
    let guest = configured(4);
    guest.config_write(POWER, &[3, 0]);
    guest.service.reset().unwrap();
    assert_eq!(guest.config_read(POWER) & 3, 0);
    guest.config_write(0x10, &0xc000_0000_u32.to_le_bytes());
    guest.config_write(0x04, &[0x06, 0x00]);
    assert_serves_the_standard_table(&guest);
}

#[test]
fn a_table_that_was_lost_while_decoding_was_off_comes_back_whatever_is_called_meanwhile() {
    let guest = configured(4);
    guest.config_write(0x04, &[0x04, 0x00]);
    guest.config_write(DEVICE_CONTROL, &0x8000_u16.to_le_bytes());
    guest.configure(4);
    guest.config_write(0x04, &[0x06, 0x00]);
    assert!(guest.is_direct());
    guest.raise(0);
    guest.raise(3);
    assert_eq!(guest.interrupts(), [0, 3]);
}

#[test]
fn a_configure_that_grows_mends_what_a_hidden_reset_has_cleared() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.configure(2);
    guest.store(CONTROL, RESET);
    guest.device.run();
    guest.configure(4);
    (0..4).for_each(|vector| guest.raise(vector));
    assert_eq!(guest.interrupts(), [0, 1, 2, 3]);
}

#[test]
fn the_pages_of_a_removed_function_go_before_calls_say_that_it_is_gone() {
    let known: Arc<OnceLock<Weak<Service>>> = Arc::default();
    let noted: Arc<Mutex<Vec<bool>>> = Arc::default();
    let routes = Arc::new(RecordedRoutes::new(0));
    let service = Arc::new(Service::new(ServiceConfig::new(X86_64), routes));
    let function = SoftwareFunction::new(SoftwareOptions::default(), 4096).unwrap();
    let (asked, notes) = (Arc::clone(&known), Arc::clone(&noted));
    // Whether the service still knows the function when its pages go.
    let window = RecordedWindow::with_hook(true, move |_| {
        if let Some(service) = asked.get().and_then(Weak::upgrade) {
            notes.lock().unwrap().push(service.function(FUNCTION).is_some());
        }
        Ok(())
    });
    let policy = FunctionPolicy::default();
    let function =
        service.add_function(FUNCTION, Box::new(function), window.share(), policy).unwrap();
    known.set(Arc::downgrade(&service)).unwrap();
    function.remove().unwrap();
    assert_eq!(noted.lock().unwrap().first(), Some(&true));
    assert!(service.functions().is_empty());
}

#[test]
fn release_where_nothing_is_assigned_leaves_the_emulated_table() {
    let guest = Guest::with_vectors(4);
    guest.control(ENABLE);
    guest.program(2, message(2));
    guest.mask(2);
    guest.raise(2);
    let generation = guest.status().generation;
    guest.call(CallId::Release, &[]).unwrap();
    assert_eq!(guest.status().generation, generation);
    guest.unmask(2);
    assert_eq!(guest.interrupts(), [2]);
}

/// The library has none, but what a VMM brings along may panic.
#[test]
fn a_function_that_panics_when_it_is_removed_is_gone() {
    let told = Arc::new(AtomicBool::new(false));
    let routes = Arc::new(RecordedRoutes::new(0));
    let service = Service::new(ServiceConfig::new(X86_64), routes);
    let add = || {
        let function = SoftwareFunction::new(SoftwareOptions::default(), 4096).unwrap();
        let told = Arc::clone(&told);
        let window = RecordedWindow::with_hook(true, move |_| {
            assert!(!told.swap(false, SeqCst), "told to panic");
            Ok(())
        });
        let policy = FunctionPolicy::default();
        service.add_function(FUNCTION, Box::new(function), window.share(), policy)
    };
    let function = add().unwrap();
    told.store(true, SeqCst);
    let removed = catch_unwind(AssertUnwindSafe(|| function.remove()));
    assert!(removed.is_err());
    assert!(service.functions().is_empty());
    add().unwrap();
}
