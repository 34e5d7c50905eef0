//! What only this architecture's machine has to say.

/// How the host is called.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    /// The instruction that calls the host.
    pub conduit: Conduit,
    /// The register that rings PV-MSI, a guest physical address, where the device tree names one.
    pub doorbell_register: Option<u64>,
}

/// The instruction of the SMC Calling Convention, as the device tree's `psci` node names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `HVC #0`.
    Hvc,
    /// `SMC #0`.
    Smc,
}
