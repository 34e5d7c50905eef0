//! How a guest reaches the service.

/// How the guest rings the doorbell of PV-MSI. The default is the port on x86_64 and HVC on arm64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// x86_64: by a write to I/O port 0x5650.
    Port,
    /// arm64: by an SMCCC call, with HVC or SMC.
    Hvc,
    /// By a write to a register in memory: at 0xFEBF_F000 on x86_64, at 0x0A00_0000 on arm64.
    Mmio,
}
