//! A guest that is not linked with the shim works as today, in every policy.

use pvmsi::Doorbell;
use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::run_to_its_end;

#[test]
fn it_takes_interrupts_through_the_standard_table() {
    for policy in [Policy::Off, Policy::Trapped, Policy::Direct] {
        for doorbell in [Doorbell::Port, Doorbell::Mmio] {
            run_to_its_end("pvmsi-plain-guest", policy, doorbell);
        }
    }
}
