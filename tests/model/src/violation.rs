//! The properties, each as what breaks it.

use bitflags::bitflags;

bitflags! {
    /// Rules that were broken on the way to a state, or are broken in it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Violations: u32 {
        /// An owed event waits nowhere.
        const LOST = 1 << 0;
        /// An event was delivered or waits that is not owed.
        const DOUBLED = 1 << 1;
        /// An event was delivered that might not fire, or with a message that is not the vector's.
        const MASKED = 1 << 2;
        /// An event waits although it may fire.
        const STUCK = 1 << 3;
        /// The guest has a mapping to a page on which the function does not answer, or at another address; or lacks one to a page on which it does.
        const MAPPING = 1 << 4;
        /// The host has touched a table that does not answer.
        const TOUCHED = 1 << 5;
        /// The table is direct although a reason holds, trapped although none does, or the reasons are wrong.
        const MODE = 1 << 6;
        /// Something of another function was touched.
        const FOREIGN = 1 << 7;
        /// An operation took more routing updates or interrupt set-ups than it may.
        const COST = 1 << 8;
        /// A GSI is kept that nobody needs, or given back while it is in use.
        const ROUTES = 1 << 9;
        /// The generation did not change with the assignment or the mode.
        const GENERATION = 1 << 10;
        /// The guest reads something else than the specification says.
        const READS = 1 << 11;
        /// A call failed that must succeed, succeeded that must fail, or failed and changed something.
        const CALLS = 1 << 12;
        /// The function's own MSI-X Enable is clear while the guest's is set, if only for a moment, or set while nobody wants it.
        const ENABLE = 1 << 13;
    }
}

/// A property: its name, what breaks it, and the rule that it checks.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// What breaks it.
    pub violations: Violations,
    /// The clause of the specification or the invariant.
    pub rule: &'static str,
}

/// All properties.
pub const PROPERTIES: &[Property] = &[
    Property {
        name: "no event is lost",
        violations: Violations::LOST,
        rule: "H-503, H-513, H-514, H-443",
    },
    Property { name: "no event is doubled", violations: Violations::DOUBLED, rule: "H-503, H-444" },
    Property {
        name: "nothing fires while masked",
        violations: Violations::MASKED,
        rule: "H-503, H-513, H-514, H-451, H-515",
    },
    Property {
        name: "what may fire does",
        violations: Violations::STUCK,
        rule: "H-513, H-514, H-519, H-453",
    },
    Property {
        name: "mapped where the function answers, and nowhere else",
        violations: Violations::MAPPING,
        rule: "H-532, H-511",
    },
    Property {
        name: "the host touches only a table that answers",
        violations: Violations::TOUCHED,
        rule: "the seam's contract",
    },
    Property {
        name: "direct exactly without a reason, and only isolated",
        violations: Violations::MODE,
        rule: "H-502, W-501",
    },
    Property {
        name: "only the function that is named",
        violations: Violations::FOREIGN,
        rule: "invariant 5",
    },
    Property {
        name: "one routing update, one interrupt set-up",
        violations: Violations::COST,
        rule: "invariant 6",
    },
    Property {
        name: "routes are taken when wanted and given back",
        violations: Violations::ROUTES,
        rule: "invariant 7",
    },
    Property {
        name: "the generation changes with what it numbers",
        violations: Violations::GENERATION,
        rule: "H-504",
    },
    Property {
        name: "the guest reads its own bits",
        violations: Violations::READS,
        rule: "H-510, H-531",
    },
    Property {
        name: "calls are answered as they must be",
        violations: Violations::CALLS,
        rule: "H-440, H-450, H-460, H-470",
    },
    Property {
        name: "the function is enabled while the guest has it enabled",
        violations: Violations::ENABLE,
        rule: "H-506",
    },
];
