//! Guests that are written in C work in every policy: on the guest half for C kernels, and on the one that was written from the specification alone.

use pvmsi::Doorbell;
use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::run_to_its_end;

#[test]
fn it_takes_interrupts_with_the_service_and_without() {
    in_every_policy("pvmsi-c-guest", "8 vectors");
}

#[test]
fn so_does_the_one_on_the_readers_guest_half() {
    in_every_policy("pvmsi-reader-guest", "4 vectors");
}

fn in_every_policy(guest: &str, vectors: &str) {
    for (policy, world) in [
        (Policy::Off, "legacy, trapped"),
        (Policy::Trapped, "paravirtual, trapped"),
        (Policy::Direct, "paravirtual, direct"),
    ] {
        for doorbell in [Doorbell::Port, Doorbell::Mmio] {
            let output = run_to_its_end(guest, policy, doorbell);
            let expected = format!("{vectors}, {world}\n");
            assert!(output.contains(&expected), "{policy:?} {doorbell:?}: {output}");
        }
    }
}
