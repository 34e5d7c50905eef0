//! The clauses that no test tests, each with the reason.

/// A clause without a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excuse {
    /// The clause.
    pub clause: &'static str,
    /// Why it has no test.
    pub reason: &'static str,
}

/// All excuses; fewer than one in ten clauses may have one.
pub const fn excuses() -> [Excuse; 9] {
    [
        Excuse {
            clause: "H-110",
            reason: "which CPUID leaves a processor shows is seen only by a guest that runs",
        },
        Excuse {
            clause: "H-121",
            reason: "which instructions reach the host is seen only by a guest that runs",
        },
        Excuse {
            clause: "G-123",
            reason: "the conduit is an instruction, and no processor runs in this suite",
        },
        Excuse {
            clause: "W-124",
            reason: "the device tree is the machine's, not the host half's; tests of the VMM read it",
        },
        Excuse {
            clause: "H-507",
            reason: "which capabilities the function has is not the host half's; tests of the host service give it one with MSI",
        },
        Excuse {
            clause: "G-522",
            reason: "a load from a direct table leaves no trace that could be seen",
        },
        Excuse {
            clause: "H-517",
            reason: "it takes a host whose kernel moves interrupts; tests of the host service do what it does",
        },
        Excuse {
            clause: "G-523",
            reason: "handlers of interrupts are the kernel's, not the guest half's",
        },
        Excuse {
            clause: "G-621",
            reason: "commands to the ITS are the kernel's, not the guest half's",
        },
    ]
}
