//! A guest that is written in C and linked with the guest half works in every policy.

use pvmsi::Doorbell;
use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::run_to_its_end;

#[test]
fn it_takes_interrupts_with_the_service_and_without() {
    for (policy, world) in [
        (Policy::Off, "legacy, trapped"),
        (Policy::Trapped, "paravirtual, trapped"),
        (Policy::Direct, "paravirtual, direct"),
    ] {
        for doorbell in [Doorbell::Port, Doorbell::Mmio] {
            let output = run_to_its_end("pvmsi-c-guest", policy, doorbell);
            let expected = format!("8 vectors, {world}\n");
            assert!(output.contains(&expected), "{policy:?} {doorbell:?}: {output}");
        }
    }
}
